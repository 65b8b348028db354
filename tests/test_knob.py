"""Knobs: drawn beforehand where no kernel answers, and turned there by the page alone."""

import base64
import re
import sys

import matplotlib.pyplot as plt
import pytest

from unrolling import knob as module
from unrolling.knob import STATIC, frames, knob


def draw(value):
    plt.subplots(figsize=(1, 1))[1].plot([0, value])


@pytest.fixture
def shown(monkeypatch):
    pytest.importorskip("IPython")
    monkeypatch.setenv(STATIC, "1")
    seen = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: seen.append(data))
    return seen


def test_all_values_are_drawn_and_the_first_shown(shown):
    knob(draw, "ε", [0.25, 1.0, 3.0], start=1, text="a <line>")
    page, picture = shown[0]["text/html"], shown[0]["image/png"]
    images = re.findall(r"<img ([^>]*)>", page)
    assert len(images) == 3
    assert [" hidden " in image for image in images] == [True, False, True]
    assert picture in images[1]
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert 'max="2"' in page
    assert 'value="1"' in page
    assert 'data-labels="0.25|1|3"' in page
    assert "a &lt;line&gt;, ε = 0.25" in page
    assert "<button" not in page
    assert not re.search(r"https?://", page)


def test_pictures_differ_with_the_value_and_none_stays_open():
    found = frames(draw, "x", [1, 2])
    assert found[0] != found[1]
    assert plt.get_fignums() == []


def test_a_button_plays(shown):
    knob(draw, "steps", [0, 1], play=True)
    assert "<button" in shown[0]["text/html"]


def test_without_a_kernel_knobs_are_drawn_beforehand(shown, monkeypatch):
    monkeypatch.delenv(STATIC)
    knob(draw, "x", [1, 2])
    assert len(shown) == 1


def test_without_ipywidgets_knobs_are_drawn_beforehand(shown, monkeypatch):
    monkeypatch.delenv(STATIC)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    knob(draw, "x", [1, 2])
    assert len(shown) == 1


def test_in_a_kernel_a_slider_draws_as_it_is_turned(monkeypatch):
    widgets = pytest.importorskip("ipywidgets")

    class Shell:
        kernel = object()

    drawn, made = [], []
    monkeypatch.delenv(STATIC, raising=False)
    monkeypatch.setattr("IPython.get_ipython", lambda: Shell())
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    monkeypatch.setattr(widgets, "interact", lambda shown, value: made.append((shown, value)))
    knob(lambda value: (drawn.append(value), draw(value)), "ε", [0.5, 2.0, 4.0], start=2)
    ((shown, slider),) = made
    assert slider.options == (("0.5", 0), ("2", 1), ("4", 2))
    assert slider.value == 2
    shown(value=1)
    assert drawn == [2.0]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: knob(draw, "ε", [1]), "1 value.* of ε"),
        (lambda: knob(draw, "ε", [1, 2], start=2), "start=2 for 2 values"),
        (lambda: frames(lambda value: None, "ε", [1.5, 2]), "no figure at ε = 1.5"),
    ],
)
def test_what_cannot_be_turned_is_refused(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_labels_hold_no_bar():
    assert module._page([b"", b""], "x", ["a|b", "c"], 0, False, "").count('data-labels="a/b|c"') == 1
