"""The networks: sizes, any image, maps, saving, compiling, exporting, half precision, checkpointing."""

import dataclasses
import inspect
import json

import pytest
import torch
from safetensors import safe_open
from torch import nn

from unrolling import CBSA, MSSA, TSSA, CRATEBlock, GridPool, OfficialGridPool
from unrolling import models as m
from unrolling.models.parts import Block, ConvStem, LinearStem, PatchStem, Positions

D = torch.float64


def small():
    """A small network of every class and attention, and its input."""
    image = torch.randn(2, 3, 32, 48)
    white = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}
    pool = {"representatives": (2, 2), "keys_per_expert": 3}
    made = {"crate": (m.CRATE(**white), image)}
    for kind in ("cbsa", "mssa", "tssa", "softmax", "agent", "mita"):
        made[f"cbt {kind}"] = (m.CBT(**white, **pool, attention=kind), image)
    made["cbt hybrid"] = (m.CBT(**white, **pool, attention=("mssa", "cbsa")), image)
    made["cbt exact tied"] = (m.CBT(**white, **pool, form="exact", tied=True, orthonormal=True), image)
    made["crate exact"] = (m.CRATE(**white, form="exact", tied=True), image)
    made["tost"] = (m.ToST(patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5), image)
    black = {**white, "mlp_ratio": 2.0}
    made["vit"] = (m.ViT(**black), image)
    made["vit distilled"] = (m.ViT(**black, distilled=True), image)
    few = {"landmarks": (2, 2), "keys_per_expert": 3}
    made["mita-deit"] = (m.MiTADeiT(**black, **few), image)
    made["mita-deit gate"] = (m.MiTADeiT(**black, **few, convolution=True, gate=True), image)
    made["mita-deit agent"] = (m.MiTADeiT(**black, **few, attention="agent"), image)
    made["mita-vit5"] = (m.MiTAViT5(**black, **few, convolution=True), image)
    tokens = torch.randn(2, 24, 24)
    decoder = {"num_classes": 5, "embed_dim": 24, "patch_size": 8, "depth": 2, "num_heads": 3}
    made["depict self"] = (m.DEPICT(**decoder, head_dim=8, attention="self"), tokens)
    made["depict cross"] = (m.DEPICT(**decoder, head_dim=8, cross_head_dim=4), tokens)
    made["cbt decoder"] = (m.CBTDecoder(**decoder, head_dim=8, representatives=(2, 2)), tokens)
    made["mask decoder"] = (m.MaskDecoder(**decoder, dim=12, drop_rate=0.0), tokens)
    made["linear decoder"] = (m.LinearDecoder(num_classes=5, embed_dim=24, patch_size=8), tokens)
    encoder = m.ViTConfig(**black)
    made["segmenter"] = (m.Segmenter(encoder=encoder, decoder=m.MaskDecoderConfig(**decoder, drop_rate=0.0)), image)
    return made


def call(model, x):
    return model(x, im_size=(32, 48)) if x.ndim == 3 else model(x)


SHAPES = {
    "segmenter": (2, 5, 32, 48),
    **dict.fromkeys(("depict self", "depict cross", "cbt decoder", "mask decoder", "linear decoder"), (2, 5, 4, 6)),
}
NAMES = list(small())


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture
def network(name):
    return small()[name]


def test_shapes_and_gradients_of_all_parameters(name, network):
    model, x = network
    out = call(model, x)
    assert out.shape == SHAPES.get(name, (2, 5))
    value = (out * torch.randn_like(out)).sum()
    if name.startswith("mita"):  # what the last block does to patches alone reaches no class token
        features = model.forward_features(x)
        value = value + (features * torch.randn_like(features)).sum()
    value.backward()
    frozen = {key for key, p in model.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    # A Segmenter's encoder keeps the class head of its ViT, as the released one does, and never uses it.
    assert frozen <= {"encoder.head.weight", "encoder.head.bias"}, frozen


def test_a_saved_model_comes_back_with_its_configuration(network, tmp_path):
    model, x = network
    model.eval()
    folder = model.save_pretrained(tmp_path / "saved")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    again = m.load(folder).eval()
    assert type(again) is type(model)
    assert again.config == model.config
    with torch.no_grad():
        assert torch.equal(call(again, x), call(model, x))
        alone = type(model).from_pretrained(folder / "model.safetensors").eval()  # the file holds the configuration
        assert torch.equal(call(alone, x), call(model, x))
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert json.loads(file.metadata()["config"])["architectures"] == [type(model).__name__]


def test_compiles_in_one_graph(network):
    model, x = network
    model.eval()
    torch._dynamo.reset()  # the models share their code, and each counts as a recompilation of it
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(call(compiled, x), call(model, x), rtol=1e-4, atol=1e-5)


def test_exports_for_any_batch(network):
    model, x = network
    model.eval()
    kwargs = {"im_size": (32, 48)} if x.ndim == 3 else {}
    shapes = {next(iter(inspect.signature(model.forward).parameters)): {0: torch.export.Dim("batch", max=64)}}
    program = torch.export.export(model, (x,), kwargs, dynamic_shapes=shapes | dict.fromkeys(kwargs, (None, None)))
    more = torch.cat((x, -x, x[:1]))
    with torch.no_grad():
        torch.testing.assert_close(program.module()(more, **kwargs), model(more, **kwargs), rtol=1e-4, atol=1e-5)


def test_runs_under_bfloat16_autocast_forward_and_backward(network):
    model, x = network
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = call(model, x)
    assert torch.isfinite(out).all()
    out.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    with torch.no_grad():
        plain, half = call(model.eval(), x), None
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = call(model, x)
    assert (half.float() - plain).abs().max() < 0.25 * plain.abs().max() + 0.1


def test_checkpointing_changes_neither_values_nor_gradients(network):
    model, x = network
    model.double().train()
    results = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(0)
        out = call(model, x.double())
        out.square().sum().backward()
        results.append([out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    for plain, again in zip(*results, strict=True):
        torch.testing.assert_close(plain, again)


def test_a_distilled_network_without_classes_gives_the_mean_of_its_two_tokens():
    model = m.ViT(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0, distilled=True)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(model(x), model.forward_features(x)[:, :2].mean(1))


def test_positions_of_sines_are_as_precise_as_their_weights():
    wide = m.tost.FourierPositions(6).double()
    i = torch.arange(32, dtype=D)
    periods = 10000 ** (2 * (i // 2) / 32)
    row, column = (2 * torch.pi * p / (n + 1e-6) / periods for p, n in ((2, 3), (4, 5)))
    waves = [torch.where(i % 2 == 0, angles.sin(), angles.cos()) for angles in (row, column)]
    torch.testing.assert_close(wide((3, 5))[5 + 3], wide.projection(torch.cat(waves)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(wide.float()((3, 5)).double(), wide.double()((3, 5)), rtol=1e-5, atol=1e-5)


def test_checkpointing_recomputes_blocks():
    model = m.CRATE(img_size=16, patch_size=8, embed_dim=12, depth=2, num_heads=3, num_classes=2)
    calls = []
    for block in model.blocks:
        block.register_forward_pre_hook(lambda *_: calls.append(1))  # a second run stops before its end
    model(torch.randn(1, 3, 16, 16)).sum().backward()
    assert len(calls) == 2
    model.set_grad_checkpointing()
    model(torch.randn(1, 3, 16, 16)).sum().backward()
    assert len(calls) == 2 + 4


def test_every_image_model_takes_other_sizes_channels_and_no_head():
    for cls in (m.CRATE, m.CBT, m.ViT):
        model = cls(img_size=(16, 24), patch_size=8, in_chans=1, embed_dim=12, depth=1, num_heads=3, num_classes=0)
        assert model(torch.randn(1, 1, 40, 8)).shape == (1, 12)
        assert model.forward_features(torch.randn(1, 1, 40, 8)).shape == (1, 6, 12)


@pytest.mark.parametrize("name", ["cbt cbsa", "cbt mssa", "crate", "vit", "mita-deit", "mita-deit agent", "mita-vit5"])
def test_attention_maps_are_those_of_the_blocks(name):
    model, x = small()[name]
    model.double().eval()
    maps = model.attention_maps(x.double())
    tokens = 24 + (5 if name == "mita-vit5" else 1)
    assert [part.shape for part in maps] == [(2, 3, tokens, tokens)] * 2
    if name != "cbt cbsa":  # A Aᵀ is not row-stochastic
        for part in maps:
            torch.testing.assert_close(part.sum(-1), torch.ones_like(part.sum(-1)))


def test_the_map_of_cbsa_is_extraction_times_broadcast():
    model, x = small()["cbt cbsa"]
    model.double().eval()
    tokens, grid = model.embed(x.double())
    block = model.blocks[0]
    P = block.attention.extraction(block.norm_attention(tokens), grid)
    assert torch.equal(model.attention_maps(x.double())[0], P.mT @ P)
    assert torch.linalg.matrix_rank(P.mT @ P).max() <= 4


@pytest.mark.parametrize("kind", ["softmax", "agent", "mita"])
def test_maps_times_values_are_what_attention_reads(kind):
    model = small()[f"cbt {kind}"][0]
    layer = model.double().eval().blocks[0].attention
    z, grid = torch.randn(2, 25, 24, dtype=D), (4, 6)
    read = layer.attention_map(z, grid) @ layer.values(z)
    torch.testing.assert_close(layer.output(read.transpose(-3, -2).flatten(-2)), layer.attention(z, grid))


def test_memberships_stand_for_the_map_of_token_statistics():
    model, x = small()["cbt tssa"]
    shares = model.attention_maps(x)[0]
    assert shares.shape == (2, 3, 25)
    torch.testing.assert_close(shares.sum(1), torch.ones(2, 25))


def test_the_stem_of_convolutions_has_right_gradients_for_one_image():
    # torch 2.13's batch norms return wrong gradients for one CPU image whose gradient has the strides of a transpose.
    stem = ConvStem(3, 8, (8, 8)).double().eval()
    for norm in stem.norms:
        nn.init.normal_(norm.weight)
    x, w = torch.randn(1, 3, 16, 24, dtype=D), torch.randn(1, 6, 8, dtype=D)

    def value(z):
        return (stem(z)[0] * w).sum()

    z = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(value(z), z)
    direction = torch.randn_like(x)
    with torch.no_grad():
        slope = (value(x + 1e-6 * direction) - value(x - 1e-6 * direction)) / 2e-6
    torch.testing.assert_close((gradient * direction).sum(), slope, rtol=1e-6, atol=1e-8)


def test_the_linear_stem_cuts_patches_channel_fastest():
    stem = LinearStem(2, 4, (2, 3)).double()
    nn.init.eye_(stem.linear.weight)
    stem.norm = nn.Identity()
    x = torch.randn(1, 2, 4, 6, dtype=D)
    tokens, grid = stem(x)
    assert grid == (2, 2)
    patch = torch.stack([x[0, c, 2 + i, j] for i in range(2) for j in range(3) for c in range(2)])
    patch = (patch - patch.mean()) / (patch.var(unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(tokens[0, 2], patch[:4] + stem.linear.bias)


def test_the_patch_stem_lays_tokens_out_row_by_row():
    stem = PatchStem(3, 5, (2, 2)).double()
    x = torch.randn(1, 3, 4, 6, dtype=D)
    tokens, grid = stem(x)
    assert grid == (2, 3)
    torch.testing.assert_close(tokens[0, 4], stem(x[..., 2:4, 2:4])[0][0, 0])


def test_positions_resize_in_four_ways():
    patches = torch.zeros(1, 12, 4, dtype=D)
    for resize in ("bicubic", "bilinear", "offset"):
        places = Positions(4, (2, 2), resize=resize).double()
        out = places(patches, (3, 4))
        image = places.embedding[:, 1:].mT.unflatten(-1, (2, 2))
        if resize == "offset":
            want = nn.functional.interpolate(image, scale_factor=(3.1 / 2, 4.1 / 2), mode="bicubic")
        else:
            want = nn.functional.interpolate(image, (3, 4), mode=resize)
        torch.testing.assert_close(out[:, 1:], want.flatten(-2).mT)
        torch.testing.assert_close(out[:, :1], places.class_token + places.embedding[:, :1])
    sliced = Positions(4, (4, 4), resize="slice").double()
    assert torch.equal(sliced(patches, (3, 4))[:, 1:], sliced.embedding[:, 1:13])
    with pytest.raises(ValueError, match=r"positions for 4 × 4 patches, and none for 5 × 5; choose resize='bicubic'"):
        sliced(torch.zeros(1, 25, 4, dtype=D), (5, 5))
    counted = Positions(4, (2, 6), resize="bilinear", by_count=True).double()
    assert torch.equal(counted(patches, (3, 4))[:, 1:], counted.embedding[:, 1:])


def test_registers_stand_behind_and_have_no_positions():
    places = Positions(4, (1, 2), registers=3, on_class=False).double()
    out = places(torch.zeros(2, 2, 4, dtype=D), (1, 2))
    assert out.shape == (2, 6, 4)
    assert torch.equal(out[:, :1], places.class_token.expand(2, -1, -1))
    assert torch.equal(out[:, 3:], places.register_token.expand(2, -1, -1))


def test_published_sizes_have_the_published_layers():
    with torch.device("meta"):
        cbt, crate, hybrid = (m.create(name) for name in ("cbt-base", "crate-large", "cbt-small-hybrid"))
    assert len(cbt.blocks) == 12
    assert all(isinstance(block.attention, CBSA) and block.attention.head_dim == 64 for block in cbt.blocks)
    assert all(block.attention.keep_queries and not block.attention.tied for block in cbt.blocks)
    assert (len(crate.blocks), crate.blocks[0].attention.heads) == (24, 16)
    assert [type(block.attention) for block in hybrid.blocks] == [MSSA] * 6 + [CBSA] * 6
    half = m.create("cbt-tiny-hybrid", depth=3, img_size=32)
    assert [type(block.attention) for block in half.blocks] == [MSSA] + [CBSA] * 2
    assert isinstance(m.create("cbt-tiny", attention="tssa", depth=1).blocks[0].attention, TSSA)


def test_compat_turns_the_released_departures_on():
    plain, official = (m.CBT(depth=1, img_size=32, patch_size=8, compat=c) for c in (None, "official"))
    assert isinstance(plain.blocks[0].attention.representatives, GridPool)
    assert isinstance(official.blocks[0].attention.representatives, OfficialGridPool)
    assert (plain.positions.resize, official.positions.resize) == ("bicubic", "slice")
    mita, released = (m.MiTADeiT(depth=1, compat=c).blocks[0].attention for c in (None, "official"))
    assert (mita.twice_scaled, released.twice_scaled) == (False, True)
    assert isinstance(released.strategy, OfficialGridPool)


def test_drop_path_grows_with_depth_and_acts_while_training_only():
    model = m.ViT(img_size=16, patch_size=8, embed_dim=12, depth=3, num_heads=3, num_classes=2, drop_path_rate=0.4)
    assert [block.drop_path.share for block in model.blocks] == [0.0, 0.2, 0.4]
    crate = m.CRATE(img_size=16, patch_size=8, embed_dim=12, depth=3, num_heads=3, num_classes=2, drop_path_rate=0.4)
    assert [block.drop_path.share for block in crate.blocks] == [0.0, 0.2, 0.4]
    x = torch.randn(4, 3, 16, 16)
    for network in (model, crate):
        assert not torch.equal(network(x), network(x))
        network.eval()
        assert torch.equal(network(x), network(x))


def test_dropped_paths_keep_the_mean():
    from unrolling.drop_path import DropPath

    drop = DropPath(0.25).train()
    kept = drop(torch.ones(20000, 2))
    assert kept.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert torch.equal(kept[:, 0], kept[:, 1])
    assert kept.mean() == pytest.approx(1.0, abs=0.02)


def test_an_exact_tied_orthonormal_block_descends_what_it_sees():
    model = small()["cbt exact tied"][0]
    block = model.double().blocks[0]
    seen = block.seen(torch.randn(2, 25, 24, dtype=D))
    layer = block.attention
    layer.representatives.grid = (4, 6)
    torch.testing.assert_close(layer(seen), layer.descend(seen))


@pytest.mark.parametrize("size", ["tiny", "small", "base", "large"])
def test_named_sizes_are_class_methods_that_take_changes(size):
    for config in (m.CRATEConfig, m.CBTConfig, m.ViTConfig, m.MiTADeiTConfig, m.DEPICTConfig, m.MaskDecoderConfig):
        made = getattr(config, size)(num_classes=7)
        assert made.num_classes == 7
        assert dataclasses.replace(made, num_classes=7) == made
        with pytest.raises(dataclasses.FrozenInstanceError):
            made.num_classes = 3


def test_segmenters_are_put_together_by_name():
    config = m.SegmenterConfig.of("tiny", "depict-ca", num_classes=3)
    assert config.decoder == m.DEPICTConfig.tiny(num_classes=3)
    assert config.encoder == m.ViTConfig.encoder("tiny")
    mita = m.SegmenterConfig.of("small", "cbt", attention="mita")
    assert mita.encoder.landmarks == (7, 7)
    assert m.SegmenterConfig.from_dict(config.to_dict()) == config
    for name in ("tiny", "small", "base", "large"):
        assert getattr(m.SegmenterConfig, name)("segmenter-linear").decoder.embed_dim == m.depict.WIDTHS[name]


def test_a_segmenter_pads_and_cuts():
    model = small()["segmenter"][0].eval()
    x = torch.randn(1, 3, 29, 43)
    padded = nn.functional.pad(x, (0, 5, 0, 3))
    with torch.no_grad():
        torch.testing.assert_close(model(x), model(padded)[..., :29, :43])


def test_a_decoder_remembers_a_size():
    decoder = m.LinearDecoder(num_classes=2, embed_dim=4, patch_size=8)
    decoder.im_size = (16, 24)
    assert decoder(torch.randn(1, 6, 4)).shape == (1, 2, 2, 3)


MISTAKES = [
    (lambda: m.create("cbt-tyni"), ValueError, r"no model is named 'cbt-tyni'. Nearest: cbt-tiny"),
    (lambda: m.CBT(depht=3), ValueError, r"CBTConfig: unknown depht; it has .*depth"),
    (lambda: m.CBT(m.CBTConfig(), depht=3), ValueError, r"CBTConfig: unknown depht"),
    (lambda: m.CBT(m.ViTConfig()), TypeError, "CBT: config must be a CBTConfig, but is a ViTConfig"),
    (lambda: m.CBTConfig(depth=0), ValueError, "CBTConfig: depth must be at least 1, but is 0"),
    (lambda: m.CBTConfig(img_size=()), ValueError, r"img_size must be \(rows, columns\), but is \(\)"),
    (
        lambda: m.ViTConfig(patch_size=(4, 4, 4)),
        ValueError,
        r"patch_size must be \(rows, columns\), but is \(4, 4, 4\)",
    ),
    (lambda: m.ViTConfig(depth=(2, 3)), TypeError, r"depth must be an integer, but is \(2, 3\)"),
    (lambda: m.CBTConfig(representatives=(2,)), ValueError, r"representatives must be \(rows, columns\)"),
    (lambda: m.MiTADeiTConfig(landmarks=5), ValueError, r"landmarks must be \(rows, columns\), but is 5"),
    (lambda: m.CBTConfig(embed_dim=20), ValueError, "embed_dim 20 is not a multiple of num_heads 3; give head_dim"),
    (lambda: m.CBTConfig(attention=("cbsa",)), ValueError, "attention names 1 blocks, but depth is 12"),
    (lambda: m.CBTConfig(attention="mhsa"), ValueError, "attention must be one of 'mssa', 'cbsa'"),
    (lambda: m.CRATEConfig(img_size=30), ValueError, "img_size 30 × 30 is not whole patches of 16 × 16"),
    (lambda: m.CRATEConfig(form="linear"), ValueError, "form must be one of 'softmax', 'exact'"),
    (lambda: m.CRATEConfig(global_pool="max"), ValueError, "global_pool must be one of 'token', 'avg'"),
    (lambda: m.CRATEConfig(compat="yes"), ValueError, "compat must be one of 'official'"),
    (lambda: m.CRATEConfig(drop_path_rate=1.0), ValueError, "drop_path_rate must be at least 0 and below 1"),
    (lambda: m.CBT(patch_size=12, img_size=24), ValueError, "patches must be squares of side 2, 4, 8, 16"),
    (lambda: m.ViTConfig(embed_dim=20), ValueError, "embed_dim 20 is not a multiple of num_heads 3"),
    (lambda: m.ViTConfig(resize="nearest"), ValueError, "resize must be one of 'bicubic'"),
    (lambda: m.MiTAViT5Config(registers=3), ValueError, "registers stand on a square grid, but are 3"),
    (lambda: m.MiTADeiTConfig(attention="full"), ValueError, "attention must be one of 'mita', 'agent'"),
    (lambda: m.ToSTConfig(embed_dim=10), ValueError, "embed_dim 10 is not a multiple of num_heads 4"),
    (lambda: m.DEPICTConfig(attention="both"), ValueError, "attention must be one of 'self', 'cross'"),
    (lambda: m.SegmenterConfig.of("huge"), ValueError, "size must be one of tiny, small, base, large, but is 'huge'"),
    (lambda: m.SegmenterConfig.of("tiny", "upernet"), ValueError, "decoder must be one of segmenter-mask"),
    (lambda: m.SegmenterConfig.of("tiny", attention="agent"), ValueError, "attention must be 'softmax' or 'mita'"),
    (lambda: m.SegmenterConfig(m.CBTConfig()), TypeError, "encoder must be one of ViTConfig, MiTADeiTConfig"),
    (
        lambda: m.SegmenterConfig(m.ViTConfig(), m.MaskDecoderConfig(embed_dim=8, num_heads=1)),
        ValueError,
        "the encoder has embed_dim 192, the decoder 8",
    ),
    (lambda: m.SegmenterConfig.from_dict({"encoder": {"kind": "VGG"}}), ValueError, "of no known kind .'VGG'."),
    (lambda: m.SegmenterConfig.from_dict({"head": 1}), ValueError, "unknown head; it has decoder, encoder"),
    (lambda: m.ViT(depth=1)(torch.randn(1, 3, 30, 32)), ValueError, "30 × 32 pixels are not whole patches of 16 × 16"),
    (lambda: m.ViT(depth=1)(torch.randn(3, 32, 32)), ValueError, r"images must be \(batch, 3, H, W\)"),
    (lambda: m.ViT(depth=1)("cat.jpg"), TypeError, "the image must be a torch.Tensor, but is a str"),
    (lambda: m.DEPICT(depth=1)(torch.randn(1, 4, 192)), ValueError, r"pass im_size=\(H, W\), the image's size"),
    (
        lambda: m.DEPICT(depth=1)(torch.randn(1, 5, 192), im_size=(32, 32)),
        ValueError,
        "has 2 × 2 patches of 16 × 16, but there are 5 tokens; class tokens must be removed",
    ),
    (lambda: m.DEPICT(depth=1)(torch.randn(1, 4, 19)), ValueError, r"tokens must be \(batch, patches, 192\)"),
]


@pytest.mark.parametrize(("wrong", "error", "text"), MISTAKES)
def test_mistakes_are_named(wrong, error, text):
    with pytest.raises(error, match=text):
        wrong()


def test_loading_says_what_is_wrong(tmp_path):
    model = m.CRATE(img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=3, num_classes=2)
    folder = model.save_pretrained(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"holds a CRATE, not a CBT; unrolling.models.load finds the class itself"):
        m.CBT.from_pretrained(folder)
    with pytest.raises(ValueError, match="the weights do not fit the configuration"):
        m.CRATE.from_pretrained(folder, depth=2)
    assert m.CRATE.from_pretrained(folder, drop_path_rate=0.1).config.drop_path_rate == 0.1
    with pytest.raises(ValueError, match=r"there is no model\.safetensors"):
        m.CRATE.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no such file, or no model\.safetensors"):
        m.load(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="is a file; give a folder"):
        model.save_pretrained(tmp_path / "file")
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        m.load(folder)
    (folder / "config.json").write_text('{"architectures": ["GPT"]}')
    with pytest.raises(ValueError, match=r"holds a GPT; known are CRATE"):
        m.load(folder)
    (folder / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        m.load(folder / "model.safetensors")


def test_all_names_make_a_model_with_its_configuration():
    with torch.device("meta"):
        for name, (kind, make) in m.MODELS.items():
            if "large" not in name:
                model = m.create(name)
                assert type(model) is kind
                assert model.config == make()


def test_blocks_of_both_kinds_share_a_protocol():
    blocks = [CRATEBlock(MSSA(6, 2, form="softmax"), norm="layer"), Block(MSSA(6, 2, form="softmax"), 12)]
    x = torch.randn(1, 4, 6)
    for block in blocks:
        torch.testing.assert_close(block(x), block.feed(block.attend(x)))
        torch.testing.assert_close(block.attend(x), x + block.attention.adds(block.seen(x)))


@pytest.mark.parametrize("attention", ["mssa", "cbsa", "tssa"])
def test_certified_blocks_are_certified_in_every_layer(attention):
    sizes = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 3, "num_classes": 4}
    exact = {"attention": attention, "form": "exact", "tied": True, "orthonormal": True, "representatives": (2, 2)}
    model = m.create("cbt-tiny", **sizes, **exact, certified=True)
    assert all(block.attention.certified for block in model.blocks)
    with torch.no_grad():  # however far training takes the steps
        for block in model.blocks:
            block.attention.step.fill_(8.0)
    found = model.trace(torch.randn(2, 3, 16, 16))
    assert all(bool((record.decrease >= 0).all()) for record in found)
    assert not any(block.attention.certified for block in m.create("cbt-tiny", **sizes, **exact).blocks)
    with pytest.raises(ValueError, match="certified steps need form='exact', tied=True and orthonormal=True"):
        m.create("cbt-tiny", **sizes, certified=True)


@pytest.mark.parametrize(("tied", "orthonormal"), [(False, False), (True, False), (True, True)])
def test_cbts_decoder_is_tied_and_orthonormal_where_asked(tied, orthonormal):
    decoder = m.CBTDecoder(
        num_classes=4, embed_dim=24, head_dim=8, representatives=(2, 2), tied=tied, orthonormal=orthonormal
    )
    for block in decoder.blocks:
        layer = block.attention
        assert (layer.tied, layer.orthonormal, hasattr(layer, "output")) == (tied, orthonormal, not tied)
        gram = layer.U.mT @ layer.U
        assert torch.allclose(gram, torch.eye(8).expand_as(gram), atol=1e-5) == orthonormal
