import re
import sys
from pathlib import Path

import matplotlib
import pytest
import torch

matplotlib.use("Agg")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


@pytest.fixture
def bases():
    """Orthonormal bases (3, 12, 4), float64."""
    flat = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    return flat.reshape(12, 3, 4).transpose(0, 1).contiguous()


BOOK = Path(__file__).parent.parent / "notebooks" / "book"
SOLUTION = re.compile(r"<details><summary>Solution</summary>\n\n```python\n(.*?)```\n</details>", re.DOTALL)


@pytest.fixture(scope="session")
def book():
    """The modules that build the book, which are scripts beside it."""
    import importlib

    sys.path.insert(0, str(BOOK))
    try:
        yield importlib.import_module("build")
    finally:
        sys.path.remove(str(BOOK))


@pytest.fixture(scope="session")
def executed(book):
    """path -> the notebook with its outputs, its hidden solutions run behind it; each is run once a session."""
    import jupytext

    done = {}

    def of(path):
        if path not in done:
            words = [cell.source for cell in jupytext.read(path).cells if cell.cell_type == "markdown"]
            done[path] = book.execute.run(path, [code for text in words for code in SOLUTION.findall(text)])
        return done[path]

    return of
