"""`suggest_objective`: our layers from their forward passes alone, strangers' layers, and networks that are none of ours."""

import json
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from proofs_check.descent_check import check_descent
from proofs_check.held import bases_in, heads_in, held_tensors, projections_in
from proofs_check.suggest import THRESHOLD, suggest_objective
from unrolling import (
    CBSA,
    ISTA,
    MSSA,
    TSSA,
    GridPool,
    LearnedQueries,
    SequencePool,
    SoftmaxAttention,
    SymmetricAttention,
)

D = 8


def seeded(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X = seeded(9, D)
U = torch.linalg.qr(seeded(D, D, seed=1)).Q.reshape(D, 2, 4).transpose(0, 1).contiguous()
MEMORIES = seeded(5, D, seed=2)
MATRICES = [seeded(D, D, seed=3 + i) / D**0.5 for i in range(4)]
QUICK = {"nulls": 2, "sets": 3}

OURS = {
    "MSSA exact": (lambda: MSSA(D, 2, step_size=0.7), "SubspaceCodingRate", {"epsilon": 0.5}, 0.7, True),
    "MSSA softmax": (lambda: MSSA(D, 2, form="softmax"), "SelfAttentionEnergy", {"scale": 0.5}, 1.0, True),
    "MSSA subtracted": (
        lambda: MSSA(D, 2, form="softmax", step_size=-0.3),
        "SelfAttentionEnergy",
        {"scale": 0.5},
        0.3,
        False,
    ),
    "CBSA exact": (
        lambda: CBSA(D, 2, representatives=SequencePool(3), epsilon=0.4),
        "RepresentativeRate",
        {"epsilon": 0.4, "scale": 0.5},
        1.0,
        True,
    ),
    "CBSA softmax, on a grid": (
        lambda: CBSA(D, 2, representatives=GridPool((2, 2), (3, 3)), form="softmax"),
        "RepresentativeEnergy",
        {"scale": 0.5},
        1.0,
        True,
    ),
    "CBSA agent, learned queries": (
        lambda: CBSA(D, 2, representatives=LearnedQueries(3, 2, 4), form="agent"),
        "RepresentativeNorm",
        {"scale": 0.5},
        1.0,
        False,
    ),
    "TSSA": (lambda: TSSA(D, 2), "VariationalRate", {"epsilon": 0.5, "temperature": 1.0}, 1.0, True),
    "ISTA": (lambda: ISTA(D), "Reconstruction + NonNegativeL1", {"step_size": 0.1, "weight": 0.1}, 0.1, True),
    "symmetric": (lambda: SymmetricAttention(D, 2), "SymmetricEnergy", {"scale": 0.5}, 1.0, True),
    "symmetric, two matrices": (
        lambda: SymmetricAttention(D, 2, form="general", exclude_self=True),
        "AttentionEnergy",
        {"scale": 0.5},
        0.5,
        True,
    ),
    "softmax attention": (
        lambda: SoftmaxAttention(D, 2, step_size=0.6),
        "KernelRegression",
        {"scale": 0.5},
        0.6,
        True,
    ),
}


@pytest.mark.parametrize("name", OURS)
def test_our_layers_are_recognised_from_their_forward_pass(name):
    make, family, numbers, step, descends = OURS[name]
    found = suggest_objective(make(), X, **QUICK)
    assert found.best.family == family or family in {match.family for match in found.ties}
    match = next(match for match in found.matches if match.family == family)
    assert match.alignment > 0.9999
    assert match.alignment >= match.threshold >= THRESHOLD
    assert match.null < match.alignment
    assert match.numbers == pytest.approx(numbers, rel=1e-3)
    assert (match.descends, match.step_median) == (descends, pytest.approx(step, rel=1e-3))
    assert match.seen == "x"


def attention(x):
    return sum(torch.softmax(0.5 * (x @ u) @ (x @ u).mT, -1) @ (x @ u) @ u.mT for u in U)


def heads_of_matrices(x):
    q, k, v = ((x @ w).unflatten(-1, (2, 4)).transpose(-3, -2) for w in MATRICES[:3])
    read = torch.softmax(0.5 * q @ k.mT, -1) @ v
    return x + 0.5 * (read.transpose(-3, -2).flatten(-2) @ MATRICES[3] - x)


STRANGERS = {
    "attention": (lambda x: x + 0.7 * attention(x), "SelfAttentionEnergy", 0.7),
    "memories, softmax": (lambda x: torch.softmax(x @ MEMORIES.mT, -1) @ MEMORIES, "CrossAttentionEnergy + ½‖x‖²", 1.0),
    "memories, relu": (lambda x: x + 0.1 * F.relu(x @ MEMORIES.mT) @ MEMORIES, "HopfieldEnergy", 0.1),
    "weight decay": (lambda x: 0.9 * x, "½‖x‖²", 0.1),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_functions_are_recognised_by_what_they_close_over(name):
    call, family, step = STRANGERS[name]
    found = suggest_objective(call, X, **QUICK)
    assert found.best.family == family
    assert found.best.descends
    assert found.best.step_median == pytest.approx(step, rel=1e-4)


def test_projections_without_names_are_tried_in_every_order():
    found = suggest_objective(heads_of_matrices, X, heads=2, candidates=["kernel regression", "quadratic"], **QUICK)
    assert found.best.family == "KernelRegression"
    assert found.best.step_median == pytest.approx(0.5)


def test_numpy_functions_are_looked_at_too():
    A = np.random.default_rng(0).normal(size=(9, D))
    found = suggest_objective(
        lambda x: x + 0.01 * x @ A.T @ A, X.numpy(), candidates=["memories", "quadratic"], **QUICK
    )
    assert found.best.family == "PCAVariance"
    assert found.best.step_median == pytest.approx(0.005)


def test_bases_are_read_off_the_update_where_no_matrix_is_to_be_seen():
    class Hidden:
        __slots__ = ("inside",)

        def __init__(self, U):
            self.inside = U

        def __call__(self, x):
            w, beta = x @ self.inside, 4 / (x.shape[-2] * 0.25)
            return x - 0.2 * beta * w @ torch.linalg.inv(torch.eye(4).double() + beta * w.mT @ w) @ self.inside.mT

    layer = Hidden(U[0])
    assert held_tensors(layer) == {}
    found = suggest_objective(layer, X, candidates=["coding rate", "subspace coding rate", "channel rate"], **QUICK)
    assert found.best.family == "SubspaceCodingRate"
    assert "spans" in found.best.words
    assert found.best.numbers["epsilon"] == pytest.approx(0.5, rel=1e-4)


class Residual(nn.Module):
    def __init__(self, inside, norm=None):
        super().__init__()
        self.inside, self.norm = inside, norm or nn.Identity()

    def forward(self, x):
        return x + self.inside(self.norm(x))


def network(scale=1.0):
    made = nn.Sequential(nn.Linear(D, 32), nn.ReLU(), nn.Linear(32, D)).double()
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for one in made.parameters():
            one.copy_(scale * torch.randn(one.shape, generator=generator, dtype=one.dtype) / one.shape[-1] ** 0.5)
    return made


@pytest.mark.parametrize(
    "layer", [network(), Residual(network()), Residual(network(0.1))], ids=["bare", "added", "small"]
)
def test_a_random_network_is_none_of_ours(layer):
    found = suggest_objective(layer, X, **QUICK)
    assert not found
    assert found.best is None
    assert found.ties == ()
    assert found.matches[0].alignment < 0.95
    assert "none of ours" in str(found)
    assert f"below the threshold {found.matches[0].threshold:.6g}" in str(found)


def test_an_output_matrix_of_its_own_is_none_of_ours():
    layer = MSSA(D, 2, form="softmax", tied=False)
    with torch.no_grad():
        layer.output.weight.copy_(torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(D, D)))[0]))
    found = suggest_objective(layer, X, **QUICK)
    assert found.best is None or found.best.family == "KernelRegression"


def test_the_sum_of_two_is_neither():
    found = suggest_objective(lambda x: x + 0.5 * attention(x) + 0.1 * F.relu(x @ MEMORIES.mT) @ MEMORIES, X, **QUICK)
    assert not found


def test_nearly_is_not_recognised():
    found = suggest_objective(
        lambda x: x + 0.7 * attention(x) + 0.1 * x.sin(), X, candidates=["self-attention energy"], **QUICK
    )
    assert 0.99 < found.matches[0].alignment < THRESHOLD
    assert not found


def test_what_is_nearly_a_multiple_of_x_is_not_recognised_as_what_nearly_everything_is():
    found = suggest_objective(lambda x: x - 0.1 * torch.tanh(0.1 * x), X, **QUICK)
    assert found.best is None or found.best.family == "½‖x‖²"
    assert all(not match.recognised for match in found.matches if match.family != "½‖x‖²")


def test_a_block_that_normalises_first_is_told_to_be_no_step():
    found = suggest_objective(Residual(MSSA(D, 2, form="softmax", residual=False), nn.LayerNorm(D)), X, **QUICK)
    assert (found.best.family, found.best.seen) == ("SelfAttentionEnergy", "norm(x), a LayerNorm")
    assert "it is no step at the stream" in str(found)
    plain = suggest_objective(lambda x: x + attention(F.layer_norm(x, (D,))), X, **QUICK)
    assert plain.best.seen == "LayerNorm(x)"


def test_an_update_returned_alone_is_told_so():
    found = suggest_objective(attention, X, **QUICK)
    assert found.best.family == "SelfAttentionEnergy"
    assert "returns it alone" in str(found)
    assert "a step adds it to x" in found.caveat


def test_the_objective_suggested_passes_the_check_of_the_step():
    layer = MSSA(D, 2, step_size=0.7)
    match = suggest_objective(layer, X, candidates=["subspace coding rate"], **QUICK).best
    found = check_descent(layer, match.at(X), None, X, cases=12)
    # Fitted numbers are good to some digits only, which the check of the step is not content with.
    assert found or found.worst_error < 1e-4
    assert found.step_median == pytest.approx(0.7, rel=1e-4)


def test_held_out_tokens_are_others():
    """A layer that moves the tokens that it is fitted on otherwise than others does not fool the measure."""
    calls = []

    def turncoat(x):
        calls.append(x.shape)
        return x + 0.7 * (attention(x) if len(calls) < 10 else x.sin())

    assert not suggest_objective(turncoat, X, candidates=["self-attention energy", "quadratic"], **QUICK)


def test_a_layer_that_is_never_the_same_is_told_so():
    found = suggest_objective(lambda x: x - 0.1 * F.dropout(x, 0.5), X, candidates=["quadratic"], **QUICK)
    assert "is dropout left on" in str(found)


def test_a_layer_at_rest_is_said_to_be():
    found = suggest_objective(lambda x: x.clone(), X)
    assert not found
    assert "does not move the tokens" in str(found)


def test_the_suggestion_is_plain_data_and_the_same_again():
    one, other = (
        suggest_objective(ISTA(D, D=torch.eye(D)), X, candidates=["sparse coding"], **QUICK) for _ in range(2)
    )
    entry = one.to_dict()
    assert json.loads(json.dumps(entry, allow_nan=False)) == entry
    assert entry == other.to_dict()
    assert entry["matches"][0]["recognised"] is entry["recognised"]


def test_bases_are_read_in_all_their_ways():
    flat = torch.linalg.qr(seeded(D, D)).Q
    found = bases_in({"a": flat, "b": seeded(3 * D, D), "c": U, "d": seeded(3, 5), "e": torch.eye(D).double()}, D, [2])
    words = [one.words for one in found]
    assert {"U = a, 2 heads", "U = a, transposed, 2 heads", "U = c"} <= set(words)
    assert "U = the first third of b, 2 heads, orthonormalised" in words
    assert sum("U = e" in one for one in words) == 1
    assert all(one.U.shape[1] == D for one in found)


def test_heads_and_tensors_are_found_wherever_they_are():
    class Strange(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_heads, self.constant = 4, torch.ones(2, 2)

        def forward(self, x):
            return x

    assert heads_in(Strange()) == [4]
    assert set(held_tensors(Strange())) == {"constant"}
    weight, listed = torch.eye(3), [torch.eye(2), np.eye(4)]

    def call(x, also=torch.eye(5)):  # noqa: B008
        return x @ weight + listed[0] + MEMORIES

    assert set(held_tensors(call)) == {"weight", "listed.0", "listed.1", "0", "MEMORIES"}
    assert {tuple(t.shape) for t in held_tensors(MSSA(D, 2)).values()} == {(D, D), ()}


def test_projections_are_read_by_their_names():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.proj = nn.Linear(D, 3 * D), nn.Linear(D, D)

    by_name = [one for one in projections_in(held_tensors(Fused()), D, [2]) if one.words.startswith("matrices by")]
    assert len(by_name) == 1
    assert by_name[0].biases[0].shape == (D,)
    assert len(projections_in({}, D, [2])) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"layer": 3}, TypeError, "layer must be a module or a function of tokens, but is 3"),
        ({"example_input": None}, TypeError, "pass example_input"),
        ({"example_input": torch.ones(4)}, ValueError, r"must be tokens \(..., tokens, dim\), but has shape \(4,\)"),
        ({"example_input": [1, 2]}, TypeError, "must be a tensor or a numpy array"),
        ({"candidates": "memories"}, TypeError, "candidates must be a list of names"),
        ({"candidates": ["entropy"]}, ValueError, r"must be some of coding rate(.|\n)*but \['entropy'\] came"),
        ({"candidates": []}, ValueError, "but none came"),
        ({"nulls": 0}, ValueError, "nulls must be at least 1, but is 0"),
        ({"heads": 1.5}, TypeError, "heads must be an integer"),
        ({"layer": lambda x: x @ torch.ones(3, 3)}, ValueError, "cannot be looked at: it raises RuntimeError"),
        ({"layer": lambda x: x * float("nan")}, ValueError, "cannot be looked at"),
    ],
)
def test_wrong_arguments_are_refused_with_the_reason(arguments, error, said):
    call = {"layer": lambda x: 0.5 * x, "example_input": X, **QUICK} | arguments
    with pytest.raises(error, match=said):
        suggest_objective(**call)


def test_nothing_is_nan_where_something_was_found():
    found = suggest_objective(lambda x: 0.5 * x, X, candidates=["quadratic"], **QUICK)
    assert not any(math.isnan(value) for value in (found.best.null, found.best.smallest, found.best.fitted))
