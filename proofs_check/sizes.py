"""The sizes of the papers' networks: parameters and operations counted on ours, beside what is published."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from .counting import Count, count

__all__ = ["SIZES", "Size", "entry", "notes", "plain_table", "row", "table_html"]


@dataclass(frozen=True)
class Size:
    """One network as it was published.

    name: of :data:`unrolling.models.MODELS`. released: parameters of the released module, exactly, None where none was
    counted. parameters: as printed, "1.8M". operations: as printed, "1.1G"; approximate where read off a plot. per: what
    the paper counts for one multiply-add, 2 or 1. less: what it leaves out: "" nothing, "masks" the product of patches and
    classes, "blocks" everything but the blocks. changes: what of the configuration must differ for the figure to be met.
    extra: parameters of ours that the printed figure leaves out. source: where it is printed. says: what explains a
    difference, for the ledger.
    """

    name: str
    released: int | None = None
    parameters: str = ""
    operations: str = ""
    per: int = 1
    less: str = ""
    changes: tuple[tuple[str, Any], ...] = ()
    extra: int = 0
    source: str = ""
    says: str = ""

    @property
    def id(self) -> str:
        """The claim's id."""
        return "models." + self.name.replace("-", "_").replace("+", "_")

    def counted(self) -> Count:
        """Our counts of the published configuration."""
        return count(self.name, "", ())

    def explained(self) -> float:
        """Our operations as the paper counts them, in units of ``operations``: its convention, what it leaves out."""
        return self.per * count(self.name, self.less, self.changes).multiply_adds / 1e9


CRATE, CBSA = "CRATE, arXiv 2306.01129; counted by CBSA, arXiv 2509.16875, table 3", "CBSA, arXiv 2509.16875"
MITA, DEPICT = "MiTA, arXiv 2602.01219", "DEPICT, arXiv 2411.03033, performance figure of its repository"
SEGMENTER = "Segmenter, arXiv 2105.05633, and its repository"
TOST = "ToST, arXiv 2412.17810, released code; no figures are printed there"
TWO = "2 per multiply-add, two of ISTA's three products, as ours takes"
REUSED = "one per multiply-add; the scores that route a query are those of the shared expert, counted once"

SIZES: tuple[Size, ...] = (
    Size("crate-tiny", 6_090_856, source="CRATE's released code"),
    Size("crate-small", 13_116_328, source="CRATE's released code"),
    Size("crate-base", 22_796_008, "22.8M", "12.6G", 2, source=CRATE, says=TWO),
    Size("crate-large", 77_641_192, "77.6M", "43.3G", 2, source=CRATE, says=TWO),
    Size("cbt-tiny", 1_789_192, "1.8M", "1.1G", 2, source=f"{CBSA}, table 3", says=TWO),
    Size("cbt-small", 6_667_048, "6.7M", "4.0G", 2, source=f"{CBSA}, table 3", says=TWO),
    Size("cbt-base", 25_691_752, "25.7M", "15.1G", 2, source=f"{CBSA}, table 3", says=TWO),
    Size("cbt-large", 83_051_368, "83.1M", "47.3G", 2, source=f"{CBSA}, table 3", says=TWO),
    Size("cbt-tiny-mssa", 1_789_120, source=f"{CBSA}, released code (its CRATE-T)"),
    Size("cbt-small-mssa", 6_666_904, source=f"{CBSA}, released code (its CRATE-S)"),
    Size("cbt-tiny-tssa", 1_789_156, source=f"{CBSA}, released code (its ToST-T)"),
    Size("cbt-small-tssa", 6_666_976, source=f"{CBSA}, released code (its ToST-S)"),
    *(
        Size(f"cbt-{name}-hybrid", exact, source=f"{CBSA}, section 4.1, without code: the released blocks put together")
        for name, exact in (("tiny", 1_789_156), ("small", 6_666_976), ("base", 25_691_608), ("large", 83_050_984))
    ),
    Size("tost-tiny-12", 5_769_328, source=TOST),
    Size("tost-small-12", 22_589_944, source=TOST),
    Size("tost-tiny-24", 10_223_008, source=TOST),
    Size("tost-small-24", 40_344_664, source=TOST),
    Size("tost-medium-24", 71_481_064, source=TOST),
    Size("tost-large-24", 160_286_920, source=TOST),
    *(
        Size(f"tost-{name}-p8", exact, source=TOST)
        for name, exact in (
            ("tiny-12", 5_759_560),
            ("small-12", 22_549_672),
            ("tiny-24", 10_213_240),
            ("small-24", 40_304_392),
            ("medium-24", 71_408_936),
            ("large-24", 160_123_432),
        )
    ),
    Size("vit-tiny", 5_717_416, source="timm's ViT, adapted in MiTA's and CBSA's code"),
    Size("vit-small", 22_050_664, source="timm's ViT, adapted in MiTA's and CBSA's code"),
    Size("vit-base", 86_567_656, source="timm's ViT, adapted in CBSA's code"),
    Size("vit-large", 304_326_632, source="timm's ViT, as in ViT, arXiv 2010.11929"),
    Size("mita-deit-tiny", 5_717_416, "5.7M", "1.1G", source=MITA, says=REUSED),
    Size("mita-deit-tiny-dwc", 5_740_456, "5.7M", "1.1G", source=MITA, says=REUSED),
    Size("mita-deit-tiny-dwc-gate", 6_185_128, source=f"{MITA}, released code"),
    Size("mita-deit-tiny-route", 5_717_416, source=f"{MITA}, released code"),
    Size("mita-deit-tiny-agent", 5_717_416, source=f"{MITA}, released code"),
    Size("mita-deit-small", 22_050_664, "22M", "4.4G", source=MITA, says=REUSED),
    Size("mita-deit-small-dwc", 22_096_744, "22M", "4.4G", source=MITA, says=REUSED),
    Size(
        "mita-deit-small-dwc-gate",
        23_870_824,
        "22M",
        "4.7G",
        extra=12 * (384 * 384 + 384),
        source=MITA,
        says=f"{REUSED}; the printed parameters leave out the gate's projection, 12 (384² + 384): with it they are 23.9M",
    ),
    Size("mita-deit-small-route", 22_050_664, source=f"{MITA}, released code"),
    Size("mita-deit-small-agent", 22_050_664, source=f"{MITA}, released code"),
    Size("mita-vit5-small", 22_039_144, "22M", "4.5G", source=MITA, says=REUSED),
    Size("mita-vit5-small-dwc", 22_085_224, "22M", "4.5G", source=MITA, says=REUSED),
    Size("mita-vit5-base", 86_543_080, source=f"{MITA}, released code"),
    Size("mita-vit5-large", 304_258_024, source=f"{MITA}, released code"),
    Size("mita-vit5-extra-large", 448_505_128, source=f"{MITA}, released code"),
    Size(
        "depict-sa-tiny", 203_439, "", "≈5.8G", 2, "masks", source=DEPICT, says="2 per multiply-add, read off the plot"
    ),
    Size(
        "depict-sa-small", 406_575, "", "≈6.7G", 2, "masks", source=DEPICT, says="2 per multiply-add, read off the plot"
    ),
    Size(
        "depict-sa-base", 812_847, "", "≈8.3G", 2, "masks", source=DEPICT, says="2 per multiply-add, read off the plot"
    ),
    Size(
        "depict-sa-large",
        1_083_695,
        "",
        "≈35G",
        2,
        "masks",
        (("depth", 6),),
        source=DEPICT,
        says="not of the published configuration, 3 layers (17.5G): 6 layers at 640 pixels fit, 2 per multiply-add",
    ),
    Size("depict-ca-tiny", 291_378, source="DEPICT's released code"),
    Size("depict-ca-small", 582_450, source="DEPICT's released code"),
    Size("depict-ca-base", 1_164_594, source="DEPICT's released code"),
    Size("depict-ca-large", 1_552_690, source="DEPICT's released code"),
    Size(
        "cbt-decoder-tiny",
        376_830,
        "",
        "1.5G",
        2,
        "masks",
        source=f"{CBSA}, README",
        says="2 per multiply-add, without the product of patches and classes",
    ),
    Size(
        "cbt-decoder-small",
        753_342,
        "",
        "2.3G",
        2,
        "masks",
        source=f"{CBSA}, README",
        says="2 per multiply-add, without the product of patches and classes",
    ),
    Size(
        "cbt-decoder-base",
        1_506_366,
        "",
        "7.8G",
        2,
        "masks",
        (("depth", 6),),
        source=f"{CBSA}, README",
        says="not of the published configuration, 3 layers (3.9G): 6 layers fit, 2 per multiply-add, without masks",
    ),
    Size(
        "cbt-decoder-large",
        2_008_382,
        "",
        "22.3G",
        2,
        "masks",
        (("depth", 9),),
        source=f"{CBSA}, README",
        says="not of the published configuration, 3 layers (7.4G at 640 pixels): 9 layers fit, 2 per multiply-add,"
        " without masks",
    ),
    *(
        Size(
            f"segmenter-mask-{size}",
            exact,
            "",
            printed,
            2,
            "blocks",
            source=DEPICT,
            says="2 per multiply-add, the two transformer blocks alone: without projections, class matrices and masks",
        )
        for size, exact, printed in (
            ("tiny", 1_029_996, "≈4.3G"),
            ("small", 4_050_348, "≈12.6G"),
            ("base", 16_063_020, "≈41.7G"),
            ("large", 28_495_148, "≈113G"),
        )
    ),
    *(
        Size(f"segmenter-linear-{size}", exact, source=SEGMENTER)
        for size, exact in (("tiny", 28_950), ("small", 57_750), ("base", 115_350), ("large", 153_750))
    ),
    Size(
        "segmenter-tiny+segmenter-mask",
        5_876_392 + 1_029_996,
        "7M",
        source=SEGMENTER,
        says="with positions at 512 pixels",
    ),
    Size(
        "segmenter-small+segmenter-mask",
        22_368_616 + 4_050_348,
        "27M",
        extra=-4 * 384**2,
        source=SEGMENTER,
        says="the released modules have 26.4M; 4 d² more, two d × d matrices a decoder block, give the printed 27M",
    ),
    Size(
        "segmenter-base+segmenter-mask",
        87_203_560 + 16_063_020,
        "106M",
        extra=-4 * 768**2,
        source=SEGMENTER,
        says="the released modules have 103.3M; 4 d² more, two d × d matrices a decoder block, give the printed 106M",
    ),
    Size("segmenter-large+segmenter-mask", 305_764_328 + 28_495_148, "334M", source=SEGMENTER, says="at 640 pixels"),
    *(
        Size(f"mita-segmenter-{size}", exact, source=f"{MITA}, released code")
        for size, exact in (
            ("tiny", 5_876_392 + 376_830),
            ("small", 22_368_616 + 753_342),
            ("base", 87_203_560 + 1_506_366),
            ("large", 305_764_328 + 2_008_382),
        )
    ),
)
"""Every network of a published size. Released counts were taken by building the released modules (shared notes)."""


HEAD: tuple[str, ...] = (
    "network",
    "parameters",
    "published",
    "multiply-adds",
    "published",
    "as the paper counts",
    "difference",
    "tokens",
)


def row(size: Size) -> tuple[str, ...]:
    """One network by :data:`HEAD`; the difference is of operations as the paper counts them, in percent."""
    counted = size.counted()
    explained, difference = "–", "–"
    if size.operations:
        explained = f"{size.explained():.3g}G"
        difference = f"{100 * (size.explained() / published(size.operations) - 1):+.1f} %"
    return (
        size.name,
        f"{counted.parameters:,}",
        size.parameters or "–",
        f"{counted.multiply_adds / 1e9:.3f}G",
        size.operations or "–",
        explained,
        difference,
        f"{counted.tokens:,}",
    )


def entry(size: Size) -> dict[str, Any]:
    """The same as plain data; operations as published are in the unit of the printed figure, the difference is a share."""
    counted = size.counted()
    explained = size.explained() if size.operations else None
    return {
        "name": size.name,
        "parameters": counted.parameters,
        "published_parameters": size.parameters or None,
        "multiply_adds": counted.multiply_adds,
        "published_operations": size.operations or None,
        "operations_as_published": explained,
        "difference": explained and explained / published(size.operations) - 1,
        "tokens": counted.tokens,
        "source": size.source,
        "says": size.says,
    }


def published(text: str) -> float:
    """The number that is printed as "12.6G" or "≈35G", in its unit."""
    return float(text.strip("≈GM"))


def printed_alike(value: float, text: str) -> bool:
    """Whether a value, rounded as the printed figure is, is that figure."""
    digits = text.strip("≈GM")
    decimals = len(digits.partition(".")[2])
    return f"{value:.{decimals}f}" == digits


def plain_table(made: Sequence[tuple[str, ...]], head: tuple[str, ...] = HEAD, left: int = 1) -> str:
    """The rows as text in columns, the first ``left`` of them to the left."""
    every: list[tuple[str, ...]] = [head, *made]
    widths = [max(len(row[i]) for row in every) for i in range(len(head))]
    lines = []
    for row in every:
        cells = [
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def table_html() -> str:
    """The same as an HTML table, each explanation under its row's figures, for the report."""
    head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
    body = ""
    for size in SIZES:
        first, *others = row(size)
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in others)
        said = f"<small>{escape(size.says)}</small>" if size.says else ""
        body += f'<tr><th scope="row"><a href="#claim-{escape(size.id)}">{escape(first)}</a>{said}</th>{cells}</tr>'
    note = (
        "Parameters and multiply-adds of one image, counted on the networks without running them: matrix products and"
        " convolutions. Beside them what is printed; ≈ was read off a plot. “As the paper counts”: our operations in the"
        " paper's convention, which the small print names; the difference is of these two."
    )
    return (
        f'<p class="note">{escape(note)}</p><div class="wide"><table class="sizes"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def notes() -> str:
    """What explains the differences, a line a network."""
    return "\n".join(f"{size.name}: {size.says} ({size.source})" for size in SIZES if size.says)
