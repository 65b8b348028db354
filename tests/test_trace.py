"""What a trace measures, against the same numbers taken by hand; and its figures."""

import json

import pytest
import torch
from torch import nn

from objectives import CodingRate, RepresentativeRate, SubspaceCodingRate, VariationalRate
from unrolling import BlockRecord, Trace, objective_of, record_block
from unrolling import models as m
from unrolling.trace import bases_of, trace

D = torch.float64
FIELDS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
EXACT = {"form": "exact", "tied": True, "orthonormal": True}


def cbt(step_size=None, **changes):
    model = m.CBT(**{**FIELDS, "representatives": (2, 2), **changes}).to(D).eval()
    if step_size is not None:
        for block in model.blocks:
            nn.init.constant_(block.attention.step, step_size)
    return model


def image(count=2):
    return torch.randn(count, 3, 32, 48, dtype=D)


def test_every_number_of_a_block_is_what_its_name_says():
    model, x = cbt(form="exact", tied=True, step_size=0.4), image()
    record = model.trace(x)[1]
    stage = list(model.stages(x))[1]
    block, layer, (before, grid) = stage.block, stage.block.attention, (stage.x, stage.grid)
    with torch.no_grad():
        seen = block.seen(before)
        update = layer.adds(seen, grid)
        between = before + update
        after = block.feed(between)
        torch.testing.assert_close(block(before, grid), after)
        rate = SubspaceCodingRate(layer.U, 0.5, orthonormal=False)
        Q = layer.representatives_of(seen, grid)
    objective = RepresentativeRate(layer.U, layer.extraction(seen, grid), 0.5, orthonormal=False)

    def unit(z):
        return z / z.norm(dim=-1, keepdim=True)

    def column(values):
        return torch.stack(values, dim=-1)

    def in_heads(z):
        return CodingRate(0.5).value(torch.einsum("bnd,kdp->bknp", z, layer.U.detach()))

    torch.testing.assert_close(record.rate, column([rate.value(z) for z in (before, between, after)]))
    torch.testing.assert_close(record.unit_rate, column([rate.value(unit(z)) for z in (before, between, after)]))
    torch.testing.assert_close(record.value, column([objective.value(z) for z in (seen, seen + update)]))
    torch.testing.assert_close(record.unit_value, column([objective.value(unit(z)) for z in (seen, seen + update)]))
    torch.testing.assert_close(record.tokens, column([in_heads(z) for z in (seen, seen + update)]))
    torch.testing.assert_close(
        record.representatives, column([CodingRate(0.5).value(z) for z in (Q, layer.contracted(Q))])
    )
    for found, towards in ((record.cosine, objective), (record.rate_cosine, rate)):
        pairs = update.flatten(1), -towards.gradient(seen).flatten(1)
        torch.testing.assert_close(found, torch.cosine_similarity(*pairs, dim=-1, eps=0))
    torch.testing.assert_close(record.zeros, (after == 0).double().mean((1, 2)))
    assert record.zeros.min() > 0  # ISTA's
    torch.testing.assert_close(record.decrease, record.value[:, 0] - record.value[:, 1])
    torch.testing.assert_close(record.token_reduction, record.tokens[..., 0] - record.tokens[..., 1])
    assert record.representative_reduction.shape == (2, 3)


@pytest.mark.parametrize("kind", ["mssa", "cbsa"])
def test_an_exact_tied_orthonormal_layer_points_down_hill(kind):
    for record in cbt(**EXACT, attention=kind, step_size=0.1).trace(image()):
        assert record.cosine.min() > 1 - 1e-9
        assert record.decrease.min() > 0


def test_a_layer_of_the_other_sign_is_told():
    model = cbt(**EXACT, step_size=0.1)
    with torch.no_grad():
        model.blocks[1].attention.step.mul_(-1)
    first, second = model.trace(image())
    assert first.cosine.min() > 0.999
    assert second.cosine.max() < -0.999
    assert second.decrease.max() < 0
    assert second.token_reduction.mean() < 0


def test_contracting_lowers_the_rate_of_representatives_in_every_subspace():
    for record in cbt(**EXACT, step_size=0.5).trace(image()):
        assert record.representative_reduction.min() > 0


CLASSES = {
    "mssa": SubspaceCodingRate,
    "cbsa": RepresentativeRate,
    "tssa": VariationalRate,
    "softmax": SubspaceCodingRate,
    "agent": SubspaceCodingRate,
    "mita": SubspaceCodingRate,
}


@pytest.mark.parametrize("kind", CLASSES)
def test_each_layer_has_its_objective(kind):
    records = cbt(attention=kind).trace(image())
    assert [record.objective for record in records] == [CLASSES[kind].__name__] * 2
    assert all((record.representatives is None) == (kind != "cbsa") for record in records)
    assert all(torch.isfinite(getattr(r, n)).all() for r in records for n in ("rate", "value", "cosine", "tokens"))


def test_value_matrices_are_the_bases_of_softmax_attention():
    layer = cbt(attention="softmax").blocks[0].attention
    z = torch.randn(7, 24, dtype=D)
    coordinates = torch.einsum("nd,kdp->knp", z, bases_of(layer))
    torch.testing.assert_close(coordinates, layer.values(z) - layer.values(0 * z))  # without the biases
    with pytest.raises(TypeError, match="a Linear has no subspaces"):
        bases_of(nn.Linear(2, 2))


def test_a_token_statistics_layer_is_judged_with_its_memberships_held():
    model, x = m.ToST(patch_size=8, embed_dim=24, depth=1, num_heads=3, num_classes=5).to(D).eval(), image()
    stage = next(iter(model.stages(x)))
    layer, seen = stage.block.attention, stage.block.seen(stage.x)
    own = objective_of(layer, seen, stage.grid)
    assert type(own) is VariationalRate
    torch.testing.assert_close(own.memberships, layer.memberships(seen))
    assert record_block(stage, 0.3).value[0, 0] != record_block(stage, 0.5).value[0, 0]


DECODERS = {
    "depict self": (lambda: m.DEPICT(**TOKENS, attention="self"), ["self-attention 0", "self-attention 1"]),
    "depict cross": (
        lambda: m.DEPICT(**TOKENS, cross_head_dim=4),
        ["self-attention 0", "self-attention 1", "cross-attention 0", "cross-attention 1", "cross-attention 2"],
    ),
    "cbt": (lambda: m.CBTDecoder(**TOKENS, representatives=(2, 2)), ["block 0", "block 1"]),
    "mask": (lambda: m.MaskDecoder(num_classes=5, embed_dim=24, patch_size=8, num_heads=3), ["block 0", "block 1"]),
}
TOKENS = {"num_classes": 5, "embed_dim": 24, "patch_size": 8, "depth": 2, "num_heads": 3, "head_dim": 8}


@pytest.mark.parametrize("name", DECODERS)
def test_decoders_are_traced_on_tokens(name):
    make, names = DECODERS[name]
    model, tokens = make().to(D).eval(), torch.randn(2, 24, 24, dtype=D)
    records = model.trace(tokens, im_size=(32, 48))
    assert [record.name for record in records][: len(names)] == names[: len(records)]
    assert all(torch.isfinite(record.cosine).all() for record in records)


def test_stages_of_a_segmenter_are_what_its_forward_pass_does():
    config = m.SegmenterConfig(m.ViTConfig(**FIELDS), m.CBTDecoderConfig(**TOKENS, representatives=(2, 2)))
    model, x = m.Segmenter(config).to(D).eval(), torch.randn(1, 3, 29, 43, dtype=D)
    stages = list(model.stages(x))
    assert [stage.name for stage in stages] == [
        "encoder block 0",
        "encoder block 1",
        "decoder block 0",
        "decoder block 1",
    ]
    assert {stage.grid for stage in stages} == {(4, 6)}
    entered = []
    for stage in stages:
        stage.block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    model(x)
    for stage, tokens in zip(stages, entered, strict=True):
        torch.testing.assert_close(stage.x, tokens)
    assert len(model.trace(x)) == 4
    assert str(model.trace(x)).count("encoder block") == 2


@pytest.mark.parametrize("kind", ["cbsa", "softmax", "mita"])
def test_stages_of_an_encoder_are_what_its_forward_pass_does(kind):
    model, x = cbt(attention=kind), image()
    stages, entered = list(model.stages(x)), []
    for stage in stages:
        stage.block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    model(x)
    for stage, tokens in zip(stages, entered, strict=True):
        torch.testing.assert_close(stage.x, tokens)


def test_a_trace_is_a_table_and_plain_data():
    model = cbt()
    made = model.train().trace(image(), epsilon=0.3)
    assert model.training
    assert isinstance(made, Trace)
    assert all(isinstance(record, BlockRecord) for record in made)
    lines = str(made).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[0].split()[:3] == ["block", "attention", "objective"]
    assert len(lines) == len(made) + 1 == 3
    plain = json.loads(json.dumps(made.to_dict()))
    assert plain["epsilon"] == 0.3
    assert plain["blocks"][1]["rate"] == pytest.approx(made[1].rate.mean(0).tolist())


def test_progress_goes_around_the_stages():
    passed = []
    trace(cbt(), image(1), each=lambda stages: (passed.append(stage.name) or stage for stage in stages))
    assert passed == ["block 0", "block 1"]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="epsilon must be"):
        cbt().trace(image(), epsilon=0.0)
    with pytest.raises(ValueError, match=r"pass im_size=\(H, W\)"):
        DECODERS["cbt"][0]().trace(torch.randn(1, 24, 24))
    assert len(m.LinearDecoder().trace(torch.randn(1, 4, 192))) == 0
