"""Figures of a trace hold the trace's numbers."""

import xml.etree.ElementTree as ElementTree

import pytest
import torch

from unrolling import Trace
from unrolling import models as m
from unrolling.plots import plot_reductions, plot_trace, svg_of

FIELDS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3, "num_classes": 5}


@pytest.fixture(scope="module")
def trace():
    torch.manual_seed(0)
    model = m.CBT(**FIELDS, representatives=(2, 2), attention=("mssa", "cbsa", "cbsa"))
    return model.trace(torch.randn(2, 3, 32, 32))


def titled(figure, text):
    return next(axes for axes in figure.axes if text in axes.get_title(loc="left"))


def test_rates_and_cosines_are_drawn_block_by_block(trace):
    figure = plot_trace(trace)
    for text, field in (("tokens as they are", "rate"), ("tokens at norm 1", "unit_rate")):
        lines = titled(figure, text).get_lines()
        assert [line.get_label() for line in lines] == ["before", "after attention", "after the block"]
        for index, line in enumerate(lines):
            drawn = [float(getattr(record, field).double().mean(0)[index]) for record in trace]
            assert line.get_ydata() == pytest.approx(drawn)
    bars = titled(figure, "Cosine").patches
    assert [bar.get_height() for bar in bars] == pytest.approx(
        [float(record.cosine.double().mean()) for record in trace]
    )
    low, high = titled(figure, "Cosine").get_ylim()
    assert low < min(bar.get_height() for bar in bars)
    assert high > max(bar.get_height() for bar in bars)


@pytest.mark.parametrize("draw", [plot_trace, plot_reductions])
def test_reductions_are_a_point_a_head_and_a_bar_for_their_mean(trace, draw):
    figure = draw(trace)
    for who, field in (("tokens, head", "token_reduction"), ("representatives, head", "representative_reduction")):
        lines = titled(figure, who).get_lines()
        points = {line.get_xdata()[0]: line.get_ydata() for line in lines if len(line.get_xdata()) == 3}
        bars = [line.get_ydata()[0] for line in lines if len(line.get_xdata()) == 2][:-1]  # the last is the axis
        rows = {i: getattr(record, field) for i, record in enumerate(trace) if getattr(record, field) is not None}
        assert set(points) == set(rows) == ({0, 1, 2} if field == "token_reduction" else {1, 2})
        for place, row in rows.items():
            assert points[place] == pytest.approx(row.double().mean(0).tolist())
        assert bars == pytest.approx([float(row.double().mean()) for row in rows.values()])


def test_a_network_without_representatives_has_no_panel_of_theirs():
    trace = m.ViT(**FIELDS).trace(torch.randn(1, 3, 32, 32))
    assert len(plot_reductions(trace).axes) == 1
    assert not any("representatives" in axes.get_title(loc="left") for axes in plot_trace(trace).axes)


def test_figures_are_written_and_become_svg(trace, tmp_path):
    plot_trace(trace, tmp_path / "trace.png")
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    plot_reductions(trace, tmp_path / "reductions.pdf")
    assert (tmp_path / "reductions.pdf").read_bytes().startswith(b"%PDF")
    text = svg_of(plot_reductions(trace))
    assert ElementTree.fromstring(text).tag.endswith("svg")
    assert "head by head" in text  # as text, not as outlines
    assert text == svg_of(plot_reductions(trace))


def test_what_is_no_trace_is_refused():
    with pytest.raises(TypeError, match=r"a dict was given; call model.trace\(x\) first"):
        plot_trace({})
    with pytest.raises(ValueError, match="the trace has no blocks"):
        plot_reductions(Trace("empty", None, ()))
