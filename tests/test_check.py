"""`check_layer` and its kin, put to layers written here from the equations, right and wrong."""

import dataclasses

import pytest
import torch
from torch import nn

from objectives import CodingRate, RepresentativeRate, SelfAttentionEnergy, SubspaceCodingRate
from proofs_check import ClaimFailed, check_layer, check_objective, descent_error
from unrolling import CBSA, MSSA, SVD, Axes, GridPool, LearnedQueries, SequencePool, Strided, Tokens

D, K, P = 8, 2, 4
BASES = torch.linalg.qr(torch.randn(D, D, dtype=torch.float64, generator=torch.Generator().manual_seed(1))).Q
U = BASES.reshape(D, K, P).transpose(0, 1).contiguous()


class Plain(nn.Module):
    """Softmax attention per head in a loop, in the style of nobody here."""

    dim = D
    step_size = 0.7

    def attention(self, x):
        out = 0
        for basis in U:
            coordinates = torch.einsum("...nd,dp->...np", x, basis)
            scores = torch.einsum("...ip,...jp->...ij", coordinates, coordinates) / P**0.5
            weights = (
                scores.exp() / scores.exp().sum(-1, keepdim=True) if scores.abs().max() < 50 else scores.softmax(-1)
            )
            out = out + torch.einsum("...ij,...jp,dp->...id", weights, coordinates, basis)
        return out

    def objective_at(self, x):
        keys = torch.stack([x @ basis for basis in U], -3).detach()
        return SelfAttentionEnergy(U, keys, P**-0.5)

    def forward(self, x):
        return x + self.step_size * self.attention(x)


class Representatives(nn.Module):
    """Few queries per head, contracted with an explicit inverse."""

    dim = D
    epsilon = 0.3
    m = 3

    def __init__(self):
        super().__init__()
        self.queries = nn.Parameter(torch.randn(K, self.m, P, dtype=torch.float64))

    @property
    def step_size(self):
        return 0.4

    def weights(self, x):
        return torch.stack([(q @ (x @ basis).mT).softmax(-1) for q, basis in zip(self.queries, U, strict=True)], -3)

    def objective_at(self, x):
        return RepresentativeRate(U, self.weights(x).detach(), self.epsilon)

    def change(self, x, epsilon_squared=None, count=None):
        beta = P / ((count or self.m) * (epsilon_squared or self.epsilon**2))
        total = 0
        for k, basis in enumerate(U):
            weights = self.weights(x)[..., k, :, :]
            few = weights @ x @ basis
            contracted = few @ torch.linalg.inv(torch.eye(P, dtype=x.dtype) + beta * few.mT @ few)
            total = total + beta * weights.mT @ contracted @ basis.mT
        return total

    def forward(self, x):
        return x - self.step_size * self.change(x)


def variant(base, forward):
    return type("Variant", (base,), {"forward": forward})()


@pytest.mark.parametrize(
    "layer",
    [
        Plain(),
        Representatives(),
        MSSA(12, 3),
        MSSA(12, 3, form="softmax", step_size=-0.2),
        MSSA(12, 3, certified=True, per_head_step=True),
        MSSA(6, 2, 4, basis="free"),
        CBSA(12, 3, representatives=SequencePool(4)),
        CBSA(12, 3, representatives=GridPool((2, 3), (3, 5)), class_tokens=2, form="softmax"),
        CBSA(12, 3, representatives=LearnedQueries(5, 3, 4), certified=True),
        CBSA(12, 3, representatives=Strided(2), form="agent"),
        CBSA(12, 3, representatives=Tokens(), form="softmax"),
        CBSA(12, 3, representatives=SVD()),
        CBSA(12, 3, representatives=Axes(), per_head_step=True),
        MSSA(D, K, U=U, tied=False),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_right_layers_are_accepted(layer):
    result = check_layer(layer)
    assert result.worst_error <= result.tolerance
    assert result.slope == pytest.approx(2, abs=0.3)
    assert str(result).startswith(result.name)


def last_token_skipped(self, x):
    y = x + self.step_size * self.attention(x)
    return torch.cat([y[..., :-1, :], x[..., -1:, :]], -2)


def keys_move(self, x):
    w = torch.stack([x @ basis for basis in U], -3)
    weights = (w @ w.mT / P**0.5).softmax(-1)
    return x + self.step_size * sum(
        (weights @ w + weights.mT @ w)[..., k, :, :] @ basis.mT for k, basis in enumerate(U)
    )


def extraction_moves(self, x):
    with torch.enable_grad():
        z = x.detach().clone().requires_grad_()
        few = self.weights(z) @ torch.stack([z @ basis for basis in U], -3)
        (full,) = torch.autograd.grad(CodingRate(self.epsilon).value(few).sum(), z)
    return x - self.step_size * full


@pytest.mark.parametrize(
    ("base", "forward", "said"),
    [
        (
            Plain,
            lambda self, x: x - self.step_size * self.attention(x),
            "moves the opposite way: the sign is wrong",
        ),
        (Plain, lambda self, x: x, "does not move the tokens"),
        (Plain, lambda self, x: x * float("nan"), "returns NaN or infinite numbers"),
        (Plain, lambda self, x: x * float("nan"), "Smallest input: it returns NaN or infinite entries."),
        (
            Plain,
            lambda self, x: x + self.step_size * self.attention(x) + float(not x.any()),
            "Smallest input: it moves where the declared step is zero.",
        ),
        (Plain, last_token_skipped, "tokens the last is not updated"),
        (Plain, lambda self, x: self.step_size * self.attention(x), "residual x is missing"),
        (Plain, lambda self, x: x + 0.5 * self.step_size * self.attention(x), "but 0.5 times as far"),
        (Plain, lambda self, x: x + 1.01 * self.step_size * self.attention(x), "but 1.01 times as far"),
        (Plain, lambda self, x: x + 1.0001 * self.step_size * self.attention(x), "but 1.0001 times as far"),
        (Plain, lambda self, x: x + self.step_size * self.attention(x).flip(-1), "features in reverse order"),
        (Plain, keys_move, "frozen arguments moving along"),
        (Plain, lambda self, x: x[..., :1, :], "keeps the shape of the tokens"),
        (
            Representatives,
            lambda self, x: x - self.step_size * self.change(x, epsilon_squared=self.epsilon),
            "epsilon stands where epsilon² belongs",
        ),
        (
            Representatives,
            lambda self, x: x - self.step_size * self.change(x, count=x.shape[-2]),
            "N, the number of tokens =",
        ),
        (Representatives, extraction_moves, "frozen arguments moving along"),
    ],
)
def test_wrong_layers_are_rejected_with_the_reason(base, forward, said):
    with pytest.raises(ClaimFailed) as failure:
        check_layer(variant(base, forward))
    assert said in str(failure.value)


def test_the_message_holds_lines_that_show_the_error_again(capsys):
    layer = variant(Plain, lambda self, x: x)
    with pytest.raises(ClaimFailed) as failure:
        check_layer(layer)
    lines = [line.strip() for line in str(failure.value).splitlines()]
    code = "\n".join(line for line in lines if line.startswith(("from", "x = ", "print")))
    exec(code, {"layer": layer})
    assert float(capsys.readouterr().out) == pytest.approx(1)


def test_a_layer_that_raises_is_rejected_with_its_error():
    def needs_three(self, x):
        if x.shape[-2] != 3:
            raise ValueError("three tokens, please")
        return Plain.forward(self, x)

    with pytest.raises(ClaimFailed, match=r"raised ValueError: three tokens, please(.|\n)*set layer.token_count"):
        check_layer(variant(Plain, needs_three))
    three = variant(Plain, needs_three)
    three.token_count = 3
    assert check_layer(three)


def test_a_free_output_matrix_is_told_to_claim_nothing():
    layer = MSSA(12, 3, tied=False)
    with torch.no_grad():
        layer.output.weight[0, 0] += 0.1
    with pytest.raises(ClaimFailed, match="no descent is claimed: the output matrix is free"):
        check_layer(layer)


def test_a_zero_step_is_no_evidence():
    with pytest.raises(ClaimFailed, match="only 0 of"):
        check_layer(MSSA(12, 3, step_size=0.0))


def test_a_step_of_one_in_ten_thousand_the_wrong_way_is_seen():
    layer = variant(Plain, lambda self, x: x - 1e-4 * self.attention(x))
    layer.step_size = 1e-4
    with pytest.raises(ClaimFailed, match="opposite way"):
        check_layer(layer)


def test_the_contract_is_asked_for():
    with pytest.raises(TypeError, match=r"Linear lacks objective_at\(x\) and step_size_at\(x\) or step_size"):
        check_layer(nn.Linear(3, 3))
    nameless = Plain()
    nameless.__class__ = type("Nameless", (Plain,), {"dim": None})
    with pytest.raises(TypeError, match=r"set layer\.dim, or pass example tokens"):
        check_layer(nameless)
    assert check_layer(nameless, torch.randn(5, D, dtype=torch.float64))


def test_the_layer_itself_is_left_alone():
    layer = MSSA(12, 3).train()
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    check_layer(layer)
    assert layer.training
    assert all(torch.equal(before[name], value) for name, value in layer.state_dict().items())
    assert next(layer.parameters()).dtype == torch.float32


def test_descent_error_is_the_number():
    x = torch.randn(4, D, dtype=torch.float64)
    assert descent_error(Plain(), x) < 1e-13
    assert descent_error(variant(Plain, lambda self, x: 2 * x - Plain.forward(self, x)), x) == pytest.approx(2)


def test_an_objective_at_odds_with_itself_is_found():
    class Half(CodingRate.__mro__[1]):
        def value(self, x):
            return CodingRate(0.5).value(x)

        def gradient(self, x):
            return 0.5 * CodingRate(0.5).gradient(x)

        def lipschitz(self, x):
            return None

    layer = variant(Plain, Plain.forward)
    layer.objective_at = lambda x: Half()
    with pytest.raises(ClaimFailed, match="at odds with itself"):
        check_layer(layer)
    with pytest.raises(ClaimFailed, match=r"it is 0\.5 times it"):
        check_objective(Half())


@pytest.mark.parametrize(
    "objective",
    [CodingRate(0.3), SubspaceCodingRate(U, 0.5), SelfAttentionEnergy(U, torch.randn(K, 5, P).double(), 0.5)],
)
def test_right_objectives_are_accepted(objective):
    result = check_objective(objective)
    assert result.slope == pytest.approx(2, abs=0.2)


def test_a_smoothness_constant_too_small_is_found():
    @dataclasses.dataclass(frozen=True, eq=False)
    class TooSmooth(CodingRate.__mro__[1]):
        def value(self, x):
            return CodingRate(0.5).value(x)

        def gradient(self, x):
            return CodingRate(0.5).gradient(x)

        def lipschitz(self, x):
            return 0.5 * CodingRate(0.5).lipschitz(x)

    with pytest.raises(ClaimFailed, match="lipschitz says L"):
        check_objective(TooSmooth())


def test_objectives_without_the_two_methods_are_refused():
    with pytest.raises(TypeError, match="has no method value"):
        check_objective(object())


@pytest.mark.parametrize(
    ("forward", "said"),
    [
        (lambda self, x: Plain.forward(self, x).float(), "keeps the dtype of the tokens, torch.float64"),
        (lambda self, x: x.mul_(0.5), "changes its input in place"),
        (lambda self, x: Plain.forward(self, x) if x.shape[-2] <= 64 else x, "does not move the tokens"),
        (lambda self, x: Plain.forward(self, x) if x.shape[-2] != D // 2 else x, "does not move the tokens"),
        (lambda self, x: Plain.forward(self, x) if x.ndim < 4 else x, "does not move the tokens"),
        (lambda self, x: Plain.forward(self, x) + 1e-7 * x.sin(), "in another precision|in a lower precision"),
        (lambda self, x: None, "the layer returned NoneType"),
    ],
    ids=["float32 out", "in place", "long sets", "square", "two batch axes", "rounded inside", "None"],
)
def test_mistakes_on_rare_inputs_are_found(forward, said):
    with pytest.raises(ClaimFailed, match=said):
        check_layer(variant(Plain, forward))


def test_a_layer_for_batches_only_is_tried_on_batches():
    def unpacks(self, x):
        assert len(x.shape) == 3
        return Plain.forward(self, x)

    assert check_layer(variant(Plain, unpacks)).evidence


def test_small_steps_and_single_precision_can_be_checked():
    assert check_layer(MSSA(12, 3, step_size=1e-5)).evidence > 40
    assert check_layer(MSSA(12, 3), dtype=torch.float32).evidence > 24
    long = MSSA(12, 3, step_size=1.05)
    long.step_size_at = lambda x: torch.ones(())
    with pytest.raises(ClaimFailed, match=r"1\.05\d* times as far"):
        check_layer(long, dtype=torch.float32)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"cases": 0}, ValueError, "cases must be at least 1"),
        ({"cases": 2.5}, TypeError, "cases must be an integer"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"x": [1.0]}, TypeError, "x must be a floating-point torch.Tensor"),
        ({"x": torch.ones(3, D, dtype=torch.int64)}, TypeError, "but is torch.int64"),
        ({"x": torch.ones(D)}, ValueError, r"but has shape \(8,\)"),
        ({"x": torch.full((3, D), torch.nan)}, ValueError, "NaN or infinite"),
        ({"dtype": torch.float16}, ValueError, "dtype must be torch.float64 or torch.float32"),
    ],
)
def test_calls_that_make_no_sense_are_refused(arguments, error, said):
    with pytest.raises(error, match=said):
        check_layer(Plain(), **arguments)


def test_declarations_that_make_no_sense_are_named():
    layer = MSSA(12, 3)
    layer.step_size_at = lambda x: None
    with pytest.raises(ClaimFailed, match="step size must be a number or a tensor, but is None"):
        check_layer(layer)
    layer = Plain()
    layer.objective_at = lambda x: None
    with pytest.raises(ClaimFailed, match=r"objective_at\(x\) must return an object with value"):
        check_layer(layer)


def test_values_of_a_batch_must_not_depend_on_each_other():
    class Flipped:
        def value(self, x):
            value = 0.5 * x.square().sum((-1, -2))
            return value.flip(0) if x.ndim > 2 else value

        def gradient(self, x):
            return x

    with pytest.raises(ClaimFailed, match="gradient is not the derivative of value"):
        check_objective(Flipped(), dim=4)


def test_rounding_where_a_gradient_vanishes_is_no_evidence():
    class Spread:
        def value(self, x):
            return 0.5 * (x - x.mean(-2, keepdim=True)).square().sum((-1, -2))

        def gradient(self, x):
            return x - x.mean(-2, keepdim=True)

    assert check_objective(Spread(), dim=6).evidence


def test_bases_made_in_single_precision_pass_once_converted():
    class Buffered(Plain):
        def __init__(self):
            super().__init__()
            self.register_buffer("bases", U.float())

        def objective_at(self, x):
            return SubspaceCodingRate(self.bases, 0.5)

        def forward(self, x):
            return x - self.step_size * SubspaceCodingRate(self.bases, 0.5).gradient(x)

    assert check_layer(Buffered()).evidence


class Gain:
    """A stranger's −ΔR, odd and even tokens the two classes: of one token, and of equal ones, identically zero."""

    def parts(self, x):
        N, d = x.shape[-2:]
        odd = (torch.arange(N) % 2).to(x.dtype)
        weights = torch.stack([0.9 - 0.8 * odd, 0.1 + 0.8 * odd], 0)
        yield torch.ones_like(odd), d / (N * 0.25), -1.0
        for w in weights:
            yield w, d / (w.sum() * 0.25), w.sum() / N

    def value(self, x):
        eye = torch.eye(x.shape[-1], dtype=x.dtype)
        terms = [0.5 * c * torch.logdet(eye + a * x.mT @ (w[:, None] * x)) for w, a, c in self.parts(x)]
        return sum(terms)

    def gradient(self, x):
        eye = torch.eye(x.shape[-1], dtype=x.dtype)
        return sum(
            c * a * torch.linalg.solve(eye + a * x.mT @ (w[:, None] * x), w[:, None] * x, left=False)
            for w, a, c in self.parts(x)
        )


def test_a_difference_that_vanishes_identically_is_no_evidence_even_without_a_smoothness_constant():
    assert check_objective(Gain(), dim=5).evidence > 24

    class Ascent(nn.Module):
        dim, step_size, factor = 5, 0.3, 1.0

        def objective_at(self, x):
            return Gain()

        def forward(self, x):
            return x - self.factor * self.step_size * Gain().gradient(x)

    assert check_layer(Ascent()).evidence > 24
    wrong = Ascent()
    wrong.factor = -1.0
    with pytest.raises(ClaimFailed, match="opposite way"):
        check_layer(wrong)


def test_a_smoothness_constant_that_is_half_of_it_is_found():
    class Fit:
        def __init__(self, factor):
            self.map = torch.diag(torch.tensor([1.0, 1.0, 1.0, 1.0, 3.0], dtype=torch.float64))
            self.factor = factor

        def value(self, x):
            return 0.5 * (x @ self.map).square().sum((-1, -2))

        def gradient(self, x):
            return x @ self.map @ self.map

        def lipschitz(self, x):
            return self.factor * torch.tensor(9.0, dtype=x.dtype)

    assert check_objective(Fit(1.0), dim=5).evidence
    with pytest.raises(ClaimFailed, match=r"lipschitz says L = 4\.5"):
        check_objective(Fit(0.5), dim=5)


def test_a_smoothness_constant_that_raises_is_named():
    class Broken:
        def value(self, x):
            return 0.5 * x.square().sum((-1, -2))

        def gradient(self, x):
            return x

        def lipschitz(self):
            return 1.0

    with pytest.raises(ClaimFailed, match=r"lipschitz\(x\) of Broken raised TypeError"):
        check_objective(Broken(), dim=4)
