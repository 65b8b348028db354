"""The papers' released layers as they are coded, equation by equation, where they part from the papers included.

Tokens in COLUMNS, (d, N), one token set at a time. A state holds the arrays of the released state dictionary under the
released names. Updates only: the residual is the blocks' business. The networks are in ``released_networks``.
Everything is computed in the precision of the arrays.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .agent import agent_position_bias
from .cbsa import cbsa_eq5, pool_grid
from .fast_weights import attention, largest
from .numbers import Array, softmax_columns

__all__ = [
    "State",
    "affine",
    "gelu",
    "head_rows",
    "layer_norm",
    "part",
    "released_agent",
    "released_attention",
    "released_cbsa",
    "released_crate_block",
    "released_depict_attention",
    "released_ista",
    "released_mita",
    "released_mita_vit5",
    "released_mssa",
    "released_tssa",
    "released_tssa_causal",
    "rms_norm",
]

State = Mapping[str, Array]


def part(state: State, prefix: str) -> dict[str, Array]:
    """The arrays whose names begin with a prefix, without it."""
    return {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}


def affine(X: Array, state: State, name: str) -> Array:
    """A linear map of every column, with a bias if there is one."""
    Y = state[f"{name}.weight"] @ X
    return Y + state[f"{name}.bias"][:, None] if f"{name}.bias" in state else Y


def layer_norm(X: Array, state: State, name: str, eps: float = 1e-5) -> Array:
    """Every column less its mean, over the root of its variance plus ε, by weight and bias."""
    centred = X - X.mean(0)
    normal = centred / np.sqrt((centred**2).mean(0) + eps)
    return normal * state[f"{name}.weight"][:, None] + state[f"{name}.bias"][:, None]


def rms_norm(X: Array, state: State, name: str, eps: float = 1e-6) -> Array:
    """Every column over the root of its mean square plus ε, by weight."""
    return X / np.sqrt((X**2).mean(0) + eps) * state[f"{name}.weight"][:, None]


def gelu(X: Array) -> Array:
    """Every x times the probability that a standard normal number is below it."""
    return np.array([x * (1 + math.erf(x / math.sqrt(2))) / 2 for x in X.flat]).reshape(X.shape)


def silu(X: Array) -> Array:
    """Every x over 1 + exp(−x)."""
    return X / (1 + np.exp(-X))


def head_rows(W: Array, heads: int) -> list[Array]:
    """The rows of every head."""
    p = len(W) // heads
    return [W[h * p : (h + 1) * p] for h in range(heads)]


def square(W: Array) -> tuple[int, int]:
    """The square grid that the columns fill."""
    side = math.isqrt(W.shape[1])
    return side, side


def _out(joined: Array, state: State) -> Array:
    """The output matrix, ``to_out`` or, in front of a dropout, ``to_out.0``; one head as wide as the tokens has none."""
    for name in ("to_out", "to_out.0"):
        if f"{name}.weight" in state:
            return affine(joined, state, name)
    return joined


def released_mssa(X: Array, state: State, heads: int) -> Array:
    """MSSA: W softmax(p^(−½) WᵀW) in every head, one matrix for queries, keys and values; then an output matrix."""
    read = [attention(W, W, W, len(W) ** -0.5) for W in head_rows(state["qkv.weight"] @ X, heads)]
    return _out(np.concatenate(read), state)


def released_cbsa(X: Array, state: State, pool: int = 8, behind: int = 1) -> Array:
    """CBSA: R pooled of all tokens but the last ones, R + step_rep W A, its contraction, step_x times the broadcast by Aᵀ."""
    W, blocks = state["proj.weight"] @ X, []
    steps = zip(state["step_x"].ravel(), state["step_rep"].ravel(), strict=True)
    for Wk, (step_x, step_rep) in zip(head_rows(W, len(state["step_x"])), steps, strict=True):
        kept, s = Wk[:, :-behind], len(Wk) ** -0.5
        R = pool_grid(kept, square(kept), (pool, pool))
        A = cbsa_eq5(R, Wk, s)
        R = R + step_rep * (Wk @ A)
        blocks.append(step_x * (attention(R, R, R, s) @ A.T))
    return _out(np.concatenate(blocks), state)


def released_tssa(X: Array, state: State) -> Array:
    """TSSA: memberships, over heads, of channels of unit length over tokens; −(W Π) / (1 + moments), d/ε² = 1, no 1/N."""
    heads, temp = head_rows(affine(X, state, "qkv"), len(state["temp"])), state["temp"].ravel()
    scores = []
    for Wk, t in zip(heads, temp, strict=True):
        lengths = np.maximum(np.sqrt((Wk**2).sum(1)), 1e-12)
        scores.append(t * ((Wk / lengths[:, None]) ** 2).sum(0))
    blocks = []
    for Wk, share in zip(heads, softmax_columns(np.stack(scores)), strict=True):
        moments = Wk**2 @ share / (share.sum() + 1e-8)
        blocks.append(-(Wk * share) / (1 + moments[:, None]))
    return _out(np.concatenate(blocks), state)


def released_tssa_causal(X: Array, state: State) -> Array:
    """TSSA for language: the same with sums over the tokens so far, and a learned number a head and place in the scores."""
    heads, N = head_rows(affine(X, state, "c_attn"), len(state["temp"])), X.shape[1]
    scores = np.zeros((len(heads), N), X.dtype)
    for k, Wk in enumerate(heads):
        for i in range(N):
            so_far = np.maximum((Wk[:, : i + 1] ** 2).sum(1), 1e-12)
            scores[k, i] = state["temp"][k, 0] * (Wk[:, i] ** 2 / so_far + state["denom_bias"][k, i, 0]).sum()
    shares, out = softmax_columns(scores), []
    for Wk, share in zip(heads, shares, strict=True):
        block = np.zeros_like(Wk)
        for i in range(N):
            moments = Wk[:, : i + 1] ** 2 @ share[: i + 1] / (share[: i + 1].sum() + 1e-8)
            block[:, i] = -Wk[:, i] * share[i] / (1 + moments)
        out.append(block)
    return affine(np.concatenate(out), state, "c_proj")


def released_ista(X: Array, state: State, eta: float = 0.1, lam: float = 0.1) -> Array:
    """CRATE's feed-forward block: ReLU(X + η (DᵀX − DᵀD X) − ηλ), no skip connection."""
    D = state["weight"]
    return np.maximum(X + eta * (D.T @ X - D.T @ (D @ X)) - eta * lam, 0.0)


def released_crate_block(X: Array, state: State, heads: int, eta: float = 0.1) -> Array:
    """A white-box block: X + attention(LN(X)), then ISTA(LN(·)) in its place; the names tell which attention it is."""
    inner, seen = part(state, "0.fn."), layer_norm(X, state, "0.norm")
    if "step_x" in inner:
        moved = released_cbsa(seen, inner)
    else:
        moved = released_tssa(seen, inner) if "temp" in inner else released_mssa(seen, inner, heads)
    return released_ista(layer_norm(X + moved, state, "1.norm"), part(state, "1.fn."), eta)


def released_depict_attention(X: Array, state: State, heads: int, query: Array | None = None) -> Array:
    """DEPICT's attention: step · Uᵀ W softmax(p^(−½) WᵀQ), one matrix U for all, Q = W or of the queries given."""
    U, read = state["proj"], []
    for Uk in head_rows(U, heads):
        W = Uk @ X
        Q = W if query is None else Uk @ query
        read.append(Uk.T @ attention(Q, W, W, len(Uk) ** -0.5))
    return float(state["step_size"][0]) * np.sum(read, axis=0)


def released_attention(X: Array, state: State, heads: int, scale: float | None = None) -> Array:
    """Softmax attention with one fused matrix, as in ViT and DeiT."""
    Q, K, V = (head_rows(W, heads) for W in np.split(affine(X, state, "qkv"), 3))
    s = len(Q[0]) ** -0.5 if scale is None else scale
    return affine(np.concatenate([attention(q, k, v, s) for q, k, v in zip(Q, K, V, strict=True)]), state, "proj")


def _mita_head(Q: Array, K: Array, V: Array, R: Array, keys: int, routes: int, shared: bool) -> Array:
    """One head of MiTA: landmark scores scaled twice, keys of the ``routes`` best experts once for each that holds them."""
    s, marks = len(Q) ** -0.5, attention(R, K, V, len(Q) ** -0.5)
    experts, out = [largest(K.T @ r, keys) for r in R.T], []
    for q in Q.T:
        near = R.T @ q
        chosen = [j for e in largest(near, routes) for j in experts[e]]
        scores, values = s * (K[:, chosen].T @ q), V[:, chosen]
        if shared:
            scores, values = np.concatenate([s * s * near, scores]), np.concatenate([marks, values], axis=1)
        out.append(values @ softmax_columns(scores[:, None])[:, 0])
    return np.stack(out, axis=1)


def _convolved(V: Array, state: State) -> Array:
    """The depth-wise 3 × 3 convolution of the columns on their square grid, zeros around it."""
    (side, _), w = square(V), state["dwc.weight"][:, 0]
    image = np.pad(V.reshape(len(V), side, side), ((0, 0), (1, 1), (1, 1)))
    out = np.zeros_like(image[:, 1:-1, 1:-1])
    for i in range(3):
        for j in range(3):
            out += w[:, i, j, None, None] * image[:, i : i + side, j : j + side]
    return out.reshape(len(V), -1) + state["dwc.bias"][:, None]


def _normed_heads(W: Array, state: State, name: str, heads: int, norm: Any) -> Array:
    return np.concatenate([norm(rows, state, name) for rows in head_rows(W, heads)])


def released_mita(
    X: Array,
    state: State,
    heads: int,
    pool: int,
    keys: int,
    *,
    routes: int = 1,
    shared: bool = True,
    behind: int = 1,
    normed: bool = False,
) -> Array:
    """MiTA of DeiT and of Segmenter: landmarks pooled of all queries but the last ones, class token included.

    ``normed``: norms of queries and keys after that, which only the segmentation encoder applies; elsewhere they are idle.
    A depth-wise convolution of the true patches' values is added before a gate SiLU(g) multiplies, where there are any.
    """
    gated = "qkvg.weight" in state
    Q, K, V, *gate = np.split(affine(X, state, "qkvg" if gated else "qkv"), 4 if gated else 3)
    kept = Q[:, :-behind]
    R = pool_grid(kept, square(kept), (pool, pool))
    if normed and "q_norm.weight" in state:
        Q, K = (_normed_heads(W, state, n, heads, layer_norm) for W, n in ((Q, "q_norm"), (K, "k_norm")))
    parts = zip(*(head_rows(W, heads) for W in (Q, K, V, R)), strict=True)
    read = np.concatenate([_mita_head(q, k, v, r, keys, routes, shared) for q, k, v, r in parts])
    if "dwc.weight" in state:
        read[:, 1:] += _convolved(V[:, 1:], state)
    return affine(read * silu(gate[0]) if gated else read, state, "proj")


def turned(W: Array, frequencies: Array, made_for: int) -> Array:
    """Every head's columns turned by rows (first half of the features) and columns of their square grid: RoFormer eq. 34."""
    (side, _), out, half = square(W), W.copy(), len(W) // 2
    for n in range(W.shape[1]):
        for which, place in enumerate((n // side, n % side)):
            for i, frequency in enumerate(frequencies):
                a, angle = which * half + 2 * i, place / side * made_for * frequency
                x, y = W[a, n], W[a + 1, n]
                out[a, n], out[a + 1, n] = x * np.cos(angle) - y * np.sin(angle), x * np.sin(angle) + y * np.cos(angle)
    return out


def released_mita_vit5(
    X: Array, state: State, heads: int, registers: int, made_for: int = 0, pool: int = 5, keys: int = 30
) -> Array:
    """MiTA of ViT-5: queries and keys normed, then turned, patches and registers on grids of their own, then pooled.

    Tokens are one class token, the patches, the registers; ``made_for``: the side of the grid of the patches' angles.
    """
    Q, K, V = np.split(affine(X, state, "qkv"), 3)
    last = X.shape[1] - registers
    if "q_norm.weight" in state:
        Q, K = (_normed_heads(W, state, n, heads, rms_norm) for W, n in ((Q, "q_norm"), (K, "k_norm")))
    for rope, (a, b), side in (
        ("rope", (1, last), made_for),
        ("rope_reg", (last, X.shape[1]), math.isqrt(registers)),
    ):
        if f"{rope}.freqs" in state:
            for W in (Q, K):
                W[:, a:b] = np.concatenate(
                    [turned(rows[:, a:b], state[f"{rope}.freqs"], side) for rows in head_rows(W, heads)]
                )
    patches = Q[:, 1:last]
    R = pool_grid(patches, square(patches), (pool, pool))
    parts = zip(*(head_rows(W, heads) for W in (Q, K, V, R)), strict=True)
    read = np.concatenate([_mita_head(q, k, v, r, keys, 1, True) for q, k, v, r in parts])
    if "dwc.weight" in state:
        read[:, 1:last] += _convolved(V[:, 1:last], state)
    return affine(read, state, "proj")


def released_agent(X: Array, state: State, heads: int, pool: int, adapted: bool = False) -> Array:
    """Agent attention, MiTA's baselines and CBSA's adaptation of a ViT.

    Agents are pooled of all queries but the last; with position biases, of all but the first. ``adapted``: norms of
    agents and keys while the agents read, none while they are read, and a norm before the output matrix if there is one.
    """
    Q, K, V = np.split(affine(X, state, "qkv"), 3)
    biased = "an_bias" in state
    kept = Q[:, 1:] if biased else Q[:, :-1]
    R = pool_grid(kept, square(kept), (pool, pool))
    reading, keys = R, K
    if adapted and "q_norm.weight" in state:
        reading, keys = (_normed_heads(W, state, n, heads, layer_norm) for W, n in ((R, "q_norm"), (K, "k_norm")))
    read = []
    for h, (q, k, v, r, a) in enumerate(zip(*(head_rows(W, heads) for W in (Q, keys, V, R, reading)), strict=True)):
        s, m = len(q) ** -0.5, r.shape[1]
        to_agents: Any = np.zeros((X.shape[1], m), X.dtype)
        to_tokens: Any = np.zeros((m, X.shape[1]), X.dtype)
        if biased:
            grid = square(kept)
            for i in range(m):
                to_agents[:, i] = agent_position_bias(
                    state["an_bias"][h, i],
                    state["ah_bias"][0, h, i, :, 0],
                    state["aw_bias"][0, h, i, 0],
                    state["ac_bias"][0, h, i, 0],
                    grid,
                    1,
                )
                to_tokens[i] = agent_position_bias(
                    state["na_bias"][h, i],
                    state["ha_bias"][0, h, :, 0, i],
                    state["wa_bias"][0, h, 0, :, i],
                    state["ca_bias"][0, h, 0, i],
                    grid,
                    1,
                )
        found = v @ softmax_columns(s * (k.T @ a) + to_agents)
        read.append(found @ softmax_columns(s * (r.T @ q) + to_tokens))
    joined = np.concatenate(read)
    return affine(layer_norm(joined, state, "norm") if "norm.weight" in state else joined, state, "proj")
