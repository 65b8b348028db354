"""A text encoder of BERT's layout, as plain as it can be: for token features of every layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...attend import attend
from ...errors import check_count, check_positive_number

__all__ = ["TextConfig", "TextEncoder", "text_tokens"]


@final
@dataclass(frozen=True)
class TextConfig:
    """Sizes of a text encoder; the values are MiniLM's.

    vocabulary, positions, types: rows of the three tables of embeddings. hidden: width of the MLPs. eps: of all norms.

    >>> TextConfig().width // TextConfig().heads
    32
    """

    vocabulary: int = 30522
    positions: int = 512
    types: int = 2
    width: int = 384
    depth: int = 6
    heads: int = 12
    hidden: int = 1536
    eps: float = 1e-12

    def __post_init__(self) -> None:
        for name in ("vocabulary", "positions", "types", "width", "depth", "heads", "hidden"):
            check_count("TextConfig", name, getattr(self, name))
        check_positive_number("TextConfig", "eps", self.eps)
        if self.width % self.heads:
            raise ValueError(f"TextConfig: width {self.width} is not a multiple of heads {self.heads}.")


@final
class TextBlock(nn.Module):
    """BERT's block, norms after the sums: ``x = LN(x + MHSA(x))``, ``x = LN(x + MLP(x))``."""

    def __init__(self, config: TextConfig) -> None:
        super().__init__()
        c = config
        self.heads = c.heads
        self.query, self.key, self.value, self.output = (nn.Linear(c.width, c.width) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(c.width, c.hidden), nn.Linear(c.hidden, c.width)
        self.norm1, self.norm2 = (nn.LayerNorm(c.width, eps=c.eps) for _ in range(2))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """The tokens after the block; bias ``(batch, 1, 1, tokens)`` is added to the scores: −∞ where there is no token."""
        flat = (linear(x) for linear in (self.query, self.key, self.value))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in flat)
        read = attend(q, k, v, q.shape[-1] ** -0.5, bias)
        x = self.norm1(x + self.output(read.transpose(-3, -2).flatten(-2)))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))


@final
class TextEncoder(nn.Module):
    r"""From token numbers to token features of every layer; what BERT is without its last head.

    Shapes
        ids ``(batch, tokens)`` in int64, mask ``(batch, tokens)`` true where there is a token; returns depth + 1 tensors
        ``(batch, tokens, width)``: the embeddings, and the tokens after every block
    Source
        BERT, arXiv 1810.04805; MiniLM, arXiv 2002.10957. No dropout: it is here to be read, not to be trained.

    Raises
    ------
        ValueError for more tokens than there are positions, and shapes that do not match; TypeError for text without
        a tokenizer.

    >>> small = TextEncoder(TextConfig(vocabulary=9, positions=8, width=4, depth=2, heads=2, hidden=8))
    >>> [tuple(layer.shape) for layer in small(torch.tensor([[1, 5, 2]]))]
    [(1, 3, 4), (1, 3, 4), (1, 3, 4)]
    """

    def __init__(self, config: TextConfig, tokenizer: Any = None) -> None:
        super().__init__()
        self.config, self.tokenizer = config, tokenizer
        c = config
        self.words, self.positions, self.types = (
            nn.Embedding(rows, c.width) for rows in (c.vocabulary, c.positions, c.types)
        )
        self.norm = nn.LayerNorm(c.width, eps=c.eps)
        self.blocks = nn.ModuleList(TextBlock(c) for _ in range(c.depth))
        if tokenizer is not None:
            tokenizer.no_padding()
            tokenizer.no_truncation()

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> list[Tensor]:
        """The tokens of every layer, the embeddings first. What stands where the mask is false means nothing."""
        if ids.ndim != 2 or not ids.shape[1] or (mask is not None and mask.shape != ids.shape):
            shape = None if mask is None else tuple(mask.shape)
            raise ValueError(
                f"TextEncoder: ids and mask must be (batch, tokens), but are {tuple(ids.shape)} and {shape}."
            )
        if ids.shape[1] > self.config.positions:
            raise ValueError(
                f"TextEncoder: {ids.shape[1]} tokens, but there are positions for {self.config.positions}; cut the text."
            )
        where = torch.arange(ids.shape[1], device=ids.device)
        x = self.norm(self.words(ids) + self.positions(where) + self.types.weight[0])
        bias = x.new_zeros(ids.shape)
        if mask is not None:
            bias = bias.masked_fill(~mask.bool(), float("-inf"))
        layers = [x]
        for block in self.blocks:
            layers.append(block(layers[-1], bias[:, None, None, :]))
        return layers

    def ids(self, sentences: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The sentences as numbers ``(batch, tokens)``, [CLS] first and [SEP] last, and the mask of what is no padding."""
        if isinstance(sentences, str) or not all(isinstance(sentence, str) for sentence in sentences):
            raise TypeError("TextEncoder: sentences must be a sequence of str; for one, pass [sentence].")
        if not sentences:
            raise ValueError("TextEncoder: there are no sentences.")
        if self.tokenizer is None:
            raise TypeError("TextEncoder: there is no tokenizer; take minilm()'s encoder.")
        rows = [torch.tensor(found.ids) for found in self.tokenizer.encode_batch(list(sentences))]
        for number, row in enumerate(rows):
            if len(row) > self.config.positions:
                raise ValueError(
                    f"TextEncoder: sentence {number} has {len(row)} tokens, but there are positions for"
                    f" {self.config.positions}; cut it into several."
                )
        device = self.words.weight.device
        ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(ids.shape[1]) < lengths[:, None]
        return ids.to(device), mask.to(device)

    def features(self, sentences: Sequence[str]) -> tuple[list[Tensor], Tensor]:
        """The tokens of every layer, depth + 1 tensors ``(batch, tokens, width)``, and the mask ``(batch, tokens)``."""
        ids, mask = self.ids(sentences)
        return self(ids, mask), mask


@torch.no_grad()
def text_tokens(
    sentences: Sequence[str], layer: int = -1, *, encoder: TextEncoder | None = None, batch: int = 32
) -> list[Tensor]:
    """The tokens of every sentence in one layer, ``(tokens, width)`` each, [CLS] first and [SEP] last.

    Parameters
    ----------
        layer: 0 are the embeddings, −1 is the last. encoder: :func:`~unrolling.training.backbones.minilm` by default;
        build it once for many calls. batch: how many sentences are padded to one length and go through together.

    Raises
    ------
        ValueError for a layer that there is not, no sentences and too long ones; TypeError for one str; MissingData without
        the packages of minilm.
    """
    check_count("text_tokens", "batch", batch)
    if encoder is None:
        from .backbones import minilm  # not above: it imports this module

        encoder = minilm()
    depth = encoder.config.depth
    if isinstance(layer, bool) or not isinstance(layer, int) or not -depth - 1 <= layer <= depth:
        raise ValueError(f"text_tokens: layer must be {-depth - 1} … {depth} (0 are the embeddings), but is {layer!r}.")
    ids, mask = encoder.ids(sentences)
    found: list[Tensor] = []
    for some, kept in zip(ids.split(batch), mask.split(batch), strict=True):
        longest = int(kept.sum(1).max())
        tokens = encoder(some[:, :longest], kept[:, :longest])[layer]
        found += [row[: int(count)] for row, count in zip(tokens, kept.sum(1), strict=True)]
    return found
