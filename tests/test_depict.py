import copy
import itertools

import pytest
import torch
from torch import nn

from objectives import ClassTokensOnly, SelfAttentionEnergy, SubspaceCodingRate, SubspacePCARate
from proofs_check import check_layer
from unrolling import MSCA, MSSA, DepictDecoder


@torch.no_grad()
def off(layer, x):
    step = layer.descend(x)
    return float((layer(x) - step).norm() / (step - x).norm())


@pytest.mark.parametrize(
    ("form", "certified", "per_head", "basis"),
    [
        *itertools.product(("exact", "softmax"), (False, True), (False, True), ("orthonormal",)),
        ("exact", False, True, "free"),
        ("softmax", False, False, "free"),
    ],
)
@pytest.mark.parametrize("shape", [(9, 12), (2, 3, 12), (2, 3, 5, 12)])
def test_forward_is_the_declared_step(form, certified, per_head, basis, shape, device):
    layer = MSCA(
        12, 3, class_tokens=2, form=form, certified=certified, per_head_step=per_head, basis=basis, step_size=0.7
    )
    layer = layer.double().to(device)
    x = torch.randn(*shape, dtype=torch.float64, device=device)
    assert off(layer, x) < 1e-12
    assert torch.equal(layer(x)[..., 2:, :], x[..., 2:, :])
    objective = layer.objective_at(x)
    if certified:
        assert (layer.step_size_at(x) * objective.lipschitz(x) <= 2 + 1e-9).all()
        assert (objective.value(layer(x)) < objective.value(x)).all()


def test_both_forms_are_their_equations(bases):
    x = torch.randn(9, 12, dtype=torch.float64)
    q, z = x[:3], x[3:]
    exact, softmax = torch.zeros_like(q), torch.zeros_like(q)
    beta = 3 / (6 * 0.25)
    for U in bases:
        qk, w = q @ U, z @ U
        S = w.mT @ w
        exact += beta * torch.linalg.inv(torch.eye(3) + beta * qk @ S @ qk.mT) @ qk @ S @ U.mT
        softmax += torch.softmax(0.5 * qk @ w.mT, -1) @ w @ U.mT
    for form, update in (("exact", exact), ("softmax", softmax)):
        layer = MSCA(12, 3, U=bases, class_tokens=3, form=form, step_size=0.3)
        torch.testing.assert_close(layer(x), torch.cat([q + 0.3 * update, z]))
        torch.testing.assert_close(layer.read(q, z), layer.update(x))


def test_one_head_with_the_identity_is_plain_cross_attention():
    x = torch.randn(2, 9, 12, dtype=torch.float64)
    layer = MSCA(12, 1, U=torch.eye(12, dtype=torch.float64)[None], class_tokens=2, form="softmax")
    want = nn.functional.scaled_dot_product_attention(x[:, :2], x[:, 2:], x[:, 2:])
    torch.testing.assert_close(layer.update(x), want)


@pytest.mark.parametrize("form", ["exact", "softmax"])
def test_strangers_checks_accept_it(form):
    assert check_layer(MSCA(12, 3, class_tokens=2, patches=7, form=form)).evidence > 30
    assert check_layer(MSCA(12, 3, class_tokens=2, form=form), torch.randn(9, 12)).evidence > 30


def test_single_precision_follows_double():
    for form in ("exact", "softmax"):
        layer, x = MSCA(12, 3, class_tokens=2, form=form), torch.randn(2, 9, 12)
        wide = copy.deepcopy(layer).double()
        torch.testing.assert_close(layer(x).double(), wide(x.double()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("form", ["exact", "softmax"])
def test_gradients_are_right_through_the_layer(form, bases):
    layer = MSCA(12, 3, U=bases, class_tokens=2, form=form, per_head_step=True)
    x = torch.randn(5, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), atol=1e-7, rtol=1e-5)
    layer(x).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in layer.parameters())


def test_what_it_declares_and_what_it_stands_in_for(bases):
    x = torch.randn(9, 12, dtype=torch.float64, requires_grad=True)
    exact, softmax = (MSCA(12, 3, U=bases, class_tokens=2, form=form) for form in ("exact", "softmax"))
    declared = exact.objective_at(x)
    assert isinstance(declared, ClassTokensOnly)
    assert isinstance(declared.objective, SubspacePCARate)
    assert not declared.objective.tokens.requires_grad
    assert exact.approximates_at(x) is None
    assert isinstance(softmax.objective_at(x).objective, SelfAttentionEnergy)
    assert not softmax.objective_at(x).objective.keys.requires_grad
    stands_in = softmax.approximates_at(x)
    torch.testing.assert_close(stands_in.value(x), declared.value(x))


def test_a_free_output_matrix_withdraws_the_claim(bases):
    layer = MSCA(12, 3, U=bases, class_tokens=2, tied=False)
    x = torch.randn(9, 12, dtype=torch.float64)
    assert off(layer, x) < 1e-12
    with torch.no_grad():
        layer.output.weight[0, 0] += 0.1
    with pytest.raises(ValueError, match=r"no descent is claimed: the output matrix is free"):
        layer.objective_at(x)


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: MSCA(12, class_tokens=0), ValueError, "class_tokens must be at least 1, but is 0"),
        (lambda: MSCA(12, patches=0), ValueError, "patches must be at least 1"),
        (lambda: MSCA(12, form="agent"), ValueError, "form must be one of 'exact', 'softmax', but is 'agent'"),
        (lambda: MSCA(12, certified=True, step_size=2.0), ValueError, r"must lie in \(0, 2\)"),
        (
            lambda: MSCA(12, class_tokens=3)(torch.randn(2, 3, 12)),
            ValueError,
            r"3 tokens of which 3 are class tokens leave no patches(.|\n)*= \(2, 3, 12\)",
        ),
        (lambda: MSCA(12)(torch.randn(3, 10)), ValueError, "x has dim 10, but U expects dim 12"),
        (
            lambda: MSCA(12)(torch.randn(3, 12).double()),
            TypeError,
            "x is torch.float64, but the layer is torch.float32",
        ),
        (lambda: MSCA(12)([1.0]), TypeError, "must be a torch.Tensor"),
        (lambda: DepictDecoder(12, 0), ValueError, "classes must be at least 1"),
        (lambda: DepictDecoder(12, 4, depth=0), ValueError, "depth must be at least 1"),
        (lambda: DepictDecoder(12, 4, attention="both"), ValueError, "attention must be one of 'cross', 'self'"),
        (
            lambda: DepictDecoder(12, 4)(torch.randn(15, 12), (4, 4)),
            ValueError,
            r"grid 4 × 4 does not hold the 15 tokens of \(15, 12\)",
        ),
        (lambda: DepictDecoder(12, 4)([1.0], (1, 1)), ValueError, "tokens must be a tensor .* but is a list"),
    ],
)
def test_bad_arguments_are_refused(make, error, said):
    with pytest.raises(error, match=said):
        make()


@pytest.mark.parametrize("attention", ["cross", "self"])
@pytest.mark.parametrize("norm", [False, True])
def test_masks_are_cosines_on_the_grid(attention, norm, device):
    decoder = DepictDecoder(12, 4, attention=attention, norm=norm, step_size=0.3).double().to(device)
    tokens = torch.randn(2, 15, 12, dtype=torch.float64, device=device)
    masks = decoder(tokens, (3, 5))
    assert masks.shape == (2, 4, 3, 5)
    patches, classes = decoder.refine(tokens)
    cosine = nn.functional.cosine_similarity(patches[1, 7], classes[1], dim=-1)
    if norm:
        cosine = nn.functional.layer_norm(cosine, (4,))
    torch.testing.assert_close(masks[1, :, 1, 2], cosine)
    torch.testing.assert_close(decoder(tokens[1], (3, 5)), masks[1])


@pytest.mark.parametrize("form", ["exact", "softmax"])
def test_without_norms_every_layer_is_its_declared_step(form):
    decoder = DepictDecoder(12, 4, form=form, step_size=0.3).double()
    tokens = torch.randn(2, 15, 12, dtype=torch.float64)
    patches, classes = tokens, decoder.class_embeddings.expand(2, -1, -1)
    with torch.no_grad():
        for layer in decoder.refine_layers:
            assert isinstance(layer, MSSA)
            patches = layer.descend(patches)
        for layer in decoder.cross_layers:
            classes = layer.descend(torch.cat([classes, patches], -2))[:, :4]
        got = decoder.refine(tokens)
    torch.testing.assert_close(got[0], patches)
    torch.testing.assert_close(got[1], classes)


def test_self_attention_refines_classes_and_patches_together():
    decoder = DepictDecoder(12, 4, attention="self", depth=2, step_size=0.3).double()
    tokens = torch.randn(15, 12, dtype=torch.float64)
    joint = torch.cat([tokens, decoder.class_embeddings])  # the order is not seen
    for layer in decoder.refine_layers:
        joint = layer(joint)
    patches, classes = decoder.refine(tokens)
    torch.testing.assert_close(patches, joint[:15])
    torch.testing.assert_close(classes, joint[15:])
    assert len(decoder.cross_layers) == 0


def test_norms_stand_where_the_released_code_has_them():
    decoder = DepictDecoder(12, 4, depth=1, cross_depth=1, norm=True, step_size=0.3).double()
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.shape == (12,):
                parameter.add_(0.5 * torch.randn(12))
    tokens = torch.randn(15, 12, dtype=torch.float64)
    refined = tokens + decoder.refine_layers[0].update(decoder.refine_norms[0](tokens))
    patches, queries = decoder.patch_norm(refined), decoder.class_embeddings
    read = decoder.cross_layers[0].read(queries, decoder.cross_norms[0](patches))
    got = decoder.refine(tokens)
    torch.testing.assert_close(got[0], patches)
    torch.testing.assert_close(got[1], decoder.class_norm(queries + read))
    torch.testing.assert_close(decoder(tokens, (1, 15))[:, 0].mT, nn.functional.layer_norm(decoder.masks(*got), (4,)))


def test_the_trace_reports_every_stage():
    decoder = DepictDecoder(12, 3, form="exact", step_size=0.5).double()
    tokens = torch.randn(2, 40, 12, dtype=torch.float64)
    records = decoder.trace(tokens)
    assert [record.stage for record in records] == [
        "input",
        *(f"self-attention {i}" for i in range(3)),
        *(f"cross-attention {i}" for i in range(3)),
    ]
    first = decoder.refine_layers[0]
    torch.testing.assert_close(records[0].rate, SubspaceCodingRate(first.U, 0.5).value(tokens))
    assert (records[1].rate < records[0].rate).all()
    assert all(((record.alignment >= 0) & (record.alignment <= 1 + 1e-12)).all() for record in records)
    assert (records[-1].captured > records[0].captured).all()
    assert not any(record.rate.requires_grad for record in records)


def test_a_class_that_is_the_principal_direction_captures_most():
    decoder = DepictDecoder(6, 1, heads=1, depth=1, cross_depth=1, step_size=1e-9).double()
    tokens = torch.randn(50, 6, dtype=torch.float64) * torch.tensor([9.0, 1, 1, 1, 1, 1])
    with torch.no_grad():
        decoder.class_embeddings.copy_(torch.eye(6)[:1])
    record = decoder.trace(tokens)[0]
    assert float(record.alignment) > 0.99
    assert float(record.captured) == pytest.approx(float(tokens[:, 0].square().sum() / tokens.square().sum()), abs=1e-9)


@pytest.mark.parametrize(
    ("attention", "dim", "parameters"),
    [("cross", 192, 291_378), ("cross", 384, 582_450), ("self", 192, 203_439), ("self", 384, 406_575)],
)
def test_published_sizes_and_parameters(attention, dim, parameters):
    """The released decoders of ViT-T/16 and ViT-S/16: 150 classes, 3 layers of 3 heads of 100 and of 50."""
    decoder = DepictDecoder(dim, 150, attention=attention, head_dim=100, cross_head_dim=50, basis="free", norm=True)
    assert sum(parameter.numel() for parameter in decoder.parameters()) == parameters
    assert all(layer.U.shape == (3, dim, 100) for layer in decoder.refine_layers)


def test_state_goes_round_and_gradients_reach_everything():
    first, second = (DepictDecoder(12, 4, norm=True, step_size=0.3) for _ in range(2))
    second.load_state_dict(first.state_dict())
    tokens = torch.randn(2, 6, 12)
    masks = first(tokens, (2, 3))
    torch.testing.assert_close(masks, second(tokens, (2, 3)))
    masks[:, 0].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in first.parameters())
