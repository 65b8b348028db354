"""Attention as kernel regression, MiTA, and its relatives: every query by itself, tokens in columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .numbers import Array, exp, softmax_columns

__all__ = [
    "agent_reads",
    "attention",
    "block_reads",
    "compressed_block_reads",
    "kernel_regression_value",
    "linear_reads",
    "mita_experts",
    "mita_landmark_values",
    "mita_reads",
    "mita_routes",
    "mita_support",
    "multi_head",
    "multi_head_regression",
    "projected_reads",
    "query_key_value",
    "rotary_product",
    "top_k_reads",
]


def kernel_regression_value(O: Array, A: Array, V: Array) -> Any:  # noqa: E741
    """½ Σ_i Σ_j A_ji ‖o_i − v_j‖²: outputs O (d, N), weights A (S, N), columns sum to 1, values V (d, S)."""
    total: Any = 0
    for i in range(O.shape[1]):
        gaps = O[:, [i]] - V
        total = total + (gaps * gaps).sum(0) @ A[:, i]
    return total / 2


def attention(Q: Array, K: Array, V: Array, scale: Any) -> Array:
    """Softmax attention: V softmax(s KᵀQ), the softmax over columns."""
    return V @ softmax_columns(scale * (K.T @ Q))


def multi_head(Z: Array, maps: dict[str, Array], heads: int, scale: Any) -> Array:
    """Multi-head attention: Σ_k O_k V_k softmax(s K_kᵀQ_k) + b, maps "query", "key", "value" (inner, d), "output", and biases."""
    Q, K, V = query_key_value(Z, maps)
    p = len(Q) // heads
    out = np.zeros((len(Z), Z.shape[1]))
    for h in range(heads):
        rows = slice(h * p, (h + 1) * p)
        out = out + maps["output"][:, rows] @ attention(Q[rows], K[rows], V[rows], scale)
    return out + maps["output bias"][:, None]


def query_key_value(Z: Array, maps: dict[str, Array]) -> list[Array]:
    """Queries, keys and values of all heads below one another."""
    return [maps[name] @ Z + maps[name + " bias"][:, None] for name in ("query", "key", "value")]


def multi_head_regression(Z: Array, A: Sequence[Array], V: Sequence[Array], outputs: Sequence[Array], b: Array) -> Any:
    """(1/2K) Σ_k Σ_ij A_k,ji ‖z_i − K O_k v_k,j − b‖²: the regression towards the values of every head."""
    total: Any = 0
    for Ak, Vk, Ok in zip(A, V, outputs, strict=True):
        total = total + kernel_regression_value(Z, Ak, len(A) * (Ok @ Vk) + b[:, None])
    return total / len(A)


def largest(scores: Array, count: int) -> list[int]:
    """Indices of the largest scores, the largest first, the lower index before an equal one."""
    return sorted(range(len(scores)), key=lambda j: (-scores[j], j))[:count]


def mita_landmark_values(R: Array, K: Array, V: Array, scale: float) -> Array:
    """The shared expert's values: what every landmark reads, V softmax(s KᵀR)."""
    return np.stack([attention(R[:, [i]], K, V, scale)[:, 0] for i in range(R.shape[1])], axis=1)


def mita_experts(R: Array, K: Array, count: int) -> list[list[int]]:
    """The keys of every routed expert: those with the largest r_i·k_j."""
    return [largest(np.array([R[:, i] @ K[:, j] for j in range(K.shape[1])]), count) for i in range(R.shape[1])]


def mita_routes(Q: Array, R: Array, count: int) -> list[list[int]]:
    """The experts of every query: those with the largest r_i·q."""
    return [largest(np.array([R[:, i] @ Q[:, c] for i in range(R.shape[1])]), count) for c in range(Q.shape[1])]


def mita_support(
    q: Array,
    R: Array,
    K: Array,
    V: Array,
    scale: float,
    experts: list[list[int]],
    routes: list[int],
    options: dict[str, bool],
) -> tuple[Array, Array]:
    """One query's scores, and the values they belong to in columns: landmarks first, then the routed pairs one by one."""
    scores: list[Any] = []
    values: list[Array] = []
    if options["shared"]:
        for i in range(R.shape[1]):
            scores.append(scale * (q @ R[:, i]) * (scale if options["twice_scaled"] else 1.0))
            values.append(attention(R[:, [i]], K, V, scale)[:, 0])
    seen: set[int] = set()
    for i in routes:
        for j in experts[i]:
            if j in seen and options["deduplicate"]:
                continue
            seen.add(j)
            scores.append(scale * (q @ K[:, j]))
            values.append(V[:, j])
    return np.array(scores), np.stack(values, axis=1)


def mita_reads(
    Q: Array, R: Array, K: Array, V: Array, scale: float, keys: int, routed: int, options: dict[str, bool]
) -> Array:
    """MiTA in one head: every query's single softmax over the concatenation of its pairs."""
    experts, routes, out = mita_experts(R, K, keys), mita_routes(Q, R, routed), []
    for c in range(Q.shape[1]):
        scores, values = mita_support(Q[:, c], R, K, V, scale, experts, routes[c], options)
        out.append(values @ softmax_columns(scores[:, None])[:, 0])
    return np.stack(out, axis=1)


def linear_reads(Q: Array, K: Array, V: Array, scale: float) -> Array:
    """Linear attention, Katharopoulos eq. 4: Σ_j φ(q)·φ(k_j) v_j / Σ_j φ(q)·φ(k_j), φ(u) = elu(√s u) + 1."""

    def phi(u: Array) -> Array:
        u = scale**0.5 * u
        return np.where(u > 0, u + 1, exp(np.minimum(u, 0)))

    out = []
    for c in range(Q.shape[1]):
        similarity = np.array([phi(Q[:, c]) @ phi(K[:, j]) for j in range(K.shape[1])])
        out.append(V @ similarity / similarity.sum())
    return np.stack(out, axis=1)


def projected_reads(Q: Array, K: Array, V: Array, E: Array, F: Array, scale: float) -> Array:
    """Linformer eq. 7, columns: attention to the keys K Eᵀ and the values V Fᵀ."""
    return attention(Q, K @ E.T, V @ F.T, scale)


def agent_reads(Q: Array, K: Array, V: Array, R: Array, scale: float) -> Array:
    """Agent attention eq. 4, columns: the agents read the tokens, the queries read the agents."""
    return attention(Q, R, attention(R, K, V, scale), scale)


def top_k_reads(Q: Array, K: Array, V: Array, count: int, scale: float) -> Array:
    """Every query attends to its own largest keys."""
    out = []
    for c in range(Q.shape[1]):
        chosen = largest(K.T @ Q[:, c], count)
        out.append(attention(Q[:, [c]], K[:, chosen], V[:, chosen], scale)[:, 0])
    return np.stack(out, axis=1)


def block_reads(Q: Array, K: Array, V: Array, block: int, count: int, scale: float) -> Array:
    """MoBA without its mask: every query attends to the tokens of the blocks with the largest mean key product."""
    blocks = [list(range(a, min(a + block, K.shape[1]))) for a in range(0, K.shape[1], block)]
    centres = np.stack([K[:, cells].mean(1) for cells in blocks], axis=1)
    out = []
    for c in range(Q.shape[1]):
        cells = [j for b in largest(centres.T @ Q[:, c], count) for j in blocks[b]]
        out.append(attention(Q[:, [c]], K[:, cells], V[:, cells], scale)[:, 0])
    return np.stack(out, axis=1)


def compressed_block_reads(
    Q: Array, K: Array, V: Array, block: int, count: int, gates: Sequence[float], scale: float
) -> Array:
    """NSA's compressed and selected branches, gated, with means for the compression."""
    blocks = [list(range(a, min(a + block, K.shape[1]))) for a in range(0, K.shape[1], block)]
    centres = np.stack([K[:, cells].mean(1) for cells in blocks], axis=1)
    means = np.stack([V[:, cells].mean(1) for cells in blocks], axis=1)
    return gates[0] * attention(Q, centres, means, scale) + gates[1] * block_reads(Q, K, V, block, count, scale)


def rotary_product(q: Array, k: Array, offset: tuple[float, float], frequencies: Array) -> float:
    """RoFormer eq. 11 on a grid: q·k after q was turned by the angles of its place, k by those of its own.

    Only the difference of their places counts, ``offset`` in rows and columns. The first half of the features is turned by
    rows, the second by columns; pair i of a half, read as a complex number, by ``frequencies[i]`` a cell.
    """
    total, width = 0.0, len(q) // 2
    for half, difference in enumerate(offset):
        for i, frequency in enumerate(frequencies):
            a = half * width + 2 * i
            left, right = complex(q[a], q[a + 1]), complex(k[a], k[a + 1])
            angle = frequency * difference
            total += (left * right.conjugate() * complex(np.cos(angle), np.sin(angle))).real
    return total
