"""A picture with a knob, for notebooks: a slider where there is a kernel to ask, drawn beforehand where there is none."""

from __future__ import annotations

import base64
import html
import io
import os
from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["STATIC", "frames", "knob"]

STATIC = "NOTEBOOK_STATIC"
"""The environment variable that makes pages of notebooks without a kernel behind them: set to 1, knobs are drawn beforehand."""

_TURN = (
    "const f=this.closest('figure');"
    "f.querySelectorAll('img').forEach((p,n)=>{p.hidden=n!=this.value});"
    "f.querySelector('output').textContent=this.dataset.labels.split('|')[this.value]"
)
_PLAY = (
    "const s=this.closest('figure').querySelector('input');"
    "if(this.timer){clearInterval(this.timer);this.timer=0;this.textContent='▶'}else{this.textContent='❚❚';"
    "this.timer=setInterval(()=>{s.value=(+s.value+1)%(+s.max+1);s.oninput()},400)}"
)


def knob(
    draw: Callable[[Any], object],
    name: str,
    values: Sequence[Any],
    *,
    start: int = 0,
    play: bool = False,
    text: str = "",
) -> None:
    """Show what ``draw`` draws, with a knob that runs through ``values``.

    In a notebook with ipywidgets, a slider that calls ``draw`` as it is turned. Where no kernel will answer (a page, a test; see
    :data:`STATIC`) or ipywidgets is missing, all values are drawn beforehand, and the slider chooses among the pictures without a
    network or a kernel; readers that show no HTML get the picture of ``start``.

    Parameters
    ----------
        draw: draws one figure of matplotlib's pyplot for a value, and does not show it. name: what is turned. values: at least
        two, in the order of the knob. start: number of the value shown first. play: a button that runs through all of them.
        text: what the picture shows, for those who cannot see it.

    Raises
    ------
        ValueError for fewer than two values, a start outside of them, or a draw that draws nothing.
    """
    if not callable(draw):
        raise TypeError(f"knob: draw must be a function of one value, but is a {type(draw).__name__}.")
    if not isinstance(values, Sequence) and not getattr(values, "ndim", 0):
        raise TypeError(f"knob: values must be a sequence, but are a {type(values).__name__}.")
    if isinstance(start, bool) or not isinstance(start, int):
        raise TypeError(f"knob: start must be an integer, but is {start!r}.")
    if len(values) < 2:
        raise ValueError(f"knob got {len(values)} value(s) of {name}: give at least two to turn between.")
    if not 0 <= start < len(values):
        raise ValueError(f"knob got start={start} for {len(values)} values of {name}: give the number of one of them.")
    if os.environ.get(STATIC) != "1" and _turned(draw, name, values, start, play):
        return
    from IPython.display import display

    pictures = frames(draw, name, values)
    page = _page(pictures, name, [_label(value) for value in values], start, play, text)
    display({"text/html": page, "image/png": base64.b64encode(pictures[start]).decode()}, raw=True)


def frames(draw: Callable[[Any], object], name: str, values: Sequence[Any]) -> list[bytes]:
    """The pictures of ``draw`` at each value, as PNG files."""
    import matplotlib.pyplot as plt

    pictures = []
    for value in values:
        plt.close("all")
        draw(value)
        if not plt.get_fignums():
            raise ValueError(
                f"draw drew no figure at {name} = {_label(value)}: let it call plt.subplots, and not plt.show."
            )
        file = io.BytesIO()
        plt.gcf().savefig(file, format="png", dpi=80)
        pictures.append(file.getvalue())
    plt.close("all")
    return pictures


def _turned(draw: Callable[[Any], object], name: str, values: Sequence[Any], start: int, play: bool) -> bool:
    """Show a slider of ipywidgets, if there are any and a kernel runs."""
    try:
        import ipywidgets
        from IPython import get_ipython
    except ImportError:
        return False
    if get_ipython() is None or not hasattr(get_ipython(), "kernel"):
        return False
    import matplotlib.pyplot as plt

    def shown(**turned: Any) -> None:
        draw(values[turned["value"]])
        plt.show()

    choices = [(_label(value), number) for number, value in enumerate(values)]
    slider = ipywidgets.SelectionSlider(options=choices, value=start, description=name, continuous_update=False)
    if play:
        player = ipywidgets.Play(min=0, max=len(values) - 1, value=start, interval=400)
        ipywidgets.jslink((player, "value"), (slider, "index"))
        from IPython.display import display

        display(player)
    ipywidgets.interact(shown, value=slider)
    return True


def _label(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _page(pictures: list[bytes], name: str, labels: list[str], start: int, play: bool, text: str) -> str:
    images = "".join(
        f'<img alt="{html.escape(f"{text or name}, {name} = {label}", quote=True)}"{"" if number == start else " hidden"} '
        f'src="data:image/png;base64,{base64.b64encode(picture).decode()}" style="max-width:100%">'
        for number, (picture, label) in enumerate(zip(pictures, labels, strict=True))
    )
    button = f'<button type="button" onclick="{_PLAY}" aria-label="play">▶</button> ' if play else ""
    listed = html.escape("|".join(label.replace("|", "/") for label in labels), quote=True)
    return (
        f'<figure class="knob" style="margin:0">{images}<figcaption>{button}<label>{html.escape(name)} '
        f'<input type="range" min="0" max="{len(pictures) - 1}" step="1" value="{start}" data-labels="{listed}" '
        f'oninput="{html.escape(_TURN, quote=True)}" style="vertical-align:middle;width:16em"></label> '
        f"<output>{html.escape(labels[start])}</output></figcaption></figure>"
    )
