"""Descent reports: what is measured of a network's layers and heads, what is said of it, and what is refused."""

import argparse
import html.parser
import json

import pytest
import torch
from torch import nn

from objectives import (
    AttentionEnergy,
    CodingRate,
    KernelRegression,
    SelfAttentionEnergy,
    SubspaceCodingRate,
    SymmetricEnergy,
)
from proofs_check import descent_report_page
from proofs_check.descent_alignment import Alignment, align
from proofs_check.descent_command import add_descent
from proofs_check.descent_networks import matrices_of, watch
from proofs_check.descent_report import AttentionDescent, descent_report
from unrolling import ISTA, MSSA, CRATEBlock, Stage
from unrolling import models as m
from unrolling.adapt import adapt
from unrolling.training import ArrayData, Splits

D = torch.float64
FIELDS = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
HOSTILE = "<img src=x onerror=alert(1)>"


def drawn(*shape, seed=0, dtype=D):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


class Attention(nn.Module):
    """Of timm's structure, computed by itself; tied: all three projections and the output matrix are one basis."""

    def __init__(self, dim=12, heads=3, *, tied=False, sign=1.0, bias=False):
        super().__init__()
        self.num_heads, self.scale = heads, (dim // heads) ** -0.5
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=not tied), nn.Linear(dim, dim, bias=not tied)
        self.biases = nn.Parameter(torch.randn(heads, 1, 7)) if bias else None
        if tied:
            U = torch.linalg.qr(torch.randn(dim, dim)).Q
            with torch.no_grad():
                self.qkv.weight.copy_(torch.cat([U.mT] * 3))
                self.proj.weight.copy_(sign * U)

    def forward(self, x):
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        scores = self.scale * q @ k.mT
        scores = scores if self.biases is None else scores + self.biases
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, dim=12):
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim)

    def forward(self, x):
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm1, self.attn, self.norm2, self.mlp = nn.LayerNorm(12), attention, nn.LayerNorm(12), Mlp()

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def plain(*attentions):
    """A transformer of blocks with these attentions, in float64."""
    return nn.Sequential(*map(Block, attentions)).to(D)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# --------------------------------------------------------------------------------------------------- this library's own


def test_tied_exact_layers_descend_on_every_image_and_in_every_head():
    model = m.CRATE(**FIELDS, form="exact", tied=True, orthonormal=True, certified=True).to(D)
    report = descent_report(model, drawn(6, 3, 32, 32))
    assert report.images == 6
    assert len(report.attentions) == 2
    assert not report.left_out
    for record in report.attentions:
        assert record.verdict == "descends"
        assert (record.layer, record.objective) == ("MSSA", "SubspaceCodingRate")
        assert record.block.cosine.shape == (6,)
        assert bool((record.block.cosine > 1 - 1e-9).all())
        assert bool((record.block.decrease > 0).all())
        assert not bool(record.block.ascends.any())
        assert record.heads.cosine.shape == (6, 3)
        assert bool((record.heads.cosine > 1 - 1e-9).all())
        assert bool((record.block.best_decrease >= record.block.decrease).all())
        assert record.whole is None  # nothing is frozen
    assert "2 “descends”" in str(report)
    assert "no gradient steps at the stream" in str(report)


def test_heads_of_a_layer_sum_to_its_decrease_for_orthonormal_bases():
    layer = MSSA(12, 3, form="exact", step_size=0.2).to(D)
    record = descent_report(nn.Sequential(layer), drawn(3, 9, 12)).attentions[0]
    assert torch.allclose(record.heads.decrease.sum(-1), record.block.decrease)
    f, x = SubspaceCodingRate(layer.U, 0.5), drawn(3, 9, 12)
    assert torch.allclose(record.block.decrease, (f.value(x) - f.value(layer(x))).detach())


def test_a_flipped_sign_is_reported_as_ascending():
    model = m.CRATE(**FIELDS, form="exact", tied=True, orthonormal=True).to(D)
    with torch.no_grad():
        model.blocks[1].attention.step.mul_(-1)
    report = descent_report(model, drawn(4, 3, 32, 32))
    assert [record.verdict for record in report.attentions] == ["descends", "ascends"]
    turned = report.attentions[1].block
    assert bool((turned.cosine < -1 + 1e-9).all() and (turned.decrease < 0).all() and (turned.best_step < 0).all())
    assert bool((turned.best_decrease > 0).all())
    assert bool(report.attentions[1].heads.ascends.all())
    assert "1 “ascends”" in report.verdict()[0]


@pytest.mark.parametrize(
    ("cosine", "decrease", "verdict"),
    [
        ((1, 1), (1, 1), "descends"),
        ((1, 1), (1, -1), "overshoots"),
        ((1, -1), (1, 1), "mixed"),
        ((-1, -1), (1, -1), "ascends"),
    ],
)
def test_a_verdict_is_of_every_image(cosine, decrease, verdict):
    zero = torch.zeros(2)
    block = Alignment(zero, torch.tensor(cosine), torch.tensor(decrease), zero, zero)
    assert AttentionDescent("0", "MSSA", "CodingRate", "", block, None, "", None).verdict == verdict


def test_a_step_that_is_too_long_overshoots():
    layer = MSSA(12, 3, form="exact", step_size=400.0).to(D)
    record = descent_report(nn.Sequential(layer), drawn(3, 9, 12)).attentions[0]
    assert record.verdict == "overshoots"
    assert bool((record.block.cosine > 0.99).all())
    assert bool((record.block.best_step < 0.5).all() and (record.block.best_step > 0).all())


def test_what_cbsa_freezes_is_measured_and_agrees_with_its_soft_rate():
    report = descent_report(m.CBT(**FIELDS).to(D), drawn(2, 3, 32, 32))
    for record in report.attentions:
        assert record.frozen == "P_k"
        assert record.heads.cosine.shape == (2, 3)
        assert torch.allclose(record.heads.value.sum(-1), record.block.value)
        assert bool((record.whole.left_out > 0.05).all())
        assert bool((record.whole.cosine < 1).all())
    assert "Freezing (P_k) leaves out" in str(report)


def test_ista_lowers_sparse_coding_from_where_codes_may_start():
    block = CRATEBlock(MSSA(12, 3), ISTA(12, step_size=0.05)).to(D)
    x = drawn(3, 9, 12)

    class Net(m.Model):
        def stages(self, tokens):
            yield Stage("only", self.block, tokens, (3, 3), 0)

    model = Net()
    model.block = block
    report = descent_report(model, x)
    fed = report.feeds[0]
    with torch.no_grad():
        between = block.attend(x)
        f, after = block.ista.objective_at(between), block.feed(between)
        expected = f.value(between.clamp(min=0)) - f.value(after)
    assert fed.layer == "ISTA"
    assert torch.allclose(fed.coding.decrease, expected)
    assert bool((expected > 0).all())
    assert torch.allclose(fed.zeros, (after == 0).to(D).mean((-2, -1)))
    assert bool((fed.coding.cosine > 0).all())


@pytest.mark.parametrize("kind", [m.CRATE, m.CBT, m.ViT])
def test_a_network_of_ours_inside_of_another_is_measured_alike(kind):
    model, x = kind(**FIELDS).to(D), drawn(2, 3, 32, 32)
    alone, inside = descent_report(model, x), descent_report(nn.Sequential(nn.Identity(), model), x)
    assert [record.name for record in inside.attentions] == ["1.blocks.0", "1.blocks.1"]
    assert not inside.left_out
    for one, other in zip(alone.attentions, inside.attentions, strict=True):
        assert torch.allclose(one.block.cosine, other.block.cosine)
        assert torch.allclose(one.heads.cosine, other.heads.cosine)
    for one, other in zip(alone.feeds, inside.feeds, strict=True):
        assert torch.allclose(one.shrinks, other.shrinks)
    assert not any(part._forward_pre_hooks for part in model.modules())


def test_layer_scale_is_part_of_what_heads_add():
    model = m.ViT(**FIELDS).to(D)
    block = model.blocks[0]
    block.gamma1 = nn.Parameter(1 + torch.rand(24, dtype=D))
    attended, _, _ = watch(model, drawn(2, 3, 32, 32), {})
    bias = 0 if block.attention.output.bias is None else block.gamma1 * block.attention.output.bias
    assert torch.allclose(sum(attended[0].parts) + bias, attended[0].update)


# ----------------------------------------------------------------------------------------------------------- other ones


def test_a_plain_transformer_that_is_tied_descends_its_energy_and_another_does_not():
    report = descent_report(
        plain(Attention(tied=True), Attention()), drawn(4, 7, 12), objective="self_attention_energy"
    )
    tied, free = report.attentions
    assert (tied.name, free.name) == ("0.attn", "1.attn")
    assert tied.layer == "Attention"
    assert bool((tied.block.cosine > 1 - 1e-9).all())
    assert bool((tied.heads.cosine > 1 - 1e-9).all())
    assert tied.verdict == "descends"
    assert tied.frozen == "keys"
    assert bool((free.block.cosine.abs() < 0.6).all())
    assert bool((tied.block.best_step > 15.9).all())  # the energy is concave: the longest that is tried


def test_a_plain_transformer_of_the_wrong_sign_ascends():
    record = descent_report(
        plain(Attention(tied=True, sign=-1.0)), drawn(2, 7, 12), objective="self_attention_energy"
    ).attentions[0]
    assert record.verdict == "ascends"
    assert bool((record.heads.cosine < -1 + 1e-9).all())


def test_the_whole_gradient_is_that_of_the_symmetric_part():
    layer = Attention(tied=True)
    model, x = plain(layer), drawn(2, 7, 12)
    record = descent_report(model, x, objective="self_attention_energy").attentions[0]
    with torch.no_grad():
        seen = model[0].norm1(x)
        U = matrices_of(layer).value
        frozen = SelfAttentionEnergy(U, seen.unsqueeze(1) @ U, layer.scale).gradient(seen)
        total = 2 * SymmetricEnergy(U, layer.scale).gradient(seen)
        left = (total - frozen).flatten(1).norm(dim=1) / total.flatten(1).norm(dim=1)
        update = nn.functional.cosine_similarity(layer(seen).flatten(1), -total.flatten(1))
    assert torch.allclose(record.whole.left_out, left)
    assert torch.allclose(record.whole.update, update)
    value = SymmetricEnergy(U, layer.scale).value
    assert torch.allclose(record.whole.decrease, (2 * (value(seen) - value(seen + layer(seen)))).detach())


def test_a_callable_gets_the_tokens_that_the_attention_sees_and_the_layer():
    model, x = plain(Attention(tied=True)), drawn(2, 7, 12)
    asked = []

    def mine(tokens, layer):
        asked.append((tokens.detach(), layer))
        U = matrices_of(layer).value
        return SelfAttentionEnergy(U, tokens.unsqueeze(1) @ U, layer.scale)

    report = descent_report(model, x, objective=mine)
    assert report.asked == "mine"
    assert torch.equal(asked[0][0], model[0].norm1(x))
    assert asked[0][1] is model[0].attn
    assert bool((report.attentions[0].block.cosine > 1 - 1e-9).all())
    assert report.attentions[0].heads.cosine.shape == (2, 3)  # against the whole: below 1
    assert bool((report.attentions[0].heads.cosine < 0.99).all())


@pytest.mark.parametrize("name", ["subspace_rate", "coding_rate", "symmetric_energy", "attention_energy"])
@pytest.mark.parametrize("projection", ["value", "key"])
def test_every_name_is_the_objective_of_the_matrices_asked_for(name, projection):
    model, x = plain(Attention()), drawn(2, 7, 12)
    asked = {"objective": name, "epsilon": 0.3, "projection": projection}
    record = descent_report(model, x, **asked).attentions[0]
    seen, own = model[0].norm1(x).detach(), matrices_of(model[0].attn)
    U = getattr(own, projection)
    f = {
        "subspace_rate": SubspaceCodingRate(U, 0.3, orthonormal=False),
        "coding_rate": CodingRate(0.3),
        "symmetric_energy": SymmetricEnergy(U, 0.5, orthonormal=False),
        "attention_energy": AttentionEnergy(own.query, own.key, 0.5, exclude_self=False),
    }[name]
    assert torch.allclose(record.block.value, f.value(seen))
    assert torch.allclose(record.block.decrease, (f.value(seen) - f.value(seen + model[0].attn(seen))).detach())
    each = record.heads.value.sum(-1) / (3 if name == "coding_rate" else 1)
    assert torch.allclose(each, record.block.value)
    third = model[0].attn.qkv.weight.detach().chunk(3)[{"key": 1, "value": 2}[projection]]
    assert torch.equal(U[1], third[4:8].mT)


def test_the_regression_is_what_softmax_attention_minimises_and_its_best_step_is_exact():
    model, x = plain(Attention()), drawn(2, 7, 12)
    record = descent_report(model, x, objective="kernel_regression").attentions[0]
    seen = model[0].norm1(x).detach()
    update = model[0].attn(seen).detach()
    best = (update * (update - seen)).sum((1, 2)) / update.square().sum((1, 2))
    assert torch.allclose(record.block.best_step, best, rtol=0.02)
    assert record.whole is not None
    assert record.heads is None
    assert "no sum over heads" in record.why


def test_a_line_search_finds_the_minimum_of_a_quadratic_and_bounds_what_has_none():
    f = KernelRegression(torch.full((3, 2), 0.5, dtype=D), torch.zeros(2, 4, dtype=D))  # ½‖x‖²
    x = drawn(5, 3, 4)
    found = align(f, x, -x / 3)
    assert torch.allclose(found.best_step, torch.full((5,), 3.0, dtype=D), rtol=1e-3)
    assert torch.allclose(found.best_decrease, f.value(x), rtol=1e-6)
    assert torch.allclose(found.cosine, torch.ones(5, dtype=D))
    still = align(f, x, torch.zeros_like(x))
    assert not still.cosine.any()
    assert not still.best_step.any()
    assert not still.decrease.any()


def test_position_biases_are_no_softmax_attention_of_the_projections():
    model = plain(Attention(), Attention(bias=True))
    report = descent_report(model, drawn(2, 7, 12), objective="kernel_regression")
    assert [record.name for record in report.attentions] == ["0.attn"]
    assert "position biases" in report.left_out["1.attn"]
    assert "1 attention(s) were not measured: 1.attn" in str(report)


@pytest.mark.parametrize("first", [True, False])
def test_torchs_encoder_is_measured_off_its_fast_path_images_first(first):
    torch.manual_seed(1)
    layer = nn.TransformerEncoderLayer(12, 3, 24, batch_first=first, norm_first=True, dropout=0.1).to(D)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    x = drawn(4, 7, 12)
    report = descent_report(model, x, objective="subspace_rate")
    assert model.training
    assert model.layers[0].training
    record = report.attentions[0]
    assert record.block.cosine.shape == (4,)
    assert record.heads.cosine.shape == (4, 3)
    own = model.layers[0].eval()
    seen = own.norm1(x)
    turned = seen if first else seen.transpose(0, 1)
    update = own.self_attn(turned, turned, turned, need_weights=False)[0]
    update = update if first else update.transpose(0, 1)
    f = SubspaceCodingRate(matrices_of(own.self_attn).value, 0.5, orthonormal=False)
    assert torch.allclose(record.block.decrease, (f.value(seen) - f.value(seen + update)).detach())
    assert [feed.name for feed in report.feeds] == ["layers.0: feed-forward", "layers.1: feed-forward"]
    between = x + update
    hidden = torch.relu(own.linear1(own.norm2(between)))
    assert torch.allclose(report.feeds[0].inactive, (hidden <= 0).to(D).mean((1, 2)))


def test_an_mlp_that_only_shrinks_says_so():
    model = plain(Attention())
    with torch.no_grad():
        own, eye = model[0].mlp, torch.eye(12, dtype=D)
        own.fc1.weight.copy_(torch.cat([eye, -eye]))
        own.fc2.weight.copy_(-0.1 * torch.cat([eye, -eye], 1))
        own.fc1.bias.zero_()
        own.fc2.bias.zero_()
    feed = descent_report(model, drawn(2, 7, 12), objective="subspace_rate").feeds[0]
    assert torch.allclose(feed.shrinks, torch.ones(2, dtype=D))
    assert bool((feed.rate > 0.1).all())
    assert bool((feed.unit_rate.abs() < 1e-9).all())
    assert torch.allclose(feed.inactive, torch.full((2,), 0.5, dtype=D))


@pytest.mark.parametrize("kind", ["mita", "mssa", "cbsa"])
def test_adapted_networks_are_held_against_the_rate(kind):
    model = adapt(plain(Attention(), Attention()), kind)
    report = descent_report(model, drawn(2, 7, 12))
    assert {record.objective for record in report.attentions} == {"SubspaceCodingRate"}
    assert all(record.heads is not None and record.layer == "FusedAdapted" for record in report.attentions)


def test_an_adapted_attention_is_measured_in_the_subspaces_that_it_reads():
    model, x = plain(Attention()), drawn(2, 7, 12)
    adapt(model, "mssa", projection="query")
    f = SubspaceCodingRate(matrices_of(model[0].attn).query, 0.5, orthonormal=False)
    assert torch.allclose(descent_report(model, x).attentions[0].block.value, f.value(model[0].norm1(x).detach()))


class SelfAttention(nn.Module):
    """Of older Hugging Face models' structure: three maps, the output matrix in the parent, a tuple returned."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(12, 12) for _ in range(3))
        self.num_attention_heads = 3

    def forward(self, hidden_states):
        q, k, v = (
            part(hidden_states).unflatten(-1, (3, 4)).transpose(1, 2) for part in (self.query, self.key, self.value)
        )
        return ((q @ k.mT / 2).softmax(-1) @ v).transpose(1, 2).flatten(2), None


class Holder(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.output = SelfAttention(), nn.ModuleDict({"dense": nn.Linear(12, 12)})

    def forward(self, x):
        return self.output["dense"](self.attention(hidden_states=x)[0])


def test_an_output_matrix_that_the_parent_holds_is_part_of_the_update():
    model, x = plain(Holder()), drawn(2, 7, 12)
    attended, fed, refused = watch(model, x, {})
    seen = model[0].norm1(x)
    assert [record.name for record in attended] == ["0.attn.attention"]
    assert not refused
    assert torch.allclose(attended[0].update, model[0].attn(seen))
    dense = model[0].attn.output["dense"]
    read = model[0].attn.attention(seen)[0]
    assert torch.allclose(attended[0].parts[2], read[..., 8:] @ dense.weight[:, 8:].mT)
    assert [record.name for record in fed] == ["0: feed-forward"]


def test_timm_is_measured():
    timm = pytest.importorskip("timm")
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2)
    report = descent_report(model, drawn(2, 3, 32, 32, dtype=torch.float32), objective="kernel_regression")
    assert len(report.attentions) == len(report.feeds) == 2


def test_hugging_faces_vit_is_measured():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    model = transformers.ViTModel(transformers.ViTConfig(**sizes, image_size=32, patch_size=8))
    report = descent_report(model, drawn(2, 3, 32, 32, dtype=torch.float32), objective="subspace_rate")
    assert len(report.feeds) == 2
    assert all(record.heads is not None for record in report.attentions)


# --------------------------------------------------------------------------------------------------------------- inputs


def test_images_are_spread_over_what_is_given_whatever_form_it_has():
    model = m.CRATE(**FIELDS).to(D)
    x = drawn(10, 3, 32, 32)
    whole = descent_report(model, x[[0, 3, 6]], images=3).attentions[0].block.cosine
    for given in (x, list(x), [x[:4], x[4:]]):
        report = descent_report(model, given, images=3)
        assert report.images == 3
        assert torch.allclose(report.attentions[0].block.cosine, whole)
    mixed = descent_report(model, [x[0], drawn(3, 32, 40)], images=3)
    assert mixed.images == 2
    assert torch.allclose(mixed.attentions[0].block.cosine[:1], whole[:1])


def test_a_data_set_is_normalised_as_in_training():
    pixels = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    data = ArrayData("eight", pixels, torch.arange(8) % 2, ("a", "b"), mean=(0.9, 0.1, 0.4), std=(0.1, 0.3, 0.2))
    model = m.CRATE(**FIELDS)
    mean, std = (torch.tensor(of)[:, None, None] for of in ((0.9, 0.1, 0.4), (0.1, 0.3, 0.2)))
    normal = (pixels / 255 - mean) / std
    expected = descent_report(model, normal).attentions[0].block.cosine
    for given in (data, Splits(data, data, data)):
        assert torch.allclose(descent_report(model, given).attentions[0].block.cosine, expected, atol=1e-5)


def test_the_network_is_left_as_it_was():
    model = plain(Attention(), Attention()).train()
    model[1].eval()
    descent_report(model, drawn(2, 7, 12), objective="self_attention_energy")
    assert model[0].attn.training
    assert not model[1].attn.training
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in model.modules())
    assert all(tensor.grad is None for tensor in model.parameters())


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"model": 3}, TypeError, "model must be a torch.nn.Module, but is a int"),
        ({"objective": None}, ValueError, "0.attn is no layer of this library and stands for no objective"),
        ({"objective": "rate"}, ValueError, "objective must be one of 'subspace_rate'"),
        ({"objective": lambda x, layer: 3.0}, TypeError, "0.attn .* must return an Objective .* returned a float"),
        ({"objective": "declared"}, ValueError, "could be measured: 0.attn: a Attention declares no objective"),
        ({"images": 0}, ValueError, "images must be a whole number of at least 1, but is 0"),
        ({"epsilon": -1.0}, ValueError, "epsilon must be positive and finite"),
        ({"projection": "out"}, ValueError, "projection must be one of value, query, key"),
        ({"data": drawn(3)}, ValueError, r"data must be images .* but is \(3,\)"),
        ({"data": []}, ValueError, "an empty list"),
        ({"data": ["x"]}, TypeError, "one is a str"),
        ({"data": 5}, TypeError, "a data set of unrolling.training, but is a int"),
        ({"data": torch.zeros(2, 7, 12, dtype=torch.uint8)}, TypeError, "floating point, normalised"),
        ({"data": drawn(2, 7, 12) * float("nan")}, ValueError, "0.attn .* NaN or infinite"),
        ({"model": nn.Sequential(nn.Linear(12, 12))}, ValueError, "no attention was found in Sequential"),
        ({"model": plain(Attention()).bfloat16()}, ValueError, "too coarse to tell decreases; call model.float"),
        ({"html": "/no/such/folder/page.html"}, ValueError, "the folder /no/such/folder does not exist"),
        ({"html": "."}, ValueError, "is a folder; give a file name"),
    ],
)
def test_bad_arguments_are_named(change, error, words):
    given = {"model": plain(Attention()), "data": drawn(2, 7, 12), "objective": "subspace_rate", **change}
    with pytest.raises(error, match=words):
        descent_report(given.pop("model"), given.pop("data"), **given)


# ------------------------------------------------------------------------------------------------------------- the page


class Read(html.parser.HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words = [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_escapes_every_name_and_fetches_nothing(tmp_path):
    Evil = type(HOSTILE, (Attention,), {})
    model = nn.ModuleDict({HOSTILE: Block(Evil())}).to(D)
    model.forward = lambda x: model[HOSTILE](x)

    def objective(tokens, layer):
        return SubspaceCodingRate(matrices_of(layer).value, 0.5, orthonormal=False)

    objective.__name__ = HOSTILE
    report = descent_report(model, drawn(2, 7, 12), objective=objective, html=tmp_path / "page.html")
    report.left_out[HOSTILE] = HOSTILE
    text = report.html(tmp_path / "page.html").read_text(encoding="utf-8")
    read = Read(text)
    assert not {"img", "script", "link", "iframe"} & set(read.tags)
    assert not {"src", "onerror", "onload"} & set(read.attributes)
    assert "url(" not in text
    assert "http" not in text
    assert sum(HOSTILE in word for word in read.words) >= 5  # block, class, heads, objective, left out
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_page_has_curves_and_tables_of_blocks_heads_and_feed_forward_blocks(tmp_path):
    report = descent_report(
        plain(Attention(tied=True), Attention()), drawn(3, 7, 12), objective="self_attention_energy"
    )
    text = descent_report_page.page(report)
    read = Read(text)
    assert text.count('class="chart"') == 3
    assert text.count("<table") == 3
    assert "NaN" not in text
    said = " ".join(read.words)
    for words in ("measured, not claimed", "no gradient steps at the stream", "keys held", "0.attn", "1: feed-forward"):
        assert words in said
    assert text.count('class="down"') + text.count('class="up"') == 6
    assert "+1.00" in said
    assert 'role="img"' in text


def test_a_page_that_fails_leaves_the_old_one(tmp_path, monkeypatch):
    report = descent_report(plain(Attention()), drawn(2, 7, 12), objective="subspace_rate")
    place = tmp_path / "page.html"
    place.write_text("old")
    monkeypatch.setattr("proofs_check.descent_records.os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        report.html(place)
    assert place.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_plain_data_is_json_with_every_image():
    report = descent_report(plain(Attention()), drawn(3, 7, 12), objective="self_attention_energy")
    plain_data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    block = plain_data["attentions"][0]
    assert len(block["block"]["cosine"]) == 3
    assert len(block["heads"]["decrease"][0]) == 3
    assert block["verdict"] == report.attentions[0].verdict
    assert plain_data["feed_forwards"][0]["layer"] == "MLP"


# ---------------------------------------------------------------------------------------------------------- the command


def command(*arguments):
    parser = argparse.ArgumentParser()
    add_descent(parser.add_subparsers(), lambda path, text: path.write_text(text))
    options = parser.parse_args(["report-model", *map(str, arguments)])
    return options.command(options)


def test_a_saved_network_is_reported_from_the_command_line(tmp_path, capsys):
    folder = m.CRATE(**FIELDS).save_pretrained(tmp_path / "net")
    assert command(folder, "--html", tmp_path / "page.html", "--json", tmp_path / "all.json") == 0
    said = capsys.readouterr().out
    assert "grace_hopper.jpg" in said
    assert "block 1" in said
    assert "no derivation" in said
    assert json.loads((tmp_path / "all.json").read_text())["images"] == 1
    assert "<h2>Heads" in (tmp_path / "page.html").read_text()


def test_the_command_names_what_is_wrong(tmp_path):
    folder = m.CRATE(**FIELDS).save_pretrained(tmp_path / "net")
    with pytest.raises(ValueError, match="objective must be one of"):
        command(folder, "--objective", "rate")
    with pytest.raises(ValueError, match="does not exist"):
        command(folder, "--html", tmp_path / "no" / "page.html")
