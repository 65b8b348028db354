"""Claims on released weights, continued: whole networks, segmentation decoders and segmenters."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unrolling import CBSA, MSSA, AgentAttention, CRATEBlock, MiTA, OfficialGridPool, SequencePool, models

from ..layouts import Drawn
from .compat import (
    CRATE,
    DEPICT,
    MITA,
    PROJECT,
    TOST,
    changed,
    compat_claim,
    eps_exchanged,
    every,
    loaded,
    on_the_other_side,
    zeroed,
)

__all__ = ["CLAIMS"]

SEGMENTER = "Segmenter's released code, March 2022"
TIMM = "DeiT, arXiv 2012.12877, as timm 0.4.12 has it"


def _configured(**changes: Any) -> Any:
    """A model's configuration changed after it was built: what its forward pass reads of it."""

    def change(module: Any, drawn: Drawn) -> None:
        module.config = dataclasses.replace(
            module.config,
            **{name: value(module.config) if callable(value) else value for name, value in changes.items()},
        )

    return change


def _last_block_left_out(module: Any, drawn: Drawn) -> None:
    module.blocks = module.blocks[:-1]


def _blocks_reversed(module: Any, drawn: Drawn) -> None:
    module.blocks = nn.ModuleList(reversed(module.blocks))


def _positions_interpolated(module: Any, drawn: Drawn) -> None:
    module.positions.resize = "bicubic"


def _batch_statistics(module: Any, drawn: Drawn) -> None:
    """Batch norms without the running mean and variance."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.reset_running_stats()


def _gelu_behind_the_stem(module: Any, drawn: Drawn) -> None:
    stem = module.stem.forward

    def forward(x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        tokens, grid = stem(x)
        return F.gelu(tokens), grid

    if hasattr(module.stem, "convolutions"):
        module.stem.forward = forward


def _channels_slowest(module: Any, drawn: Drawn) -> None:
    """Flattened patches read channel by channel."""
    if hasattr(module.stem, "linear"):
        weight, (high, wide) = module.stem.linear.weight, module.stem.patch
        weight.copy_(weight.unflatten(1, (high, wide, -1)).permute(0, 3, 1, 2).flatten(1))


def _skip_around_ista(module: Any, drawn: Drawn) -> None:
    for block in module.blocks:
        block.feed = lambda x, block=block: x + block.ista(block.norm_ista(x))


def _patches_not_doubled(module: Any, drawn: Drawn) -> None:
    """Class attention whose MLP adds to the class token alone; CBSA's networks of that name have none."""
    for block in getattr(module, "class_blocks", ()):
        whole = block.forward

        def forward(x: Tensor, whole: Any = whole) -> Tensor:
            y = whole(x)
            return torch.cat((y[:, :1], 0.5 * y[:, 1:]), dim=1)

        block.forward = forward


def _tokens_norm_exchanged(module: Any, drawn: Drawn) -> None:
    for block in getattr(module, "class_blocks", ()):
        block.tokens_norm = not block.tokens_norm


def _positions_of_tost_exchanged(module: Any, drawn: Drawn) -> None:
    if isinstance(module, models.ToST):
        _configured(use_pos=lambda c: not c.use_pos)(module, drawn)


def _first_head_alone(module: Any, drawn: Drawn) -> None:
    if module.config.distilled:
        module.head_distilled = module.head


def _norms_of_the_other_kind(module: Any, drawn: Drawn) -> None:
    """LayerNorm without bias for root-mean-square norms."""
    for block in module.blocks:
        for norm in (block.norm1, block.norm2):
            norm.forward = lambda x, w=norm.weight: F.layer_norm(x, w.shape, w, None, 1e-6)


def _registers_first(module: Any, drawn: Drawn) -> None:
    positions = module.positions.forward

    def forward(patches: Tensor, grid: tuple[int, int]) -> Tensor:
        x, count = positions(patches, grid), module.registers
        return torch.cat((x[:, :1], x[:, -count:], x[:, 1:-count]), dim=1)

    module.positions.forward = forward


def _products_for_cosines(module: Any, drawn: Drawn) -> None:
    """Masks of plain products: classes and patches keep their lengths."""
    decoder = module.decoder if hasattr(module, "decoder") else module
    if hasattr(decoder, "masks"):
        decoder.masks = lambda patches, classes: patches @ classes.mT
        return

    def forward(tokens: Tensor, im_size: tuple[int, int]) -> Tensor:
        given = (tokens, im_size) if isinstance(module.config.to_dict().get("representatives"), tuple) else (tokens,)
        patches, classes = module.forward_features(*given)
        return module.mask_norm(patches @ classes.mT).mT.unflatten(-1, module.grid_of(tokens, im_size))

    module.forward = forward


def _queries_normed(module: Any, drawn: Drawn) -> None:
    for layer, norm in zip(module.decoder.cross_layers, module.decoder.cross_norms, strict=True):
        read = layer.read
        layer.read = lambda classes, patches, read=read, norm=norm: read(norm(classes), patches)


def _keys_normed_once(module: Any, drawn: Drawn) -> None:
    module.decoder.cross_norms = nn.ModuleList(nn.Identity() for _ in module.decoder.cross_norms)


def _one_reading_fewer(module: Any, drawn: Drawn) -> None:
    module.decoder.cross_layers = module.decoder.cross_layers[:-1]
    module.decoder.cross_norms = module.decoder.cross_norms[:-1]


def _matrices_exchanged(module: Any, drawn: Drawn) -> None:
    module.patch_matrix, module.class_matrix = module.class_matrix, module.patch_matrix


def _enlarged(**options: Any) -> Any:
    """A segmenter whose masks are enlarged in another way."""

    def subject(drawn: Drawn) -> Tensor:
        def change(module: Any, drawn: Drawn) -> None:
            def forward(x: Tensor) -> Tensor:
                tokens, size = module.forward_features(x)
                masks = F.interpolate(module.decoder(tokens, im_size=size), size=size, **options)
                return masks[..., : x.shape[2], : x.shape[3]]

            module.forward = forward

        return loaded(drawn, change)

    return subject


def _padded_on_the_left(drawn: Drawn) -> Tensor:
    """Zeros to the left and above: the image turned by 180°, and the masks turned back."""

    def change(module: Any, drawn: Drawn) -> None:
        features = module.forward_features
        high, wide = module.encoder.patch

        def forward_features(x: Tensor) -> Any:
            return features(F.pad(x, (-x.shape[3] % wide, 0, -x.shape[2] % high, 0)))

        module.forward_features = forward_features

    return loaded(drawn, change)


def _not_resized_in_order(module: Any, drawn: Drawn) -> None:
    module.positions.by_count = False


def _without_last_norm(module: Any, drawn: Drawn) -> None:
    module.decoder.patch_norm = module.decoder.class_norm = nn.Identity()


CLAIMS = (
    compat_claim(
        "crate",
        "Loaded CRATE, with flattened patches or CBSA's convolutional stem, computes the released scores; of other images it"
        " takes the first positions.",
        r"$X = [c, \mathrm{stem}(I)] + P_{1..n},\quad X \leftarrow \mathrm{ISTA}(\mathrm{LN}(X + \mathrm{MSSA}(\mathrm{LN}(X))))$",
        f"{CRATE}; {PROJECT}",
        layer=False,
        eps_of_1e_minus_6=changed(eps_exchanged),
        positions_interpolated=changed(_positions_interpolated),
        channels_of_patches_slowest=changed(_channels_slowest),
        skip_around_ISTA=changed(_skip_around_ista),
        other_tokens_read=changed(_configured(global_pool=lambda c: "avg" if c.global_pool == "token" else "token")),
        statistics_of_running_batches_dropped=changed(_batch_statistics),
        last_block_left_out=changed(_last_block_left_out),
        attention_scale_doubled=changed(every(MSSA, scale=lambda m: 2 * m.scale)),
    ),
    compat_claim(
        "cbt",
        "Loaded CBT computes the released scores: convolutions with running statistics, CBSA on the shifted grid, ISTA.",
        r"$X \leftarrow \mathrm{ISTA}(\mathrm{LN}(X + \mathrm{CBSA}(\mathrm{LN}(X))))$",
        PROJECT,
        layer=False,
        eps_of_1e_minus_6=changed(eps_exchanged),
        true_grid_pooled=changed(every(CBSA, representatives=on_the_other_side)),
        step_on_representatives_dropped=changed(zeroed("step_rep", to=1.0)),
        statistics_of_running_batches_dropped=changed(_batch_statistics),
        GELU_behind_the_last_convolution=changed(_gelu_behind_the_stem),
        positions_interpolated=changed(_positions_interpolated),
        skip_around_ISTA=changed(_skip_around_ista),
        other_tokens_read=changed(_configured(global_pool=lambda c: "avg" if c.global_pool == "token" else "token")),
    ),
    compat_claim(
        "cbt-hybrid",
        "Loaded hybrids compute what the released blocks compute in the order that their keys show.",
        r"$X \leftarrow \mathrm{ISTA}(\mathrm{LN}(X + \mathrm{MSSA\;or\;CBSA}(\mathrm{LN}(X))))$",
        f"{PROJECT}, blocks of two kinds assembled",
        layer=False,
        eps_of_1e_minus_6=changed(eps_exchanged),
        blocks_in_reverse=changed(_blocks_reversed),
        true_grid_pooled=changed(every(CBSA, representatives=on_the_other_side)),
        step_on_representatives_dropped=changed(zeroed("step_rep", to=1.0)),
        output_bias_of_attention_dropped=changed(zeroed("output.bias")),
        skip_around_ISTA=changed(_skip_around_ista),
        dictionaries_transposed=changed(
            lambda m, d: [
                part.ista.D.copy_(part.ista.D.mT.clone()) for part in m.blocks if isinstance(part, CRATEBlock)
            ]
        ),
    ),
    compat_claim(
        "tost",
        "Loaded ToST computes the released scores: Fourier positions, TSSA on the patches, class attention that normalises the"
        " patches and doubles them.",
        r"$[c, Z] \leftarrow [c, Z] + \gamma_1[\mathrm{read}(c), \mathrm{LN}(Z)],\quad"
        r" [c', 2\,\mathrm{LN}(Z)],\; c' = \mathrm{LN}(c) + \gamma_2\,\mathrm{MLP}(\mathrm{LN}(c))$",
        TOST,
        layer=False,
        patches_not_doubled=changed(_patches_not_doubled),
        tokens_normed_or_not=changed(_tokens_norm_exchanged),
        positions_on_or_off=changed(_positions_of_tost_exchanged),
        scales_of_blocks_dropped=changed(zeroed("gamma1", "gamma2", to=1.0)),
        statistics_of_running_batches_dropped=changed(_batch_statistics),
        last_block_left_out=changed(_last_block_left_out),
    ),
    compat_claim(
        "vit",
        "Loaded ViT of Segmenter computes the released scores or tokens: norms with 1e-5, positions resized bilinearly unless the"
        " patches are as many, the scores of a distillation token averaged in.",
        r"$X = [c, (d,)\, E\,I + e] + P,\quad X \leftarrow X + \mathrm{MHSA}(\mathrm{LN}(X)),\; X + \mathrm{MLP}(\mathrm{LN}(X))$",
        SEGMENTER,
        layer=False,
        eps_of_1e_minus_6=changed(eps_exchanged),
        positions_interpolated_bicubically=changed(_positions_interpolated),
        as_many_positions_resized=changed(_not_resized_in_order),
        distillation_head_ignored=changed(_first_head_alone),
        last_block_left_out=changed(_last_block_left_out),
        attention_bias_dropped=changed(zeroed("query.bias", "value.bias")),
    ),
    compat_claim(
        "deit",
        "Loaded DeiT computes the released scores: norms with 1e-6, biases of queries, keys and values or none.",
        r"$X \leftarrow X + \mathrm{MHSA}(\mathrm{LN}(X)),\; X + \mathrm{MLP}(\mathrm{LN}(X))$",
        TIMM,
        layer=False,
        eps_of_1e_minus_5=changed(eps_exchanged),
        positions_dropped=changed(lambda m, d: m.positions.embedding.zero_()),
        class_position_dropped=changed(lambda m, d: m.positions.embedding[:, 0].zero_()),
        last_block_left_out=changed(_last_block_left_out),
        hidden_bias_dropped=changed(zeroed("fc1.bias")),
    ),
    compat_claim(
        "mita-deit",
        "Loaded MiTA-DeiT computes the released scores, with convolutions, gates, routed experts alone, or agents.",
        r"$X \leftarrow X + \mathrm{MiTA}(\mathrm{LN}(X)),\; X + \mathrm{MLP}(\mathrm{LN}(X))$",
        MITA,
        layer=False,
        choosing=True,
        landmark_keys_scaled_once=changed(every(MiTA, twice_scaled=False)),
        true_grid_pooled=changed(every(MiTA, strategy=on_the_other_side)),
        one_key_for_every_expert=changed(every(MiTA, keys_per_expert=lambda m: max(1, m.keys_per_expert // 2))),
        shared_expert_on_or_off=changed(every(MiTA, shared=lambda m: not m.shared)),
        agents_contracted=changed(every(AgentAttention, contraction=True)),
        convolutions_dropped=changed(every(MiTA, convolution=lambda m: None)),
        gates_dropped=changed(every(MiTA, gate=lambda m: None)),
        eps_of_1e_minus_5=changed(eps_exchanged),
    ),
    compat_claim(
        "mita-vit5",
        "Loaded MiTA-ViT-5 computes the released scores: class token, patches with positions, registers; root-mean-square norms,"
        " scales of the branches, 25 landmarks and 30 keys.",
        r"$X = [c, E\,I + e + P, r],\quad X \leftarrow X + \gamma_1\mathrm{MiTA}(\mathrm{RMS}(X)),\;"
        r" X + \gamma_2\mathrm{MLP}(\mathrm{RMS}(X))$",
        f"{MITA}, for ViT-5",
        layer=False,
        choosing=True,
        landmark_keys_scaled_once=changed(every(MiTA, twice_scaled=False)),
        class_token_pooled=changed(every(MiTA, strategy=lambda m: OfficialGridPool(m.strategy.size))),
        keys_as_many_as_landmarks=changed(every(MiTA, keys_per_expert=25)),
        scales_of_branches_dropped=changed(zeroed("gamma1", "gamma2", to=1.0)),
        registers_before_the_patches=changed(_registers_first),
        norms_that_subtract_the_mean=changed(_norms_of_the_other_kind),
        registers_not_turned=changed(every(MiTA, register_rotary=lambda m: None)),
    ),
    compat_claim(
        "depict-sa",
        "Loaded DEPICT-SA computes the released masks: attention of patches and classes together, one norm for both, cosines,"
        " normed over the classes.",
        r"$X = [Z, Q],\; X \leftarrow X + \mathrm{attention}(\mathrm{LN}(X)),\quad"
        r" \mathrm{LN}_C(\cos(\mathrm{LN}(Q), \mathrm{LN}(Z)))$",
        DEPICT,
        layer=False,
        eps_of_1e_minus_6=changed(eps_exchanged),
        products_for_cosines=changed(_products_for_cosines),
        steps_of_one=changed(zeroed(".step", to=1.0)),
        masks_not_normed=changed(lambda m, d: setattr(m.decoder, "mask_norm", nn.Identity())),
        decoder_norm_dropped=changed(_without_last_norm),
    ),
    compat_claim(
        "depict-ca",
        "Loaded DEPICT-CA computes the released masks: classes that are never normed read patches that are normed twice, three"
        " times.",
        r"$Q \leftarrow Q + \mathrm{attention}(\mathrm{LN}_\ell(\mathrm{LN}(Z)), Q),\quad"
        r" \mathrm{LN}_C(\cos(\mathrm{LN}(Q), \mathrm{LN}(Z)))$",
        DEPICT,
        layer=False,
        eps_of_1e_minus_6=changed(eps_exchanged),
        queries_normed=changed(_queries_normed),
        keys_normed_once=changed(_keys_normed_once),
        read_twice=changed(_one_reading_fewer),
        products_for_cosines=changed(_products_for_cosines),
        classes_not_normed=changed(lambda m, d: setattr(m.decoder, "class_norm", nn.Identity())),
    ),
    compat_claim(
        "cbt-decoder",
        "Loaded decoders of CBT compute the released masks: CBSA on patches and classes, representatives of the patches alone.",
        r"$X = [Z, Q],\; X \leftarrow X + \mathrm{CBSA}_{10\times 10}(\mathrm{LN}(X)),\quad"
        r" \mathrm{LN}_C(\cos(\mathrm{LN}(Q), \mathrm{LN}(Z)))$",
        f"{PROJECT}, for segmentation",
        layer=False,
        eps_of_1e_minus_6=changed(eps_exchanged),
        pooled_as_a_sequence=changed(every(CBSA, representatives=lambda m: SequencePool(100))),
        step_on_representatives_dropped=changed(zeroed("step_rep", to=1.0)),
        products_for_cosines=changed(_products_for_cosines),
        masks_not_normed=changed(lambda m, d: setattr(m, "mask_norm", nn.Identity())),
    ),
    compat_claim(
        "segmenter-mask",
        "Loaded mask transformers of Segmenter compute the released masks: blocks on mapped patches and classes, a matrix for"
        " each, cosines, normed over the classes.",
        r"$X = [D Z, Q],\; \mathrm{LN}_C(\cos(P_c^\top\mathrm{LN}(Q), P_z^\top\mathrm{LN}(Z)))$",
        SEGMENTER,
        layer=False,
        eps_of_1e_minus_6=changed(eps_exchanged),
        matrices_exchanged=changed(_matrices_exchanged),
        matrices_transposed=changed(
            lambda m, d: [part.copy_(part.mT.clone()) for part in (m.patch_matrix, m.class_matrix)]
        ),
        products_for_cosines=changed(_products_for_cosines),
        last_block_left_out=changed(_last_block_left_out),
    ),
    compat_claim(
        "segmenter-linear",
        "Loaded linear decoders of Segmenter compute the released scores of every patch, row by row.",
        r"$W Z + b$",
        SEGMENTER,
        layer=False,
        bias_dropped=changed(zeroed("head.bias")),
        columns_before_rows=lambda drawn: loaded(drawn).transpose(-2, -1).contiguous(),
        classes_in_another_order=lambda drawn: loaded(drawn).roll(1, 1),
    ),
    compat_claim(
        "segmenter",
        "Loaded Segmenters, with any of the decoders, compute the released masks of images of any size: zeros to the right and"
        " below, bilinear to pixels, cut.",
        r"$\mathrm{cut}(\mathrm{bilinear}(\mathrm{decode}(\mathrm{ViT}(\mathrm{pad}(I)))))$",
        SEGMENTER,
        layer=False,
        padded_on_the_left=_padded_on_the_left,
        enlarged_to_the_nearest=_enlarged(mode="nearest"),
        corners_aligned=_enlarged(mode="bilinear", align_corners=True),
        positions_interpolated_bicubically=changed(lambda m, d: setattr(m.encoder.positions, "resize", "bicubic")),
        eps_of_1e_minus_6=changed(eps_exchanged),
        last_block_of_the_encoder_left_out=changed(lambda m, d: _last_block_left_out(m.encoder, d)),
    ),
)
