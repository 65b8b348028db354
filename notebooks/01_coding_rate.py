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
# # The coding rate
#
# How many code words does it take to describe a cloud of tokens, if each may be off by ε? And what does a step of
# gradient descent on that number do to the cloud? The answers are one determinant, and one formula for every singular
# value. At the end you will have both, derived, animated in two and three dimensions, seen on a photograph, and
# checked.
#
# Tokens are **rows** here, as in the library: $Z$ has $N$ rows of $d$ features. Papers have them in columns.
#
# ## 1. How many balls does it take?
#
# Say tokens are known up to an error of mean square $\epsilon^2$, which is $\epsilon^2/d$ in each of $d$ directions.
# Blurred by that error, the cloud has the second moments $\frac1N Z^\top Z + \frac{\epsilon^2}{d} I$, an ellipsoid;
# what one code word stands for has $\frac{\epsilon^2}{d} I$, a ball. Drawn $\sqrt d$ times as large, so that the
# ball's radius is ε: how often does the ball fit into the ellipsoid, by volume?
#
# $$\frac{\mathrm{vol}(\text{ellipsoid})}{\mathrm{vol}(\text{ball})}
# = \sqrt{\frac{\det\big(\frac1N Z^\top Z + \frac{\epsilon^2}{d} I\big)}{\det\big(\frac{\epsilon^2}{d} I\big)}}
# = \sqrt{\det\Big(I + \frac{d}{N\epsilon^2} Z^\top Z\Big)} = e^{R(Z)}$$
#
# So the rate $R$ is the logarithm of a number of code words: the nats that **one** token costs (MCR², arXiv
# 2006.08558, eq. 2). Balls leave gaps: packed as well as can be in the plane they cover 91 % of it.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.collections import EllipseCollection

BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#8a8c93"
rng = np.random.default_rng(0)
N, d, epsilon = 400, 2, 0.3
turn = np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
Z = torch.from_numpy(rng.normal(size=(N, d)) * [2.0, 0.5] @ turn.T)


def blurred(z, eps):
    return z.T @ z / len(z) + eps**2 / z.shape[1] * np.eye(z.shape[1])


def outline(matrix):
    t = np.linspace(0, 2 * np.pi, 200)
    return np.sqrt(2) * np.linalg.cholesky(matrix) @ np.stack([np.cos(t), np.sin(t)])


def draw_balls(axis, z, eps):
    axis.plot(*z.T, ".", ms=3, color=GREY), axis.plot(*outline(blurred(z, eps)), color=BLUE, lw=2)
    i, j = np.meshgrid(np.arange(-120, 121), np.arange(-120, 121))
    centres = eps * np.stack([2 * i + j % 2, np.sqrt(3) * j], -1).reshape(-1, 2)  # the densest packing of the plane
    inside = (centres @ np.linalg.inv(blurred(z, eps)) * centres).sum(1) < 2
    size = np.full(inside.sum(), 2 * eps)
    style = {"units": "xy", "offset_transform": axis.transData, "facecolors": "none", "edgecolors": ORANGE}
    axis.add_collection(EllipseCollection(size, size, 0 * size, offsets=centres[inside], **style))
    axis.set_aspect("equal"), axis.set(xlim=(-7.5, 7.5), ylim=(-4.5, 4.5))
    return len(size)


rate = 0.5 * np.linalg.slogdet(np.eye(d) + d / (N * epsilon**2) * (Z.T @ Z).numpy())[1]
volumes = np.sqrt(np.linalg.det(blurred(Z.numpy(), epsilon)) / (epsilon**2 / d) ** d)
figure, axis = plt.subplots(figsize=(7, 4.5), layout="constrained")
packed = draw_balls(axis, Z.numpy(), epsilon)
axis.set_title(f"{np.exp(rate):.1f} balls by volume; {packed} of a packing have their centre inside")
plt.show()
assert np.isclose(np.exp(rate), volumes) and 0.8 < packed / volumes < 1

# %% [markdown]
# ## 2. Which side of the determinant?
#
# $Z^\top Z$ and $Z Z^\top$ have the same eigenvalues $\sigma_i^2$, but for zeros, and zeros cost nothing:
#
# $$R(Z) = \tfrac12 \log\det(I_d + \beta Z^\top Z) = \tfrac12 \log\det(I_N + \beta Z Z^\top)
# = \tfrac12 \sum_i \log(1 + \beta\sigma_i^2), \qquad \beta = \frac{d}{N\epsilon^2}$$
#
# The first compares features, the second tokens. The library takes the smaller side, by Cholesky.

# %%
from objectives import CodingRate

beta = d / (N * epsilon**2)
z = Z.numpy()
by_features = 0.5 * np.linalg.slogdet(np.eye(d) + beta * z.T @ z)[1]
by_tokens = 0.5 * np.linalg.slogdet(np.eye(N) + beta * z @ z.T)[1]
by_values = 0.5 * np.log1p(beta * np.linalg.svd(z, compute_uv=False) ** 2).sum()

R = CodingRate(epsilon)
print(f"2 × 2 {by_features:.12f}  400 × 400 {by_tokens:.12f}  sum {by_values:.12f}  library {R.value(Z):.12f}")
assert np.allclose([by_features, by_tokens, by_values], R.value(Z), rtol=1e-12)

# %% [markdown]
# ## 3. What does ε do?
#
# It says what counts as the same. Turn it down, and the blur goes away while balls get many; turn it up, and about
# one ball holds the cloud, so that describing a token costs next to nothing. Only the ratio of tokens to ε matters:
#
# $$R(cZ;\, c\,\epsilon) = R(Z;\, \epsilon)$$

# %%
from unrolling.knob import knob

grid = np.geomspace(0.1, 6, 60)
curve = [float(CodingRate(e).value(Z)) for e in grid]


def draw_epsilon(eps):
    figure, (left, right) = plt.subplots(1, 2, figsize=(9.5, 3.6), width_ratios=(1.5, 1), layout="constrained")
    draw_balls(left, z, eps)
    here = float(CodingRate(eps).value(Z))
    left.set_title(f"{np.exp(here):.1f} balls by volume")
    right.semilogx(grid, curve, color=BLUE), right.plot(eps, here, "o", color=ORANGE)
    right.set(xlabel="precision ε", ylabel="R in nats", title=f"R = {here:.2f}", ylim=(-0.2, 6))


knob(
    draw_epsilon, "ε", [0.1, 0.15, 0.3, 0.5, 0.8, 1.5, 3.0, 6.0], start=2,
    text="a cloud of tokens, its blurred outline, the balls of radius ε that it holds, and the rate against ε",
)
assert torch.isclose(CodingRate(7 * epsilon).value(7 * Z), R.value(Z)) and curve[-1] < 0.2

# %% [markdown]
# ## 4. Why are subspaces cheap?
#
# A direction without tokens has $\sigma = 0$ and costs $\log 1$. Take three clouds in three dimensions with the same
# mean square, filling space, a plane, and a line. As $\epsilon \to 0$ each of $r$ directions costs another $\log 2$
# nats whenever ε is halved: on a logarithmic axis the rate's slope is the rank.

# %%
clouds = {}
for rank, name in ((3, "space"), (2, "plane"), (1, "line")):
    cloud = rng.normal(size=(300, rank)) @ np.array([[0.8, 0.6, 0.2], [-0.6, 0.8, 0.3], [0.0, 0.3, -1.0]])[:rank]
    clouds[name] = torch.from_numpy(cloud / np.sqrt((cloud**2).sum(1).mean()))
epsilons = np.geomspace(1e-3, 10, 60)
rates = {name: np.array([float(CodingRate(e).value(x)) for e in epsilons]) for name, x in clouds.items()}

figure = plt.figure(figsize=(10, 3), layout="constrained")
plot = figure.add_subplot(1, 4, 4, xlabel="precision ε", ylabel="R in nats")
for number, (name, x) in enumerate(clouds.items()):
    colour = (GREY, BLUE, ORANGE)[number]
    space = figure.add_subplot(1, 4, 1 + number, projection="3d", elev=8, azim=-60, title=name)
    space.plot(*x.T.numpy(), ".", ms=3, color=colour), space.set_box_aspect((1, 1, 1), zoom=1.2)
    space.set(xlim=(-2, 2), ylim=(-2, 2), zlim=(-2, 2), xticklabels=[], yticklabels=[], zticklabels=[])
    plot.semilogx(epsilons, rates[name], color=colour, label=name)
plot.legend(frameon=False)
plt.show()
slopes = [-np.diff(r)[0] / np.diff(np.log(epsilons))[0] for r in rates.values()]
print("nats gained when log ε falls by 1:", np.round(slopes, 3))
assert np.allclose(slopes, [3, 2, 1], atol=1e-3)
assert (rates["line"] < rates["plane"]).all() and (rates["plane"] < rates["space"]).all()

# %% [markdown]
# ## 5. Which way is down?
#
# From $d\log\det A = \mathrm{tr}(A^{-1} dA)$, and since $\beta$ does not depend on where the tokens are:
#
# $$\nabla R = \beta\, Z\,(I_d + \beta Z^\top Z)^{-1} = \beta\,(I_N + \beta Z Z^\top)^{-1} Z$$
#
# A step $Z - \kappa \nabla R$ reads in two ways. On the right of $Z$: the same matrix acts on every token's features.
# On the left: every token becomes a weighted sum of all tokens, with an $N \times N$ matrix of weights made of their
# inner products. That is the seed of attention. The arrows are five times a step of size $1/\beta$.

# %%
by_features = beta * z @ np.linalg.inv(np.eye(d) + beta * z.T @ z)
by_tokens = beta * np.linalg.inv(np.eye(N) + beta * z @ z.T) @ z

h, walk = 1e-4, torch.from_numpy(rng.normal(size=z.shape))
difference = (R.value(Z + h * walk) - R.value(Z - h * walk)) / (2 * h)

figure, axis = plt.subplots(figsize=(7, 3.8), layout="constrained")
axis.plot(*z.T, ".", ms=3, color=GREY), axis.plot(*outline(blurred(z, epsilon)), color=BLUE)
arrows = -5 / beta * by_features[::3]
axis.quiver(*z[::3].T, *arrows.T, color=ORANGE, angles="xy", scale_units="xy", scale=1, width=0.003)
axis.set_aspect("equal"), axis.set(xlim=(-7.5, 7.5), ylim=(-4, 4))
axis.set_title("down is across the cloud, where it is thin")
plt.show()
for same in (by_tokens, R.gradient(Z).numpy()):
    assert np.linalg.norm(same - by_features) < 1e-13 * np.linalg.norm(by_features)
assert np.isclose(difference, (by_features * walk.numpy()).sum(), rtol=1e-6)
along, across = np.linalg.norm(by_features @ turn, axis=0)
assert across > 3 * along

# %% [markdown]
# ## 6. What does one step do to the singular values?
#
# $Z = L\Sigma V^\top$ and $\nabla R$ share their singular vectors. So the exact step moves every singular value by
# itself:
#
# $$\sigma \;\mapsto\; \sigma\Big(1 - \frac{\kappa\beta}{1 + \beta\sigma^2}\Big)$$
#
# Large ones, $\beta\sigma^2 \gg 1$, hardly notice; small ones are multiplied by about $1 - \kappa\beta$. For
# $\kappa = 1/\beta$ the factor is $\beta\sigma^2/(1+\beta\sigma^2) = v/(v + \epsilon^2/d)$ with $v = \sigma^2/N$:
# Wiener's filter for a signal of variance $v$ in noise of variance $\epsilon^2/d$.

# %%


def mapped(sigma, kappa_beta, beta):
    return sigma * (1 - kappa_beta / (1 + beta * sigma**2))


left, sigma, right = torch.linalg.svd(Z, full_matrices=False)
for kappa_beta in (0.5, 1.0, 1.9):
    step = Z - kappa_beta / beta * R.gradient(Z)
    assert torch.allclose(step, left * mapped(sigma, kappa_beta, beta) @ right, rtol=0, atol=1e-12)

s = np.linspace(0, 4, 300)
plt.figure(figsize=(5.5, 4), layout="constrained")
for kappa_beta, colour in ((0.5, GREEN), (1.0, BLUE), (1.9, ORANGE)):
    plt.plot(s, mapped(s, kappa_beta, 1.0), color=colour, label=f"κβ = {kappa_beta}")
plt.plot(s, s, ":", color=GREY, label="no step"), plt.axhline(0, color="black", lw=0.5)
plt.xlabel("√β σ before"), plt.ylabel("√β σ after, signed"), plt.legend(frameon=False)
plt.show()
variance = (sigma**2 / N).numpy()
assert np.allclose(mapped(sigma, 1.0, beta) / sigma, variance / (variance + epsilon**2 / d))

# %% [markdown]
# ## 7. How long may a step be?
#
# The Hessian's eigenvalues lie in $[-\beta/8, \beta]$ (claim `coding_rate.hessian`), so for $\kappa < 2/\beta$ the
# rate falls, whatever the tokens, by at least $\kappa(1 - \kappa\beta/2)\Vert\nabla R\Vert^2$. Beyond it small
# singular values change sign *and grow*, up to where the factor is $-1$:
#
# $$\beta\sigma^2 = \frac{\kappa\beta}{2} - 1$$
#
# There tokens jump between a cloud and its mirror image for ever. Beyond $\kappa\beta = 4$ that is unstable, too (the
# map's derivative there is $3 - 8/\kappa\beta > 1$): $|\sigma|$ goes round in cycles of 2, then of 4, and at last in
# none that shows.

# %%
sizes = np.linspace(0, 7.5, 901)
x, late = np.full_like(sizes, 0.1), []
for step in range(3200):
    x = np.abs(mapped(x, sizes, 1.0))
    late += [x] if step >= 3000 else []
plt.figure(figsize=(7, 3.8), layout="constrained")
plt.plot(np.tile(sizes, 200), np.concatenate(late), ",", color=BLUE, alpha=0.5)
plt.plot(sizes[240:], np.sqrt(sizes[240:] / 2 - 1), "--", color=ORANGE, label="√(κβ/2 − 1)")
plt.axvline(2, color=GREY, ls=":", label="κ = 2/β"), plt.legend(frameon=False)
plt.xlabel("step size κβ"), plt.ylabel("√β |σ| after 3000 steps and more")
plt.show()

tiny = 1e-2 * Z
within, beyond = (R.value(tiny - kappa_beta / beta * R.gradient(tiny)) for kappa_beta in (1.9, 2.1))
print(f"R of small tokens: {R.value(tiny):.2e}; after a step of κβ = 1.9 {within:.2e}, of κβ = 2.1 {beyond:.2e}")
assert within < R.value(tiny) < beyond
counts = {c: len(np.unique(np.round([x[np.abs(sizes - c).argmin()] for x in late], 6))) for c in (1.9, 3, 4.5, 5.1, 6)}
print("κβ: different |σ| in the last 200 of 3200 steps:", counts)
assert [*counts.values()][:4] == [1, 1, 2, 4] and counts[6] > 190

# %% [markdown]
# ## 8. How does a cloud fall?
#
# The cloud of section 1, 2 along and 0.5 across, with $\epsilon = 0.25$ and $\kappa = 1/\beta$. Press play. What is
# across is gone after eight steps, and faster and faster: once $\beta\sigma^2 \ll 1$, the new $\sqrt\beta\sigma$ is
# about the cube of the old. What is along has lost little. It *does* lose: the rate's only minimum is zero. What
# compresses is the order in which directions go.

# %%


def descend(x, eps, steps):
    objective, path = CodingRate(eps), [x]
    for _ in range(steps):
        path.append(path[-1] - objective.gradient(path[-1]) / objective.lipschitz(x))  # its Lipschitz constant is β
    return path


flat = descend(Z, 0.25, 10)
values = torch.stack([torch.linalg.svdvals(x) for x in flat]) / N**0.5
nats = [float(CodingRate(0.25).value(x)) for x in flat]


def draw_flat(step):
    figure, (tokens, plot) = plt.subplots(1, 2, figsize=(9.5, 3.6), width_ratios=(1.5, 1), layout="constrained")
    tokens.plot(*Z.T, ".", ms=3, color="#d5d6d9"), tokens.plot(*flat[step].T, ".", ms=3, color=BLUE)
    tokens.set_aspect("equal"), tokens.set(xlim=(-7.5, 7.5), ylim=(-4.5, 4.5))
    tokens.set_title(f"step {step}: R = {nats[step]:.2f} nats")
    plot.plot(values[: step + 1, 0], "o-", color=BLUE, label="along")
    plot.plot(values[: step + 1, 1], "s-", color=ORANGE, label="across")
    plot.set(xlim=(-0.5, 10.5), ylim=(-0.1, 2.4), xlabel="steps", ylabel="σ / √N")
    plot.legend(frameon=False, loc="center right")


knob(draw_flat, "steps", range(11), play=True, text="a cloud contracts onto its principal direction")
print(f"after 8 steps: along {values[8, 0] / values[0, 0]:.1%}, across {values[8, 1] / values[0, 1]:.0e} of before")
assert values[8, 0] > 0.9 * values[0, 0] and values[8, 1] < 1e-3 * values[0, 1]
assert nats == sorted(nats, reverse=True)

# %% [markdown]
# ## 9. And two lines in space?
#
# The rate sees one ellipsoid, so it keeps the *plane* of the two lines: noise out of the plane vanishes, noise within
# the plane stays. The same matrix for all tokens cannot tell line from line; that takes weights that depend on the
# token, a softmax ([2. From the rate to attention](02_from_rate_to_attention.py)) or memberships
# ([4. ToST](04_tost.py)). Both views are of the same tokens.

# %%
directions = np.array([[1.0, 0.3, 0.2], [-0.3, 1.0, 0.4]])
directions /= np.linalg.norm(directions, axis=1, keepdims=True)
owner = np.arange(300) % 2
pair = torch.from_numpy(1.5 * rng.normal(size=(300, 1)) * directions[owner] + 0.25 * rng.normal(size=(300, 3)))
steps = descend(pair, 0.2, 10)
normal = torch.linalg.svd(pair).Vh[2]


def draw_lines(step):
    figure = plt.figure(figsize=(8.5, 4.2), layout="constrained")
    for number, (name, elev, azim) in enumerate((("from above", 35, -50), ("along the blue line", 10.8, 16.7))):
        axis = figure.add_subplot(1, 2, 1 + number, projection="3d", proj_type="ortho", elev=elev, azim=azim)
        for line, colour in enumerate((BLUE, ORANGE)):
            axis.plot(*steps[step][owner == line].T.numpy(), ".", ms=4, color=colour)
        axis.set(xlim=(-4, 4), ylim=(-4, 4), zlim=(-2.5, 2.5), title=name)
        axis.set(xticklabels=[], yticklabels=[], zticklabels=[])
        axis.set_box_aspect((8, 8, 5), zoom=1.1)
    figure.suptitle(f"step {step}: {(steps[step] @ normal).square().mean().sqrt():.3f} out of the plane")


knob(draw_lines, "steps", range(11), play=True, text="two noisy lines in space contract onto their common plane")
in_plane = [x - (x @ normal)[:, None] * normal for x in steps]
own = torch.from_numpy(directions[owner])
off = [float((x - (x * own).sum(1, keepdim=True) * own).norm() / x.norm()) for x in in_plane]
print(f"out of the plane: {(steps[0] @ normal).norm():.2f} → {(steps[8] @ normal).norm():.0e}")
print(f"within the plane, off the own line: {off[0]:.1%} of the tokens → {off[8]:.1%}")
assert (steps[8] @ normal).norm() < 1e-3 and off[8] > 0.9 * off[0]

# %% [markdown]
# ## 10. What leaves the rate alone?
#
# Turn the features, mix the tokens by an orthogonal matrix, write every token down twice: $R$ does not change. The
# last holds since $R$ is the cost of *one* token, and is what $N$ is in β for.

# %%
by_feature, by_token = (torch.from_numpy(np.linalg.qr(rng.normal(size=(n, n)))[0]) for n in (d, N))
same = {
    "as it is": Z,
    "features turned": Z @ by_feature,
    "tokens mixed": by_token @ Z,
    "every token twice": torch.cat([Z, Z]),
}
for name, x in same.items():
    print(f"{name:18} {R.value(x):.12f}")
    assert torch.isclose(R.value(x), R.value(Z), rtol=1e-12)

# %% [markdown]
# ## 11. Would we notice a mistake?
#
# The commonest: ε for ε², N left out of β, a sign. Divide the error of a wrong gradient by the right one, and each is
# plain. Yet the first is *invisible at ε = 1*, and the second with one token: a check must vary both.

# %%


def off_by(wrong, x, eps=epsilon):
    right = CodingRate(eps).gradient(x)
    return float((wrong - right).norm() / right.norm())


mutants = {
    "ε for ε²": lambda x, eps: CodingRate(eps**0.5).gradient(x),
    "N left out": lambda x, eps: CodingRate(eps, tokens=1).gradient(x),
    "sign": lambda x, eps: -CodingRate(eps).gradient(x),
}
for name, mutant in mutants.items():
    print(f"{name:10} {off_by(mutant(Z, epsilon), Z):.3f} of the gradient")
    assert off_by(mutant(Z, epsilon), Z) > 0.1
assert off_by(mutants["ε for ε²"](Z, 1.0), Z, 1.0) == 0 == off_by(mutants["N left out"](Z[:1], epsilon), Z[:1])

# %% [markdown]
# ## 12. What does a photograph cost, and what does a step take away?
#
# Cut it into patches of 8 × 8 grey pixels: 64 features, centred. ε is the error of a patch, so ε/8 that of a pixel;
# white is 1. Many directions of patches are nearly empty: with ε at a tenth of a patch's size (the root of its mean
# square), the slope of the rate is 38, not 64. One step of size $1/\beta$ multiplies what lies in a direction by
# $v/(v + \epsilon^2/d)$; put the patches together again, and look.

# %%
from proofs_check.inputs import default_image, from_image

grey = from_image(default_image()).image.mean(-1) / 255
rows, columns = grey.shape[0] // 8, grey.shape[1] // 8
patches = torch.from_numpy(grey.reshape(rows, 8, columns, 8).swapaxes(1, 2).reshape(-1, 64))
mean = patches.mean(0)
tokens = patches - mean
fine = np.geomspace(0.02, 20, 40)
costs = [float(CodingRate(e).value(tokens)) for e in fine]


def compressed(x, objective):
    return x - objective.gradient(x) / objective.beta(x)


def draw_photograph(eps):
    objective = CodingRate(eps)
    after = compressed(tokens, objective)
    factor = torch.linalg.svdvals(after) / torch.linalg.svdvals(tokens)
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.4), width_ratios=(1.2, 1, 1), layout="constrained")
    picture, plot, filtered = axes
    together = (after + mean).reshape(rows, columns, 8, 8).swapaxes(1, 2).reshape(grey.shape)
    picture.imshow(together[70:310, 110:410], cmap="gray", vmin=0, vmax=1), picture.axis("off")
    picture.set_title(f"R: {objective.value(tokens):.1f} → {objective.value(after):.1f} nats")
    plot.semilogx(fine, costs, color=BLUE), plot.plot(eps, float(objective.value(tokens)), "o", color=ORANGE)
    plot.set(xlabel="precision ε", ylabel="R of the patches, nats")
    filtered.bar(np.arange(1, 65), factor, color=GREEN, width=1), filtered.set_ylim(0, 1)
    filtered.set(xlabel="principal direction", title=f"{int((factor > 0.5).sum())} of 64 keep more than half")


knob(
    draw_photograph, "ε", [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8], start=3,
    text="part of the photograph after one step, the rate against ε, and what each direction keeps",
)
size = float(tokens.square().sum(1).mean().sqrt())
resolved = float((tokens * CodingRate(size / 10).gradient(tokens)).sum())  # −dR/d log ε, since R(cZ; cε) = R(Z; ε)
coarse = CodingRate(0.8)
after = compressed(tokens, coarse)
kept = coarse.value(after) / coarse.value(tokens)
lost = (after - tokens).square().sum() / tokens.square().sum()
print(f"size {size:.2f}; at ε = {size / 10:.2f} the slope is {resolved:.1f}")
print(f"ε = 0.8: one step leaves {kept:.0%} of the nats, and moves tokens by {lost:.1%} of their variance")
assert round(resolved) == 38 and kept < 0.65 and lost < 0.02

# %% [markdown]
# ## 13. Check it
#
# `check_objective` holds the library's gradient against reverse mode and differences, and its constant $L = \beta$
# against the gradient's changes; the claims are those of sections 6, 7 and 10, each with wrong versions that must be
# rejected. They hold on so many cases, which is not a proof. The proofs are short derivations like those above; what
# is checked is that the code is what they are about.
#
# **Exercise 1.** Two lines, each coded by itself with its own $N_k$ in β: what is saved against coding both as one
# cloud?
#
# <details><summary>Solution</summary>
#
# ```python
# clean = torch.from_numpy(rng.normal(size=(300, 1)) * directions[owner])
# R3 = CodingRate(0.1)
# whole, parts = R3.value(clean), [R3.value(clean[owner == k]) for k in (0, 1)]
# print(f"{whole:.2f} as one, {sum(parts) / 2:.2f} on average by itself")  # the difference is MCR²'s rate reduction
# assert sum(parts) / 2 < whole
# ```
# </details>
#
# **Exercise 2.** Add noise of mean square $\epsilon^2$ a patch to the photograph, for ε = 0.8. Does one step of size
# 1/β undo some of it? And at which ε?
#
# <details><summary>Solution</summary>
#
# ```python
# noisy = tokens + 0.8 / 8 * torch.from_numpy(rng.normal(size=tokens.shape))
# left = {}
# for e in (0.4, 0.8, 1.6, 6.4):
#     step = compressed(noisy, CodingRate(e))
#     left[e] = float((step - tokens).square().sum() / (noisy - tokens).square().sum())
# print(left)  # it does, and twice the ε is better still: v holds the noise already; far more takes the picture
# assert left[1.6] < left[0.8] < left[0.4] < 1 and left[6.4] > left[1.6]
# ```
# </details>

# %%
from proofs_check import Campaign, check_objective, find, run_claim

print(check_objective(CodingRate(epsilon=0.3), dim=6))
for name in ("coding_rate.singular_values", "coding_rate.descent", "coding_rate.invariance"):
    verdict = run_claim(find(name), Campaign(cases=25))
    rejected = f"{sum(m.killed for m in verdict.mutants)} of {len(verdict.mutants)} wrong versions rejected"
    print(f"{verdict.status} on {verdict.cases} cases, {rejected}: {verdict.statement}")
    assert verdict.status == "holds"
