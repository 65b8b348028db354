import itertools

import pytest
import torch

from objectives import KernelRegression
from unrolling import GridRotary, SoftmaxAttention


@torch.no_grad()
def off(layer, x):
    step = layer.descend(x)
    return float((layer(x) - step).norm() / (step - x).norm())


@pytest.mark.parametrize(
    ("projections", "bias", "kappa", "leading"),
    list(itertools.product(("free", "identity"), (True, False), (1.0, 0.3, -0.5), ((), (2,), (2, 3)))),
)
def test_forward_is_the_declared_step(projections, bias, kappa, leading, device):
    layer = SoftmaxAttention(12, 3, projections=projections, bias=bias, step_size=kappa).double().to(device)
    x = torch.randn(*leading, 7, 12, dtype=torch.float64, device=device)
    assert off(layer, x) < 1e-12
    assert isinstance(layer.objective_at(x), KernelRegression)
    assert layer.approximates_at(x) is None


@pytest.mark.parametrize("head_dim", [1, 2, 7])
def test_heads_need_not_fill_the_features(head_dim):
    layer = SoftmaxAttention(12, 3, head_dim).double()
    assert off(layer, torch.randn(5, 12, dtype=torch.float64)) < 1e-12


def test_it_is_torchs_multi_head_attention():
    layer = SoftmaxAttention(12, 3).double()
    theirs = torch.nn.MultiheadAttention(12, 3, batch_first=True, dtype=torch.float64)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([layer.query.weight, layer.key.weight, layer.value.weight]))
        theirs.in_proj_bias.copy_(torch.cat([layer.query.bias, layer.key.bias, layer.value.bias]))
        theirs.out_proj.weight.copy_(layer.output.weight)
        theirs.out_proj.bias.copy_(layer.output.bias)
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    want, _ = theirs(x, x, x)
    torch.testing.assert_close(layer.attention(x), want)
    torch.testing.assert_close(layer(x), want)  # κ = 1
    torch.testing.assert_close(layer.update(x), want - x)


def test_without_projections_the_heads_share_out_the_features():
    layer = SoftmaxAttention(6, 2, projections="identity", scale=0.4, step_size=0.3).double()
    x = torch.randn(5, 6, dtype=torch.float64)
    want = torch.empty_like(x)
    for h in (slice(0, 3), slice(3, 6)):
        for i in range(5):
            e = torch.exp(0.4 * (x[:, h] @ x[i, h]))
            want[i, h] = e @ x[:, h] / e.sum()
    torch.testing.assert_close(layer(x), x + 0.3 * (want - x))
    assert [name for name, _ in layer.named_parameters()] == ["step"]


@pytest.mark.parametrize("kappa", [0.2, 1.0, 1.9])
def test_steps_below_two_lower_the_regression_and_one_lands(kappa):
    layer = SoftmaxAttention(12, 3, step_size=kappa).double()
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    f = layer.objective_at(x)
    assert (f.value(layer(x)) < f.value(x)).all()
    if kappa == 1.0:
        assert f.gradient(layer(x)).norm() < 1e-12


def test_the_declaration_is_detached():
    layer = SoftmaxAttention(12, 3)
    x = torch.randn(5, 12, requires_grad=True)
    f = layer.objective_at(x)
    assert not f.weights.requires_grad
    assert not f.values.requires_grad


@pytest.mark.parametrize("projections", ["free", "identity"])
def test_gradients_are_right_through_the_layer(projections):
    layer = SoftmaxAttention(4, 2, projections=projections, step_size=0.7).double()
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    parameters = tuple(layer.parameters())

    def run(z, *given):
        names = [name for name, _ in layer.named_parameters()]
        return torch.func.functional_call(layer, dict(zip(names, given, strict=True)), (z,))

    assert torch.autograd.gradcheck(run, (x, *parameters))


def test_single_precision_follows_double():
    layer, x = SoftmaxAttention(12, 3), torch.randn(7, 12)
    single = layer(x)
    torch.testing.assert_close(single, layer.double()(x.double()).float(), rtol=1e-5, atol=1e-6)


def test_a_state_goes_round():
    one, two = SoftmaxAttention(12, 3, step_size=0.3), SoftmaxAttention(12, 3)
    two.load_state_dict(one.state_dict())
    x = torch.randn(7, 12)
    assert torch.equal(one(x), two(x))


def test_the_step_can_be_fixed():
    assert not SoftmaxAttention(4, learnable_step=False).step.requires_grad
    assert SoftmaxAttention(4).step.requires_grad
    assert "projections='identity'" in repr(SoftmaxAttention(4, projections="identity"))


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: SoftmaxAttention(12, 5, projections="identity"), ValueError, "5 × 2 = 10 is not dim 12"),
        (lambda: SoftmaxAttention(12, 3, projections="tied"), ValueError, "projections must be one of"),
        (lambda: SoftmaxAttention(0), ValueError, "dim must be at least 1"),
        (lambda: SoftmaxAttention(12, 2.0), TypeError, "heads must be an integer"),
        (lambda: SoftmaxAttention(12, 3, 0), ValueError, "head_dim must be at least 1"),
        (lambda: SoftmaxAttention(12, scale=0.0), ValueError, "scale must be positive"),
        (lambda: SoftmaxAttention(12, step_size=float("nan")), ValueError, "step_size must be a finite number"),
        (lambda: SoftmaxAttention(12, class_tokens=-1), ValueError, "class_tokens must be at least 0"),
        (lambda: SoftmaxAttention(12)(torch.randn(3, 4)), ValueError, "dim=12"),
        (lambda: SoftmaxAttention(12)(torch.randn(3, 12).double()), TypeError, "the layer is torch.float32"),
        (lambda: SoftmaxAttention(12)([1.0]), TypeError, "must be a torch.Tensor"),
    ],
)
def test_bad_arguments_are_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize("kind", ["layer", "rms"])
@pytest.mark.parametrize("idle", [False, True])
def test_queries_and_keys_may_be_normalised_head_by_head(kind, idle):
    layer = SoftmaxAttention(12, 3, qk_norm=kind, idle_norms=idle).double()
    for norm in (layer.query_norm, layer.key_norm):
        torch.nn.init.normal_(norm.weight)
    x = torch.randn(7, 12, dtype=torch.float64)
    q = layer.query(x).reshape(7, 3, 4).transpose(0, 1)
    if not idle:
        centred = q - q.mean(-1, keepdim=True) * (kind == "layer")
        q = centred / (centred.square().mean(-1, keepdim=True) + (1e-5 if kind == "layer" else 1e-6)).sqrt()
        q = q * layer.query_norm.weight
    torch.testing.assert_close(layer.queries(x), q)
    torch.testing.assert_close(layer.attention_map(x), torch.softmax(0.5 * q @ layer.keys(x).mT, -1))
    assert off(layer, x) < 1e-12


def test_places_turn_patches_and_registers_but_no_class_token():
    rotary, registers = GridRotary(4, 3), GridRotary(4, 2, theta=100.0)
    layer = SoftmaxAttention(
        12, 3, rotary=rotary, register_rotary=registers, class_tokens=1, register_tokens=4
    ).double()
    x = torch.randn(1 + 6 + 4, 12, dtype=torch.float64)
    q = layer.query(x).reshape(11, 3, 4).transpose(0, 1)
    want = torch.cat((q[:, :1], rotary(q[:, 1:7], (2, 3)), registers(q[:, 7:])), 1)
    torch.testing.assert_close(layer.queries(x, (2, 3)), want)
    shifted = torch.randn(1, 1, 12, dtype=torch.float64).expand(1, 9, 12)
    plain = SoftmaxAttention(12, 3, rotary=rotary).double()
    scores = plain.queries(shifted, (3, 3)) @ plain.keys(shifted, (3, 3)).mT
    torch.testing.assert_close(scores[..., 0, 4], scores[..., 4, 8])  # one row and one column on
    torch.testing.assert_close(scores[..., 1, 0], scores[..., 8, 7])
    assert not torch.allclose(scores[..., 0, 1], scores[..., 0, 3])  # rows are not columns


def test_gate_convolution_and_norm_are_their_equations():
    layer = SoftmaxAttention(
        12, 3, gate=True, convolution=True, scale_norm=True, class_tokens=1, register_tokens=2
    ).double()
    torch.nn.init.normal_(layer.output_norm.weight)
    x = torch.randn(2, 1 + 6 + 2, 12, dtype=torch.float64)
    v = layer.value(x)
    smooth = torch.zeros_like(v)
    kernel, bias = layer.convolution.weight, layer.convolution.bias
    for i, j, a, b in itertools.product(range(2), range(3), (-1, 0, 1), (-1, 0, 1)):
        if 0 <= i + a < 2 and 0 <= j + b < 3:
            smooth[:, 1 + 3 * i + j] += kernel[:, 0, 1 + a, 1 + b] * v[:, 1 + 3 * (i + a) + j + b]
    smooth[:, 1:7] += bias
    read = layer.attention_map(x) @ layer.values(x)
    joined = (read.transpose(1, 2).flatten(2) + smooth) * torch.nn.functional.silu(layer.gate(x))
    torch.testing.assert_close(layer.attention(x, (2, 3)), layer.output(layer.output_norm(joined)))
    with pytest.raises(ValueError, match="the convolution needs the grid of the 6 patches; pass grid="):
        layer(x)
    for name in ("gate", "convolution", "scale_norm"):
        with pytest.raises(ValueError, match=f"no descent is claimed with {name}"):
            SoftmaxAttention(12, 3, **{name: True}).objective_at(torch.randn(9, 12))


def test_the_output_may_have_a_bias_of_its_own():
    assert SoftmaxAttention(12, 3, bias=False, output_bias=True).output.bias is not None
    assert SoftmaxAttention(12, 3, bias=True, output_bias=False).output.bias is None
    assert SoftmaxAttention(12, 3, bias=False).output.bias is None


def test_dropout_is_of_weights_and_of_the_output():
    x = torch.randn(2, 7, 12, dtype=torch.float64)
    layer = SoftmaxAttention(12, 3, dropout=0.5, learnable_step=False).double()
    assert not torch.equal(layer(x), layer(x))
    out = SoftmaxAttention(12, 3, output_dropout=0.5, learnable_step=False).double()
    drawn, whole = out(x), out.eval()(x)
    assert 0.3 < float((drawn == 0).double().mean()) < 0.7
    torch.testing.assert_close(drawn[drawn != 0], 2 * whole[drawn != 0])
    assert torch.equal(layer.eval()(x), layer(x))


def test_a_fixed_step_of_one_is_attention_itself():
    layer = SoftmaxAttention(12, 3, learnable_step=False).double()
    x = torch.randn(7, 12, dtype=torch.float64)
    assert torch.equal(layer(x), layer.attention(x))
    assert torch.equal(layer.adds(x), layer.attention(x))
    with pytest.raises(ValueError, match="a gate and scale_norm stand before the output matrix"):
        SoftmaxAttention(12, 3, projections="identity", gate=True)
    with pytest.raises(ValueError, match="qk_norm must be one of 'layer', 'rms'"):
        SoftmaxAttention(12, 3, qk_norm="batch")
