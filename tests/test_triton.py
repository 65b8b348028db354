"""The Triton kernels, on a GPU, or in Triton's interpreter where Triton is installed (TRITON_INTERPRET=1 in a process of its own)."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from unrolling.kernels import cbsa_triton, contract_broadcast, contract_broadcast_plain

HERE = Path(__file__)
SHAPES = [(1, 3, 4, 2, 1), (100, 5, 7, 3, 2), (200, 64, 64, 2, 1), (65, 20, 33, 1, 2), (64, 100, 16, 2, 1)]
ALLOWED = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def passes(run, inputs, direction):
    given = [each.detach().clone().requires_grad_() for each in inputs]
    out = run(*given)
    return [out.detach(), *torch.autograd.grad(out, given, direction.to(out.dtype))]


def contraction(q, start, step):
    return step * (torch.softmax(0.3 * q @ q.mT, dim=-1) @ q + 0.5 * start)


def check(device):
    """Every shape and dtype against the formula in double precision; raises where they differ."""
    torch.manual_seed(0)
    for N, m, p, heads, batch in SHAPES:
        for dtype, allowed in ALLOWED.items():
            w = torch.randn(batch, N, heads * p, device=device).unflatten(-1, (heads, p)).transpose(1, 2).to(dtype)
            given = (
                w,
                torch.randn(batch, heads, m, p, device=device).to(dtype),
                torch.randn(heads, 1, 1, device=device).to(dtype),
            )
            direction = torch.randn(batch, heads, N, p, device=device)
            assert cbsa_triton.available(w, given[1])

            def plain(w, initial, step):
                return contract_broadcast_plain(w, initial, contraction, step, scale=0.4)

            def fast(w, initial, step):
                return contract_broadcast(w, initial, contraction, step, scale=0.4, kernel="fast")

            want = passes(plain, [each.double() for each in given], direction)
            for index, (one, two) in enumerate(zip(passes(fast, given, direction), want, strict=True)):
                error = float((one.double() - two).norm() / two.norm())
                assert error <= allowed, (N, m, p, heads, batch, dtype, index, error)


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_the_kernels_in_the_interpreter():
    code = f"import sys; sys.path.insert(0, {str(HERE.parent)!r}); import test_triton; test_triton.check('cpu')"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"TRITON_INTERPRET": "1", **_environment()}, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()[-3000:]


def _environment():
    import os

    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
def test_the_kernels_on_a_gpu():
    check("cuda")


def test_they_are_not_taken_for_what_they_cannot_do(monkeypatch):
    w, q = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 3, 4)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not cbsa_triton.available(w, q)  # no GPU
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert not cbsa_triton.available(w.double(), q.double())
    assert not cbsa_triton.available(w, torch.randn(1, 2, 200, 4))
