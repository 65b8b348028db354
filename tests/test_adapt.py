import copy
import importlib
import math
import sys
import types
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from unrolling import CBSA, TSSA, AgentAttention, GridPool, GridRotary, MiTA, SoftmaxAttention, compat, models
from unrolling.adapt import Adapted, adapt, adapted, token_statistics
from unrolling.models import MiTADeiT, ViT

GRID, DIM, HEADS = (3, 4), 12, 2  # patches of 4 × 4 pixels in images of 12 × 16
SMALL = {
    "cbsa": {"landmarks": (2, 3)},
    "mita": {"landmarks": (2, 2), "keys_per_expert": 3, "experts_per_query": 2},
    "agent": {"landmarks": (2, 2)},
    "mssa": {"projection": "key"},
    "tssa": {},
}


# Networks with the structure, the names and the signatures of those that people have.


class TimmAttention(nn.Module):
    """As timm 1.0.31's."""

    def __init__(self, dim, heads, bias=True, norms=False, gate=False, drop=0.0):
        super().__init__()
        self.num_heads, self.head_dim, self.scale, self.fused_attn = heads, dim // heads, (dim // heads) ** -0.5, False
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.q_norm, self.k_norm = ((nn.LayerNorm(dim // heads) if norms else nn.Identity()) for _ in range(2))
        self.attn_drop, self.proj_drop = nn.Dropout(drop), nn.Dropout(0.0)
        self.norm = nn.LayerNorm(dim) if norms else nn.Identity()
        self.gate = nn.Linear(dim, dim) if gate else None
        self.proj = nn.Linear(dim, dim, bias=bias)

    def forward(self, x, attn_mask=None, is_causal=False):
        B, N, C = x.shape
        gate = self.gate(x).sigmoid() if self.gate is not None else None
        qkv = self.qkv(x).reshape(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        q, k = self.q_norm(q) * self.scale, self.k_norm(k)
        scores = q @ k.transpose(-2, -1)
        if attn_mask is not None:
            scores = scores + attn_mask
        x = (self.attn_drop(scores.softmax(dim=-1)) @ v).transpose(1, 2).reshape(B, N, C)
        x = self.norm(x)
        x = x if gate is None else x * gate
        return self.proj_drop(self.proj(x))


class OlderAttention(TimmAttention):
    def forward(self, x, layer_idx=None):
        return super().forward(x)


class SegmenterAttention(nn.Module):
    """As Segmenter's and, but for the name ``heads``, DINO's: returns its map too."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads, self.scale, self.attn = heads, (dim // heads) ** -0.5, None
        self.qkv, self.proj = nn.Linear(dim, dim * 3), nn.Linear(dim, dim)
        self.attn_drop, self.proj_drop = nn.Dropout(0.0), nn.Dropout(0.0)

    def forward(self, x, mask=None):
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        attn = self.attn_drop(((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1))
        return self.proj_drop(self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))), attn


class HuggingSelfAttention(nn.Module):
    """As transformers 4's ViTSelfAttention: the output matrix is elsewhere."""

    def __init__(self, dim, heads):
        super().__init__()
        self.num_attention_heads, self.attention_head_size = heads, dim // heads
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.dropout = nn.Dropout(0.0)

    def forward(self, hidden_states, head_mask=None, output_attentions=False):
        q, k, v = (
            part(hidden_states).unflatten(-1, (self.num_attention_heads, -1)).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        probs = self.dropout((q @ k.transpose(-1, -2) / math.sqrt(self.attention_head_size)).softmax(-1))
        context = (probs @ v).transpose(1, 2).flatten(-2)
        return (context, probs) if output_attentions else (context,)


class HuggingAttention(nn.Module):
    """As transformers 5's ViTAttention."""

    def __init__(self, dim, heads, causal=False):
        super().__init__()
        self.num_attention_heads, self.head_dim, self.scaling = heads, dim // heads, (dim // heads) ** -0.5
        self.attention_dropout, self.is_causal = 0.0, causal
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (part(hidden_states).view(shape).transpose(1, 2) for part in (self.q_proj, self.k_proj, self.v_proj))
        weights = (q @ k.transpose(2, 3) * self.scaling).softmax(-1)
        out = (weights @ v).transpose(1, 2).reshape(*hidden_states.shape[:-1], -1)
        return self.o_proj(out), weights


class Residual(nn.Module):
    """A block around any of them, which calls it as its own library does."""

    def __init__(self, attn, call):
        super().__init__()
        self.norm1, self.attn, self.call = nn.LayerNorm(DIM), attn, call
        self.norm2, self.mlp = nn.LayerNorm(DIM), nn.Sequential(nn.Linear(DIM, DIM), nn.GELU(), nn.Linear(DIM, DIM))

    def forward(self, x):
        x = x + self.call(self.attn, self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Wrapped(nn.Module):
    """Hugging Face's split into attention and output."""

    def __init__(self, dim, heads):
        super().__init__()
        self.attention, self.output = HuggingSelfAttention(dim, heads), nn.ModuleDict({"dense": nn.Linear(dim, dim)})

    def forward(self, x):
        return self.output["dense"](self.attention(x, None, output_attentions=False)[0])


class Patches(nn.Module):
    def __init__(self, **facts):
        super().__init__()
        self.projection = nn.Conv2d(3, DIM, 4, 4)
        for name, value in facts.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.projection(x).flatten(2).transpose(1, 2)


class Network(nn.Module):
    """A ViT as timm, DINO and Segmenter write it: class token, registers, patches."""

    def __init__(self, blocks, registers=0, turned=False, **facts):
        super().__init__()
        self.patch_embed, self.turned = Patches(**facts), turned
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))
        self.reg_token = nn.Parameter(torch.randn(1, registers, DIM)) if registers else None
        self.pos_embed = nn.Parameter(torch.randn(1, 13 + registers, DIM))
        self.blocks, self.norm, self.head = blocks, nn.LayerNorm(DIM), nn.Linear(DIM, 5)

    def forward(self, image):
        prefix = [token for token in (self.cls_token, self.reg_token) if token is not None]
        x = torch.cat([*(token.expand(len(image), -1, -1) for token in prefix), self.patch_embed(image)], dim=1)
        x = self.turn(self.blocks(self.turn(x + self.pos_embed)))
        return self.head(self.norm(x)[:, 0])

    def turn(self, x):
        return x.transpose(0, 1) if self.turned else x


class HuggingEmbeddings(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch_embeddings = Patches(image_size=(12, 16), patch_size=(4, 4), num_patches=12)
        self.cls_token = nn.Parameter(torch.randn(1, 1, DIM))

    def forward(self, image):
        return torch.cat([self.cls_token.expand(len(image), -1, -1), self.patch_embeddings(image)], dim=1)


class HuggingNetwork(nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.embeddings, self.encoder = HuggingEmbeddings(), nn.ModuleDict({"layer": blocks})
        self.classifier = nn.Linear(DIM, 5)

    def forward(self, image):
        return self.classifier(self.encoder["layer"](self.embeddings(image))[:, 0])


def encoder(depth, first, drop=0.0):
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 2 * DIM, dropout=drop, batch_first=first)
    return nn.TransformerEncoder(layer, depth, enable_nested_tensor=first)


def stack(depth, make, call):
    return nn.Sequential(*(Residual(make(), call) for _ in range(depth)))


def timm_call(attn, x):
    return attn(x, attn_mask=None, is_causal=False)


def older_call(attn, x):
    return attn(x, layer_idx=3)


def segmenter_call(attn, x):
    y, _ = attn(x, None)
    return y


def hugging_call(attn, x):
    y, _ = attn(hidden_states=x, attention_mask=None, output_attentions=False, output_hidden_states=True)
    return y


def torch_call(attn, x):
    y, _ = attn(x, x, x, need_weights=False)
    return y


def turned_call(attn, x):
    y, _ = attn(*3 * (x.transpose(0, 1),))
    return y.transpose(0, 1)


def tuple_call(attn, x):
    (y,) = attn(x, None, output_attentions=False)
    return y


def ours_call(attn, x):
    return attn.adds(x, GRID)


def timm_network(depth, registers=0, kind=TimmAttention, call=timm_call, **options):
    blocks = stack(depth, lambda: kind(DIM, HEADS, **options), call)
    network = Network(blocks, registers, grid_size=GRID)
    network.num_prefix_tokens = 1 + registers
    return network


def our_network(depth):
    return ViT(img_size=(12, 16), patch_size=4, embed_dim=DIM, depth=depth, num_heads=HEADS, num_classes=5)


# A network of a depth, the name of its first attention, its call, and what its tokens need to be: leading ones.
STRUCTURES = {
    "timm": (timm_network, "blocks.0.attn", timm_call),
    "timm, normed and gated, without biases": (
        lambda depth: timm_network(depth, 2, bias=False, norms=True, gate=True),
        "blocks.0.attn",
        timm_call,
    ),
    "older timm": (
        lambda depth: timm_network(depth, kind=OlderAttention, call=older_call),
        "blocks.0.attn",
        older_call,
    ),
    "segmenter": (
        lambda depth: Network(stack(depth, lambda: SegmenterAttention(DIM, HEADS), segmenter_call), grid_size=GRID),
        "blocks.0.attn",
        segmenter_call,
    ),
    "hugging face 4": (
        lambda depth: HuggingNetwork(stack(depth, lambda: Wrapped(DIM, HEADS), lambda attn, x: attn(x))),
        "encoder.layer.0.attn.attention",
        tuple_call,
    ),
    "hugging face 5": (
        lambda depth: HuggingNetwork(stack(depth, lambda: HuggingAttention(DIM, HEADS), hugging_call)),
        "encoder.layer.0.attn",
        hugging_call,
    ),
    "torch, alone": (
        lambda depth: Network(
            stack(depth, lambda: nn.MultiheadAttention(DIM, HEADS, batch_first=True), torch_call), grid_size=GRID
        ),
        "blocks.0.attn",
        torch_call,
    ),
    "torch, alone, sequence first, without biases": (
        lambda depth: Network(
            stack(depth, lambda: nn.MultiheadAttention(DIM, HEADS, bias=False), turned_call), grid_size=GRID
        ),
        "blocks.0.attn",
        turned_call,
    ),
    "torch encoder": (
        lambda depth: Network(encoder(depth, True), img_size=(12, 16), patch_size=4),
        "blocks.layers.0.self_attn",
        torch_call,
    ),
    "torch encoder, sequence first": (
        lambda depth: Network(encoder(depth, False), turned=True, patches_resolution=GRID),
        "blocks.layers.0.self_attn",
        turned_call,
    ),
    "ours": (our_network, "blocks.0.attention", ours_call),
}
structures = pytest.mark.parametrize("structure", STRUCTURES)
attentions = pytest.mark.parametrize("attention", SMALL)


def network(structure="timm", depth=1):
    model = STRUCTURES[structure][0](depth).double().eval()
    with torch.no_grad():  # nothing that a start at zero or one would hide
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def images(count=2):
    return torch.randn(count, 3, 12, 16, dtype=torch.float64)


# The attentions, from their definitions, one head and one token set at a time.


def bins(cells, count):
    return [range(i * cells // count, -(-(i + 1) * cells // count)) for i in range(count)]


def pooled(q, leading, size):
    patches = q[leading:].reshape(*GRID, -1)
    means = [
        torch.stack([patches[r, c] for r in rows for c in columns]).mean(0)
        for rows in bins(GRID[0], size[0])
        for columns in bins(GRID[1], size[1])
    ]
    return torch.stack(means)


def reads(q, k, v, s):
    """Softmax attention, a query at a time."""
    rows = []
    for query in q:
        weights = torch.stack([torch.exp(s * (query @ key)) for key in k])
        rows.append(sum(w * value for w, value in zip(weights, v, strict=True)) / weights.sum())
    return torch.stack(rows)


def routed(q, k, v, marks, s, count, per_query):
    rows = []
    for query in q:
        keys, values = [*marks], [*reads(marks, k, v, s)]
        for i in sorted(range(len(marks)), key=lambda i: -float(marks[i] @ query))[:per_query]:
            for j in sorted(range(len(k)), key=lambda j: -float(marks[i] @ k[j]))[:count]:
                keys.append(k[j])
                values.append(v[j])
        rows.append(reads(query[None], keys, values, s)[0])
    return torch.stack(rows)


def statistics(heads):
    """TSSA of all heads ``[(tokens, head_dim)]``: memberships are shared out among them."""
    lengths = torch.stack([sum((w[:, c] / w[:, c].norm()) ** 2 for c in range(w.shape[1])) for w in heads])
    members = torch.exp(lengths) / torch.exp(lengths).sum(0)
    out = []
    for w, pi in zip(heads, members, strict=True):
        moments = [
            sum(p * x**2 for p, x in zip(pi, w[:, c], strict=True)) / (pi.sum() + 1e-8) for c in range(w.shape[1])
        ]
        out.append(torch.stack([-pi * w[:, c] / (1 + moment) for c, moment in enumerate(moments)], dim=1))
    return out


def by_definition(attention, heads, leading, s):
    """``heads``: query, key, value of every head, each ``(tokens, head_dim)``; returns the heads side by side."""
    options, out = SMALL[attention], []
    if attention == "tssa":
        return torch.cat(statistics([v for _, _, v in heads]), dim=-1)
    for q, k, v in heads:
        if attention == "mssa":
            out.append(reads(k, k, k, s))
            continue
        marks = pooled(q, leading, options["landmarks"])
        if attention == "mita":
            out.append(routed(q, k, v, marks, s, options["keys_per_expert"], options["experts_per_query"]))
        else:
            found = reads(marks, k, v, s)
            out.append(reads(q, marks, reads(found, found, found, s) if attention == "cbsa" else found, s))
    return torch.cat(out, dim=-1)


def of_weights(old, x):
    """Query, key, value of every head of one token set, from the weights of a module that was not adapted."""
    if hasattr(old, "qkv"):
        bias = old.qkv.bias if old.qkv.bias is not None else torch.zeros(3 * DIM)
        maps = zip(old.qkv.weight.split(DIM), bias.split(DIM), strict=True)
    elif hasattr(old, "in_proj_weight"):
        bias = old.in_proj_bias if old.in_proj_bias is not None else torch.zeros(3 * DIM)
        maps = zip(old.in_proj_weight.split(DIM), bias.split(DIM), strict=True)
    else:
        names = ("query", "key", "value") if hasattr(old, "query") else ("q_proj", "k_proj", "v_proj")
        maps = [(getattr(old, name).weight, getattr(old, name).bias) for name in names]
    q, k, v = (x @ weight.mT + bias for weight, bias in maps)
    width, heads = DIM // HEADS, []
    for h in range(HEADS):
        parts = [t[:, h * width : (h + 1) * width] for t in (q, k, v)]
        if isinstance(getattr(old, "q_norm", None), nn.LayerNorm):
            parts[:2] = old.q_norm(parts[0]), old.k_norm(parts[1])
        heads.append(parts)
    return heads


def behind(old, joined, x):
    """What a module makes of its heads' results."""
    if isinstance(getattr(old, "norm", None), nn.LayerNorm):
        joined = old.norm(joined)
    if isinstance(getattr(old, "gate", None), nn.Linear):
        joined = joined * torch.sigmoid(x @ old.gate.weight.mT + old.gate.bias)
    for name in ("proj", "o_proj", "out_proj", "output"):
        last = getattr(old, name, None)
        if isinstance(last, nn.Linear):
            joined = joined @ last.weight.mT + (0 if last.bias is None else last.bias)
    return joined


@attentions
@structures
@torch.no_grad()
def test_every_attention_is_its_definition(structure, attention):
    model, name, call = network(structure), *STRUCTURES[structure][1:]
    old = copy.deepcopy(model.get_submodule(name))
    leading = 3 if "gated" in structure else 1
    x = torch.randn(2, leading + 12, DIM, dtype=torch.float64)
    assert adapt(model, attention, **SMALL[attention]) is model
    got = call(model.get_submodule(name), x)
    joined = by_definition(attention, of_weights(old, x[1]), leading, (DIM // HEADS) ** -0.5)
    torch.testing.assert_close(got[1], behind(old, joined, x[1]), rtol=1e-10, atol=1e-10)
    assert (got - call(old, x)).abs().max() > 1e-3


@attentions
@structures
def test_the_weights_stay_the_same_objects_under_the_same_names(structure, attention):
    model, image = network(structure, 2), images()
    before, full = copy.deepcopy(model.state_dict()), model(image)
    kept, modules, was = dict(model.named_parameters()), dict(model.named_modules()), copy.deepcopy(model)
    for frozen in [*model.parameters()][-2:]:
        frozen.requires_grad_(False)
    adapt(model, attention, **SMALL[attention])
    assert list(model.state_dict()) == list(before)
    assert all(parameter is kept[name] for name, parameter in model.named_parameters())
    assert all(modules[name] is module for name, module in model.named_modules() if name in modules)
    assert [p.requires_grad for p in model.parameters()][-3:] == [True, False, False]
    assert not any(module.training for module in model.modules())
    assert adapted(model) == {name: attention for name in adapted(model)}
    assert len(adapted(model)) == 2
    got = model(image)
    assert got.shape == full.shape
    assert (got - full).abs().max() > 1e-4
    model.load_state_dict(was.state_dict(), strict=True)
    torch.testing.assert_close(model(image), got, rtol=0, atol=0)
    assert adapted(copy.deepcopy(model)) == adapted(model)
    torch.testing.assert_close(copy.deepcopy(model)(image), got, rtol=0, atol=0)


@structures
@torch.no_grad()
def test_mita_of_all_keys_and_no_landmarks_leaves_the_output_as_it_was(structure):
    model, image = network(structure, 3), images()
    full = model(image)
    adapt(model, "mita", keys_per_expert=15, shared=False, landmarks=(2, 2))
    torch.testing.assert_close(model(image), full, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model.train()(image), full, rtol=1e-12, atol=1e-12)
    adapt(model.eval(), "mita", keys_per_expert=5, shared=False, landmarks=(2, 2))
    assert (model(image) - full).abs().max() > 1e-6


@attentions
@pytest.mark.parametrize(
    "structure", ["timm", "segmenter", "hugging face 4", "hugging face 5", "torch, alone", "torch encoder", "ours"]
)
def test_twelve_blocks_take_a_step_save_and_load(structure, attention, tmp_path):
    model = STRUCTURES[structure][0](12)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.01)  # made before: it keeps working
    adapt(model.train(), attention, **SMALL[attention])
    assert len(adapted(model)) == 12
    image, label = images().float(), torch.tensor([0, 1])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    losses = []
    for _ in range(2):
        loss = nn.functional.cross_entropy(model(image), label)
        losses.append(float(loss.detach()))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses[1] < losses[0]
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
    first = model.get_submodule(STRUCTURES[structure][1])
    moved = {id(p) for p, old in zip(model.parameters(), before, strict=True) if not torch.equal(p, old)}
    used = [p for name, p in first.named_parameters() if p.ndim == 2 and "bias" not in name]
    if attention in ("mssa", "tssa"):
        used = [p for p in used if p.grad is not None and p.grad.any()]
        assert len(used) >= 1
    assert {id(p) for p in used} <= moved
    model.eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, tmp_path / "w.safetensors")
    with torch.no_grad():
        wanted = model(image)
        for state in (torch.load(tmp_path / "weights.pt"), load_file(tmp_path / "w.safetensors")):
            again = STRUCTURES[structure][0](12)
            again.load_state_dict(state, strict=True)  # adapted or not, the names are those of the original
            torch.testing.assert_close(
                adapt(again.eval(), attention, **SMALL[attention])(image), wanted, rtol=0, atol=0
            )


# Torch's own.


@attentions
@pytest.mark.parametrize("first", [True, False])
def test_the_encoder_uses_the_new_attention_in_evaluation_too(attention, first):
    model = encoder(2, first).double().eval()
    x = torch.randn(3, 12, DIM, dtype=torch.float64)
    full = model(x)
    adapt(model, attention)
    with torch.no_grad():  # where torch takes its fast path
        quick = model(x)
    assert (quick - full).abs().max() > 1e-4
    torch.testing.assert_close(quick, model(x), rtol=0, atol=0)
    torch.testing.assert_close(quick, model.train()(x), rtol=0, atol=0)
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_layer_by_itself_and_tokens_without_a_batch():
    layer = adapt(nn.TransformerEncoderLayer(DIM, HEADS, 8, dropout=0.0, batch_first=True).eval(), "cbsa", landmarks=3)
    x = torch.randn(2, 9, DIM)
    with torch.no_grad():
        torch.testing.assert_close(layer(x)[1], layer(x[1]))
    for first in (True, False):
        alone = nn.MultiheadAttention(DIM, HEADS, batch_first=first)
        assert adapt(alone, "agent", landmarks=4) is alone
        assert adapted(alone) == {"": "agent"}
        turned = x if first else x.transpose(0, 1)
        out, weights = alone(turned, turned, turned, need_weights=True)
        assert weights is None
        torch.testing.assert_close((out if first else out.transpose(0, 1))[1], alone(*3 * (x[1],))[0])


def test_values_may_be_of_other_tensors_than_queries_and_keys():
    """DETR's self-attention: positions are added to queries and keys only."""
    alone = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double()
    x, value = (torch.randn(2, 6, DIM, dtype=torch.float64) for _ in range(2))
    full = alone(x, x, value)[0]
    adapt(alone, "mita", keys_per_expert=6, shared=False)
    torch.testing.assert_close(alone(x, x, value)[0], full)
    with pytest.raises(ValueError, match=r"keys \(2, 6, 12\) and values \(2, 5, 12\) do not pair"):
        alone(x, x, value[:, 1:])


def test_cross_attention_calls_are_refused():
    alone = adapt(nn.MultiheadAttention(DIM, HEADS), "cbsa")
    x, memory = torch.randn(6, 1, DIM), torch.randn(6, 1, DIM)
    with pytest.raises(ValueError, match=r"query and key are different tensors: cross-attention, which cbsa is not"):
        alone(x, memory, memory)


def test_a_padding_mask_is_refused_on_every_way_to_the_layer():
    model = adapt(encoder(2, True).eval(), "mita", landmarks=3)
    x, padding = torch.randn(2, 6, DIM), torch.zeros(2, 6, dtype=torch.bool)
    padding[1, 4:] = True
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # nested tensors are a prototype, torch says
        with pytest.raises(TypeError, match=r"layers.0.self_attn: the tokens are a nested tensor, which is how Transf"):
            model(x, src_key_padding_mask=padding)
    with pytest.raises(ValueError, match=r"layers.0.self_attn: the call passes key_padding_mask \(a tensor \(2, 6\)\)"):
        model.train()(x, src_key_padding_mask=padding)


@attentions
def test_masks_and_causal_flags_are_refused(attention):
    def refuses(name, call, *given, **named):
        with pytest.raises(ValueError, match=rf"adapt: .*: the call passes {name} .*which {attention} cannot honour"):
            call(*given, **named)

    x, mask = torch.randn(2, 13, DIM), torch.zeros(13, 13)
    timm = adapt(timm_network(1), attention).blocks[0].attn
    refuses("attn_mask", timm, x, mask)
    refuses("attn_mask", timm, x, attn_mask=mask)
    refuses("is_causal", timm, x, is_causal=True)
    refuses("argument 3", timm, x, None, False, mask)
    refuses("rope", timm, x, rope=mask)
    torch.testing.assert_close(timm(x, None, False), timm(x))
    harmless = {"layer_idx": 2, "output_hidden_states": True, "return_dict": True, "num_items_in_batch": 4}
    harmless |= {"interpolate_pos_encoding": True, "resolution": (12, 16)}
    torch.testing.assert_close(timm(x, **harmless), timm(x))
    refuses("mask", adapt(network("segmenter").float(), attention).blocks[0].attn, x, mask)
    older = adapt(network("hugging face 4").float(), attention).encoder["layer"][0].attn.attention
    refuses("head_mask", older, x, mask)
    refuses("output_attentions", older, x, output_attentions=True)
    newer = adapt(network("hugging face 5").float(), attention).encoder["layer"][0].attn
    refuses("attention_mask", newer, x, mask)
    refuses("is_causal", newer, x, is_causal=True)
    alone = adapt(nn.MultiheadAttention(DIM, HEADS, batch_first=True), attention)
    refuses("attn_mask", alone, x, x, x, attn_mask=mask)
    refuses("is_causal", alone, x, x, x, is_causal=True)
    refuses("key_padding_mask", alone, x, x, x, torch.zeros(2, 13, dtype=torch.bool))


def test_what_is_no_tensor_of_tokens_is_refused():
    attention = adapt(timm_network(1), "mssa").blocks[0].attn
    with pytest.raises(TypeError, match="tokens must be one dense tensor, but are list"):
        attention([torch.randn(2, 13, DIM)])
    with pytest.raises(TypeError, match="tokens must be one dense tensor, but are NoneType"):
        attention()


# What is refused, by name.


class Odd(TimmAttention):
    """An attention of timm's structure, but for one thing."""

    def __init__(self, **entries):
        super().__init__(DIM, HEADS)
        for name, value in entries.items():
            if name == "mask":
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)


class Interleaved(TimmAttention):
    """Heads outside, thirds inside."""

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (self.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).flatten(-2))


class Unscaled(TimmAttention):
    def forward(self, x):
        self.scale = 1.0
        return super().forward(x)


class Louder(TimmAttention):
    """By less than half precision would show."""

    def forward(self, x):
        return 1.01 * super().forward(x)


class Channels(TimmAttention):
    """Cross-covariance, softmax over channels."""

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 4, 1)
        return self.proj(((q @ k.mT * self.scale).softmax(-1) @ v).permute(0, 3, 1, 2).flatten(-2))


class Rotated(TimmAttention):
    def forward(self, x, rope=None, attn_mask=None):
        return super().forward(x)


class Sized(TimmAttention):
    def forward(self, x, size):
        return super().forward(x)


class First(TimmAttention):
    """Class attention: one token comes out."""

    def forward(self, x):
        return super().forward(x)[:, :1]


class Named(TimmAttention):
    def forward(self, x):
        return {"x": super().forward(x)}


class Windowed(TimmAttention):
    def forward(self, x):
        batch, _windows, _tokens, _features = x.shape
        return x.reshape(batch, -1)


class Causal(nn.Module):
    """As GPT-2's: a fused projection with the weight the other way round."""

    def __init__(self):
        super().__init__()
        self.c_attn, self.num_heads = nn.Conv1d(DIM, 3 * DIM, 1), HEADS


class Grouped(HuggingAttention):
    def __init__(self):
        super().__init__(DIM, HEADS)
        self.k_proj, self.v_proj = nn.Linear(DIM, DIM // HEADS), nn.Linear(DIM, DIM // HEADS)


class CrossAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_heads, self.q, self.kv, self.proj = HEADS, *(nn.Linear(DIM, DIM) for _ in range(3))


class AttentionPoolingHead(nn.Module):
    """As SigLIP's: a learned query reads all tokens."""

    def __init__(self):
        super().__init__()
        self.probe, self.attention = nn.Parameter(torch.zeros(1, 1, DIM)), nn.MultiheadAttention(DIM, HEADS)


def exchanged():
    attention = TimmAttention(DIM, HEADS)
    attention.forward = types.MethodType(lambda self, x: x, attention)
    return attention


def with_entries(attention, **entries):
    for name, value in entries.items():
        setattr(attention, name, value)
    return attention


REFUSED = {
    "Swin's and BEiT's bias": (
        lambda: Odd(relative_position_bias_table=nn.Parameter(torch.zeros(9, HEADS))),
        r"\(Odd\): it adds position biases to its scores \(relative_position_bias_table\)",
    ),
    "SAM's bias": (lambda: Odd(rel_pos_h=nn.Parameter(torch.zeros(9, 4))), r"position biases .*\(rel_pos_h\)"),
    "a bias of another module": (
        lambda: with_entries(nn.Module(), relative_position_bias_table=nn.Parameter(torch.zeros(9))),
        r"\(Module\): it adds position biases to its scores \(relative_position_bias_table\)",
    ),
    "talking heads": (
        lambda: Odd(proj_l=nn.Linear(2, 2)),
        r"holds what softmax attention does not: proj_l.bias, proj_l",
    ),
    "a learned temperature": (lambda: Odd(logit_scale=nn.Parameter(torch.ones(2))), "attention does not: logit_scale"),
    "a scale that is a tensor": (
        lambda: Odd(scale=torch.ones(2)),
        r"its scale is a Tensor, not a number",
    ),
    "a causal mask": (lambda: Odd(mask=torch.ones(5, 5).tril()), "holds what softmax attention does not: mask"),
    "dropout elsewhere": (
        lambda: Odd(drop_queries=nn.Dropout(0.5)),
        r"it drops 0.5 of something that is not known \(drop",
    ),
    "rotary embedding, as EVA": (
        lambda: Rotated(DIM, HEADS),
        r"\(Rotated\): its call takes rotary embeddings \(rope\)",
    ),
    "a size in the call": (lambda: Sized(DIM, HEADS), "its call needs more than tokens: size"),
    "another layout": (
        lambda: Interleaved(DIM, HEADS),
        "it is not softmax attention of its projections: on random tok",
    ),
    "another scale": (lambda: Unscaled(DIM, HEADS), "it is not softmax attention of its projections: on random tokens"),
    "a factor, in half precision": (
        lambda: Louder(DIM, HEADS).bfloat16(),
        "it is not softmax attention of its projections: on random tokens",
    ),
    "attention of channels": (
        lambda: Channels(DIM, HEADS),
        r"\(Channels\): it is not softmax attention of its project",
    ),
    "class attention": (lambda: First(DIM, HEADS), r"it returns \(2, 1, 12\) for tokens \(2, 5, 12\)"),
    "a dictionary": (lambda: Named(DIM, HEADS), "it returns a dict, not tokens"),
    "tokens of four axes": (
        lambda: Windowed(DIM, HEADS),
        r"calling it on tokens \(batch, tokens, features\) raises ValueError: not enough values",
    ),
    "a forward of its own": (exchanged, "its forward was exchanged on the instance"),
    "heads that do not share out": (
        lambda: with_entries(TimmAttention(DIM, 2), num_heads=5),
        "12 features are not shared",
    ),
    "two of three projections": (
        lambda: with_entries(TimmAttention(DIM, 2), qkv=nn.Linear(DIM, 2 * DIM)),
        "it makes 24 numbers of a token, not queries, keys and values of 12 each",
    ),
    "a convolution": (
        lambda: with_entries(TimmAttention(DIM, 2), qkv=nn.Conv1d(DIM, 3 * DIM, 1)),
        "it is none of the structures that can be adapted",
    ),
    "GPT-2": (Causal, r"\(Causal\): it is causal, of a language model \(c_attn"),
    "a decoder": (lambda: HuggingAttention(DIM, HEADS, causal=True), "it is causal, of a language model"),
    "grouped heads": (Grouped, r"\(Grouped\): its keys and values have fewer heads than its queries"),
    "grouped heads, said": (lambda: with_entries(TimmAttention(DIM, 2), num_kv_heads=1), r"\(grouped\)"),
    "keys of other features": (
        lambda: with_entries(HuggingAttention(DIM, 2), k_proj=nn.Linear(7, DIM), v_proj=nn.Linear(7, DIM)),
        "cross-attention: its keys are made of other features",
    ),
    "cross-attention": (CrossAttention, "it is cross-attention: its queries are of other tokens"),
    "a pooling head": (
        AttentionPoolingHead,
        r"attention \(MultiheadAttention\): it pools tokens for its AttentionPoolingHe",
    ),
    "torch, other keys": (lambda: nn.MultiheadAttention(DIM, 2, kdim=5), "kdim or vdim differs from embed_dim"),
    "torch, bias_k": (
        lambda: nn.MultiheadAttention(DIM, 2, add_bias_kv=True),
        r"a learned key and value.*\(bias_k\)",
    ),
    "torch, zero key": (lambda: nn.MultiheadAttention(DIM, 2, add_zero_attn=True), "it attends to a zero key"),
    "a layer of subspaces": (lambda: CBSA(DIM, HEADS), "it is a layer of subspaces with one projection already"),
    "learned position biases": (
        lambda: AgentAttention(DIM, HEADS, bias_window=(3, 4)),
        r"agent attention's learned position biases \(agent_bias\)",
    ),
    "dropout, in ours": (lambda: SoftmaxAttention(DIM, HEADS, dropout=0.1), r"it drops 0.1 of its attention weights"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_adapted_is_refused_by_name_and_nothing_is_changed(case):
    make, message = REFUSED[case]
    model = timm_network(2)
    model.odd = nn.ModuleList([make()])
    classes = [type(module) for module in model.modules()]
    state = [dict(vars(module)) for module in model.modules()]
    with pytest.raises(
        ValueError, match=rf"1 of 3 attentions cannot be adapted, and nothing was changed:\n  odd.0.*{message}"
    ):
        adapt(model, "mita", landmarks=4)
    assert [type(module) for module in model.modules()] == classes
    assert [dict(vars(module)) for module in model.modules()] == state
    assert adapted(adapt(model, "mita", skip="odd", landmarks=4)) == {"blocks.0.attn": "mita", "blocks.1.attn": "mita"}


def test_a_decoder_is_refused_and_its_encoder_can_be_chosen():
    model = nn.Transformer(DIM, HEADS, 2, 2, 8, batch_first=True)
    with pytest.raises(
        ValueError, match=r"2 of 6 attentions .*\n  decoder.layers.0.multihead_attn \(MultiheadAttention\): it is cross"
    ):
        adapt(model, "agent")
    assert set(adapted(adapt(model, "agent", where="encoder"))) == {f"encoder.layers.{n}.self_attn" for n in (0, 1)}


def test_many_refusals_are_counted():
    blocks = [Channels(DIM, HEADS) for _ in range(11)]
    with pytest.raises(
        ValueError, match=r"(?s)11 of 11 attentions cannot.*\n  7 \(Channels\).*\n  … and 3 more\nLeave them"
    ):
        adapt(nn.Sequential(*blocks), "mssa")


def test_a_network_without_attention_is_refused():
    with pytest.raises(
        ValueError, match=r"no attention was found in Sequential. Looked for: qkv .* in_proj_weight, .*q_proj"
    ):
        adapt(nn.Sequential(nn.Linear(3, 3), nn.Dropout()), "mita")
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, but is a str"):
        adapt("vit", "mita")
    with pytest.raises(
        ValueError, match="attention must be one of 'cbsa', 'mita', 'agent', 'mssa', 'tssa', but is 'full'"
    ):
        adapt(timm_network(1), "full")


@pytest.mark.parametrize(
    ("attention", "options", "message"),
    [
        (
            "cbsa",
            {"keys_per_expert": 3},
            "keys_per_expert is no option of 'cbsa', which has class_tokens, contraction, ",
        ),
        ("agent", {"contraction": True}, "contraction is no option of 'agent'"),
        ("mssa", {"landmarks": 3}, "landmarks is no option of 'mssa', which has projection"),
        ("tssa", {"grid": (3, 4)}, "grid is no option of 'tssa'"),
        ("tssa", {"projection": "output"}, "projection must be one of 'query', 'key', 'value', but is 'output'"),
        ("mita", {"keys_per_expert": -1}, "keys_per_expert must be at least 0"),
        ("mita", {"shared": False, "keys_per_expert": 0}, "a query has nothing to attend to"),
        ("mita", {"landmarks": 3, "experts_per_query": 4}, "experts_per_query is 4, but there are only 3 landmarks"),
        ("cbsa", {"landmarks": (2, 0)}, "landmarks must be at least 1"),
        ("cbsa", {"landmarks": (2, 2, 2)}, r"landmarks must be \(rows, columns\), but is \(2, 2, 2\)"),
        ("cbsa", {"landmarks": 0}, "landmarks must be at least 1"),
        ("cbsa", {"grid": 14}, r"grid must be \(rows, columns\), but is 14"),
        ("cbsa", {"grid": "square"}, "grid must be one of 'sequence', but is 'square'"),
        ("cbsa", {"class_tokens": -1}, "class_tokens must be at least 0"),
        ("cbsa", {"other_grids": "square"}, "other_grids must be one of 'raise', 'sequence'"),
        ("cbsa", {"where": "layers"}, r"where='layers' matches none of the 2 attentions: blocks.0.attn, blocks.1.attn"),
        ("cbsa", {"skip": ["blocks.0", "head"]}, "skip='head' matches none of the 2 attentions"),
        ("cbsa", {"where": lambda name, module: False}, "where= and skip= leave none of the 2 attentions"),
        ("cbsa", {"skip": "*"}, "where= and skip= leave none"),
    ],
)
def test_options_that_do_not_fit_are_refused(attention, options, message):
    with pytest.raises(ValueError, match=message):
        adapt(timm_network(2), attention, **options)


# Which of them, and again.


@pytest.mark.parametrize(
    ("where", "skip", "chosen"),
    [
        ("blocks.1", None, [1]),
        ("blocks.1.attn", None, [1]),
        ("blocks.[0-2].attn", None, [0, 1, 2]),
        (["blocks.0", "blocks.11"], None, [0, 11]),
        (lambda name, module: name.endswith("3.attn") and module.num_heads == HEADS, None, [3]),
        (None, "blocks.[!4]*", [4]),
        ("blocks.[0-3]", ["blocks.1", "blocks.3"], [0, 2]),
        (None, lambda name, module: name != "blocks.7.attn", [7]),
    ],
)
def test_some_blocks_are_chosen(where, skip, chosen):
    model = timm_network(12)
    adapt(model, "cbsa", where=where, skip=skip)
    assert list(adapted(model)) == [f"blocks.{number}.attn" for number in chosen]
    assert [n for n, block in enumerate(model.blocks) if type(block.attn) is not TimmAttention] == chosen


@structures
def test_adapting_again_gives_what_adapting_once_gives(structure):
    model, image = network(structure, 2), images()
    once = adapt(copy.deepcopy(model), "mita", **SMALL["mita"])
    for attention in ("tssa", "cbsa", "cbsa", "mssa", "agent"):
        adapt(model, attention, **SMALL[attention])
    assert set(adapted(model).values()) == {"agent"}
    adapt(model, "mita", **SMALL["mita"])
    assert adapted(model) == adapted(once)
    torch.testing.assert_close(model(image), once(image), rtol=0, atol=0)
    assert len(adapted(model)) == 2


def test_an_attention_that_is_held_twice_is_adapted_once():
    shared = TimmAttention(DIM, HEADS)
    model = nn.Sequential(Residual(shared, timm_call), Residual(shared, timm_call))
    assert adapted(adapt(model, "mssa")) == {"0.attn": "mssa"}
    assert model[0].attn is model[1].attn is shared
    shared = Channels(DIM, HEADS)
    with pytest.raises(ValueError, match=r"1 of 1 attentions cannot be adapted"):
        adapt(nn.Sequential(Residual(shared, timm_call), Residual(shared, timm_call)), "mssa")


# Grids and class tokens.


class Tower(nn.Module):
    def __init__(self, **entries):
        super().__init__()
        self.layers = nn.Sequential(Residual(TimmAttention(DIM, HEADS), timm_call))
        for name, value in entries.items():
            setattr(self, name, value)


def token(count=None):
    return nn.Parameter(torch.randn(*([DIM] if count is None else [1, count, DIM])))


def config(**entries):
    return types.SimpleNamespace(**entries)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"patch_embed": Patches(grid_size=(5, 3)), "num_prefix_tokens": 4}, "5 × 3 patches, 4 class tokens"),
        ({"patch_embed": Patches(patches_resolution=[5, 3]), "cls_token": token(1)}, "5 × 3 patches, 1 class tokens"),
        ({"patch_embed": Patches(img_size=30, patch_size=10), "cls_token": None}, "3 × 3 patches, 0 class tokens"),
        ({"image_size": 32, "patch_size": 8, "class_token": token(1)}, "4 × 4 patches, 1 class tokens"),
        ({"config": config(image_size=(16, 24), patch_size=4)}, "4 × 6 patches, 0 class tokens"),
        (
            {"embeddings": with_entries(HuggingEmbeddings(), register_tokens=token(4), distillation_token=token(1))},
            "3 × 4 patches, 6 class tokens",
        ),
        ({"config": config(image_size=(16, 24), patch_size=4), "class_embedding": token()}, "4 × 6 patches, 1 class"),
        ({"patch_embed": Patches(grid_size=None, img_size=None, patch_size=(4, 4))}, "the sequence, 0 class tokens"),
        ({"config": config(image_size=16), "cls_token": token(1)}, "the sequence, 1 class tokens"),
        ({}, "the sequence, 0 class tokens"),
    ],
)
def test_the_grid_and_the_class_tokens_are_found(entries, said):
    for model in (Tower(**entries), nn.Sequential(Tower(**entries))):
        adapt(model, "cbsa")
        (attention,) = (module for module in model.modules() if isinstance(module, Adapted))
        assert f"landmarks of {said}" in repr(attention)
        assert "cbsa for TimmAttention, heads=2, " in repr(attention)


def test_two_towers_do_not_share_a_grid():
    model = nn.ModuleDict({"text": Tower(cls_token=token(1)), "vision": Tower(patch_embed=Patches(grid_size=GRID))})
    adapt(model, "agent")
    text, vision = (repr(model[name].layers[0].attn) for name in ("text", "vision"))
    assert "49 landmarks of the sequence, 1 class tokens" in text
    assert "7 × 7 landmarks of 3 × 4 patches, 0 class tokens" in vision
    model.config, model.num_prefix_tokens = config(image_size=30, patch_size=10), 2  # nearer ones come first
    adapt(model, "agent")
    text, vision = (repr(model[name].layers[0].attn) for name in ("text", "vision"))
    assert "7 × 7 landmarks of 3 × 3 patches, 1 class tokens" in text
    assert "7 × 7 landmarks of 3 × 4 patches, 2 class tokens" in vision


def test_tokens_that_do_not_fill_the_grid_are_an_error_or_a_sequence():
    x = torch.randn(2, 9, DIM, dtype=torch.float64)
    model = network()
    attention = adapt(model, "agent", landmarks=(1, 2)).blocks[0].attn
    with pytest.raises(
        ValueError, match=r"blocks.0.attn: 9 tokens less 1 class tokens are 8 patches, but the grid is 3 × 4 = 12"
    ):
        attention(x)
    kept = attention(torch.cat([x, x[:, :4]], 1))
    adapt(model, "agent", landmarks=(1, 2), other_grids="sequence")
    as_sequence = attention(x)
    torch.testing.assert_close(attention(torch.cat([x, x[:, :4]], 1)), kept, rtol=0, atol=0)
    adapt(model, "agent", landmarks=2)
    torch.testing.assert_close(attention(x), as_sequence, rtol=0, atol=0)
    adapt(model, "agent", landmarks=(1, 2), grid="sequence")
    torch.testing.assert_close(attention(x), as_sequence, rtol=0, atol=0)
    adapt(model, "agent", landmarks=(1, 2), grid=(4, 2))
    assert (attention(x) - as_sequence).abs().max() > 1e-4
    adapt(model, "agent", landmarks=(1, 2), grid=(3, 3), class_tokens=0)
    assert "1 × 2 landmarks of 3 × 3 patches, 0 class tokens" in repr(attention)
    attention(x)


def test_rows_and_columns_of_landmarks_need_a_grid():
    with pytest.raises(
        ValueError, match=r"layers.0.attn: landmarks=\(2, 2\) are rows and columns, but the network does not"
    ):
        adapt(Tower(), "cbsa", landmarks=(2, 2))
    model = adapt(Tower(), "cbsa", landmarks=(2, 2), grid=GRID, class_tokens=1)
    assert "2 × 2 landmarks of 3 × 4 patches, 1 class tokens" in repr(model)


# The attentions themselves.


def test_cbsa_without_contraction_is_agent_attention():
    model, image = network(depth=2), images()
    with_contraction = adapt(model, "cbsa", landmarks=(2, 2))(image)
    without = adapt(model, "cbsa", landmarks=(2, 2), contraction=False)(image)
    torch.testing.assert_close(adapt(model, "agent", landmarks=(2, 2))(image), without, rtol=0, atol=0)
    assert (without - with_contraction).abs().max() > 1e-3


@torch.no_grad()
def test_a_key_in_several_experts_counts_once_if_asked_to():
    model = network()
    attention, old = model.blocks[0].attn, copy.deepcopy(model.blocks[0].attn)
    adapt(model, "mita", landmarks=(2, 2), keys_per_expert=13, experts_per_query=3, deduplicate=True)
    x = torch.randn(1, 13, DIM, dtype=torch.float64)
    s = (DIM // HEADS) ** -0.5
    once = [routed(q, k, v, pooled(q, 1, (2, 2)), s, 13, 1) for q, k, v in of_weights(old, x[0])]
    torch.testing.assert_close(attention(x)[0], behind(old, torch.cat(once, dim=-1), x[0]))


def test_landmarks_are_as_many_as_in_the_papers():
    model = timm_network(1)
    for attention, count in (("cbsa", "8 × 8"), ("agent", "7 × 7"), ("mita", "5 × 5")):
        assert f"{count} landmarks of 3 × 4 patches" in repr(adapt(model, attention))
    assert "keys_per_expert=25, experts_per_query=1, shared=True" in repr(model)


@pytest.mark.parametrize("projection", ["query", "key", "value"])
def test_mssa_and_tssa_read_the_projection_that_is_asked_for(projection):
    model = network("hugging face 5")
    attention = adapt(model, "mssa", projection=projection).encoder["layer"][0].attn
    x = torch.randn(1, 5, DIM, dtype=torch.float64, requires_grad=True)
    attention(x)[0].square().sum().backward()
    used = {name for name in ("q_proj", "k_proj", "v_proj") if getattr(attention, name).weight.grad is not None}
    assert used == {projection[0] + "_proj"}
    fused = adapt(network("timm, normed and gated, without biases"), "tssa", projection=projection).blocks[0].attn
    fused(x).square().sum().backward()
    by_third = [bool(rows.any()) for rows in fused.qkv.weight.grad.split(DIM)]
    assert by_third == [projection == name for name in ("query", "key", "value")]
    assert (fused.q_norm.weight.grad is not None) == (projection == "query")


@pytest.mark.parametrize("shape", [(7,), (2, 7), (2, 3, 7)])
def test_token_statistics_is_the_released_tssa(shape):
    U = torch.randn(HEADS, DIM, DIM // HEADS, dtype=torch.float64)
    options = {"unit_step": True, "count_offset": 1e-8, "normalise_tokens": True, "epsilon": DIM**0.5, "basis": "free"}
    layer = TSSA(DIM, HEADS, U=U, tied=False, residual=False, **options).double()
    with torch.no_grad():
        layer.output.weight.copy_(torch.eye(DIM))
    x = torch.randn(*shape, DIM, dtype=torch.float64)
    got = token_statistics(x.unsqueeze(-3) @ U)
    torch.testing.assert_close(got.transpose(-3, -2).flatten(-2), layer(x))


def test_token_statistics_of_nothing_is_nothing():
    assert not token_statistics(torch.zeros(2, 3, 5, 4)).any()
    assert torch.isfinite(token_statistics(torch.randn(2, 3, 5, 4).half())).all()


@attentions
def test_the_networks_dropout_of_attention_weights_is_kept(attention):
    for make in (
        lambda: timm_network(1, drop=0.5),
        lambda: encoder(1, True, 0.5),
        lambda: our_network(1) if attention == "mita" else ViT(our_network(1).config, attn_drop_rate=0.5),
    ):
        model = adapt(make().train(), attention)
        (module,) = (model.get_submodule(name) for name in adapted(model))
        x = torch.randn(1, 13, DIM)
        ask = ours_call if hasattr(module, "adds") else torch_call if hasattr(module, "in_proj_weight") else timm_call
        evaluated = [ask(module.eval(), x) for _ in range(2)]
        torch.testing.assert_close(*evaluated, rtol=0, atol=0)
        if attention != "mita":
            assert (ask(module.train(), x) - evaluated[0]).abs().max() > 0.02 * evaluated[0].abs().max()
        elif ask is not ours_call:
            with pytest.raises(
                ValueError, match=r"the network drops 0.5 of its attention weights while training, which mita"
            ):
                ask(module.train(), x)


def test_a_network_that_was_compiled_before_computes_what_it_was_given():
    model, image = network(), images()
    torch.compiler.reset()
    fast = torch.compile(model, backend="eager")
    full = fast(image)
    adapt(model, "agent", landmarks=(2, 2))
    torch.testing.assert_close(fast(image), model(image))
    assert (fast(image) - full).abs().max() > 1e-4


# Our own networks.


@pytest.mark.parametrize("attention", ["mita", "agent", "cbsa"])
def test_our_networks_get_our_layers(attention):
    options = {"qk_norm": "rms", "register_tokens": 2, "class_tokens": 1, "gate": True, "scale_norm": True}
    options |= {"convolution": True, "rotary": GridRotary(4, 3), "step_size": 0.7}
    layer = SoftmaxAttention(DIM, 3, **options).double()
    x = torch.randn(2, 15, DIM, dtype=torch.float64)
    state = copy.deepcopy(layer.state_dict())
    adapt(layer, attention, **SMALL[attention])
    pool = GridPool(SMALL[attention]["landmarks"])
    if attention == "mita":
        twin = MiTA(DIM, 3, landmarks=pool, keys_per_expert=3, experts_per_query=2, **options)
    else:
        twin = AgentAttention(DIM, 3, agents=pool, contraction=attention == "cbsa", **options)
    twin.double().load_state_dict(state, strict=True)
    assert type(layer) is type(twin)
    assert layer.token_count is None
    assert list(layer.state_dict()) == list(state)
    torch.testing.assert_close(layer(x, GRID), twin(x, GRID), rtol=0, atol=0)
    assert set(vars(twin)) == set(vars(layer)) - {"adaptation"}
    assert adapt(layer, attention, grid=GRID).token_count == 15


@pytest.mark.parametrize("attention", ["mssa", "tssa"])
def test_our_networks_keep_what_stands_behind_the_heads(attention):
    options = {"class_tokens": 1, "gate": True, "scale_norm": True, "convolution": True, "step_size": 0.7}
    layer = SoftmaxAttention(DIM, 3, **options).double()
    twin = copy.deepcopy(layer)
    for part in (twin.query, twin.key):  # softmax attention of the values alone is MSSA's
        part.load_state_dict(layer.value.state_dict())
    x = torch.randn(2, 13, DIM, dtype=torch.float64)
    w = layer.values(x)
    adapt(adapt(layer, "cbsa", grid=GRID), attention)
    assert not hasattr(layer, "strategy")
    if attention == "tssa":
        twin._read = lambda *given: token_statistics(w)
    torch.testing.assert_close(layer(x, GRID), twin(x, GRID))


def test_our_networks_keep_their_maps_and_their_grid():
    model, image = network("ours", 2), images()
    for attention in ("mita", "agent", "cbsa", "mssa"):
        maps = adapt(model, attention).attention_maps(image)
        torch.testing.assert_close(maps[1].sum(-1), torch.ones(2, HEADS, 13, dtype=torch.float64))
    assert model(torch.randn(1, 3, 20, 8, dtype=torch.float64)).shape == (1, 5)  # another grid comes with the call
    w = model.blocks[1].attention.values(x := torch.randn(13, DIM, dtype=torch.float64))
    wanted = ((w @ w.mT) * (DIM // HEADS) ** -0.5).softmax(-1)
    torch.testing.assert_close(model.blocks[1].attention.attention_map(x), wanted)
    adapt(model, "tssa")
    memberships = model.attention_maps(image)[1]  # as TSSA's own
    torch.testing.assert_close(memberships.sum(-2), torch.ones(2, 13, dtype=torch.float64))
    with pytest.raises(ValueError, match="no descent is claimed for tssa with another network's matrices"):
        model.blocks[0].attention.objective_at(x)
    with pytest.raises(ValueError, match=r"class_tokens is 2, but the layer was made for 1"):
        adapt(model, "cbsa", class_tokens=2)


def test_our_other_networks_can_be_adapted_too():
    model = MiTADeiT(img_size=(12, 16), patch_size=4, embed_dim=DIM, depth=2, num_heads=HEADS, num_classes=5).double()
    image = images()
    twin = our_network(2).double()
    twin.load_state_dict(model.state_dict(), strict=True)
    torch.testing.assert_close(adapt(model, "cbsa")(image), adapt(twin, "cbsa")(image), rtol=0, atol=0)


# The ecosystem's habits.


@pytest.mark.parametrize(
    ("structure", "attention"),
    [("timm", "cbsa"), ("torch encoder", "mita"), ("hugging face 5", "tssa")],
)
def test_an_adapted_network_compiles_whole(structure, attention):
    model = network(structure)
    adapt(model, attention, **SMALL[attention])
    x = images()
    torch.compiler.reset()
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(fast(x), model(x))


@pytest.mark.parametrize("structure", ["torch encoder", "ours"])
def test_an_adapted_network_can_be_pickled(structure, tmp_path):
    model, image = adapt(network(structure, 2), "cbsa", landmarks=(2, 2)), images()
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert adapted(again) == adapted(model)
    torch.testing.assert_close(again(image), model(image), rtol=0, atol=0)


def test_hooks_stay_and_are_not_called_while_adapting():
    model, seen = timm_network(1), []
    attention = model.blocks[0].attn
    attention.register_forward_hook(lambda module, given, out: seen.append(type(module).__name__))
    attention.qkv.register_forward_hook(lambda module, given, out: seen.append(tuple(out.shape)))
    state = torch.get_rng_state()
    adapt(model, "mita", landmarks=3)
    assert seen == []
    assert torch.equal(torch.get_rng_state(), state)
    attention(torch.randn(1, 13, DIM))
    assert seen == [(1, 13, 3 * DIM), "FusedAdapted"]


@attentions
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_kind_of_numbers_stays(attention, dtype):
    model = timm_network(2).to(dtype)
    adapt(model, attention)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert model(images().to(dtype)).dtype == dtype
    assert adapt(timm_network(1).to("meta"), attention)(torch.empty(1, 3, 12, 16, device="meta")).shape == (1, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(adapt(timm_network(1), attention)(images().float())).all()


def test_a_compiled_module_is_not_called_as_it_was():
    attention = TimmAttention(DIM, HEADS)
    attention.compile(backend="eager")
    adapt(attention, "mssa")
    assert attention._compiled_call_impl is None


# The real things, where they are installed: timm 1.0.31 and transformers 5 have passed.


def real(name):
    if torch.version.cuda is None and importlib.util.find_spec(
        "torchvision"
    ):  # a CUDA build does not import on a CPU one
        for part in ("torchvision._meta_registrations", "torchvision._autograd_registrations"):
            sys.modules.setdefault(part, types.ModuleType(part))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except (ImportError, RuntimeError) as problem:
        pytest.skip(f"needs {name}: {problem}")


def check_real(model, image, read=lambda out: out):
    """Limits, shapes, names, a step, and back from a file; the model in float64."""
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # layer scales at 1e-5 and heads at 0 would hide all
            parameter.add_(0.05 * torch.randn_like(parameter))
            if "gamma" in name or "lambda" in name:
                parameter.fill_(1)
        full, before, was = read(model(image)), dict(model.named_parameters()), copy.deepcopy(model)
        adapt(model, "mita", keys_per_expert=999, shared=False)
        torch.testing.assert_close(read(model(image)), full, rtol=1e-6, atol=1e-6)
    for attention in SMALL:
        adapt(model, attention)
        optimiser = torch.optim.SGD(model.parameters(), lr=1e-4)
        state = copy.deepcopy(model.state_dict())
        out = read(model(image))
        assert out.shape == full.shape
        assert (out - full).abs().max() > 1e-6
        out.square().mean().backward()
        optimiser.step()
        assert all(torch.isfinite(parameter).all() for parameter in model.parameters())
        model.load_state_dict(state)
        optimiser.zero_grad()
    assert dict(model.named_parameters()).keys() == before.keys()
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    model.load_state_dict(was.state_dict(), strict=True)
    adapt(model, "mita")
    return len(adapted(model)), repr(next(module for module in model.modules() if isinstance(module, Adapted)))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vit_tiny_patch16_224", {"img_size": (32, 48)}, "2 × 3 patches, 1 class"),
        ("vit_tiny_patch16_224", {"img_size": 32, "qk_norm": True, "scale_attn_norm": True}, "2 × 2 patches, 1 class"),
        ("vit_small_patch14_reg4_dinov2", {"img_size": (28, 42)}, "2 × 3 patches, 5 class"),
        ("deit_tiny_distilled_patch16_224", {"img_size": 48}, "3 × 3 patches, 2 class"),
    ],
)
def test_real_timm(name, options, said):
    model = real("timm").create_model(name, num_classes=4, **options)
    size = options["img_size"] if isinstance(options["img_size"], tuple) else 2 * (options["img_size"],)
    count, described = check_real(model, torch.randn(2, 3, *size, dtype=torch.float64))
    assert count == 12
    assert said in described


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("swin_tiny_patch4_window7_224", r"WindowAttention\): it adds position biases .*relative_position_bias_table"),
        ("beit_base_patch16_224", r"Attention\): it adds position biases .*relative_position_bias_table"),
        ("eva02_tiny_patch14_224", r"EvaAttention\): its call takes rotary embeddings \(rope\)"),
        ("xcit_nano_12_p16_224", r"XCA\): it holds what softmax attention does not: temperature"),
        ("resnet10t", "no attention was found in ResNet"),
    ],
)
def test_real_timm_refusals(name, message):
    model = real("timm").create_model(name)
    classes = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=message):
        adapt(model, "mita")
    assert [type(module) for module in model.modules()] == classes


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", ["ViTModel", "ViTForImageClassification", "Dinov2WithRegistersModel", "DeiTModel"])
def test_real_transformers(kind, implementation):
    library = real("transformers")
    family = {"Dinov2WithRegistersModel": "Dinov2WithRegistersConfig", "DeiTModel": "DeiTConfig"}.get(kind, "ViTConfig")
    sizes = {"hidden_size": 24, "num_hidden_layers": 12, "num_attention_heads": 3, "intermediate_size": 48}
    settings = getattr(library, family)(image_size=48, patch_size=8, attn_implementation=implementation, **sizes)
    model = getattr(library, kind)(settings)
    image = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    count, _ = check_real(model, image, lambda out: out.get("last_hidden_state", out.get("logits")))
    assert count == 12
    prefix = {"Dinov2WithRegistersModel": 5, "DeiTModel": 2}.get(kind, 1)
    assert f"5 × 5 landmarks of 6 × 6 patches, {prefix} class tokens" in repr(adapt(model, "mita"))
    with pytest.raises(ValueError, match="the call passes output_attentions"):
        model(image, output_attentions=True)
    assert len(model(image, output_hidden_states=True).hidden_states) == 13
    if kind == "ViTModel":
        with pytest.raises(ValueError, match="the call passes attention_mask"):
            model(image, attention_mask=torch.tensor([[1] * 36 + [0]] * 2))
        with pytest.raises(ValueError, match="64 patches, but the grid is 6 × 6 = 36"):
            model(torch.randn(1, 3, 64, 64, dtype=torch.float64), interpolate_pos_encoding=True)


@pytest.mark.filterwarnings("ignore")
def test_real_transformers_refusals():
    library = real("transformers")
    with pytest.raises(ValueError, match=r"h.0.attn \(GPT2Attention\): it is causal, of a language model"):
        adapt(library.GPT2Model(library.GPT2Config(n_embd=24, n_head=3, n_layer=2, vocab_size=50)), "cbsa")
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 48}
    beit = library.BeitConfig(image_size=48, patch_size=8, use_relative_position_bias=True, **sizes)
    with pytest.raises(ValueError, match=r"\(BeitRelativePositionBias\): it adds position biases"):
        adapt(library.BeitModel(beit), "cbsa")
    with pytest.raises(ValueError, match=r"its call takes rotary embeddings \(position_embeddings\)"):
        adapt(library.DINOv3ViTModel(library.DINOv3ViTConfig(image_size=48, patch_size=8, **sizes)), "cbsa")


@pytest.mark.filterwarnings("ignore")
def test_real_torchvision():
    model = real("torchvision").models.VisionTransformer(48, 8, 12, 2, 24, 48, num_classes=4)
    count, _ = check_real(model, torch.randn(2, 3, 48, 48, dtype=torch.float64))
    assert count == 12
    assert "6 × 6 patches, 1 class" in repr(adapt(model, "mita"))
    with pytest.raises(ValueError, match=r"ShiftedWindowAttention\): it adds position biases"):
        adapt(real("torchvision").models.swin_t(), "cbsa")


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mita", {"landmarks": (2, 2), "keys_per_expert": 3}),
        ("cbsa", {"landmarks": 4, "contraction": True}),
        ("agent", {"landmarks": (2, 2)}),
        ("mssa", {}),
        ("tssa", {"projection": "key"}),
    ],
)
def test_our_networks_save_what_was_exchanged_in_them(kind, options, tmp_path):
    fields = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "num_heads": 3, "num_classes": 5}
    encoder = models.ViTConfig(**fields, depth=3)
    decoder = models.LinearDecoderConfig(num_classes=5, embed_dim=24, patch_size=8)
    alone, whole = models.ViT(encoder), models.Segmenter(encoder=encoder, decoder=decoder)
    x = torch.randn(2, 3, 32, 32)
    for model, inside in ((alone, alone), (whole, whole), (whole, whole.encoder), (alone, nn.Sequential(alone))):
        adapt(
            inside, kind, where=lambda name, _: name.endswith(("blocks.0.attention", "blocks.2.attention")), **options
        )
        model.eval().save_pretrained(tmp_path)
        again = models.load(tmp_path).eval()
        assert adapted(again) == adapted(model)
        assert len(adapted(again)) == 2
        with torch.no_grad():
            assert torch.equal(again(x), model(x))
        again.save_pretrained(tmp_path)
        assert adapted(models.load(tmp_path)) == adapted(model)
    with pytest.raises(ValueError, match=r"its attention was exchanged \(unrolling\.adapt\)"):
        compat.to_official(alone)
