"""Every notebook runs from its source, in a kernel of its own, and its assertions hold."""

from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.py"))


def code_cells(path):
    return [cell for cell in jupytext.read(path).cells if cell.cell_type == "code"]


@pytest.mark.filterwarnings("default")  # the machinery of jupyter warns of itself
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, tmp_path):
    from nbclient import NotebookClient

    notebook = jupytext.read(path)
    notebook.metadata["kernelspec"] = {"name": "python3", "language": "python", "display_name": "Python 3"}
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    pictures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(pictures) >= 5


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_the_first_notebook_has_twelve_cells_and_each_opens_with_words():
    path = NOTEBOOKS[0]
    assert len(code_cells(path)) == 12
    kinds = [cell.cell_type for cell in jupytext.read(path).cells]
    assert kinds == ["markdown", "code"] * 12


def test_the_solutions_hidden_in_the_first_notebook_run():
    import matplotlib

    matplotlib.use("Agg")
    notebook = jupytext.read(NOTEBOOKS[0])
    solutions = [
        "\n".join(line for line in block.split("```")[0].splitlines())
        for cell in notebook.cells
        if cell.cell_type == "markdown"
        for block in cell.source.split("```python\n")[1:]
    ]
    assert len(solutions) == 2
    namespace: dict = {}
    for cell in code_cells(NOTEBOOKS[0])[:6]:
        exec(cell.source.replace("plt.show()", "plt.close('all')"), namespace)
    for solution in solutions:
        exec(solution, namespace)
