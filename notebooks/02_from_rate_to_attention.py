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
# # From the coding rate to attention
#
# Thirteen cells take one photograph from the question "how many nats does one of its patches cost?" to an attention layer, and
# check every step of the way. Papers put tokens in columns; here, as in the library, **rows are tokens**.
#
# ## 1. What are the tokens?
#
# Patches of a photograph, flattened, projected onto their 24 principal directions, scaled to a mean squared norm of 1.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from proofs_check.inputs import default_image, from_image

photo = from_image(default_image())
Z = torch.from_numpy(photo.tokens)
N, d = Z.shape

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="constrained")
left.imshow(photo.image)
left.set_xticks(np.arange(0, photo.image.shape[1], photo.patch), labels=[])
left.set_yticks(np.arange(0, photo.image.shape[0], photo.patch), labels=[])
left.grid(color="white", lw=0.3)
left.set_title(f"{photo.grid[0]} × {photo.grid[1]} patches")
first = Z[:, :3].numpy().reshape(*photo.grid, 3)
right.imshow((first - first.min((0, 1))) / np.ptp(first, (0, 1)))
right.set_title("their first three coordinates, as colours")
right.axis("off")
plt.show()

# %% [markdown]
# ## 2. What do they cost?
#
# The lossy coding rate: the nats that a token takes, on average, to code all up to a precision ε. It is the logarithm of
# the volume of the tokens, in ε-balls.
#
# $$R(Z) = \tfrac12 \log\det\!\Big(I + \beta Z^\top Z\Big), \qquad \beta = \frac{d}{N\epsilon^2}$$
#
# Five lines of numpy, on either side of the determinant, and the library's, which takes the smaller side by Cholesky.

# %%
from objectives import CodingRate

epsilon = 0.5
beta = d / (N * epsilon**2)
z = Z.numpy()
small_side = 0.5 * np.linalg.slogdet(np.eye(d) + beta * z.T @ z)[1]
large_side = 0.5 * np.linalg.slogdet(np.eye(N) + beta * z @ z.T)[1]

R = CodingRate(epsilon)
print(f"{small_side:.10f}  {large_side:.10f}  {R.value(Z):.10f}  nats")
assert np.isclose(small_side, large_side) and np.isclose(small_side, R.value(Z))

# %% [markdown]
# ## 3. Which way is down?
#
# $$\nabla R = \beta\, Z\,(I + \beta Z^\top Z)^{-1}$$
#
# Is that right? Walk a length $h$ along any direction: what the linear prediction misses must shrink like $h^2$. For a
# gradient that is off by one per cent it shrinks like $h$, in the end.

# %%
gradient = R.gradient(Z)
direction = gradient / gradient.norm()
h = torch.logspace(0, -4, 17, dtype=torch.float64)


def missed(g):
    return torch.stack([(R.value(Z + t * direction) - R.value(Z) - t * (g * direction).sum()).abs() for t in h])


plt.figure(figsize=(5.5, 3.6), layout="constrained")
plt.loglog(h, missed(gradient), "o-", label="∇R: slope 2")
plt.loglog(h, missed(1.01 * gradient), "s-", label="1.01 ∇R: slope 1")
plt.xlabel("length h of the walk"), plt.ylabel("what the linear prediction misses"), plt.legend()
plt.show()
slope = np.polyfit(np.log(h[4:12].numpy()), np.log(missed(gradient)[4:12].numpy()), 1)[0]
assert abs(slope - 2) < 0.05

# %% [markdown]
# ## 4. What does one step do?
#
# A gradient step keeps the singular vectors and maps every singular value by itself:
#
# $$\sigma \;\mapsto\; \sigma\Big(1 - \frac{\kappa\beta}{1 + \beta\sigma^2}\Big)$$
#
# Small ones vanish, large ones hardly move: the step compresses towards the directions that carry the picture.

# %%
kappa = 1 / beta
after = Z - kappa * R.gradient(Z)
sigma = torch.linalg.svdvals(Z)
predicted = sigma * (1 - kappa * beta / (1 + beta * sigma**2))
observed = torch.linalg.svdvals(after)

plt.figure(figsize=(5.5, 3.4), layout="constrained")
plt.semilogy(sigma, "o", label="before")
plt.semilogy(observed, "o", label="after one step")
plt.semilogy(predicted, "k+", ms=10, label="predicted")
plt.xlabel("singular value number"), plt.legend()
plt.show()
assert torch.allclose(observed, predicted.sort(descending=True).values, rtol=1e-9)

# %% [markdown]
# ## 5. Heads are subspaces
#
# Split the features into $K$ orthogonal subspaces with bases $U_k$. The tokens' coordinates there are
# $W_k = Z U_k$, and the compression term adds up their rates, with **their own** sizes in β:
#
# $$R_c(Z \mid U) = \sum_k \tfrac12 \log\det\big(I + \beta W_k^\top W_k\big), \qquad \beta = \frac{p}{N\epsilon^2}$$
#
# MSSA's exact form is one gradient step on it. The layer's forward pass never calls the gradient; they agree to
# rounding, relative to what the step moves.

# %%
from objectives import SubspaceCodingRate
from unrolling import MSSA

torch.manual_seed(0)
K, p = 3, 8
U = torch.linalg.qr(torch.randn(d, d, dtype=torch.float64)).Q.reshape(d, K, p).transpose(0, 1).contiguous()
Rc = SubspaceCodingRate(U, epsilon)
beta = p / (N * epsilon**2)

layer = MSSA(d, K, U=U, epsilon=epsilon, step_size=1 / beta)
step = Z - Rc.gradient(Z) / beta
error = (layer(Z) - step).norm() / (step - Z).norm()
print(f"R_c: {Rc.value(Z):.3f} → {Rc.value(layer(Z)):.3f} nats; layer against step: {error:.1e}")
assert error < 1e-12

# %% [markdown]
# ## 6. Where does softmax come from?
#
# The inverse is awkward, so the papers expand it: $(I + \beta G)^{-1} \approx I - \beta G$, $G = W_k^\top W_k$, and
# then put a softmax in the place of the Gram matrix of the tokens. The series converges only while the largest
# eigenvalue of $\beta G$ is below 1. How well do the two stand-ins point along the true gradient?

# %%
from objectives import lift, project


def mssa(x, s=p**-0.5):
    w = project(x, U)
    return lift(torch.softmax(s * w @ w.mT, -1) @ w, U)


def cosine(a, b):
    return float((a * b).sum() / (a.norm() * b.norm()))


unit = Z / Z.norm(dim=-1, keepdim=True)
precisions = np.geomspace(0.03, 2, 25)
w = project(unit, U)
neumann, softmax, largest = [], [], []
for e in precisions:
    b = p / (N * e**2)
    true = SubspaceCodingRate(U, e).gradient(unit)
    neumann.append(cosine(lift(w - b * w @ (w.mT @ w), U), true))
    softmax.append(cosine(mssa(unit), true))
    largest.append(b * float(torch.linalg.matrix_norm(w, 2).max()) ** 2)

plt.figure(figsize=(6, 3.6), layout="constrained")
plt.semilogx(precisions, neumann, label="I − βG")
plt.semilogx(precisions, softmax, label="softmax")
plt.axvline(np.interp(-1, -np.array(largest), precisions), color="grey", ls=":", label="βG has eigenvalue 1")
plt.axhline(0, color="black", lw=0.5)
plt.xlabel("precision ε"), plt.ylabel("cosine with the gradient"), plt.legend()
plt.show()
assert neumann[0] < 0 < softmax[0] and neumann[-1] > 0.99

# %% [markdown]
# ## 7. Which sign?
#
# With the expansion the step reads $(1 - \kappa\beta)\,Z + \kappa\beta^2\, G Z$: the Gram term comes with a **plus**,
# together with a shrinkage. Code with a skip connection keeps the plus and drops the shrinkage: `Z + MSSA(Z)`.

# %%
plus, minus = Z + mssa(Z), Z - mssa(Z)
print(f"R_c: {Rc.value(Z):.3f}   Z + MSSA: {Rc.value(plus):.3f}   Z − MSSA: {Rc.value(minus):.3f}")
assert Rc.value(plus) > Rc.value(Z) > Rc.value(minus)

# %% [markdown]
# ## 8. Twelve steps of each
#
# The rate falls trivially when all tokens shrink. So look at tokens rescaled to norm 1 as well: there the published
# form *does* compress, by gathering directions. Whether "attention compresses" is a question of sign, skip and norm.

# %%


def walk(rule):
    x, path = Z, [Z]
    for _ in range(12):
        x = rule(x)
        path.append(x)
    return path


walks = {
    "exact step": walk(lambda x: x - Rc.gradient(x) / beta),
    "Z + MSSA": walk(lambda x: x + mssa(x)),
    "Z − MSSA": walk(lambda x: x - mssa(x)),
}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
for name, path in walks.items():
    axes[0].plot([float(Rc.value(x)) for x in path], "o-", ms=3, label=name)
    # Tokens that have shrunk to rounding noise have no direction left to look at.
    seen = [x for x in path if x.norm(dim=-1).min() > 1e-7]
    axes[1].plot([float(Rc.value(x / x.norm(dim=-1, keepdim=True))) for x in seen], "o-", ms=3, label=name)
axes[0].set_title("R_c"), axes[1].set_title("R_c of tokens of norm 1"), axes[0].legend()
for axis in axes:
    axis.set_xlabel("steps")
plt.show()
rates = [float(Rc.value(x)) for x in walks["exact step"]]
assert all(a >= b for a, b in zip(rates, rates[1:]))

# %% [markdown]
# And what does it look like? Every patch has the colour of its first three coordinates, after its length has been taken
# out. Under the exact step few directions stay, and soon the picture has two colours; `Z + MSSA(Z)` goes the same way more
# slowly, while its tokens grow; `Z − MSSA(Z)` hardly changes a colour while its tokens shrink.

# %%
from unrolling.knob import knob


def draw(steps):
    figure, axes = plt.subplots(1, 3, figsize=(9, 3.6), layout="constrained")
    for axis, (name, path) in zip(axes, walks.items()):
        x = path[steps]
        colours = (x / x.norm(dim=-1, keepdim=True))[:, :3].reshape(*photo.grid, 3)
        axis.imshow(colours.clamp(-0.8, 0.8).div(1.6).add(0.5).numpy())
        axis.set_title(f"{name}: R_c = {float(Rc.value(x)):.2f}"), axis.axis("off")


knob(draw, "steps", [0, 1, 2, 3, 4, 6, 8], play=True, text="the patches' directions as colours, under three rules")

# %% [markdown]
# ## 9. Softmax descends something, too
#
# Hold the keys constant, and softmax attention is the gradient of a log-sum-exp:
#
# $$E(Z) = -\sum_k\sum_i \tfrac1s \log\sum_j e^{s\, w_{k,i}\cdot\bar w_{k,j}}, \qquad -\nabla E = \mathrm{MSSA}(Z)$$
#
# `Z + MSSA(Z)` is an exact descent step on *this* energy. The energy is another function at every point, since its
# keys are the tokens themselves: that is what freezing hides.

# %%
from objectives import SelfAttentionEnergy

E = SelfAttentionEnergy(U, keys=project(Z, U), scale=p**-0.5)
softmax_layer = MSSA(d, K, U=U, form="softmax", step_size=1.0)
descended = Z - E.gradient(Z)
error = (softmax_layer(Z) - descended).norm() / (descended - Z).norm()
print(f"softmax layer against a step of size 1 on E: {error:.1e};  E: {E.value(Z):.1f} → {E.value(descended):.1f}")
assert error < 1e-12 and E.value(descended) < E.value(Z)

# %% [markdown]
# ## 10. Would we notice?
#
# A check that cannot fail proves nothing. Put ε where ε² belongs — the commonest mistake of the field — and divide the
# error by what the step moves. A step of size 1e-4 the *wrong way* is 1e-4 of the tokens, and 2 of the displacement.

# %%
wrong = Z - SubspaceCodingRate(U, epsilon**0.5).gradient(Z) / beta
print(f"ε for ε²: {(wrong - step).norm() / (step - Z).norm():.3f} of the displacement")

short, back = Z - 1e-4 * Rc.gradient(Z) / beta, Z + 1e-4 * Rc.gradient(Z) / beta
off = (back - short).norm()
print(f"wrong way: {off / Z.norm():.1e} of the tokens, {off / (short - Z).norm():.2f} of the displacement")
assert (wrong - step).norm() > 0.05 * (step - Z).norm()

# %% [markdown]
# ## 11. A few for all
#
# CBSA extracts few representatives $Q_k = P_k W_k$, contracts *them*, and broadcasts the change back with $P_k^\top$:
# linear in the number of tokens. Where do its representatives look?

# %%
from unrolling import CBSA, GridPool

cbsa = CBSA(d, K, U=U, epsilon=epsilon, representatives=GridPool((4, 4), photo.grid), scale=30.0, step_size=1.0)
P = cbsa.extraction(Z).detach()
figure, axes = plt.subplots(1, 4, figsize=(9, 3), layout="constrained")
for axis, m in zip(axes, (1, 5, 9, 14)):
    axis.imshow(photo.image, alpha=0.35)
    height, width = photo.image.shape[:2]
    axis.imshow(P[0, m].numpy().reshape(photo.grid), cmap="magma", alpha=0.65, extent=(0, width, height, 0))
    axis.set_title(f"representative {m}"), axis.axis("off")
plt.show()
assert torch.allclose(P.sum(-1), torch.ones(()).double())

# %% [markdown]
# ## 12. Do the layers keep what they promise?
#
# One line each: structured and random tokens of many scales, three routes to the gradient, errors relative to the
# displacement. It holds on so many cases. It is not a proof.
#
# **Exercise 1.** At which κ does the exact step stop lowering $R_c$ of the photograph? The guarantee is κ < 2/β.
#
# <details><summary>Solution</summary>
#
# ```python
# sizes = np.linspace(1, 60, 60) / beta
# changes = [float(Rc.value(Z - k * Rc.gradient(Z)) - Rc.value(Z)) for k in sizes]
# print(sizes[np.argmax(np.array(changes) > 0)] * beta)   # far beyond 2: the curvature here is below β
# ```
# </details>
#
# **Exercise 2.** Freeze nothing: is `Z + MSSA(Z)` a gradient step with its keys moving along?
#
# <details><summary>Solution</summary>
#
# ```python
# from objectives import SymmetricEnergy
# full = -SymmetricEnergy(U, p**-0.5).gradient(Z)
# print(cosine(full, mssa(Z)))   # not 1: the true gradient has ½(P + Pᵀ) for P
# ```
# </details>

# %%
from proofs_check import check_layer

print(check_layer(layer))
print(check_layer(softmax_layer))
print(check_layer(cbsa))
