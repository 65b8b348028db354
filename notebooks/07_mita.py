# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # MiTA: attention as a network that the tokens write
#
# If attention is a two-layer network whose weights are the tokens themselves, which parts of it does a query need? MiTA
# (arXiv 2602.01219) keeps a narrow network that all queries share, and many small experts, of which every query is sent
# to one. At the end you will have taken the method apart on a photograph, merged it again, bounded its error, and seen
# where the bound and the intuition fail. **Rows are tokens**; there is one head, so that everything can be drawn.
#
# ## 1. Where is the network?
#
# Keys are the weights of the first layer, values those of the second, softmax is the activation:
#
# $$\mathrm{attention}(q) = V^\top \phi(s\,K q), \qquad \phi = \mathrm{softmax},\; s = 1/\sqrt{d}$$
#
# A network of width $N$, one hidden unit for every token. Here tokens are a photograph's patches at norm $\sqrt d$, as
# an RMS norm leaves them, and queries, keys and values at once. Hidden units are patches: draw them where they are.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.colors import ListedColormap

from proofs_check.inputs import default_image, from_image
from unrolling import full_attention

photo = from_image(default_image())
(rows, columns), extent = photo.grid, (-0.5, photo.grid[1] - 0.5, photo.grid[0] - 0.5, -0.5)
N, d = photo.tokens.shape
z = photo.tokens / np.linalg.norm(photo.tokens, axis=1, keepdims=True) * np.sqrt(d)
Z, s = torch.from_numpy(z), d**-0.5


def hidden(q, K):
    scores = np.exp(s * (K @ q) - (s * (K @ q)).max())
    return scores / scores.sum()


by_hand = np.stack([z.T @ hidden(q, z) for q in z])
full = full_attention(Z, Z, Z, s)
assert np.allclose(by_hand, full)

figure, axes = plt.subplots(1, 4, figsize=(9, 3), layout="constrained")
axes[0].imshow(photo.image, extent=extent), axes[0].set_title("three queries", fontsize=10)
for axis, (row, column), name in zip(axes[1:], ((5, 28), (15, 14), (35, 22)), ("sky", "face", "coat")):
    axis.imshow(hidden(z[row * columns + column], z).reshape(photo.grid), cmap="magma")
    axis.set_title(f"hidden units, {name}", fontsize=10)
    axes[0].plot(column, row, "s", ms=7, mfc="#E69F00", mec="white")
    axis.plot(column, row, "s", ms=5, mfc="none", mec="white")
for axis in axes:
    axis.axis("off")
plt.show()

# %% [markdown]
# ## 2. What does it minimise?
#
# Let the *output* of a query be the variable, and draw it to every value in proportion to the hidden unit:
#
# $$f(o) = \tfrac12 \sum_j a_j\, \|o - v_j\|^2, \qquad \nabla f(o) = o - \sum_j a_j v_j$$
#
# The Hessian is the identity. So one step of size 1 is attention, *wherever it starts from*; a step $\kappa$ lowers $f$
# by $\kappa(1 - \kappa/2)\,\|\nabla f\|^2$, exactly.

# %%
from objectives import KernelRegression

f = KernelRegression.attention(Z, Z, Z, s)
noise = torch.from_numpy(5 * np.random.default_rng(0).standard_normal((N, d)))
starts = {"zero": torch.zeros_like(Z), "the tokens": Z, "noise": noise}
kappas = torch.linspace(0, 2.2, 23).double()

plt.figure(figsize=(5.8, 3.4), layout="constrained")
for (name, o), mark in zip(starts.items(), "osv"):
    gradient = f.gradient(o)
    assert torch.allclose(o - gradient, full)
    lowered = torch.stack([f.value(o) - f.value(o - k * gradient) for k in kappas]) / gradient.square().sum()
    assert torch.allclose(lowered, kappas * (1 - kappas / 2))
    plt.plot(kappas, lowered, mark, ms=9 - 3 * "osv".index(mark), label=f"from {name}")
plt.plot(kappas, kappas * (1 - kappas / 2), "k", lw=0.8, label="κ(1 − κ/2)"), plt.axhline(0, color="grey", lw=0.5)
plt.xlabel("step size κ"), plt.ylabel("f lowered by, over ‖∇f‖²"), plt.legend()
plt.show()

# %% [markdown]
# ## 3. Who asks for all?
#
# Landmarks: the queries averaged over a coarse grid. Each reads the whole network once, and the pairs (landmark, what
# it read) are a network of width $m$ that stands in for that of width $N$: the shared expert. Adaptive pooling: of $n$
# rows, bin $i$ of $m$ starts with row $\lfloor i\,n/m \rfloor$ and ends before $\lceil (i+1)\,n/m \rceil$. The average
# of unlike patches is short.

# %%
from unrolling import GridPool


def bins(n, m):
    return [range(i * n // m, -(-(i + 1) * n // m)) for i in range(m)]


parts = [[r * columns + c for r in above for c in beside] for above in bins(rows, 5) for beside in bins(columns, 5)]
R = np.stack([z[part].mean(0) for part in parts])
landmarks = GridPool((5, 5), photo.grid).initial(Z[None], 0, None)[0]
assert np.allclose(R, landmarks)
read = np.stack([z.T @ hidden(r, z) for r in R])
lengths = np.linalg.norm(R, axis=1).reshape(5, 5)

figure, (left, right) = plt.subplots(1, 2, figsize=(7.4, 3.9), layout="constrained")
left.imshow(photo.image, extent=extent), left.grid(color="white", lw=1), left.set_title("25 bins")
left.tick_params(length=0)
left.set_xticks([b[0] - 0.5 for b in bins(columns, 5)], labels=[])
left.set_yticks([b[0] - 0.5 for b in bins(rows, 5)], labels=[])
right.imshow(lengths, cmap="cividis", aspect=rows / columns), right.axis("off")
right.set_title(f"lengths of the landmarks (patches: {np.sqrt(d):.1f})")
for (i, j), length in np.ndenumerate(lengths):
    right.text(j, i, f"{length:.1f}", ha="center", va="center", color="white" if length < 3 else "black")
plt.show()
assert (lengths < np.sqrt(d)).all() and lengths.min() < 1

# %% [markdown]
# ## 4. What does an expert know?
#
# Expert $i$ holds the $k$ keys with the largest products with landmark $i$, wherever in the picture: a small network
# cut out of the large one. Blocks of the picture would be experts, too, but these are *deformable*: the frame is the
# bin that the landmark is the average of, the orange patches are what its expert holds.

# %%
from unrolling import top_indices

k = 25
experts = np.argsort(-(R @ z.T), axis=1, kind="stable")[:, :k]
assert np.array_equal(experts, top_indices(landmarks @ Z.T, k))

figure, axes = plt.subplots(1, 5, figsize=(9, 2.6), layout="constrained")
for axis, i in zip(axes, (2, 4, 7, 12, 16)):
    held = np.zeros((N, 4))
    held[experts[i]] = (0.9, 0.45, 0, 0.9)
    axis.imshow(photo.image.mean(2), cmap="gray", alpha=0.6, extent=extent), axis.imshow(held.reshape(rows, columns, 4))
    (top, left), (bottom, right) = (np.divmod(parts[i][end], columns) for end in (0, -1))
    axis.add_patch(plt.Rectangle((left - 0.5, top - 0.5), right - left + 1, bottom - top + 1, fill=False, lw=1.5))
    axis.set_title(f"expert {i}", fontsize=10), axis.axis("off")
plt.show()
home = np.mean([np.isin(experts[i], parts[i]).mean() for i in range(25)])
print(f"keys that lie in their landmark's own bin: {home:.0%} of all experts' keys")
assert home < 0.5

# %% [markdown]
# ## 5. Who goes to which expert?
#
# A query goes to the landmark with the largest product with it. That need not be the one with the largest cosine: a
# short landmark loses even to unlike longer ones. Some experts hold keys that nobody comes to read, those of the two
# shortest landmarks among them.

# %%
route = (z @ R.T).argmax(1)
assert np.array_equal(route, top_indices(Z @ landmarks.T, 1)[:, 0])
visitors = np.bincount(route, minlength=25)
used, busiest = np.flatnonzero(visitors), np.argsort(-visitors)[:5]

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3.8), layout="constrained", width_ratios=(1, 1.3))
left.imshow(np.ones(photo.grid), cmap="gray", vmin=0, vmax=1.2), left.axis("off")
for i, colour in zip(busiest, ("#0072B2", "#E69F00", "#56B4E9", "#D55E00", "#009E73")):
    left.imshow(np.ma.masked_not_equal(route, i).reshape(photo.grid) * 0, cmap=ListedColormap([colour]))
    right.plot(lengths.ravel()[i], visitors[i], "o", ms=9, color=colour)
left.set_title(f"patches by expert: {len(used)} of 25 in use", fontsize=10)
others = np.setdiff1d(np.arange(25), busiest)
right.plot(lengths.ravel()[others], visitors[others], "o", color="grey"), right.set_yscale("symlog", linthresh=1)
right.set_ylim(-0.3, 1200), right.set_yticks(ticks := [0, 1, 10, 100, 1000], labels=ticks)
right.set_xlabel("length of the landmark"), right.set_ylabel("queries that come")
plt.show()
past = float((route != (z @ R.T / lengths.ravel()).argmax(1)).mean())
print(f"{25 - len(used)} experts get no query; the busiest gets {visitors.max()} of {N}")
print(f"queries sent past the landmark of their largest cosine: {past:.0%}")
assert len(used) < 25 and past > 0.1 and visitors[np.argsort(lengths.ravel())[:2]].sum() == 0

# %% [markdown]
# ## 6. One softmax, or two?
#
# MiTA lets a query read the $m$ landmark pairs and the $k$ pairs of its expert under *one* softmax. Computed apart, the
# two parts are merged by their log-sum-exps $\ell$:
#
# $$\sigma\, V_1^\top \phi(x_1) + (1 - \sigma)\, V_2^\top \phi(x_2), \qquad
# \sigma = \frac{e^{\ell_1}}{e^{\ell_1} + e^{\ell_2}}$$
#
# Mutants: equal shares; and the largest score in the place of the log-sum-exp.

# %%
from unrolling import MiTA, merge_attention, mita

by_hand = np.empty_like(z)
for i, q in enumerate(z):
    keys, values = np.vstack([R, z[experts[route[i]]]]), np.vstack([read, z[experts[route[i]]]])
    by_hand[i] = values.T @ hidden(q, keys)

x1, x2 = s * Z @ landmarks.T, s * (Z[:, None] * Z[experts[route]]).sum(-1)
one = torch.softmax(x1, -1) @ torch.from_numpy(read)
two = (torch.softmax(x2, -1)[:, :, None] * Z[experts[route]]).sum(1)
merged = merge_attention([(one, x1.logsumexp(-1)), (two, x2.logsumexp(-1))])
layer = MiTA(d, landmarks=GridPool((5, 5), photo.grid), keys_per_expert=k, projections="identity").double()
for way in (merged, mita(Z, Z, Z, landmarks, keys_per_expert=k), layer(Z).detach()):
    assert np.allclose(by_hand, way)

result = torch.from_numpy(by_hand)
wrong_lse = merge_attention([(one, x1.amax(-1)), (two, x2.amax(-1))])
for name, wrong in (("equal shares", (one + two) / 2), ("largest score", wrong_lse)):
    print(f"{name:14} off by {(wrong - result).norm() / result.norm():.3f}")
    assert (wrong - result).norm() > 0.05 * result.norm()

# %% [markdown]
# ## 7. How wrong is it?
#
# If full attention gives the mass $\delta$ to keys that a query does not get to read, what is left out moves the
# average by at most
#
# $$\|\mathrm{full} - \mathrm{restricted}\| \le 2\,\delta \max_j \|v_j\|$$
#
# Full attention is $(1-\delta)\,r + \delta\,o$, of what is read and of what is not: the error is $\delta\,\|r - o\|$.
# Is the 2 needed? Two opposite values attain it. Is it all? It is not, once landmarks take part: they get a mass
# $\sigma$ of their own, and with *all* keys in every expert, $\delta = 0$, there still is an error. What holds, with
# every key counted once, is $2\max(\delta, \sigma)\max\|v_j\|$ (claim `mita.error.bound`).

# %%
from functools import cache

weights = torch.softmax(s * Z @ Z.T, -1)
largest = float(Z.norm(dim=-1).max())


@cache
def compare(keys, shared):
    """Error, uncovered mass δ and mass on the landmarks σ of every query."""
    error = (mita(Z, Z, Z, landmarks, keys_per_expert=keys, shared=shared) - full).norm(dim=-1)
    covered = weights.gather(1, top_indices(landmarks @ Z.T, keys)[route]).sum(1)
    on_keys, on_landmarks = covered * (s * Z @ Z.T).exp().sum(-1), (s * Z @ landmarks.T).exp().sum(-1)
    return error, (1 - covered).clamp(min=0), on_landmarks / (on_keys + on_landmarks) * shared


figure, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
line, least = np.geomspace(1e-7, 0.6, 50), 1e-7
for axis, shared in zip(axes, (False, True)):
    for keys, mark in ((N, "x"), (800, "v"), (400, "s"), (100, "o")):
        error, delta, sigma = compare(keys, shared)
        axis.plot(delta.clamp(min=least), error / largest, mark, ms=4, alpha=0.4, label=f"k = {keys}")
        assert (error <= 2 * torch.maximum(delta, sigma) * largest + 1e-9).all()
        assert shared or (error <= 2 * delta * largest + 1e-9).all()
    axis.plot(line, 2 * line, "k", label="2δ"), axis.set_ylabel("error over max‖v‖")
axes[0].set_title("experts alone"), axes[0].set_xlabel("uncovered mass δ"), axes[0].legend()
axes[1].set_title("with landmarks, logarithmic"), axes[1].set_xlabel("uncovered mass δ, at least 1e-7")
axes[1].set_xscale("log"), axes[1].set_yscale("log"), axes[1].set_ylim(1e-7, 2)
plt.show()
error, delta, _ = compare(N, True)
print(f"all keys read, landmarks on: δ ≤ {delta.max():.0e}, error up to {error.max() / largest:.4f} max‖v‖")
assert (error > 2 * delta * largest + 1e-4).any()
share, q = 0.3, Z[:1]  # two keys; the second, of the opposite value, has 30 % of the mass, and is not read
two_keys = torch.cat([0 * q, q * np.log(share / (1 - share)) / (s * q.square().sum())])
error = (full_attention(q, two_keys, torch.cat([q, -q]), s) - q).norm()
assert torch.isclose(error, 2 * share * q.norm())

# %% [markdown]
# ## 8. Do more keys help?
#
# They cover more mass. Turn the knob: the error of every patch, and the mean over the picture. With experts alone it
# falls to zero at $k = N$, but late. With landmarks it starts low and *rises* first: 25 keys that carry 7.5 % of the
# mass of full attention take 88 % of the softmax, from landmarks that each stand for 47 keys on average and count but
# once. (Exercise 1 counts them as what they stand for.)

# %%
from unrolling.knob import knob

sizes = [1, 5, 25, 100, 200, 400, 800, N]
measured = {(keys, shared): compare(keys, shared) for keys in sizes for shared in (False, True)}
mean = {key: [float(part.mean()) for part in parts_of] for key, parts_of in measured.items()}


def draw(keys):
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.6), layout="constrained", width_ratios=(1, 1, 1.5))
    for axis, shared, name in zip(axes, (False, True), ("experts alone", "with landmarks")):
        picture = measured[keys, shared][0].reshape(photo.grid).numpy() / largest
        axis.imshow(picture, cmap="magma", vmin=0, vmax=1), axis.axis("off")
        axis.set_title(f"error, {name}", fontsize=10)
        axes[2].plot(sizes, [mean[n, shared][0] / largest for n in sizes], "so"[shared] + "-", label=name)
    axes[2].plot(sizes, [mean[n, False][1] for n in sizes], "k:", label="uncovered mass δ"), axes[2].set_xscale("log")
    axes[2].axvline(keys, color="grey", lw=1), axes[2].legend(fontsize=8, loc="center left")
    axes[2].set_xlabel("keys of an expert"), axes[2].set_title("means, errors over max‖v‖", fontsize=10)


knob(draw, "keys k", sizes, start=2, text="error of every patch, and the mean error against the keys of an expert")
print("mean error with landmarks:", [f"{n}: {mean[n, True][0] / largest:.3f}" for n in sizes])
covered, taken = 1 - mean[25, True][1], 1 - mean[25, True][2]
print(f"k = 25: {covered:.1%} of full attention's mass is covered, and gets {taken:.1%} of MiTA's")
assert round(100 * covered, 1) == 7.5 and round(100 * taken) == 88 and round(N / 25) == 47
assert all(mean[a, False][1] > mean[b, False][1] for a, b in zip(sizes, sizes[1:])) and mean[N, False][0] < 1e-12
low, high, end = (mean[keys, True][0] for keys in (1, 100, N))
assert low < 0.5 * mean[1, False][0] and high > 1.5 * low and end < 0.02 * low

# %% [markdown]
# ## 9. Where does it end?
#
# - All keys in every expert, no landmarks: full attention.
# - No keys: agent attention.
# - Every query its own landmark: per-query top-k attention, provided that all queries have one length. If not, a
#   longer query nearby wins the routing, and the equality is refuted by the tokens as they were.
# - Blocks of consecutive tokens for experts, mean keys for landmarks: block routing as in MoBA, but not causal.

# %%
from unrolling import agent_attention, block_attention, top_k_attention

assert torch.allclose(mita(Z, Z, Z, landmarks, keys_per_expert=N, shared=False), full)
assert torch.allclose(mita(Z, Z, Z, landmarks, keys_per_expert=0), agent_attention(Z, Z, Z, landmarks, s))

off = {}
for name, x in (("one length", Z), ("their own lengths", np.sqrt(d) * torch.from_numpy(photo.tokens))):
    x = x[::4]
    wanted = top_k_attention(x, x, x, 9, s)
    off[name] = float((mita(x, x, x, x, keys_per_expert=9, shared=False) - wanted).norm() / wanted.norm())
print("top-k attention is missed by", {name: f"{error:.1e}" for name, error in off.items()})
assert off["one length"] < 1e-12 and off["their own lengths"] > 0.05

blocks = torch.arange(N).reshape(N // 32, 32)
means = Z.reshape(N // 32, 32, d).mean(1)
as_mita = mita(Z, Z, Z, means, experts=blocks, experts_per_query=2, shared=False)
assert torch.allclose(as_mita, block_attention(Z, Z, Z, 32, 2, s))

# %% [markdown]
# ## 10. What if two experts hold the same key?
#
# Let a query go to two experts. A key that both hold is read twice, and counts twice: its score gains $\log 2$. That is
# what the paper does. Counting it once is the mutant here, and an option, `deduplicate`, of the library.

# %%
both = top_indices(Z @ landmarks.T, 2)
holds = torch.zeros(25, N).double().scatter_(1, torch.from_numpy(experts), 1.0)
times = holds[both].sum(1)  # how many of a query's two experts hold each key
scores = torch.cat([s * Z @ landmarks.T, s * Z @ Z.T + times.log()], -1)
by_hand = torch.softmax(scores, -1) @ torch.cat([torch.from_numpy(read), Z])
twice = mita(Z, Z, Z, landmarks, keys_per_expert=k, experts_per_query=2)
once = mita(Z, Z, Z, landmarks, keys_per_expert=k, experts_per_query=2, deduplicate=True)
assert torch.allclose(by_hand, twice)
shared_keys = (times == 2).any(1).double().mean()
error = (once - twice).norm() / twice.norm()
print(f"queries with keys held twice: {shared_keys:.0%};  counted once: off by {error:.3f}")
assert error > 0.005

# %% [markdown]
# ## 11. Which other networks are there?
#
# The paper sorts efficient attention by what it does to the wide network: compress it, route to parts of it, or both.
# The library's table of methods has each as a short operator `run`, and its multiply-adds. Run them all on the
# photograph, with 16 landmarks, 16 keys and blocks of 16, nothing learned: what do they cost, and how far from full
# attention are they? (One photograph, and untrained: no ranking of methods.)

# %%
from unrolling import FAST_WEIGHTS, taxonomy

methods = taxonomy(m=16, k=16, n=16)
assert [row.name for row in methods] == [row.name for row in FAST_WEIGHTS]
costs = {row.name: row.multiply_adds(N, d, d) for row in methods}
errors = {row.name: float((row.run(Z[None], Z[None], Z[None])[0] - full).norm() / full.norm()) for row in methods}
print(f"{'method':43}{'scaling':13}{'experts':49}{'routing':26}multiply-adds")
for row in methods:
    print(f"{row.name:43}{row.strategy:13}{row.experts:49}{row.topology:26}{row.cost}")

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained", sharey=True, width_ratios=(1.2, 1))
left.barh(list(costs), [cost / 1e6 for cost in costs.values()], color="tab:blue"), left.set_xscale("log")
right.barh(list(errors), list(errors.values()), color="tab:orange"), left.invert_yaxis()
left.set_xticks(ticks := [1, 3, 10, 30, 100], labels=ticks), left.set_xticks([], minor=True), left.set_xlim(1, 100)
left.set_xlabel("million multiply-adds"), right.set_xlabel("relative error on the photograph")
plt.show()
assert costs["MiTA"] == 4 * N * 16 * d + 2 * N * 16 * d and costs["MiTA"] < 0.05 * costs["full attention"]
assert errors["full attention"] < 1e-12 and errors["agent attention"] < errors["MiTA"] < errors["linear attention"]

# %% [markdown]
# ## 12. Check the layer, run the claims
#
# The layer's forward pass is a step of section 2 on its own support, everything but the outputs held constant: it holds
# on so many cases, and that is no proof. Nor does it say that MiTA is *near* full attention: that is for the bound to
# say. How well networks do that are trained with it is another question (accuracy 0.8730 against 0.8793 of softmax
# attention on Fashion-MNIST, [results](results.md)).
#
# **Exercise 1.** Let every landmark count as $N/m$ keys: add $\log(N/m)$ to its scores. What becomes of the error at
# $k$ = 25 and 100?
#
# <details><summary>Solution</summary>
#
# ```python
# for keys in (25, 100):
#     inside = torch.zeros(N, N, dtype=torch.bool).scatter_(1, top_indices(landmarks @ Z.T, keys)[route], True)
#     routed = (s * Z @ Z.T).masked_fill(~inside, -torch.inf)
#     errors = []
#     for counted in (1, N / 25):
#         joint = torch.cat([s * Z @ landmarks.T + np.log(counted), routed], -1)
#         o = torch.softmax(joint, -1) @ torch.cat([torch.from_numpy(read), Z])
#         errors.append(float((o - full).norm() / full.norm()))
#     print(f"k = {keys}: {errors[0]:.3f} → {errors[1]:.3f}")
#     assert errors[1] < 0.7 * errors[0]
# ```
# </details>
#
# **Exercise 2.** Send each query to the landmark with the largest *cosine*. How many experts are in use, and is the
# result nearer to full attention?
#
# <details><summary>Solution</summary>
#
# ```python
# by_cosine = (z @ R.T / lengths.ravel()).argmax(1)
# o = {}
# for name, way in (("product", route), ("cosine", by_cosine)):
#     joint = torch.cat([s * Z @ landmarks.T, s * (Z[:, None] * Z[experts[way]]).sum(-1)], -1)
#     pairs = torch.cat([torch.from_numpy(read).expand(N, -1, -1), Z[experts[way]]], 1)
#     o[name] = (torch.softmax(joint, -1)[..., None] * pairs).sum(1)
#     print(name, len(np.unique(way)), "experts, error", round(float((o[name] - full).norm() / full.norm()), 3))
# assert len(np.unique(by_cosine)) > len(used)
# ```
# </details>

# %%
from proofs_check import Campaign, check_layer, find, run_claim
from unrolling import SequencePool

torch.manual_seed(0)
print(check_layer(MiTA(12, 3, landmarks=SequencePool(4), keys_per_expert=3)))
for name, status in (("mita.error.bound", "holds"), ("mita.error.published", "refuted")):
    verdict = run_claim(find(name), Campaign(cases=10))
    rejected = f"{sum(m.killed for m in verdict.mutants)} of {len(verdict.mutants)} wrong versions rejected"
    print(f"{name}: {verdict.status} on {verdict.cases} cases, {rejected}")
    assert verdict.status == status
