"""Parameters and multiply-adds of the papers' networks in closed form, from their block equations; integers only.

Every function returns (parameters, multiply-adds). Letters: d width, L depth, K heads, p head width, N patches, C
classes, m representatives or landmarks. Norms, softmaxes, pooling, biases and elementwise work count no operations.
"""

from __future__ import annotations

__all__ = [
    "cbt_decoder_size",
    "conv_stem_size",
    "depict_size",
    "mask_decoder_size",
    "mita_size",
    "tost_size",
    "vit_size",
    "white_box_size",
]

Pair = tuple[int, int]


def _linear(rows: int, inside: int, outside: int, bias: bool = True) -> Pair:
    return inside * outside + (outside if bias else 0), rows * inside * outside


def _norm(d: int) -> Pair:
    return 2 * d, 0


def _sum(*parts: Pair) -> Pair:
    return sum(a for a, _ in parts), sum(b for _, b in parts)


def _times(count: int, part: Pair) -> Pair:
    return count * part[0], count * part[1]


def conv_stem_size(d: int, channels: int, rows: int, columns: int, halvings: int) -> Pair:
    """3 × 3 convolutions of stride 2 without bias, each with a batch norm; rows × columns patches come out."""
    total: Pair = (0, 0)
    before = channels
    for i in range(halvings):
        after = d // 2 ** (halvings - 1 - i)
        places = rows * columns * 4 ** (halvings - 1 - i)
        total = _sum(total, (9 * before * after + 2 * after, 9 * before * after * places))
        before = after
    return total


def white_box_size(
    d: int,
    K: int,
    kinds: list[str],
    N: int,
    C: int,
    m: int,
    stem: Pair,
) -> Pair:
    """CRATE and CBT: class token and positions, blocks of one attention and one dictionary, a normalised head."""
    p, n = d // K, N + 1
    total = _sum(stem, (d + n * d, 0), _norm(d), _linear(1, d, C))
    for kind in kinds:
        basis, back = _linear(n, d, K * p, bias=False), _linear(n, K * p, d)
        if kind == "mssa":
            mixing = (0, 2 * n * n * d)
        elif kind == "cbsa":
            mixing = (2 * K, (3 * n * m + 2 * m * m) * d)
        else:
            mixing = (K, n * d)  # second moments: one product of shares and squares
        ista = (d * d, 2 * n * d * d)
        total = _sum(total, _norm(d), basis, mixing, back, _norm(d), ista)
    return total


def linear_stem_size(d: int, values: int, N: int) -> Pair:
    """Flattened patches, normalised, mapped, normalised."""
    return _sum(_norm(values), _linear(N, values, d), _norm(d))


def _attention(n: int, d: int, bias: bool = True) -> Pair:
    return _sum(_times(3, _linear(n, d, d, bias)), _linear(n, d, d), (0, 2 * n * n * d))


def _mlp(n: int, d: int, hidden: int) -> Pair:
    return _sum(_linear(n, d, hidden), _linear(n, hidden, d))


def tost_size(d: int, K: int, L: int, class_layers: int, hidden: int, N: int, C: int, stem: Pair) -> Pair:
    """ToST: Fourier positions mapped from 64, blocks on patches, class attention that reads all with one query."""
    total = _sum(stem, _linear(N, 64, d), (d, 0), _norm(d), _linear(1, d, C))
    block = _sum(_times(2, _norm(d)), (2 * d, 0), _linear(N, d, d), (K, N * d), _linear(N, d, d), _mlp(N, d, hidden))
    n = N + 1
    reading = _sum(_linear(1, d, d), _times(2, _linear(n, d, d)), (0, 2 * n * d), _linear(1, d, d))
    after = _sum(_times(2, _norm(d)), (2 * d, 0), reading, _mlp(1, d, hidden))
    return _sum(total, _times(L, block), _times(class_layers, after))


def vit_size(d: int, L: int, hidden: int, N: int, C: int, values: int, class_tokens: int = 1) -> Pair:
    """ViT, and DeiT with two class tokens and two heads."""
    n = N + class_tokens
    total = _sum(_linear(N, values, d), (class_tokens * d + n * d, 0), _norm(d), _times(class_tokens, _linear(1, d, C)))
    return _sum(total, _times(L, _sum(_times(2, _norm(d)), _attention(n, d), _mlp(n, d, hidden))))


def mita_size(
    d: int,
    L: int,
    hidden: int,
    N: int,
    C: int,
    values: int,
    m: int,
    k: int,
    *,
    shared: bool = True,
    convolution: bool = False,
    gate: bool = False,
) -> Pair:
    """ViT with MiTA: landmark scores and values, one set of scores with landmarks, k routed keys and values a query."""
    n = N + 1
    projections = _sum(_times(4 if gate else 3, _linear(n, d, d)), _linear(n, d, d))
    reading = 2 * n * m * d + 2 * n * k * d + (2 * n * m * d if shared else 0)
    smooth = (10 * d, 9 * N * d) if convolution else (0, 0)
    block = _sum(_times(2, _norm(d)), projections, (0, reading), smooth, _mlp(n, d, hidden))
    return _sum(_linear(N, values, d), (d + n * d, 0), _norm(d), _linear(1, d, C), _times(L, block))


def depict_size(d: int, K: int, p: int, L: int, N: int, C: int, cross: int = 0, cross_p: int = 0) -> Pair:
    """DEPICT: tied layers of one step; SA on patches and classes together, CA with ``cross`` layers of K heads of cross_p."""
    n = N if cross else N + C
    layer = _sum(_norm(d), (d * K * p + 1, n * d * K * p * 2 + 2 * n * n * K * p))
    total = _sum((C * d, 0), _times(L, layer), _norm(d), _norm(C), (0, N * C * d))
    reading = _sum(_norm(d), (d * K * cross_p + 1, (N + 2 * C) * d * K * cross_p + 2 * C * N * K * cross_p))
    return _sum(total, _times(cross, reading), _norm(d) if cross else (0, 0))


def cbt_decoder_size(d: int, K: int, p: int, L: int, N: int, C: int, m: int) -> Pair:
    """CBT's decoder: untied CBSA on patches and classes, cosines as masks."""
    n = N + C
    inner = K * p
    layer = _sum(_norm(d), (d * inner, n * d * inner), (2 * K, (3 * n * m + 2 * m * m) * inner), _linear(n, inner, d))
    return _sum((C * d, 0), _times(L, layer), _norm(d), _norm(C), (0, N * C * d))


def mask_decoder_size(outer: int, d: int, L: int, hidden: int, N: int, C: int) -> Pair:
    """Segmenter's mask transformer: a projection, blocks on patches and classes, two matrices, cosines as masks."""
    n = N + C
    block = _sum(_times(2, _norm(d)), _attention(n, d), _mlp(n, d, hidden))
    total = _sum(_linear(N, outer, d), (C * d, 0), _norm(d), _norm(C), (2 * d * d, n * d * d + N * C * d))
    return _sum(total, _times(L, block))
