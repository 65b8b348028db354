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
# # ISTA and the CRATE block
#
# CRATE puts no perceptron after its attention but one step of sparse coding, with a step size that is a constant. What
# does that step minimise, what do the two halves of a block do together, and **when does a fixed step size break**? At
# the end there is a feed-forward block derived from its objective, the size of dictionary at which it starts to climb,
# a step size that repairs it, and three learned steps that are worth about eight. As everywhere here, tokens are rows.
#
# ## 1. What is a sparse code?
#
# A few atoms, columns of a dictionary $D$, that add up to a token $x$: codes $A$ that leave little unexplained, and
# pay λ for the size of every entry.
#
# $$F(A) = \tfrac12 \Vert X - A D^\top \Vert^2 + \lambda \Vert A \Vert_1$$
#
# The tokens are 8 × 8 patches of a photograph, less their means; the dictionary has 144 products of cosines, more than
# twice as many as a patch has pixels.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from proofs_check.inputs import default_image, from_image
from unrolling.knob import knob

photo = from_image(default_image())
grey = photo.image.mean(-1) / 255


def patches(picture):
    rows, columns = (side // 8 for side in picture.shape)
    x = picture[: 8 * rows, : 8 * columns].reshape(rows, 8, columns, 8).swapaxes(1, 2).reshape(-1, 64)
    return torch.from_numpy(x), torch.from_numpy(x - x.mean(1, keepdims=True))


face = grey[64:320, 130:386]
raw, X = patches(face)
waves = np.cos(np.pi * np.outer(np.arange(8) + 0.5, np.arange(12)) / 12)
waves[:, 1:] -= waves[:, 1:].mean(0)
waves /= np.linalg.norm(waves, axis=0)
D = torch.from_numpy(np.kron(waves, waves))
L = float(torch.linalg.matrix_norm(D, 2) ** 2)

figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 4.2), layout="constrained")
left.imshow(face, cmap="gray"), left.set_title(f"{len(X)} patches of 8 × 8")
tiles = np.pad(D.T.reshape(12, 12, 8, 8).numpy(), ((0, 0), (0, 0), (0, 1), (0, 1)), constant_values=np.nan)
right.imshow(tiles.swapaxes(1, 2).reshape(108, 108), cmap="gray"), right.set_title(f"144 atoms, ‖D‖² = {L:.2f}")
for axis in (left, right):
    axis.axis("off")
plt.show()
assert D.shape == (64, 144) and torch.allclose(D.norm(dim=0), torch.ones(144).double())

# %% [markdown]
# ## 2. Where does the threshold come from?
#
# $\Vert A \Vert_1$ has no gradient at zero, where the answers are. So linearise the smooth part $f$ alone, add a
# quadratic that keeps the step short, and minimise what results:
#
# $$A^+ = \arg\min_A\; \langle \nabla f(A_0), A \rangle + \tfrac{1}{2\eta}\Vert A - A_0 \Vert^2 + \lambda\Vert A \Vert_1
# = \arg\min_A\; \tfrac12 \Vert A - V \Vert^2 + \eta\lambda \Vert A \Vert_1, \qquad V = A_0 - \eta \nabla f(A_0)$$
#
# Every entry stands alone: minimise $\tfrac12 (a - v)^2 + t |a|$ with $t = \eta\lambda$. For $a > 0$ the slope
# vanishes at $a = v - t$, for $a < 0$ at $a = v + t$; if $|v| \le t$ neither exists, and the kink at 0 wins. That is
# the **soft threshold**. If codes may not be negative, only $\max(v - t, 0)$ is left, a shifted ReLU. Turn the
# threshold:

# %%
from objectives import L1, NonNegativeL1

a = np.linspace(-2.5, 2.5, 5001)


def soft(v, t):
    return np.sign(v) * np.maximum(np.abs(v) - t, 0)


def draw(t):
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
    cost = 0.5 * (a - 1) ** 2 + t * np.abs(a)
    left.plot(a, cost)
    left.plot(soft(1.0, t), cost.min(), "o", color="C1", ms=9, label=f"minimum at {soft(1.0, t):.2f}")
    left.set(xlabel="a", title="½(a − 1)² + t|a|", ylim=(-0.1, 6), xlim=(-2, 2.5)), left.legend(loc="upper left")
    right.plot(a, soft(a, t), label="soft threshold")
    right.plot(a, np.maximum(a - t, 0), "--", label="codes ≥ 0: a ReLU")
    right.set(xlabel="v", title="the minimum, whatever v", xlim=(-2.5, 2.5), ylim=(-2.6, 2.6)), right.legend()
    right.axline((0, 0), slope=1, color="grey", lw=0.7, ls=":")


knob(draw, "t = ηλ", [0.0, 0.2, 0.4, 0.7, 1.0, 1.3], start=2, text="a parabola with a kink, and its minimum")
v = np.linspace(-2, 2, 9)[:, None]
lowest = a[(0.5 * (a - v) ** 2 + 0.5 * np.abs(a)).argmin(1)]
assert np.allclose(lowest, soft(v[:, 0], 0.5), atol=1e-3)
assert np.allclose(L1(weight=1.0).prox(torch.from_numpy(v), 0.5), soft(v, 0.5))
assert np.allclose(NonNegativeL1(weight=1.0).prox(torch.from_numpy(v), 0.5), np.maximum(v - 0.5, 0))

# %% [markdown]
# ## 3. Is that CRATE's block?
#
# CRATE takes one such step with a square dictionary, codes that may not be negative, and starts **at the tokens
# themselves**, which are also the data: $A_0 = X$. With $\nabla f(A) = (A D^\top - X) D$ it reads
#
# $$\mathrm{ISTA}(X) = \mathrm{ReLU}\big(X + \eta\,(X - X D^\top) D - \eta\lambda\big), \qquad \eta = \lambda = 0.1$$
#
# ([CRATE](https://arxiv.org/abs/2306.01129), eq. 17). One line of numpy. Beside it three plausible wrong versions,
# their errors divided by what the step moves. The tokens are now the photograph's 24 principal coordinates of
# [2. From the coding rate to attention](02_from_rate_to_attention.py).

# %%
from unrolling import ISTA

torch.manual_seed(0)
Z = torch.from_numpy(photo.tokens)
N, d = Z.shape
layer = ISTA(d).double()
E, z = layer.D.detach().numpy(), Z.numpy()
eta = lam = 0.1
step = np.maximum(z + eta * (z - z @ E.T) @ E - eta * lam, 0)
versions = {
    "the layer": layer(Z).detach().numpy(),
    "threshold λ for ηλ": np.maximum(z + eta * (z - z @ E.T) @ E - lam, 0),
    "wrong sign": np.maximum(z - eta * (z - z @ E.T) @ E - eta * lam, 0),
    "D transposed": np.maximum(z + eta * (z - z @ E) @ E.T - eta * lam, 0),
}
error = {name: np.linalg.norm(got - step) / np.linalg.norm(step - z) for name, got in versions.items()}
for name, value in error.items():
    print(f"{name:20} {value:.1e} of the displacement")
assert error.pop("the layer") < 1e-14 and min(error.values()) > 0.2

# %% [markdown]
# ## 4. What do many steps do?
#
# Back to the patches, codes of both signs, from $A = 0$. While $\eta \le 1/L$ with $L = \Vert D \Vert^2$, the
# quadratic in section 2 lies above $f$, so no step can climb; each lowers the objective by at least
# $(\tfrac1\eta - \tfrac L2) \Vert A^+ - A \Vert^2$. FISTA steps from a point a little further along, and is faster; it
# has no such promise. `Unrolled` makes a network of either: every step is a layer.

# %%
from objectives import sparse_coding
from unrolling import AcceleratedProximalStep, ProximalStep, Unrolled

weight = 0.05
F = sparse_coding(D, X, weight)
A, promised, sparse = np.zeros((len(X), 144)), [], []
for _ in range(60):
    old, A = A, soft(A - (A @ D.numpy().T - X.numpy()) @ D.numpy() / L, weight / L)
    promised.append(L / 2 * np.sum((A - old) ** 2))
    sparse.append(np.mean(A != 0))

zero = torch.zeros(len(X), 144, dtype=torch.float64)
codes, values = Unrolled(F, ProximalStep(), depth=60, step_size="certified")(zero, return_values=True)
_, fast = Unrolled(F, AcceleratedProximalStep(), depth=60, step_size="certified")(zero, return_values=True)
_, long = Unrolled(F, AcceleratedProximalStep(), depth=150, step_size="certified")(zero, return_values=True)
least = float(long.min())
assert np.allclose(codes, A, atol=1e-12) and (-values.diff().numpy() >= np.array(promised) - 1e-9).all()

steps = range(1, 61)
figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
left.loglog(steps, values[1:] - least, label="ISTA"), left.loglog(steps, fast[1:] - least, "--", label="FISTA")
left.set(xlabel="steps", title="objective above its minimum"), left.legend()
right.semilogx(steps, np.array(sparse) * 144)
right.set(xlabel="steps", ylim=(0, 40), title="atoms in use, of 144 (ISTA)")
plt.show()
print(f"ISTA {values[0]:.1f} → {values[1]:.1f} → … → {values[-1]:.2f}, FISTA {fast[-1]:.2f}, least found {least:.2f}")
print(f"atoms in use, a patch: {144 * sparse[0]:.1f} → {144 * sparse[-1]:.1f}")
assert fast[-1] < values[-1] and 1.8 * sparse[-1] < sparse[0]

# %% [markdown]
# ## 5. What does λ buy?
#
# The photograph again, from its codes after 60 steps of FISTA (with the patches' means put back). A larger λ costs
# detail and saves atoms.

# %%
pictures = {}
for w in (0.4, 0.2, 0.1, 0.03):
    with torch.no_grad():
        code = Unrolled(sparse_coding(D, X, w), AcceleratedProximalStep(), depth=60, step_size="certified")(zero)
    pictures[w] = (code @ D.mT + raw - X, int((code != 0).sum()) / len(X))


def draw(w):
    seen, used = pictures[w]
    signal = -10 * np.log10(float((seen - raw).square().mean()))
    figure, axes = plt.subplots(1, 2, figsize=(8, 4.3), layout="constrained")
    for axis, patch, title in zip(axes, (raw, seen), ("the photograph", f"{used:.1f} atoms a patch, {signal:.1f} dB")):
        axis.imshow(patch.reshape(32, 32, 8, 8).swapaxes(1, 2).reshape(256, 256), cmap="gray", vmin=0, vmax=1)
        axis.set_title(title), axis.axis("off")


knob(draw, "λ", list(pictures), start=1, text="the photograph, and what its sparse codes keep of it")
used = [count for _, count in pictures.values()]
assert used == sorted(used) and used[1] < 4
kept = [float((seen - raw).square().sum()) for seen, _ in pictures.values()]
assert kept == sorted(kept, reverse=True)

# %% [markdown]
# ## 6. When does a fixed step break?
#
# The promise of section 4 is positive while $\eta < 2/\Vert D\Vert^2$. CRATE's η is 0.1 whatever the dictionary:
# descent is promised below $\Vert D \Vert^2 = 2/\eta = 20$. Is more than the promise lost beyond? A witness with two
# features and one token:
#
# $$D = \begin{pmatrix} 0 & 0 \\ \sigma & 0 \end{pmatrix}, \quad x = (0, 1): \qquad
# F(x) = \tfrac12 + \lambda = 0.6, \qquad \sigma = 5:\; F(\mathrm{ISTA}(x)) \approx 1.2$$
#
# The dictionary's one useful atom points at the token; the step towards it overshoots. Left, the objective on the way
# from $x$ to $\mathrm{ISTA}(x)$ and beyond. Right, every eighth token of the photograph, with both steps, twelve times
# (tokens and codes of both signs).

# %%
torch.manual_seed(1)
token = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
direction = torch.randn(d, d, dtype=torch.float64)
direction /= torch.linalg.matrix_norm(direction, 2)


def witness(square):
    one = ISTA(2, D=torch.tensor([[0.0, 0.0], [square**0.5, 0.0]], dtype=torch.float64))
    return one.objective_at(token), one(token).detach()


def walk(square, step_size):
    objective = sparse_coding(direction * square**0.5, Z[::8], 0.1)
    path, code = [], Z[::8]
    for _ in range(13):
        path.append(float(objective.value(code)))
        code = ProximalStep()(objective, code, step_size)
    return np.array(path)


def draw(square):
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
    objective, after = witness(square)
    way = torch.linspace(0, 1.2, 61, dtype=torch.float64)
    left.plot(way, [float(objective.value(token + t * (after - token))) for t in way])
    left.plot([0, 1], [objective.value(token), objective.value(after)], "o", color="C1")
    left.axhline(0.6, color="grey", lw=0.7, ls=":")
    left.set(ylim=(0, 2), xlabel="share of the step", title="F, the witness")
    for step_size, style, name in ((0.1, "o-", "η = 0.1"), (1 / square, "s--", "η = 1/‖D‖²")):
        path = walk(square, step_size)
        right.semilogy(path / path[0], style, ms=4, label=name)
    right.set(ylim=(0.01, 100), xlabel="steps", title="F / F(start), the photograph"), right.legend(loc="upper left")


knob(draw, "‖D‖²", [5, 10, 15, 19, 21, 23, 25], start=6, text="the objective along ISTA's step")
objective, after = witness(25)
assert round(float(objective.value(token)), 3) == 0.6 and round(float(objective.value(after)), 2) == 1.2
assert (np.diff(walk(19, 0.1)) < 0).all() and walk(25, 0.1)[-1] > 10 * walk(25, 0.1)[0]
assert all((np.diff(walk(s, 1 / s)) < 0).all() for s in (5, 20, 25, 1000))

# %% [markdown]
# ## 7. Where do networks live?
#
# So $\eta = 1/\Vert D \Vert^2$ repairs it, at any size; `ISTA(…, certified=True)` keeps η inside
# $(0, 2/\Vert D \Vert^2)$ while a network learns. Is that ever needed? CRATE draws $D$ uniformly with variance $2/d$,
# whose $\Vert D \Vert^2$ tends to 8 for wide layers. Below, that and the four blocks of six small networks trained on
# Fashion-MNIST (the folder `checkpoints`). Their last block learned the longest dictionary, and all stayed below 12:
# no constraint kept them there, only weight decay, but there the constant step is a safe one.

# %%
from unrolling import models

widths = (32, 64, 128, 256, 512)
fresh = [float(torch.linalg.matrix_norm(ISTA(width).D.detach(), 2) ** 2) for width in widths]
trained = {}
for name in ("mssa", "mssa-exact", "mssa-exact-tied-orthonormal", "cbsa", "cbsa-exact-tied-orthonormal", "tssa"):
    network = models.load(f"checkpoints/fashion-{name}")
    feeds = [module for module in network.modules() if isinstance(module, ISTA)]
    trained[name] = [float(torch.linalg.matrix_norm(feed.D.detach(), 2) ** 2) for feed in feeds]

figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained", sharey=True)
left.semilogx(widths, fresh, "ko-", base=2), left.set(xlabel="width d", ylabel="‖D‖²", title="as drawn", ylim=(0, 24))
for (name, sizes), marker in zip(trained.items(), "osD^v*"):
    right.plot(range(1, 5), sizes, marker + "-", ms=5, lw=0.8, label=name.replace("-tied-orthonormal", ", tied"))
for axis in (left, right):
    axis.axhline(20, color="black", ls=":")
    axis.text(0.03, 0.87, "no promise beyond, at η = 0.1", transform=axis.transAxes)
right.set(xlabel="block", title="trained, width 64", xticks=range(1, 5))
right.legend(fontsize=8, ncols=2, loc=(0.03, 0.52))
plt.show()
repaired = ISTA(2, D=torch.tensor([[0.0, 0.0], [5.0, 0.0]]).double(), certified=True, step_size=1.0)
assert max(max(sizes) for sizes in trained.values()) < 12 and abs(fresh[-1] - 8) < 0.5
assert all(sizes[-1] == max(sizes) for sizes in trained.values())
assert objective.value(repaired(token).detach()) < objective.value(token) < objective.value(after)

# %% [markdown]
# ## 8. What do the two halves of a block do?
#
# A block takes a gradient step on the compression term $R_c$, then a step of sparse coding of what came out: two
# objectives in turn, and nothing says that a step on one does not raise the other. Eight blocks without LayerNorms,
# with one $U$ and one $D$ for all of them.

# %%
from objectives import SubspaceCodingRate
from unrolling import MSSA, CRATEBlock

torch.manual_seed(0)
K, p, epsilon = 3, 8, 0.5
beta = p / (N * epsilon**2)
U = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q.reshape(d, K, p).transpose(0, 1).contiguous()
Rc = SubspaceCodingRate(U, epsilon)
block = CRATEBlock(MSSA(d, K, U=U, epsilon=epsilon, step_size=0.5 / beta), ISTA(d)).double()

tokens, halves, coding = [Z], [float(Rc.value(Z))], []
with torch.no_grad():
    for _ in range(8):
        between = tokens[-1] - 0.5 / beta * Rc.gradient(tokens[-1])
        E = sparse_coding(block.ista.D, between, 0.1)  # |entries|, as the tokens between have both signs
        after = (between - 0.1 * E.smooth.gradient(between) - 0.01).clamp(min=0)
        assert torch.allclose(block(tokens[-1]), after, rtol=1e-9, atol=1e-12)
        tokens.append(after)
        halves += [float(Rc.value(between)), float(Rc.value(after))]
        coding.append([float(E.value(between)), float(E.value(after))])

figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.4), layout="constrained")
for l in range(8):
    for start, colour, name in ((2 * l, "C0", "attention"), (2 * l + 1, "C1", "ISTA")):
        pair = halves[start : start + 2]
        left.plot([start / 2, start / 2 + 0.5], pair, "o-", ms=4, color=colour, label=name if l == 0 else None)
    right.plot([l + 0.5, l + 1], coding[l], "o-", ms=4, color="C1")
left.set(xlabel="blocks", title="R_c in nats"), left.legend()
right.set(xlabel="blocks", title="each block's sparse coding objective", yscale="log")
plt.show()
assert (np.diff(halves) < 0).all() and all(start > end for start, end in coding)

# %% [markdown]
# ## 9. And the aim of the whole?
#
# $R_c$ falls at every half step here, and each block's own coding objective in its ISTA. The aim of the two together
# is the **sparse rate reduction**
#
# $$R(Z) - R_c(Z \mid U) - \lambda \Vert Z \Vert_1$$
#
# to be raised: spread the tokens out, compress each head, use few entries. CRATE's derivation (section 2.4) replaces
# the term $R$ by the demand that $D$ times the codes is still the token; no half of the block is a step on $R$. So
# take proximal steps on the whole beside the blocks, with λ = 0.01.

# %%
from objectives import CodingRate, relaxed_sparse_rate_reduction

R, whole = CodingRate(epsilon), relaxed_sparse_rate_reduction(U, epsilon, 0.01)  # negated: it is minimised
direct = [Z]
for _ in range(8):
    direct.append(ProximalStep()(whole, direct[-1], 1 / whole.lipschitz(Z)))

figure, axes = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained", sharey=True)
curves = []
for axis, path, title in zip(axes, (tokens, direct), ("CRATE blocks", "proximal steps on the whole")):
    reduction = np.array([float(R.value(y) - Rc.value(y)) for y in path])
    total = -np.array([float(whole.value(y)) for y in path])
    curves.append((reduction, total))
    axis.plot(reduction, "o-", ms=4, label="R − R_c"), axis.plot(reduction - total, "s--", ms=4, label="λ‖Z‖₁")
    axis.plot(total, "^:", ms=4, label="R − R_c − λ‖Z‖₁"), axis.set(xlabel="blocks, or steps", title=title)
axes[0].legend()
plt.show()
for name, (reduction, total) in zip(("blocks", "steps"), curves):
    print(f"{name}: R − R_c {reduction[0]:.2f} → {reduction[-1]:.2f}, less λ‖Z‖₁ {total[0]:.2f} → {total[-1]:.2f}")
assert all((np.diff(total) > 0).all() for _, total in curves)
assert curves[0][0][-1] < 0.01 < curves[0][0][0] < curves[1][0][-1] and tokens[-1].norm() < 1e-3 * Z.norm()
assert (direct[-1] == 0).double().mean() > 0.9 and (Z != 0).all()

# %% [markdown]
# The sparse rate reduction rises along the blocks at every step, and that says nothing: the tokens vanish, the penalty
# with them, and $R - R_c$ goes to zero. Whoever plots the sum should plot its parts. Eight steps on the whole end with
# a larger $R - R_c$ and with more than nine entries in ten at zero.
#
# ## 10. Does a residual connection help?
#
# CRATE-α ([2405.20299](https://arxiv.org/abs/2405.20299), section 3.2) codes in an overcomplete dictionary, two steps
# from $A = 0$, goes back to tokens by a dictionary (here the same one), and **adds** the result to the token. Judge by
# what the tokens cost at best:
#
# $$g(X) = \min_{A \ge 0} F(A), \qquad
# g(D A^\ast) \le \lambda \Vert A^\ast \Vert_1 = g(X) - \tfrac12 \Vert X - D A^\ast \Vert^2$$
#
# Replacing a token by what its best codes stand for is descent, since $A^\ast$ fits that exactly; and as
# $\nabla g(X) = X - D A^\ast$, it is the gradient step of size 1. Adding it gives $2X - \nabla g(X)$, a larger token.
# By hand: one atom 1, one token 1, λ = 0.1 cost 0.095; with the residual, 0.185. On every fourth patch, $D$ with both
# signs:

# %%
from unrolling import OvercompleteISTA

both = torch.cat([D, -D], 1)
published = OvercompleteISTA(64, 288, D=both, step_size=0.5 / L, weight=weight, residual=True)
plain = OvercompleteISTA(64, 288, D=both, step_size=0.5 / L, weight=weight)


def cost(x):
    """What every token costs at best, and what its best codes stand for."""
    search = Unrolled(sparse_coding(D, x, weight), AcceleratedProximalStep(), depth=80, step_size="certified")
    best = search(torch.zeros(len(x), 144, dtype=torch.float64))
    return 0.5 * (x - best @ D.mT).square().sum(-1) + weight * best.abs().sum(-1), best @ D.mT


rules = {"best codes": lambda x: cost(x)[1], "two steps": plain, "two steps and residual": published}
active = plain.codes(X[::4]).detach().any(-1)  # on the others no atom passes the threshold, and no block moves
figure = plt.figure(figsize=(6.5, 3.6), layout="constrained")
ends = {}
for (name, rule), style in zip(rules.items(), ("o-", "s--", "^:")):
    path, x = [], X[::4]
    with torch.no_grad():
        for _ in range(4):
            path.append(cost(x)[0])
            x = rule(x)
    plt.semilogy([float(c.sum()) for c in path], style, ms=5, label=name)
    ends[name] = (path[1] - path[0])[active]
plt.xlabel("blocks"), plt.xticks(range(4)), plt.title("least sparse coding cost of the tokens"), plt.legend()
plt.show()
for name, change in ends.items():
    print(f"{name}: rises on {int((change > 0).sum())} of {len(change)} active patches")
assert (ends["best codes"] < 0).all() and (ends["two steps"] < 0).all() and (ends["two steps and residual"] > 0).all()
costs = [0.5 * (x - code) ** 2 + 0.1 * code for x, code in ((1.0, 0.9), (1.9, 1.8))]
assert np.allclose(costs, [0.095, 0.185])

# %% [markdown]
# ## 11. Can steps be learned?
#
# LISTA (Gregor and LeCun, 2010) keeps the shape of a step and learns its numbers. Three layers
# $A \leftarrow \mathrm{soft}(A - (A D^\top - X) W, \theta)$, which start as three steps of ISTA, $W = \eta D$ and
# $\theta = \eta\lambda$, and learn to lower $F$ on the patches of the photograph's lower half. Judged on the face,
# which they have not seen.

# %%
from torch import nn

below = patches(grey[320:])[1]
torch.manual_seed(0)
W = nn.ParameterList(D.clone() / L for _ in range(3))
theta = nn.ParameterList(torch.full((144,), weight / L, dtype=torch.float64) for _ in range(3))


def learned(x):
    code = x.new_zeros(len(x), 144)
    for matrix, t in zip(W, theta):
        v = code - (code @ D.mT - x) @ matrix
        code = v.sign() * torch.relu(v.abs() - t)
    return code


def three_steps(x):
    steps = Unrolled(sparse_coding(D, x, weight), ProximalStep(), depth=3, step_size="certified")
    return steps(x.new_zeros(len(x), 144))


assert torch.allclose(learned(X), three_steps(X), atol=1e-12)
optimiser = torch.optim.Adam([*W, *theta], lr=2e-3)
for _ in range(200):
    batch = below[torch.randint(len(below), (256,))]
    optimiser.zero_grad()
    sparse_coding(D, batch, weight).value(learned(batch)).div(256).backward()
    optimiser.step()
with torch.no_grad():
    noise = torch.randn(1024, 64, dtype=torch.float64) * X.std()
    noise -= noise.mean(1, keepdim=True)
    found = float(F.value(learned(X)))
    other = [float(sparse_coding(D, noise, weight).value(rule(noise))) for rule in (learned, three_steps)]
worth = int((values > found).sum())
print(f"the face: {found:.1f} after 3 learned layers, {values[3]:.1f} after 3 steps; plain ISTA needs {worth} steps")
print(f"white noise of the same size: {other[0]:.1f} learned, {other[1]:.1f} plain")
assert 7 <= worth <= 9 and other[0] > other[1]

# %% [markdown]
# On a face that they have not seen, three learned layers are worth about eight plain steps, on white noise less than
# three: a learned $W$ is no longer $\eta D$, so a layer is no step on $F$, and what it lowers is a matter of the data.
#
# **Exercise 1.** At which $\Vert D \Vert^2$ does the witness of section 6 first cost more after the step than before?
# Is 20 a cautious bound?
#
# <details><summary>Solution</summary>
#
# ```python
# sizes = np.linspace(19.5, 20.5, 1001)
# after = [float(objective.value(moved)) for objective, moved in map(witness, sizes)]
# first = sizes[np.argmax(np.array(after) > 0.6)]
# print(f"{first:.3f}")  # 20.011: the promise ends at 20 and is hardly cautious
# assert 20 < first < 20.02
# ```
# </details>
#
# **Exercise 2.** Published blocks normalise before both halves (`norm="layer"`), so that tokens cannot vanish. Does
# $R - R_c$ then rise along eight blocks of section 8?
#
# <details><summary>Solution</summary>
#
# ```python
# published = CRATEBlock(block.attention, block.ista, norm="layer").double()
# path = [Z]
# with torch.no_grad():
#     for _ in range(8):
#         path.append(published(path[-1]))
# print([round(float(R.value(y) - Rc.value(y)), 2) for y in path])  # it falls, below zero: no half of a block aims at R
# assert path[-1].norm() > Z.norm() and R.value(path[-1]) < Rc.value(path[-1])
# ```
# </details>
#
# ## 12. Check the layers
#
# The first check draws tokens of many scales and compares with the proximal step; it holds on so many inputs, which is
# no proof, and it says nothing about descent. A block whose threshold is λ must be rejected. The claim looks for
# dictionaries at which η = 0.1 climbs, and finds them again.

# %%
from proofs_check import Campaign, ClaimFailed, check_layer, find, run_claim


class Wrong(ISTA):
    def forward(self, x):
        return torch.relu(x + 0.1 * (x - x @ self.D.mT) @ self.D - 0.1)


print(check_layer(ISTA(d)))
try:
    check_layer(Wrong(d))
    raise AssertionError("the wrong threshold got through")
except ClaimFailed as problem:
    print(str(problem).splitlines()[0])
verdict = run_claim(find("ista.fixed_step"), Campaign())
print(verdict.id, verdict.status, "on", verdict.evidence, "of", verdict.cases, "cases")
assert verdict.status == "refuted"
