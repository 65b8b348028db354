"""The table of published sizes: its figures, its command, its place in the report."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from proofs_check.__main__ import main
from proofs_check.counting import count, parameters
from proofs_check.sizes import HEAD, SIZES, Size, notes, plain_table, printed_alike, row, table_html
from unrolling import models as m


def test_every_named_network_stands_in_the_table_once():
    named = [size.name for size in SIZES]
    assert len(set(named)) == len(named)
    # A Segmenter is put together of any encoder and decoder; the published ones stand for the others.
    missing = {name for name in m.MODELS if name not in named}
    assert all("+" in name for name in missing), missing
    assert not [name for name in named if name not in m.MODELS]


@pytest.mark.parametrize("name", ["cbt-tiny", "depict-ca-tiny", "mita-deit-tiny-dwc"])
def test_parameters_are_those_of_the_built_network(name):
    model = m.create(name)
    every, vectors = parameters(name)
    assert every == sum(p.numel() for p in model.parameters())
    assert vectors == sum(p.numel() for p in model.parameters() if p.ndim <= 1)


def test_operations_are_counted_on_shapes_as_on_numbers():
    model = m.create("crate-tiny", depth=1).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randn(1, 3, 224, 224))
    assert count("crate-tiny", "", (("depth", 1),)).multiply_adds == counter.get_total_flops() // 2
    D, N = 384, 196
    stem, head = N * 3 * 256 * D, D * 1000
    mssa = 2 * (N + 1) * D * D + 2 * (N + 1) ** 2 * D  # projection in and out, scores and their sums
    ista = 2 * (N + 1) * D * D
    assert count("crate-tiny", "", (("depth", 1),)).multiply_adds == stem + mssa + ista + head


def test_masks_and_all_but_blocks_are_left_out_where_a_paper_does():
    plain, masks = count("depict-sa-tiny"), count("depict-sa-tiny", "masks")
    assert plain.multiply_adds - masks.multiply_adds == 1024 * 150 * 192
    N, D = 1024 + 150, 192
    block = 4 * N * D * D + 2 * N * N * D + 2 * N * D * 4 * D  # attention's projections, its products, the MLP
    assert count("segmenter-mask-tiny", "blocks").multiply_adds == 2 * block


@pytest.mark.parametrize(
    ("value", "text", "alike"),
    [(5.717, "5.7M", True), (5.76, "5.7M", False), (21.6, "22M", True), (4.35, "4.4G", False)],
)
def test_printed_figures_are_compared_as_printed(value, text, alike):
    assert printed_alike(value, text) is alike


def test_a_row_holds_counts_and_the_difference():
    size = Size("crate-tiny", None, "6.1M", "4.0G", 2)
    cells = dict(zip((*HEAD[:2], "printed", *HEAD[3:4], "operations", *HEAD[5:]), row(size), strict=True))
    assert cells["parameters"] == "6,090,856"
    assert cells["multiply-adds"] == "1.810G"
    assert cells["as the paper counts"] == "3.62G"
    assert cells["difference"] == "-9.5 %"
    assert cells["tokens"] == "197"


def test_the_table_is_in_columns():
    lines = plain_table([("a", "1"), ("long name", "23")], ("name", "count")).splitlines()
    assert lines == ["name       count", "a              1", "long name     23"]


def test_every_difference_beyond_rounding_is_explained():
    for size in SIZES:
        if size.operations or size.extra:
            assert size.says, size.name
            assert f"{size.name}: {size.says}" in notes()


def test_the_report_has_the_table():
    page = ElementTree.fromstring(f"<main>{table_html()}</main>")
    rows = page.findall(".//tbody/tr")
    assert len(rows) == len(SIZES)
    cells = [cell.text for cell in rows[3].findall("td")]
    assert cells[0] == "77,641,192"
    assert rows[3].find("th/a").attrib["href"] == "#claim-models.crate_large"


def test_the_command_prints_the_table_names_and_json(capsys):
    assert main(["models", "--list"]) == 0
    assert capsys.readouterr().out.split() == list(m.MODELS)
    assert main(["models"]) == 0
    text = capsys.readouterr().out
    assert re.search(r"^cbt-base +25,691,752 +25\.7M +7\.595G +15\.1G +15\.2G +\+0\.6 % +197$", text, re.MULTILINE)
    assert main(["models", "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)
    assert [entry["name"] for entry in entries] == [size.name for size in SIZES]
    assert entries[0] == {
        "name": "crate-tiny",
        "parameters": 6_090_856,
        "published_parameters": None,
        "multiply_adds": count("crate-tiny").multiply_adds,
        "published_operations": None,
        "operations_as_published": None,
        "difference": None,
        "tokens": 197,
        "source": SIZES[0].source,
        "says": "",
    }
    base = next(entry for entry in entries if entry["name"] == "cbt-base")
    assert base["published_operations"] == "15.1G"
    assert base["operations_as_published"] == pytest.approx(2 * base["multiply_adds"] / 1e9)
    assert base["difference"] == pytest.approx(2 * base["multiply_adds"] / 15.1e9 - 1)


def test_nothing_is_allocated_to_count():
    assert next(iter(_meta("mita-vit5-extra-large").parameters())).is_meta


def _meta(name) -> nn.Module:
    with torch.device("meta"):
        return m.create(name)
