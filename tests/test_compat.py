"""Released weights in and out. Layouts stand here as the released code has them; what they mean is in proofs_check.paper."""

import argparse
import dataclasses
import math
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType, SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from proofs_check.claims.compat import KINDS as DRAWN
from proofs_check.oracles import richardson_derivative
from proofs_check.paper import released as R
from proofs_check.paper import released_networks as N
from proofs_check.strategies import Case
from unrolling import (
    CBSA,
    ISTA,
    MSSA,
    TSSA,
    AgentAttention,
    CRATEBlock,
    GridPool,
    MiTA,
    OfficialGridPool,
    SequencePool,
    SoftmaxAttention,
)
from unrolling.compat import KINDS, _fill, from_official, guess_kind, load_checkpoint, to_official
from unrolling.compat.tables import table_of
from unrolling.models import create


def lines(text, prefix=""):
    """Names and shapes: one a line, ``[0-2]`` for a number each."""
    found = {}
    for line in text.strip().splitlines():
        name, *shape = line.split()
        loop = re.search(r"\[(\d)-(\d)\]", name)
        for number in range(int(loop[1]), int(loop[2]) + 1) if loop else [None]:
            full = name if loop is None else name.replace(loop[0], str(number))
            found[prefix + full] = tuple(map(int, shape))
    return found


def under(prefix, text):
    return "\n".join(prefix + line.strip() for line in text.strip().splitlines())


NORM = "{0}.weight {1}\n{0}.bias {1}\n"
LINEAR = "{0}.weight {2} {1}\n{0}.bias {2}\n"
MSSA_KEYS = "qkv.weight 8 8\nto_out.weight 8 8\nto_out.bias 8"
CBSA_KEYS = "step_x 2 1 1\nstep_rep 2 1 1\nproj.weight 8 8\nto_out.weight 8 8\nto_out.bias 8"
TSSA_KEYS = "temp 2 1\nqkv.weight 8 8\nto_out.weight 8 8\nto_out.bias 8"
QKV = "qkv.weight 24 8\nqkv.bias 24\nproj.weight 8 8\nproj.bias 8"
DWC = "dwc.weight 8 1 3 3\ndwc.bias 8"
GATED = f"qkvg.weight 32 8\nqkvg.bias 32\nproj.weight 8 8\nproj.bias 8\n{DWC}"


def white(attention):
    return NORM.format("0.norm", 8) + under("0.fn.", attention) + "\n" + NORM.format("1.norm", 8) + "1.fn.weight 8 8"


def block(attention, more=""):
    norms = NORM.format("norm1", 8) + NORM.format("norm2", 8)
    return (
        more
        + norms
        + under("attn.", attention)
        + "\n"
        + LINEAR.format("mlp.fc1", 8, 16)
        + LINEAR.format("mlp.fc2", 16, 8)
    )


def conv(prefix, channels):
    """Two convolutions with batch norms: patches of 4."""
    text = ""
    for number, (into, out) in enumerate(((channels, 4), (4, 8))):
        text += f"{prefix}proj.{2 * number}.0.weight {out} {into} 3 3\n"
        for name in ("weight", "bias", "running_mean", "running_var"):
            text += f"{prefix}proj.{2 * number}.1.{name} {out}\n"
        text += f"{prefix}proj.{2 * number}.1.num_batches_tracked\n"
    return text


def white_network(stem, blocks, positions, classes=3):
    text = f"pos_embedding 1 {positions} 8\ncls_token 1 1 8\n{stem}"
    for number, attention in enumerate(blocks):
        text += under(f"transformer.layers.{number}.", white(attention)) + "\n"
    return text + NORM.format("mlp_head.0", 8) + LINEAR.format("mlp_head.1", 8, classes)


FLAT = (
    NORM.format("to_patch_embedding.1", 6)
    + LINEAR.format("to_patch_embedding.2", 6, 8)
    + NORM.format("to_patch_embedding.3", 8)
)


def vit(positions, patch, attention=QKV, depth=2, classes=3, distilled=False):
    text = f"cls_token 1 1 8\npos_embed 1 {positions} 8\npatch_embed.proj.weight 8 {patch}\npatch_embed.proj.bias 8\n"
    text += (
        under(f"blocks.[0-{depth - 1}].", block(attention))
        + "\n"
        + NORM.format("norm", 8)
        + LINEAR.format("head", 8, classes)
    )
    return text + ("dist_token 1 1 8\n" + LINEAR.format("head_dist", 8, classes) if distilled else "")


def depict_layers(name, depth, inner):
    return (
        under(f"{name}.layers.[0-{depth - 1}].", NORM.format("norm", 8) + f"fn.proj {inner} 8\nfn.step_size 1") + "\n"
    )


MASKS = NORM.format("mask_norm", 3)
DECODERS = {
    "depict-sa": "cls_emb 1 3 8\n" + depict_layers("net", 2, 6) + NORM.format("decoder_norm", 8) + MASKS,
    "depict-ca": "cls_emb 1 3 8\n"
    + depict_layers("snet", 1, 6)
    + depict_layers("cnet", 3, 4)
    + NORM.format("snorm", 8)
    + NORM.format("cnorm", 8)
    + MASKS,
    "cbt-decoder": "cls_emb 1 3 8\n"
    + under("net.layers.[0-1].", NORM.format("norm", 8) + under("fn.", CBSA_KEYS))
    + "\n"
    + NORM.format("decoder_norm", 8)
    + MASKS,
    "segmenter-mask": "cls_emb 1 3 8\nproj_patch 8 8\nproj_classes 8 8\n"
    + LINEAR.format("proj_dec", 8, 8)
    + under("blocks.[0-0].", block(QKV))
    + "\n"
    + NORM.format("decoder_norm", 8)
    + MASKS,
    "segmenter-linear": LINEAR.format("head", 8, 3),
}
TOST = (
    "cls_token 1 1 8\n"
    + conv("patch_embed.", 3)
    + under(
        "blocks.[0-1].",
        block("temp 2 1\nqkv.weight 8 8\nqkv.bias 8\nto_out.0.weight 8 8\nto_out.0.bias 8", "gamma1 8\ngamma2 8\n"),
    )
    + "\n"
    + under("cls_attn_blocks.[0-2].", block(QKV, "gamma1 8\ngamma2 8\n"))
    + "\n"
    + NORM.format("norm", 8)
    + LINEAR.format("head", 8, 3)
    + "pos_embeder.token_projection.weight 8 64 1 1\npos_embeder.token_projection.bias 8"
)
VIT5_ATTENTION = f"{QKV}\nq_norm.weight 4\nk_norm.weight 4\nrope.freqs 1\nrope_reg.freqs 1\n{DWC}"
VIT5 = (
    "cls_token 1 1 8\nreg_token 1 4 8\npos_embed 1 25 8\npatch_embed.proj.weight 8 1 2 2\npatch_embed.proj.bias 8\n"
    + re.sub(
        r"blocks\.\[0-0\]\.norm\d\.bias 8\n",
        "",
        under("blocks.[0-0].", block(VIT5_ATTENTION, "gamma_1 8\ngamma_2 8\n")) + "\n",
    )
    + "norm.weight 8\n"
    + LINEAR.format("head", 8, 3)
)
BIASES = """an_bias 2 4 7 7
na_bias 2 4 7 7
ah_bias 1 2 4 3 1
aw_bias 1 2 4 1 3
ha_bias 1 2 3 1 4
wa_bias 1 2 1 3 4
ac_bias 1 2 4 1
ca_bias 1 2 1 4"""
HEAD_NORMS = "q_norm.weight 4\nq_norm.bias 4\nk_norm.weight 4\nk_norm.bias 4"


@dataclass(frozen=True)
class Example:
    """A released module: layout, arguments, input, and the transcription of what it computes."""

    kind: str
    layout: str
    config: Mapping
    shape: tuple[int, ...]
    reference: Callable
    call: Mapping = field(default_factory=lambda: MappingProxyType({}))

    def state(self, dtype=torch.float64):
        """Drawn numbers; variances and temperatures positive."""
        noise, found = torch.Generator().manual_seed(7), {}
        for name, shape in lines(self.layout).items():
            values = torch.randn(shape, generator=noise, dtype=torch.float64)
            if name.endswith("num_batches_tracked"):
                found[name] = torch.tensor(31)
                continue
            if name.endswith(("running_var", "temp", "freqs")):
                values = values.exp()
            elif len(shape) > 1 and "bias" not in name and "step" not in name and "token" not in name:
                values = values / math.prod(shape[1:]) ** 0.5
            found[name] = values.to(dtype)
        return found

    def x(self, dtype=torch.float64):
        return torch.randn(self.shape, generator=torch.Generator().manual_seed(11), dtype=torch.float64).to(dtype)

    def arguments(self, dtype=torch.float64):
        """Arguments of the call; shapes stand for tensors."""
        made = dict(self.call)
        if "query" in made:
            noise = torch.Generator().manual_seed(13)
            made["query"] = torch.randn(made["query"], generator=noise, dtype=torch.float64).to(dtype)
        return made

    def load(self, state=None, **config):
        return from_official(self.kind, self.state() if state is None else state, **{**self.config, **config})

    def wanted(self, x):
        """From the transcription, one input after the other."""
        state = {name: value.numpy() for name, value in self.state().items()}
        if len(self.shape) == 4:
            return np.stack([self.reference(image, state) for image in x])
        more = {name: value.numpy() for name, value in self.arguments().items() if name == "query"}
        found = [
            self.reference(rows.T, state, **{name: value[i].T for name, value in more.items()})
            for i, rows in enumerate(x)
        ]
        return np.stack([columns.T if columns.ndim == 2 else columns for columns in found])


def segmenter_reference(decode, image_size, distilled=False, heads=2):
    def encode(image, s):
        return N.released_vit(image, s, heads, 1e-5, image_size, features=True)

    return lambda image, s: N.released_segmenter(image, s, 2, encode, decode)


def decoder_example(kind, reference, grid=(2, 3), **config):
    size = (4 * grid[0], 4 * grid[1])
    return Example(
        kind, DECODERS[kind], {"patch_size": 4, **config}, (2, grid[0] * grid[1], 8), reference, {"im_size": size}
    )


ENCODER = {"image_size": (4, 6), "n_heads": 2}
EXAMPLES = {
    "mssa": Example(
        "mssa",
        "qkv.weight 6 8\nto_out.0.weight 8 6\nto_out.0.bias 8",
        {"heads": 2},
        (2, 5, 8),
        lambda X, s: R.released_mssa(X, s, 2),
    ),
    "mssa of cbsa": Example("mssa", MSSA_KEYS, {"dim_head": 4}, (2, 5, 8), lambda X, s: R.released_mssa(X, s, 2)),
    "mssa, one head": Example("mssa", "qkv.weight 8 8", {"heads": 1}, (1, 5, 8), lambda X, s: R.released_mssa(X, s, 1)),
    "cbsa": Example("cbsa", CBSA_KEYS, {"dim": 8, "heads": 2}, (2, 10, 8), R.released_cbsa),
    "cbsa-seg": Example(
        "cbsa-seg",
        CBSA_KEYS.replace("proj.weight 8 8", "proj.weight 6 8").replace("to_out.weight 8 8", "to_out.weight 8 6"),
        {},
        (2, 154, 8),
        lambda X, s: R.released_cbsa(X, s, 10, 150),
    ),
    "tssa": Example(
        "tssa",
        "temp 2 1\nqkv.weight 8 8\nqkv.bias 8\nto_out.0.weight 8 8\nto_out.0.bias 8",
        {"qkv_bias": True},
        (2, 5, 8),
        R.released_tssa,
    ),
    "tssa of cbsa": Example("tssa", TSSA_KEYS, {"dim_head": 64}, (2, 5, 8), R.released_tssa),
    "tssa-causal": Example(
        "tssa-causal",
        "temp 2 1\ndenom_bias 2 7 1\nc_attn.weight 8 8\nc_attn.bias 8\nc_proj.weight 8 8\nc_proj.bias 8",
        {"config": SimpleNamespace(n_embd=8, n_head=2, block_size=7, bias=True, dropout=0.1, vocab_size=9)},
        (2, 5, 8),
        R.released_tssa_causal,
    ),
    "ista": Example(
        "ista", "weight 8 8", {"step_size": 0.3, "hidden_dim": 5}, (2, 5, 8), lambda X, s: R.released_ista(X, s, 0.3)
    ),
    "crate-block": Example(
        "crate-block",
        white(MSSA_KEYS.replace("to_out", "to_out.0")),
        {"heads": 2, "ista": 0.2},
        (2, 5, 8),
        lambda X, s: R.released_crate_block(X, s, 2, 0.2),
    ),
    "crate-block of cbt": Example(
        "crate-block",
        white(CBSA_KEYS),
        {"attn": "CBSA", "ffn": "ISTA"},
        (2, 5, 8),
        lambda X, s: R.released_crate_block(X, s, 2),
    ),
    "crate-block of tost": Example(
        "crate-block", white(TSSA_KEYS), {"attn": "TSSA"}, (2, 5, 8), lambda X, s: R.released_crate_block(X, s, 2)
    ),
    "depict-attention": Example(
        "depict-attention",
        "proj 12 8\nstep_size 1",
        {"heads": 3},
        (2, 5, 8),
        lambda X, s: R.released_depict_attention(X, s, 3),
    ),
    "depict-attention of queries": Example(
        "depict-attention",
        "proj 6 8\nstep_size 1",
        {"heads": 3},
        (2, 5, 8),
        lambda X, s, query: R.released_depict_attention(X, s, 3, query),
        {"query": (2, 3, 8)},
    ),
    "mita": Example(
        "mita",
        QKV,
        {"num_heads": 2, "pool_size": 2, "kv_topk": 2},
        (2, 17, 8),
        lambda X, s: R.released_mita(X, s, 2, 2, 4),
    ),
    "mita, two experts": Example(
        "mita",
        f"qkv.weight 24 8\nproj.weight 8 8\n{HEAD_NORMS}",
        {"num_heads": 2, "pool_size": 3, "kv_topk": 2, "router_topk": 2, "qk_norm": True, "proj_bias": False},
        (2, 17, 8),
        lambda X, s: R.released_mita(X, s, 2, 3, 2, routes=2),
    ),
    "mita-route": Example(
        "mita-route",
        QKV,
        {"num_heads": 2, "pool_size": 2},
        (2, 17, 8),
        lambda X, s: R.released_mita(X, s, 2, 2, 8, shared=False),
    ),
    "mita-dwc": Example(
        "mita-dwc",
        f"{QKV}\n{DWC}",
        {"num_heads": 2, "pool_size": 2},
        (2, 17, 8),
        lambda X, s: R.released_mita(X, s, 2, 2, 4),
    ),
    "mita-dwc-gate": Example(
        "mita-dwc-gate",
        GATED,
        {"num_heads": 2, "pool_size": 2},
        (2, 17, 8),
        lambda X, s: R.released_mita(X, s, 2, 2, 4),
    ),
    "mita-vit5-attention": Example(
        "mita-vit5-attention",
        VIT5_ATTENTION,
        {
            "rope_size": 5,
            "rope_reg_size": 2,
            "num_registers": 4,
            "pool_size": 2,
            "keys_per_expert": 3,
            "reg_theta": 100,
        },
        (2, 14, 8),
        lambda X, s: R.released_mita_vit5(X, s, 2, 4, 5, 2, 3),
    ),
    "mita-segmenter-attention": Example(
        "mita-segmenter-attention",
        f"{QKV}\n{HEAD_NORMS}",
        {"num_heads": 2, "pool_size": 2, "kv_topk": 1},
        (1, 159, 8),
        lambda X, s: R.released_mita(X, s, 2, 2, 1, behind=150, normed=True),
    ),
    "mita-segmenter-attention, routed": Example(
        "mita-segmenter-attention",
        QKV,
        {"num_heads": 2, "pool_size": 2, "kv_topk": 1, "attn": "MiTA_Attention_Route"},
        (2, 10, 8),
        lambda X, s: R.released_mita(X, s, 2, 2, 2, shared=False, normed=True),
    ),
    "agent": Example(
        "agent", f"{QKV}\n{HEAD_NORMS}", {"num_heads": 2}, (2, 10, 8), lambda X, s: R.released_agent(X, s, 2, 7)
    ),
    "agent with biases": Example(
        "agent",
        f"{QKV}\n{BIASES}",
        {"num_heads": 2, "pool_size": 2},
        (2, 10, 8),
        lambda X, s: R.released_agent(X, s, 2, 2),
    ),
    "agent in a ViT": Example(
        "agent",
        f"{QKV}\n{HEAD_NORMS}\n{NORM.format('norm', 8)}",
        {"num_heads": 2, "scale_norm": True, "layer_idx": 4},
        (2, 10, 8),
        lambda X, s: R.released_agent(X, s, 2, 8, adapted=True),
    ),
    "crate": Example(
        "crate",
        white_network(FLAT, [MSSA_KEYS.replace("to_out", "to_out.0")] * 2, 7),
        {
            "image_size": (4, 9),
            "patch_size": (2, 3),
            "channels": 1,
            "heads": 2,
            "pool": "mean",
            "ista": 0.2,
            "emb_dropout": 0.1,
        },
        (2, 1, 2, 9),
        lambda image, s: N.released_white_box(image, s, 2, 0.2, "mean", (2, 3)),
    ),
    "crate, one head and one class": Example(
        "crate",
        white_network(FLAT, ["qkv.weight 8 8"], 7, classes=1),
        {"image_size": (4, 9), "patch_size": (2, 3), "channels": 1, "heads": 1},
        (1, 1, 4, 9),
        lambda image, s: N.released_white_box(image, s, 1, patch=(2, 3)),
    ),
    "crate of cbsa": Example(
        "crate",
        white_network(conv("to_patch_embedding.", 1), [MSSA_KEYS], 7),
        {"heads": 2, "image_size": (8, 12), "attn": "MSSA"},
        (2, 1, 7, 10),
        lambda image, s: N.released_white_box(image, s, 2),
    ),
    "cbt": Example(
        "cbt",
        white_network(conv("to_patch_embedding.", 3), [CBSA_KEYS] * 2, 10),
        {},
        (2, 3, 12, 11),
        lambda image, s: N.released_white_box(image, s, 2),
    ),
    "cbt-hybrid": Example(
        "cbt-hybrid",
        white_network(conv("to_patch_embedding.", 3), [MSSA_KEYS, CBSA_KEYS, TSSA_KEYS], 5),
        {"attn": ["MSSA", "CBSA", "TSSA"]},
        (2, 3, 8, 8),
        lambda image, s: N.released_white_box(image, s, 2),
    ),
    "tost": Example(
        "tost",
        TOST,
        {"tokens_norm": True, "qk_scale": 0.7},
        (2, 3, 12, 7),
        lambda image, s: N.released_tost(image, s, 2, qk_scale=0.7),
    ),
    "tost of cbsa": Example(
        "tost",
        white_network(conv("to_patch_embedding.", 3), [TSSA_KEYS], 5),
        {},
        (2, 3, 8, 8),
        lambda image, s: N.released_white_box(image, s, 2),
    ),
    "vit": Example(
        "vit",
        vit(8, "3 2 2", distilled=True),
        {"n_heads": 2, "image_size": (4, 6), "distilled": True},
        (2, 3, 7, 4),
        lambda image, s: N.released_vit(image, s, 2, 1e-5, (4, 6)),
    ),
    "vit, all tokens": Example(
        "vit",
        vit(7, "1 2 2", depth=1, classes=1),
        {"n_heads": 1, "image_size": (4, 6)},
        (2, 1, 2, 12),
        lambda image, s: N.released_vit(image, s, 1, 1e-5, (4, 6), features=True).T,
        {"return_features": True},
    ),
    "deit": Example(
        "deit",
        vit(7, "3 2 3"),
        {"num_heads": 2, "img_size": (4, 9)},
        (2, 3, 4, 9),
        lambda image, s: N.released_vit(image, s, 2, 1e-6, (4, 9)),
    ),
    "mita-deit": Example(
        "mita-deit",
        vit(17, "3 2 2"),
        {"num_heads": 2, "pool_size": 2, "kv_topk": 2},
        (2, 3, 8, 8),
        lambda image, s: N.released_vit(image, s, 2, 1e-6, (8, 8), lambda X, t: R.released_mita(X, t, 2, 2, 4)),
    ),
    "mita-deit with gates": Example(
        "mita-deit",
        vit(17, "3 2 2", GATED, depth=1),
        {"num_heads": 2, "pool_size": 2, "attn_drop_rate": 0.1},  # dropped nowhere there
        (2, 3, 8, 8),
        lambda image, s: N.released_vit(image, s, 2, 1e-6, (8, 8), lambda X, t: R.released_mita(X, t, 2, 2, 4)),
    ),
    "mita-vit5": Example(
        "mita-vit5", VIT5, {"rope": True}, (1, 1, 10, 10), lambda image, s: N.released_vit5(image, s, 2, 5)
    ),
    "depict-sa": decoder_example("depict-sa", lambda X, s: N.released_depict(X, s, 2, (2, 3)), n_heads=2, mode="sa"),
    "depict-ca": decoder_example("depict-ca", lambda X, s: N.released_depict(X, s, 2, (2, 3)), n_heads=2),
    "cbt-decoder": decoder_example("cbt-decoder", lambda X, s: N.released_cbt_decoder(X, s, (3, 3)), (3, 3)),
    "segmenter-mask": decoder_example(
        "segmenter-mask", lambda X, s: N.released_mask_decoder(X, s, 2, (2, 3)), n_heads=2
    ),
    "segmenter-linear": decoder_example("segmenter-linear", lambda X, s: N.released_linear_decoder(X, s, (2, 3))),
    "segmenter": Example(
        "segmenter",
        under("encoder.", vit(7, "1 2 2")) + "\n" + under("decoder.", DECODERS["segmenter-mask"]),
        {"encoder": ENCODER, "decoder": {"n_heads": 2}},
        (2, 1, 7, 5),
        segmenter_reference(lambda X, s, grid: N.released_mask_decoder(X, s, 2, grid), (4, 6)),
    ),
    "segmenter with depict": Example(
        "segmenter",
        under("encoder.", vit(8, "1 2 2", distilled=True)) + "\n" + under("decoder.", DECODERS["depict-ca"]),
        {**ENCODER, "decoder": {"n_heads": 2}, "n_cls": 3},
        (1, 1, 4, 6),
        segmenter_reference(lambda X, s, grid: N.released_depict(X, s, 2, grid), (4, 6), distilled=True),
    ),
}
EVERY = pytest.mark.parametrize("name", EXAMPLES)


def test_there_is_an_example_of_every_kind():
    assert {example.kind for example in EXAMPLES.values()} == set(KINDS)
    assert set(DRAWN) == set(KINDS)


@EVERY
def test_a_loaded_module_computes_the_released_output_and_its_gradient(name):
    example = EXAMPLES[name]
    module, x = example.load(), example.x().requires_grad_()
    y = module(x, **example.arguments())
    want = example.wanted(x.detach().numpy())
    assert y.shape == want.shape
    assert not module.training
    loose = 1e-6 if name == "tost" else 1e-12  # its positions are computed in single precision
    np.testing.assert_allclose(y.detach().numpy(), want, rtol=0, atol=loose * np.abs(want).max())
    weights, direction = torch.randn_like(y), torch.randn_like(x)
    (gradient,) = torch.autograd.grad((y * weights).sum(), x)
    slope, error = richardson_derivative(
        lambda t: float((example.wanted((x.detach() + t * direction).numpy()) * weights.numpy()).sum()), 2e-4
    )
    size = float(gradient.norm() * direction.norm())
    assert abs(float((gradient * direction).sum()) - slope) < max(loose, 1e-8) * size + 20 * error


@EVERY
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_weights_go_in_and_come_out_bit_for_bit_in_their_dtype(name, dtype):
    example = EXAMPLES[name]
    state = example.state(dtype)
    module = example.load(state)
    assert {parameter.dtype for parameter in module.parameters()} == {dtype}
    kind, found = to_official(module)
    assert kind == example.kind
    assert set(found) == set(state)
    for key, value in state.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)
        assert found[key].data_ptr() != value.data_ptr()
    y = module(example.x(dtype), **example.arguments(dtype))
    assert y.dtype == dtype
    assert torch.isfinite(y).all()


def attempt(example, state):
    """The weights that come out again and no error, or none and what is said."""
    try:
        return to_official(example.load(state))[1], ""
    except ValueError as problem:
        return None, str(problem)


OPTIONAL = ("qkv.bias", "qkvg.bias", "proj.bias", "c_attn.bias")


@EVERY
def test_every_key_is_used(name):
    """Without a key there is an error, or an option of the released constructor less, and then all others are used."""
    example = EXAMPLES[name]
    state = example.state()
    for key in state:
        rest = {other: value for other, value in state.items() if other != key}
        found, problem = attempt(example, rest)
        if found is None:
            assert problem.startswith("from_official(")
        else:
            assert key.endswith(OPTIONAL)
            assert set(found) == set(rest)
    with pytest.raises(ValueError, match=r"unknown keys \['more.weight'\]"):
        example.load({**state, "more.weight": torch.ones(2)})


@EVERY
def test_every_shape_is_held_against_the_others(name):
    """Of another shape a tensor is refused, or the module is another one that uses every number of it."""
    example = EXAMPLES[name]
    state = example.state()
    for key, value in state.items():
        longer = torch.cat([value, value]) if value.ndim else value[None]
        others = (longer, value[None], value.reshape(-1)[:1].squeeze(), value.reshape(-1)[:0])
        for other in [other for other in others if other.shape != value.shape]:
            found, problem = attempt(example, {**state, key: other})
            assert problem.startswith("from_official(") or torch.equal(found[key], other)


@EVERY
def test_tensors_of_any_kind_are_copied(name):
    """Strided, expanded, shared, learned: the numbers are what counts, and nothing is shared with the module."""
    example = EXAMPLES[name]
    state = example.state()
    plain = example.load(state)(example.x(), **example.arguments())
    strided = {key: value.repeat_interleave(2, -1)[..., ::2] if value.ndim else value for key, value in state.items()}
    learned = {key: nn.Parameter(value) if value.is_floating_point() else value for key, value in state.items()}
    for other in (strided, learned, MappingProxyType(state)):
        module = example.load(other)
        assert torch.equal(module(example.x(), **example.arguments()), plain)
        ours = {tensor.data_ptr() for tensor in (*module.parameters(), *module.buffers())}
        assert not ours & {value.data_ptr() for value in other.values()}
        assert not ours & {value.data_ptr() for value in to_official(module)[1].values()}
    row = {key: value[:1].expand_as(value) if value.ndim else value for key, value in state.items()}
    assert all(torch.equal(value, row[key]) for key, value in to_official(example.load(row))[1].items())


def test_weights_of_two_precisions_take_the_wider():
    example = EXAMPLES["cbt"]
    state = {
        key: value.half() if "norm" in key else value.float() for key, value in example.state(torch.float32).items()
    }
    state["to_patch_embedding.proj.0.1.num_batches_tracked"] = torch.tensor(3)
    module = example.load(state)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}
    assert int(module.stem.norms[0].num_batches_tracked) == 3
    assert torch.get_default_dtype() == torch.float32


def test_the_default_precision_is_left_as_it_is():
    torch.set_default_dtype(torch.float16)
    try:
        EXAMPLES["cbt"].load()
        with pytest.raises(ValueError, match="no square grid"):
            from_official("deit", EXAMPLES["deit"].state())
        assert torch.get_default_dtype() == torch.float16
    finally:
        torch.set_default_dtype(torch.float32)


def test_constants_of_the_code_are_exact_in_double_precision():
    """η = λ = 0.1 is no single precision 0.1 in float64."""
    module = from_official("ista", {"weight": torch.zeros(2, 2, dtype=torch.float64)})
    x = torch.full((1, 2), 0.5, dtype=torch.float64)
    assert torch.allclose(module(x), torch.tensor(0.5 - 0.01, dtype=torch.float64), rtol=0, atol=1e-15)


def test_the_released_tssa_adds_1e_minus_8():
    """Visible where hardly any token is a member: moments are over Σ π + 1e-8."""
    state = {
        "temp": torch.tensor([[0.0], [-60.0]], dtype=torch.float64),
        "qkv.weight": torch.eye(2, dtype=torch.float64),
        "to_out.weight": torch.eye(2, dtype=torch.float64),
        "to_out.bias": torch.zeros(2, dtype=torch.float64),
    }
    x = torch.tensor([[0.1, 30.0]], dtype=torch.float64)
    share = math.exp(-60.0)
    with torch.no_grad():
        y = from_official("tssa", state)(x)
    assert float(y[0, 1]) == pytest.approx(-30.0 * share / (1 + share * 900.0 / (share + 1e-8)), rel=1e-9)


def test_nothing_is_copied_when_anything_is_wrong():
    example = EXAMPLES["mssa"]
    module, state = example.load(), example.state()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    kind, entries = table_of(module)
    wrong = {key: 2 * value for key, value in state.items()} | {"to_out.0.bias": torch.ones(3)}
    with pytest.raises(ValueError, match=r"to_out.0.bias is \(3,\), but must be \(8,\)"):
        _fill(kind, module, entries, wrong)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def said(name, **config):
    """What is said of an example with other arguments; None takes one away."""
    example = EXAMPLES[name]
    given = {key: value for key, value in {**example.config, **config}.items() if value is not None}
    with pytest.raises((ValueError, TypeError)) as problem:
        from_official(example.kind, example.state(), **given)
    return str(problem.value)


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("mssa", {"heads": 4}, "6 inner features are not 4 heads of equal width"),
        ("mssa", {"heads": 2, "dim_head": 4}, "6 inner features are not 2 heads of 4"),
        ("mssa", {"dim": 9}, "dim is given as 9, but the weights say 8"),
        ("mssa", {"heads": 2.0}, "heads must be a positive integer, but is 2.0"),
        ("mssa", {"heads": True}, "heads must be a positive integer, but is True"),
        ("mssa", {"dim_head": "3"}, "dim_head must be a positive integer, but is '3'"),
        ("cbsa", {"heads": 3}, "heads is given as 3, but the weights say 2"),
        ("cbsa", {"dim_head": 5}, "dim_head is given as 5, but the weights say 4"),
        ("tssa", {"qkv_bias": False}, "qkv_bias is given as False, but the weights say True"),
        ("tssa", {"num_heads": 2, "heads": 4}, "heads and num_heads name the same thing, but are"),
        ("tssa-causal", {"config": {"n_embd": 8, "n_head": 4}}, "n_head is given as 4, but the weights say 2"),
        ("tssa-causal", {"config": {"block_size": 9}}, "block_size is given as 9, but the weights say 7"),
        ("ista", {"step_size": -0.1}, "step_size must be a positive number, but is -0.1"),
        ("ista", {"lambd": "0.1"}, "lambd must be a positive number, but is '0.1'"),
        ("crate-block", {"attn": "CBSA"}, "attn is 'CBSA', but the weights are those of MSSA"),
        ("crate-block", {"ffn": "MLP"}, "ffn must be ISTA, but is 'MLP'"),
        ("crate-block", {"depth": 2}, "depth is given as 2, but the weights say 1"),
        ("mita", {"router_topk": 3}, "router_topk is 1, or 2 in the second released file, but is 3"),
        ("mita", {"pool_size": 0}, "pool_size must be a positive integer, but is 0"),
        ("mita", {"qk_norm": True}, "qk_norm is given as True, but the weights say False"),
        ("mita", {"proj_bias": False}, "proj_bias is given as False, but the weights say True"),
        (
            "mita-vit5-attention",
            {"attention": "MiTA_Attention"},
            "attention is 'mita_attention', but the weights have a dwc",
        ),
        ("mita-vit5-attention", {"rope_reg_size": 0}, "rope_reg_size is 0, but the weights have a rope_reg"),
        ("mita-vit5-attention", {"num_heads": 3}, "num_heads is given as 3, but the weights say 2"),
        ("agent", {"scale_norm": True}, "scale_norm is given as True, but the weights say False"),
        ("crate", {"depth": 3}, "depth is given as 3, but the weights say 2"),
        ("crate", {"num_classes": 1000}, "num_classes is given as 1000, but the weights say 3"),
        ("crate", {"image_size": 12}, "has 6 × 4 patches of 2 × 3, but the weights have positions for 6"),
        ("crate", {"image_size": (4, 10)}, "an image of 4 × 10"),
        (
            "crate",
            {"image_size": (4, 9, 1)},
            r"image_size must be a positive integer or (rows, columns), but is (4, 9, 1)",
        ),
        (
            "crate",
            {"patch_size": 2},
            "a patch has 6 values, but 1 channels × 2 × 2 pixels are 4; pass patch_size and channels",
        ),
        ("crate", {"pool": "max"}, "pool must be 'cls' or 'mean', but is 'max'"),
        ("crate of cbsa", {"channels": 3}, "channels is given as 3, but the weights say 1"),
        ("cbt", {"attn": "MSSA"}, "attn is 'MSSA', but the weights are those of cbsa, cbsa"),
        ("cbt", {"patch_size": 8}, "patch_size is given as 8, but the weights say 4"),
        ("cbt-hybrid", {"attn": ["CBSA", "MSSA", "TSSA"]}, "but the weights are those of mssa, cbsa, tssa"),
        ("tost", {"attn_layer": "XCA"}, "attn_layer must be AttentionTSSA, but is 'XCA'"),
        ("tost", {"mlp_ratio": 4}, "mlp_ratio is given as 4, but the weights say 2.0"),
        ("tost", {"norm_layer": nn.BatchNorm1d}, "norm_layer must be layernorm"),
        ("vit", {"distilled": False}, "distilled is given as False, but the weights say True"),
        ("vit", {"d_ff": 32}, "d_ff is given as 32, but the weights say 16"),
        ("vit", {"attention": "MiTA_Attention"}, "MiTA's encoder has no distillation token"),
        ("deit", {"qk_scale": 0.3}, "qk_scale is not p^(−1/2)"),
        ("deit", {"act_layer": nn.ReLU}, "act_layer must be gelu"),
        ("mita-vit5", {"num_registers": 1}, "num_registers is given as 1, but the weights say 4"),
        ("mita-vit5", {"rope": False}, "rope is given as False, but the weights say True"),
        ("mita-vit5", {"drop_rate": 0.1}, "drop_rate is a dropout before the head there"),
        ("depict-sa", {"mode": "ca"}, "mode is given as 'ca', but the weights say 'sa'"),
        ("depict-ca", {"n_heads": 5}, "6 inner features are not 5 heads of equal width"),
        ("depict-ca", {"n_cls": 150}, "n_cls is given as 150, but the weights say 3"),
        ("cbt-decoder", {"im_size": 0}, "im_size must be a positive integer or (rows, columns), but is 0"),
        ("cbt", {"im_size": 32}, "im_size is an argument of decoders"),
        ("segmenter-mask", {"d_encoder": 9}, "d_encoder is given as 9, but the weights say 8"),
        ("segmenter", {"encoder": 3}, "encoder must be a mapping of its arguments, but is 3"),
        ("segmenter", {"n_cls": 4}, "n_cls is given as 4, but the weights say 3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_are_held_against_the_weights(name, config, text):
    assert text in said(name, **config)


@pytest.mark.parametrize(
    ("name", "config", "text"),
    [
        ("mssa", {"heads": None}, "6 inner features do not tell how many heads there are; pass heads=… or dim_head=…"),
        ("depict-attention", {"heads": None}, "pass heads=… or n_heads=… or dim_head=…"),
        ("mita", {"num_heads": None}, "8 inner features do not tell how many heads there are; pass num_heads=…"),
        ("crate", {"heads": None}, "pass heads=… or dim_head=…"),
        ("crate", {"image_size": None}, "6 positions are of no square grid; pass image_size=… or img_size=…"),
        (
            "crate",
            {"patch_size": None, "channels": None},
            "6 values a patch are no square of 3 channels; pass patch_size=…",
        ),
        ("vit", {"n_heads": None}, "pass num_heads=… or n_heads=… or heads=…"),
        (
            "mita-vit5-attention",
            {"num_registers": None, "rope_reg_size": None},
            "do not tell how many registers there are; pass num_registers=…",
        ),
        ("mita-vit5-attention", {"rope_size": None}, "for which grid the rotary angles are made; pass rope_size=…"),
        ("tost", {"tokens_norm": None}, "do not tell what class attention normalises; pass tokens_norm=…"),
        ("depict-sa", {"n_heads": None}, "6 inner features are not heads of 100; pass n_heads=…"),
        ("segmenter", {"decoder": None}, "pass n_heads=… or num_heads=… or heads=…"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_the_weights_do_not_tell_is_asked_for_by_name(name, config, text):
    assert text in said(name, **config)


def test_an_unknown_argument_is_named_with_the_nearest():
    assert "unknown arguments: head (did you mean heads?). It takes dim, dim_head, dropout, heads, im_size" in said(
        "mssa", head=2
    )
    assert "img_sise (did you mean img_size?)" in said("deit", img_sise=2)
    assert "from_official('segmenter-mask'): unknown arguments: n_layer (did you mean n_layers?)" in said(
        "segmenter", decoder={"n_heads": 2, "n_layer": 1}
    )


@pytest.mark.parametrize(
    ("kind", "name", "text"),
    [
        ("cbt", "crate of cbsa", "its attentions are mssa: that is kind 'crate'"),
        ("crate", "cbt", "its attentions are cbsa: that is kind 'cbt'"),
        ("crate", "cbt-hybrid", "its attentions are cbsa, mssa, tssa: that is kind 'cbt-hybrid'"),
        ("cbt", "tost of cbsa", "its attention is TSSA; pass attn='TSSA', or take kind 'tost'"),
        ("cbt-hybrid", "cbt", "these weights are of kind 'cbt'"),
        ("deit", "cbt", "By their keys these weights are of kind 'cbt'"),
        ("segmenter", "vit", "By their keys these weights are of kind 'deit'"),
        ("depict-sa", "depict-ca", "By their keys these weights are of kind 'depict-ca'"),
        ("mita-deit", "mita-vit5", "kind 'mita-vit5'"),
        ("mita-vit5", "deit", "its norms have biases"),
        ("cbsa", "mssa", "the weights have no 'step_x'; they have 3 keys: qkv.weight, to_out.0.bias, to_out.0.weight"),
        ("cbsa", "cbsa-seg", "its pooling needs heads × dim_head = dim, but 6 is not 8; is it a 'cbsa-seg'?"),
        ("cbtt", "cbt", "no kind 'cbtt'. Nearest: cbt"),
        ("ista", "depict-attention", "the weights have no 'weight'"),
    ],
)
def test_a_wrong_kind_is_named_with_the_right_one(kind, name, text):
    with pytest.raises(ValueError, match=re.escape(text)):
        from_official(kind, EXAMPLES[name].state())


def test_a_dictionary_that_holds_no_square():
    with pytest.raises(ValueError, match="the dictionary must be square, but is 4 × 3"):
        from_official("ista", {"weight": torch.ones(4, 3)})
    with pytest.raises(ValueError, match=r"weight must have 2 axes, but has shape \(3,\)"):
        from_official("ista", {"weight": torch.ones(3)})
    with pytest.raises(ValueError, match=r"pre_logits\.fc is timm's representation layer"):
        EXAMPLES["deit"].load(EXAMPLES["deit"].state() | {"pre_logits.fc.weight": torch.ones(2, 2)})
    with pytest.raises(ValueError, match=r"qkv\.weight has 25 rows, which are not 3 projections"):
        EXAMPLES["mita"].load({**EXAMPLES["mita"].state(), "qkv.weight": torch.ones(25, 8)})


@pytest.mark.parametrize(
    ("state", "error", "text"),
    [
        ([("weight", torch.ones(2, 2))], TypeError, "the weights must be a state dictionary, but are a list"),
        (nn.Linear(2, 2), TypeError, "the weights must be a state dictionary, but are a Linear"),
        (None, TypeError, "but are a NoneType"),
        ({"weight": np.ones((2, 2))}, TypeError, "every value must be a tensor, but 'weight' is a ndarray"),
        ({"state_dict": {"weight": torch.ones(2, 2)}}, TypeError, "a whole checkpoint is read by load_checkpoint"),
        ({3: torch.ones(2, 2)}, TypeError, "every value must be a tensor, but 3 is a Tensor"),
        ({}, ValueError, "the weights have no 'weight'; they have 0 keys"),
        ({"weight": torch.ones(0, 0)}, ValueError, r"weight is empty: its shape is \(0, 0\)"),
    ],
)
def test_what_is_no_state_dictionary_is_refused(state, error, text):
    with pytest.raises(error, match=text):
        from_official("ista", state)


@pytest.mark.parametrize(
    "name", [name for name in EXAMPLES if len(EXAMPLES[name].shape) == 4 or "im_size" in EXAMPLES[name].call]
)
def test_kinds_of_networks_are_guessed_from_their_keys(name):
    example = EXAMPLES[name]
    expected = {"vit": "deit", "mita-deit": "deit" if "gates" not in name else "mita-deit"}
    assert guess_kind(example.state()) == expected.get(example.kind, example.kind)
    assert guess_kind({3: torch.ones(1)} | example.state()) == guess_kind(example.state())


def test_layers_and_strangers_are_not_guessed():
    for name in ("mssa", "cbsa", "ista", "mita", "crate-block"):
        assert guess_kind(EXAMPLES[name].state()) is None
    assert guess_kind({}) is None


@pytest.mark.parametrize("seed", range(4))
def test_drawn_networks_are_guessed_too(seed):
    """Of any options: without scales, positions, registers' neighbours."""
    for kind, draw in DRAWN.items():
        drawn = draw(Case(tokens=6, heads=2, head_dim=2, seed=seed))
        if not drawn.columns or "im_size" in drawn.call:
            assert guess_kind(drawn.state) in {kind, *({"deit", "mita-deit"} if kind in ("vit", "mita-deit") else ())}


OWN = {
    "crate-tiny": ({"img_size": 32, "patch_size": 8, "compat": "official"}, {"heads": 6}),
    "cbt-tiny": ({"img_size": 32, "patch_size": 8, "compat": "official"}, {}),
    "cbt-tiny-mssa": ({"img_size": 32, "patch_size": 8}, {"heads": 3}),
    "cbt-tiny-tssa": ({"img_size": 32, "patch_size": 8}, {}),
    "tost-tiny-12": ({"patch_size": 8}, {"tokens_norm": True}),
    "vit-tiny": ({"img_size": 32, "patch_size": 8}, {"num_heads": 3}),
    "mita-deit-tiny-dwc-gate": ({"img_size": 56, "patch_size": 8, "compat": "official"}, {"num_heads": 3}),
    "mita-deit-tiny-agent": (
        {"img_size": 56, "patch_size": 8, "compat": "official"},
        {"num_heads": 3, "attn": "Agent_Attention"},
    ),
    "mita-vit5-small": ({"img_size": 56, "patch_size": 8, "compat": "official"}, {}),
    "depict-sa-tiny": ({}, {}),
    "depict-ca-tiny": ({}, {}),
    "cbt-decoder-tiny": ({}, {}),
    "segmenter-mask-tiny": ({}, {"n_heads": 3}),
    "segmenter-linear-tiny": ({}, {}),
}


def own(name, **changes):
    """A network of this library, two blocks deep."""
    options = {"num_classes": 7} | changes | ({} if name.startswith("segmenter-linear") else {"depth": 2})
    model = create(name, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("name", OWN)
def test_our_own_networks_are_the_same_after_a_round_trip(name):
    changes, config = OWN[name]
    model = own(name, **changes)
    kind, state = to_official(model)
    again = from_official(kind, state, **config)
    decoder = "img_size" not in changes and "patch_size" not in changes
    x = torch.randn(2, 16, model.config.embed_dim) if decoder else torch.randn(2, 3, *[changes.get("img_size", 32)] * 2)
    call = {"im_size": (64, 64)} if decoder else {}
    assert torch.equal(again(x, **call), model(x, **call))


def test_our_own_segmenters_and_hybrids_go_round():
    model = create("segmenter-tiny+depict-sa", num_classes=4).eval()
    kind, state = to_official(model)
    again = from_official(kind, state, encoder={"n_heads": 3}, decoder={"n_heads": 3})
    x = torch.randn(1, 3, 40, 50)
    torch.testing.assert_close(again(x), model(x))
    model = own("cbt-tiny", attention=("mssa", "cbsa"), img_size=32, patch_size=8, compat="official")
    kind, state = to_official(model)
    assert kind == "cbt-hybrid"
    x = torch.randn(1, 3, 32, 32)
    assert torch.equal(from_official(kind, state, heads=3)(x), model(x))


def test_a_network_without_compat_gives_its_weights_too():
    """The released code pools the shifted grid; the numbers then differ a little, and nothing else does."""
    model = own("cbt-tiny", img_size=32, patch_size=8)
    kind, state = to_official(model)
    again = from_official(kind, state)
    x = torch.randn(1, 3, 32, 32)
    assert not torch.equal(again(x), model(x))
    for block in again.blocks:
        block.attention.representatives = GridPool((8, 8))
        block.attention.class_tokens = 1
    torch.testing.assert_close(again(x), model(x))


def learned_step():
    return MSSA(8, 2, form="softmax", basis="free", tied=False, output_bias=True)


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: nn.Linear(2, 2), TypeError, "a Linear has no released counterpart"),
        (lambda: SoftmaxAttention(8, 2), TypeError, "a bare SoftmaxAttention has no released counterpart"),
        (lambda: MSSA(8, 2), ValueError, "it is not tied with one step"),
        (lambda: MSSA(8, 2, tied=False), ValueError, "its form is exact"),
        (learned_step, ValueError, "its step is not fixed at 1; fold it into the output matrix"),
        (
            lambda: CBSA(8, 2, form="softmax", representatives=SequencePool(3)),
            ValueError,
            "its output is tied to its bases",
        ),
        (lambda: CBSA(8, 2, tied=False, output_bias=True), ValueError, "its form is exact"),
        (
            lambda: CBSA(8, 2, form="softmax", tied=False, output_bias=True, per_head_step=True),
            ValueError,
            "keep_queries and steps of every head are not on",
        ),
        (
            lambda: CBSA(8, 2, form="softmax", tied=False, per_head_step=True, keep_queries=True),
            ValueError,
            "its output has no bias",
        ),
        (lambda: TSSA(8, 2, tied=False, output_bias=True), ValueError, "it keeps to ToST's equation"),
        (lambda: TSSA(8, 2, tied=False, output_bias=True, causal=True), ValueError, "it keeps to ToST's equation"),
        (lambda: ISTA(8, learnable_step=True), ValueError, "its step or weight is learned, or its codes have signs"),
        (lambda: ISTA(8, nonnegative=False), ValueError, "its step or weight is learned, or its codes have signs"),
        (lambda: CRATEBlock(learned_step(), ISTA(8)), ValueError, "it has no LayerNorms"),
        (
            lambda: CRATEBlock(SoftmaxAttention(8, 2), ISTA(8), norm="layer"),
            ValueError,
            "no released block has a SoftmaxAttention beside ISTA",
        ),
        (
            lambda: AgentAttention(8, 2, agents=OfficialGridPool((2, 2)), contraction=True, learnable_step=False),
            ValueError,
            "it contracts its agents",
        ),
        (lambda: MiTA(8, 2), ValueError, "its step is not fixed at 1"),
        (
            lambda: MiTA(8, 2, projections="identity", learnable_step=False),
            ValueError,
            "it has no projections",
        ),
        (lambda: own("cbt-tiny", tied=True), ValueError, "its output is tied to its bases"),
        (lambda: own("cbt-tiny", form="exact"), ValueError, "its form is exact"),
        (
            lambda: own("cbt-tiny", attention="softmax"),
            ValueError,
            "no released block has a SoftmaxAttention beside ISTA",
        ),
        (lambda: own("crate-tiny", form="exact"), ValueError, "its form is exact"),
        (lambda: own("depict-ca-tiny", form="exact"), ValueError, "it is not tied with one step"),
        (lambda: own("cbt-decoder-tiny", form="exact"), ValueError, "its form is exact"),
    ],
)
def test_what_has_no_released_counterpart_is_refused_with_the_reason(make, error, text):
    with pytest.raises(error, match=f"to_official: .*{re.escape(text)}"):
        to_official(make())


@pytest.mark.parametrize(
    ("attention", "shared", "keys"), [("MiTA_Attention", True, 49), ("MiTA_Attention_Route", False, 162)]
)
def test_segmenters_encoder_may_have_mitas_attention(attention, shared, keys):
    """Keys do not tell: it is of kind "vit" with either, and its norms have 1e-5."""
    layout = vit(10, "3 2 2")
    example = Example("vit", layout, {"n_heads": 2, "attention": attention}, (1, 3, 6, 6), lambda image, s: None)
    module = example.load()
    first = module.blocks[0].attention
    assert (first.shared, first.keys_per_expert, module.blocks[0].norm1.eps) == (shared, keys, 1e-5)
    kind, state = to_official(module)
    assert kind == "vit"
    weights = {name: value.numpy() for name, value in state.items()}

    def read(X, s):
        return R.released_mita(X, s, 2, 7 if shared else 9, keys, shared=shared)

    want = np.stack([N.released_vit(image.numpy(), weights, 2, 1e-5, (6, 6), read) for image in example.x()])
    np.testing.assert_allclose(module(example.x()).detach().numpy(), want, rtol=1e-11)


def test_decoders_remember_an_image_size():
    example = EXAMPLES["segmenter-linear"]
    module = example.load(im_size=(8, 12))
    assert torch.equal(module(example.x()), module(example.x(), im_size=(8, 12)))
    with pytest.raises(ValueError, match=r"pass im_size=\(H, W\)"):
        example.load()(example.x())
    with pytest.raises(ValueError, match="12 × 12 pixels has 3 × 3 patches"):
        module(example.x(), im_size=(12, 12))


def test_the_mask_decoder_has_the_heads_of_the_released_factory():
    """Heads of 64 where the width allows it and nothing else is said."""
    wide = (
        re.sub(r"(?<![\d.])8(?!\d)", "64", DECODERS["segmenter-mask"])
        .replace("24 64", "192 64")
        .replace("qkv.bias 24", "qkv.bias 192")
    )
    wide = wide.replace("proj_dec.weight 64 64", "proj_dec.weight 64 8").replace("16", "16")
    encoder = under("encoder.", vit(7, "1 2 2"))
    example = dataclasses.replace(EXAMPLES["segmenter"], layout=encoder + "\n" + under("decoder.", wide))
    module = from_official("segmenter", example.state(), **ENCODER)
    assert module.decoder.config.num_heads == 1


class Writer:
    """A pickle that writes a file when it is loaded."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


STATE = {"layer.weight": torch.arange(6.0).reshape(2, 3), "layer.bias": torch.ones(2)}


def same(found, expected=STATE):
    return set(found) == set(expected) and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("suffix", [".pth", ".pth.tar", ".pt", ".bin", ".ckpt", ".PTH"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"model": s, "epoch": 3, "args": argparse.Namespace(lr=0.1, name="x")},
        lambda s: {"state_dict": s, "best": 0.5, "optimizer": {"state": {}, "param_groups": [{"lr": 1.0}]}},
        lambda s: {"module": {"model": s}},
        lambda s: {f"module.{name}": value for name, value in s.items()},
        lambda s: {"state_dict": {f"module._orig_mod.{name}": value for name, value in s.items()}},
        lambda s: {"model": {f"model.{name}": value for name, value in s.items()}, "n_cls": 150},
    ],
    ids=["bare", "model and args", "state_dict", "module, model", "parallel", "compiled", "prefix"],
)
def test_checkpoints_are_unwrapped(tmp_path, suffix, wrap):
    path = tmp_path / f"weights{suffix}"
    torch.save(wrap(dict(STATE)), path)
    assert same(load_checkpoint(path))
    assert same(load_checkpoint(str(path)))


def test_safetensors_and_old_archives_are_read(tmp_path):
    save_file({f"module.{name}": value for name, value in STATE.items()}, tmp_path / "weights.safetensors")
    assert same(load_checkpoint(tmp_path / "weights.safetensors"))
    torch.save({"model": STATE}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert same(load_checkpoint(tmp_path / "old.pth"))


def test_an_entry_can_be_named(tmp_path):
    path = tmp_path / "weights.pth"
    averaged = {name: 2 * value for name, value in STATE.items()}
    torch.save({"model": STATE, "model_ema": averaged}, path)
    assert same(load_checkpoint(path))
    assert same(load_checkpoint(path, key="model_ema"), averaged)
    with pytest.raises(ValueError, match="has no entry 'ema'; it has model, model_ema"):
        load_checkpoint(path, key="ema")


def test_a_prefix_that_only_some_keys_have_stays(tmp_path):
    path = tmp_path / "weights.pth"
    torch.save({"module.a": torch.ones(1), "b": torch.ones(1)}, path)
    assert set(load_checkpoint(path)) == {"module.a", "b"}
    torch.save({"module.": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="cannot be told apart without their prefix"):
        load_checkpoint(path)


def test_code_in_a_pickle_is_refused_and_does_not_run(tmp_path):
    path, made = tmp_path / "weights.pth", tmp_path / "made"
    torch.save({"model": STATE, "extra": Writer(str(made))}, path)
    with pytest.raises(ValueError, match=r"asks for \S*mkdir to be loaded, which could run code; refused"):
        load_checkpoint(path)
    assert not made.exists()
    torch.load(path, weights_only=False)  # what an unsafe reader would have done
    assert made.exists()


def test_whole_modules_are_refused(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match=r"asks for torch.nn.modules.linear.Linear to be loaded"):
        load_checkpoint(tmp_path / "module.pth")


def cyclic(path):
    content = {"epoch": 1}
    content["model"] = content
    torch.save(content, path)


@pytest.mark.parametrize(
    ("name", "write", "text"),
    [
        ("a.pth", lambda path: None, "no such file"),
        ("a.pth", lambda path: path.mkdir(), "is a folder; give a file"),
        ("a.pth", lambda path: path.touch(), "the file is empty"),
        (
            "a.txt",
            lambda path: path.write_text("x"),
            "checkpoints end in .pth, .pt, .bin, .tar, .ckpt, .safetensors, but this one in '.txt'",
        ),
        ("a.pth", lambda path: path.write_bytes(b"garbage" * 99), "It is no archive of torch.save; is the file whole"),
        ("a.safetensors", lambda path: path.write_bytes(b"garbage" * 99), "cannot be read as safetensors"),
        ("a.pth", lambda path: torch.save(torch.ones(2), path), "holds a Tensor, not a state dictionary"),
        ("a.pth", lambda path: torch.save([STATE], path), "holds a list, not a state dictionary"),
        ("a.pth", lambda path: torch.save({}, path), "holds no state dictionary under model, state_dict, module"),
        (
            "a.pth",
            lambda path: torch.save({"epoch": 3, "net": STATE}, path),
            r"it holds {'epoch': 'int', 'net': 'dict'}. Pass key=",
        ),
        ("a.pth", lambda path: torch.save({"model": {"epoch": 3}}, path), "it holds {'epoch': 'int'}"),
        ("a.pth", cyclic, "holds a dict, not a state dictionary"),
    ],
)
def test_files_that_hold_no_weights_are_refused(tmp_path, name, write, text):
    path = tmp_path / name
    write(path)
    with pytest.raises(ValueError, match=f"{re.escape(str(path))}: .*{re.escape(text)}"):
        load_checkpoint(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_truncated_files_are_refused(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    state = {"weight": torch.randn(400, 400)}
    torch.save(state, path) if suffix == ".pth" else save_file(state, path)
    path.write_bytes(path.read_bytes()[:200_000])
    with pytest.raises(ValueError, match=r"[iI]s the file whole"):
        load_checkpoint(path)


def test_an_archive_of_something_else_is_refused(tmp_path):
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_a_checkpoint_becomes_a_network(tmp_path):
    example, path = EXAMPLES["cbt"], tmp_path / "cbt_tiny_best.pth.tar"
    state = example.state(torch.float32)
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}, "epoch": 150}, path)
    found = load_checkpoint(path)
    model = from_official(guess_kind(found), found)
    assert torch.equal(model(example.x(torch.float32)), example.load(state)(example.x(torch.float32)))
