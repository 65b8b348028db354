"""Claims on the papers' networks: what they cost, in closed form, and beside every published figure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from unrolling import models

from ..claim import Claim, Comparison, Measurement
from ..counting import Count, count
from ..counting import parameters as parameters_of
from ..mutants import named
from ..paper import sizes as paper
from ..sizes import SIZES, Size, printed_alike, published
from ..strategies import Case, cases

__all__ = ["CLAIMS"]

MEASURED = "matrix products and convolutions, counted on the running code; one multiply-add is one operation here"


def _run(model: models.Model, inputs: tuple[Any, ...], call: dict[str, Any]) -> Count:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*inputs, **call)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return Count(parameters, int(counter.get_total_flops()) // 2, 0)


def _image_sizes(case: Case) -> dict[str, int]:
    """Sizes of a small network from a case's numbers."""
    return {
        "K": case.heads,
        "d": 8 * case.heads * (1 + case.head_dim % 2),
        "L": 1 + case.m % 3,
        "rows": 2 + case.tokens % 3,
        "columns": 2 + case.seed % 4,
        "C": 1 + case.seed % 7,
        "channels": 1 + case.seed % 3,
    }


def _meta(make: Callable[[], models.Model], *shape: int, **call: Any) -> Count:
    with torch.device("meta"):
        return _run(make().eval(), (torch.empty(shape),), call)


def _white_box(case: Case) -> tuple[Count, tuple[int, int]]:
    s = _image_sizes(case)
    names = ("mssa", "cbsa", "tssa")
    kinds = [names[(case.seed + i) % 3] for i in range(s["L"])]
    rows, columns, d = s["rows"], s["columns"], s["d"]
    size = (8 * rows, 8 * columns)
    common: dict[str, Any] = {
        "img_size": size,
        "patch_size": 8,
        "in_chans": s["channels"],
        "num_classes": s["C"],
        "embed_dim": d,
        "depth": s["L"],
        "num_heads": s["K"],
    }
    if case.seed % 2:
        made = _meta(lambda: models.CRATE(**common), 1, s["channels"], *size)
        stem = paper.linear_stem_size(d, 64 * s["channels"], rows * columns)
        kinds = ["mssa"] * s["L"]
        if s["K"] == 1:  # one head as wide as the tokens has no output matrix
            common["num_heads"] = s["K"] = 2
            made = _meta(lambda: models.CRATE(**common), 1, s["channels"], *size)
    else:
        pool = (1 + case.m % 3, 2)
        made = _meta(
            lambda: models.CBT(**common, attention=tuple(kinds), representatives=pool), 1, s["channels"], *size
        )
        stem = paper.conv_stem_size(d, s["channels"], rows, columns, 3)
        return made, paper.white_box_size(d, s["K"], kinds, rows * columns, s["C"], pool[0] * pool[1], stem)
    return made, paper.white_box_size(d, s["K"], kinds, rows * columns, s["C"], 0, stem)


def _tost(case: Case) -> tuple[Count, tuple[int, int]]:
    s = _image_sizes(case)
    rows, columns, d = s["rows"], s["columns"], s["d"]
    made = _meta(
        lambda: models.ToST(
            patch_size=4,
            in_chans=s["channels"],
            num_classes=s["C"],
            embed_dim=d,
            depth=s["L"],
            num_heads=s["K"],
            class_layers=case.seed % 3,
            mlp_ratio=2.0,
        ),
        1,
        s["channels"],
        4 * rows,
        4 * columns,
    )
    stem = paper.conv_stem_size(d, s["channels"], rows, columns, 2)
    return made, paper.tost_size(d, s["K"], s["L"], case.seed % 3, 2 * d, rows * columns, s["C"], stem)


def _vit(case: Case) -> tuple[Count, tuple[int, int]]:
    s = _image_sizes(case)
    distilled = bool(case.seed % 2)
    size = (4 * s["rows"], 4 * s["columns"])
    made = _meta(
        lambda: models.ViT(
            img_size=size,
            patch_size=4,
            in_chans=s["channels"],
            num_classes=s["C"],
            embed_dim=s["d"],
            depth=s["L"],
            num_heads=s["K"],
            mlp_ratio=2.0,
            distilled=distilled,
        ),
        1,
        s["channels"],
        *size,
    )
    N = s["rows"] * s["columns"]
    return made, paper.vit_size(s["d"], s["L"], 2 * s["d"], N, s["C"], 16 * s["channels"], 1 + distilled)


def _mita(case: Case) -> tuple[Count, tuple[int, int]]:
    s = _image_sizes(case)
    size, N = (4 * s["rows"], 4 * s["columns"]), s["rows"] * s["columns"]
    options: dict[str, Any] = {
        "shared": case.seed % 3 > 0,
        "convolution": case.seed % 2 > 0,
        "gate": case.seed % 5 > 2,
    }
    pool, keys = (1 + case.m % 2, 2), 1 + case.tokens % 3
    made = _meta(
        lambda: models.MiTADeiT(
            img_size=size,
            patch_size=4,
            in_chans=s["channels"],
            num_classes=s["C"],
            embed_dim=s["d"],
            depth=s["L"],
            num_heads=s["K"],
            mlp_ratio=2.0,
            landmarks=pool,
            keys_per_expert=keys,
            **options,
        ),
        1,
        s["channels"],
        *size,
    )
    m = pool[0] * pool[1]
    return made, paper.mita_size(s["d"], s["L"], 2 * s["d"], N, s["C"], 16 * s["channels"], m, keys, **options)


def _decoder(case: Case) -> tuple[dict[str, Any], int, dict[str, Any]]:
    s = _image_sizes(case)
    common = {"num_classes": s["C"], "embed_dim": s["d"], "depth": s["L"], "num_heads": s["K"]}
    return common, s["rows"] * s["columns"], {"im_size": (16 * s["rows"], 16 * s["columns"])}


def _depict(case: Case) -> tuple[Count, tuple[int, int]]:
    common, N, call = _decoder(case)
    cross = case.seed % 3
    sizes = {"head_dim": 3 + case.head_dim, "cross_head_dim": 1 + case.head_dim}
    joint = "cross" if cross else "self"
    made = _meta(
        lambda: models.DEPICT(None, **common, **sizes, attention=joint, cross_depth=max(1, cross)),
        1,
        N,
        common["embed_dim"],
        **call,
    )
    d, C, L, K = (common[name] for name in ("embed_dim", "num_classes", "depth", "num_heads"))
    return made, paper.depict_size(d, K, sizes["head_dim"], L, N, C, cross, sizes["cross_head_dim"])


def _cbt_decoder(case: Case) -> tuple[Count, tuple[int, int]]:
    common, N, call = _decoder(case)
    p, pool = 3 + case.head_dim, (1 + case.m % 3, 2)
    made = _meta(
        lambda: models.CBTDecoder(**common, head_dim=p, representatives=pool), 1, N, common["embed_dim"], **call
    )
    d, C, L, K = (common[name] for name in ("embed_dim", "num_classes", "depth", "num_heads"))
    return made, paper.cbt_decoder_size(d, K, p, L, N, C, pool[0] * pool[1])


def _mask_decoder(case: Case) -> tuple[Count, tuple[int, int]]:
    common, N, call = _decoder(case)
    outer = 5 + case.seed % 4
    made = _meta(
        lambda: models.MaskDecoder(**{**common, "embed_dim": outer, "dim": common["embed_dim"], "mlp_ratio": 3.0}),
        1,
        N,
        outer,
        **call,
    )
    d, C, L = common["embed_dim"], common["num_classes"], common["depth"]
    return made, paper.mask_decoder_size(outer, d, L, 3 * d, N, C)


def _formula(build: Callable[[Case], tuple[Count, tuple[int, int]]]) -> Callable[[Any, Case], Measurement]:
    def measure(subject: Any, case: Case) -> Measurement:
        made, want = build(case)
        parameters, operations = subject(*want, case)
        return Measurement(
            (
                Comparison("parameters", abs(made.parameters - parameters), 0.0),
                Comparison("multiply-adds", abs(made.multiply_adds - operations), 0.0),
            ),
            values={"parameters": made.parameters, "multiply-adds": made.multiply_adds},
        )

    return measure


def _closed_form(family: str, sentence: str, equation: str, source: str, build: Any, code: str) -> Claim:
    return Claim(
        id=f"models.formula.{family}",
        statement=f"{sentence} costs what its block equations say: parameters and multiply-adds, for any sizes.",
        equation=equation,
        source=f"{source}; {MEASURED}",
        kind="cost",
        domain=cases(batches=(0,), kinds=("gaussian",), scales=(1.0,)),
        subject=lambda parameters, operations, case: (parameters, operations),
        measure=_formula(build),
        mutants=named(
            two_operations_a_multiply_add=lambda parameters, operations, case: (parameters, 2 * operations),
            one_parameter_forgotten=lambda parameters, operations, case: (parameters - 1, operations),
            one_product_more=lambda parameters, operations, case: (parameters, operations + _image_sizes(case)["d"]),
        ),
        structured=(Case(), Case(tokens=1, seed=1), Case(heads=1, seed=2), Case(heads=3, m=5, seed=3)),
        code=(code,),
        real=False,
    )


FORMULAS = (
    _closed_form(
        "white_box",
        "CRATE, CBT or a mixture of MSSA, CBSA and TSSA",
        r"$L\,(2nd^2 + 2nd^2 + \{2n^2 d,\; 3nmd + 2m^2 d,\; nd\})$ and stem, $n = N + 1$",
        "CBSA, arXiv 2509.16875, table 1; CRATE, arXiv 2306.01129, eq. 14 and 17, two products of ISTA's three",
        _white_box,
        "unrolling.models.cbt:CBT",
    ),
    _closed_form(
        "tost",
        "ToST",
        r"$L\,(2Nd^2 + Nd + 8Nd^2)$, stem, positions and class attention with one query",
        "ToST, arXiv 2412.17810, and its released code",
        _tost,
        "unrolling.models.tost:ToST",
    ),
    _closed_form(
        "vit",
        "ViT, distilled or not,",
        r"$L\,(4nd^2 + 2n^2 d + 8nd^2)$, stem and head",
        "ViT, arXiv 2010.11929",
        _vit,
        "unrolling.models.vit:ViT",
    ),
    _closed_form(
        "mita",
        "MiTA-DeiT, with convolution, gate or routed experts alone,",
        r"$L\,(4nd^2 + 4nmd + 2nkd + 8nd^2)$, stem and head",
        "MiTA, arXiv 2602.01219, with one set of scores for routing and for the shared expert",
        _mita,
        "unrolling.models.mita_vit:MiTADeiT",
    ),
    _closed_form(
        "depict",
        "DEPICT-SA or DEPICT-CA",
        r"$L\,(2ndKp + 2n^2 Kp)$, cross-attention $(N + 2C)dKp' + 2CNKp'$, masks $NCd$",
        "DEPICT, arXiv 2411.03033, and its released code",
        _depict,
        "unrolling.models.depict:DEPICT",
    ),
    _closed_form(
        "cbt_decoder",
        "CBT's decoder",
        r"$L\,(2ndKp + (3nm + 2m^2)Kp) + NCd$, $n = N + C$",
        "CBSA, arXiv 2509.16875, table 1 and section 4.2",
        _cbt_decoder,
        "unrolling.models.depict:CBTDecoder",
    ),
    _closed_form(
        "mask_decoder",
        "Segmenter's mask transformer",
        r"$Nd'd + L\,(4nd^2 + 2n^2 d + 2nhd) + nd^2 + NCd$, $n = N + C$",
        "Segmenter, arXiv 2105.05633, and its released code",
        _mask_decoder,
        "unrolling.models.segmenter:MaskDecoder",
    ),
)


def _published(size: Size) -> Callable[[Any, Case], Measurement]:
    def measure(subject: Any, case: Case) -> Measurement:
        parameters, operations = subject(parameters_of(size.name)[0], size.explained() if size.operations else 0.0)
        done = []
        if size.released is not None:
            done.append(Comparison("the released network's parameters", abs(parameters - size.released), 0.0))
        if size.parameters:
            alike = printed_alike((parameters - size.extra) / 1e6, size.parameters)
            done.append(Comparison("printed parameters", 0.0 if alike else 1.0, 0.0))
        if size.operations:
            figure = published(size.operations)
            off = 0.0 if printed_alike(operations, size.operations) else abs(operations / figure - 1)
            done.append(Comparison("printed operations", off, 0.03))
        values = {"parameters": float(parameters)} | ({"operations as printed": operations} if size.operations else {})
        return Measurement(tuple(done), values=values)

    return measure


def _statement(size: Size) -> str:
    parts = []
    if size.released is not None:
        parts.append(f"has the {size.released:,} parameters of the released network")
    if size.parameters:
        parts.append(f"{size.parameters} as printed")
    if size.operations:
        parts.append(f"{size.operations} operations as printed, within 3 %")
    said = f"; {size.says}" if size.says else ""
    return f"{size.name} {', '.join(parts)}{said}."


def _of(size: Size) -> Claim:
    """The claim on one size, and wrong counts that it must reject."""
    mutants: dict[str, Callable[[int, float], tuple[int, float]]] = {
        "one_block_or_class_fewer": lambda parameters, operations: _smaller(size, operations),
        "vectors_left_out": lambda parameters, operations: (parameters - parameters_of(size.name)[1], operations),
        "one_class_more": lambda parameters, operations: (_more_classes(size), operations),
    }
    if size.operations:
        mutants["other_convention"] = lambda parameters, operations: (
            parameters,
            operations * (0.5 if size.per == 2 else 2),
        )
    return Claim(
        id=size.id,
        statement=_statement(size),
        equation=_equation(size),
        source=size.source,
        kind="cost",
        domain=st.just(Case()),
        subject=lambda parameters, operations: (parameters, operations),
        measure=_published(size),
        mutants=named(**mutants),
        structured=(Case(),),
        code=(_home(size),),
        real=False,
    )


def _equation(size: Size) -> str:
    counted = f"{size.released:,}".replace(",", r"\,") if size.released is not None else "?"
    return rf"$\#\theta = {counted}$" + (rf", ${size.operations.strip('≈G')}$ G" if size.operations else "")


def _smaller(size: Size, operations: float) -> tuple[int, float]:
    """A network with one block less; one class less where there are no blocks to take from."""
    config: Any = models.MODELS[size.name][1]()
    attention = getattr(config, "attention", None)
    if isinstance(config, (models.LinearDecoderConfig, models.SegmenterConfig)):
        changes: tuple[tuple[str, Any], ...] = (("num_classes", 149),)
    elif isinstance(attention, tuple):
        changes = (("depth", config.depth - 1), ("attention", attention[:-1]))
    else:
        changes = (("depth", config.depth - 1),)
    share = 1.0
    if size.operations:
        share = count(size.name, "", changes).multiply_adds / size.counted().multiply_adds
    return parameters_of(size.name, changes)[0], operations * share


def _more_classes(size: Size) -> int:
    config: Any = models.MODELS[size.name][1]()
    classes = 150 if isinstance(config, models.SegmenterConfig) else config.num_classes
    return parameters_of(size.name, (("num_classes", classes + 1),))[0]


def _home(size: Size) -> str:
    kind = models.MODELS[size.name][0]
    return f"{kind.__module__}:{kind.__name__}"


CLAIMS: tuple[Claim, ...] = (
    *FORMULAS,
    *(_of(size) for size in SIZES if size.released or size.parameters or size.operations),
)
