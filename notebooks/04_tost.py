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
# # ToST: attention without a product of two tokens
#
# Can a layer be attention if no token is ever multiplied with another? ToST's token statistics self-attention (TSSA,
# arXiv 2412.17810) shares tokens out among heads, measures the second moment of every channel of every head, and
# shrinks the channels by it. At the end you will have derived it as a gradient step on an upper bound of a coding rate,
# written it in six lines, drawn its memberships as a soft segmentation of a photograph, and measured what the
# derivation holds constant. **Rows are tokens**, as everywhere here.
#
# ## 1. Which token belongs to which head?
#
# Heads are subspaces with bases $U_k$, and $W_k = ZU_k$. A token belongs to a head as far as it is long there:
#
# $$\Pi_{ik} = \mathrm{softmax}_k\big(\tau\,\lVert U_k^\top z_i\rVert^2\big), \qquad n_k = \sum_i \Pi_{ik}$$
#
# The softmax runs over **heads**: every row of $\Pi$ sums to 1. For heads that mean something without any training, fit
# four planes to the patches of the photograph: assign every patch to the plane that holds most of it, fit again.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch

from objectives import head_memberships, project
from proofs_check.inputs import default_image, from_image

blue, orange, green, grey = "#0072B2", "#D55E00", "#009E73", "#777777"
photo = from_image(default_image())
Z = torch.from_numpy(photo.tokens)
(N, d), K, p, epsilon, tau = Z.shape, 4, 2, 0.5, 30.0

nearest = torch.randint(K, (N,), generator=torch.Generator().manual_seed(0))
for _ in range(30):
    U = torch.stack([torch.linalg.svd(Z[nearest == k], full_matrices=False).Vh[:p].mT for k in range(K)])
    nearest = project(Z, U).square().sum(-1).argmax(0)

z, u = Z.numpy(), U.numpy()


def softmax(x, axis):
    e = np.exp(x - x.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


w = z @ u  # (heads, tokens, p)
Pi = softmax(tau * (w**2).sum(-1), axis=0).T
assert np.allclose(Pi, head_memberships(Z, U, tau).numpy(), rtol=1e-12)


def draw_memberships(axes, Pi):
    for k, axis in enumerate(axes):
        axis.imshow(Pi[:, k].reshape(photo.grid), vmin=0, vmax=1, cmap="viridis"), axis.axis("off")
        axis.set_title(f"head {k}, n = {Pi[:, k].sum():.0f}", fontsize=10)


figure, axes = plt.subplots(1, K + 1, figsize=(9, 2.4), layout="constrained")
axes[0].imshow(photo.image), axes[0].axis("off")
draw_memberships(axes[1:], Pi)
plt.show()
print(f"rows of Π sum to 1; the largest of a token's memberships is {Pi.max(1).mean():.2f} on average")

# %% [markdown]
# ## 2. What do sorted tokens cost?
#
# MCR² (arXiv 2006.08558) codes every class by itself, weighted by its share of the tokens:
#
# $$R_c(Z\mid\Pi) = \sum_k \frac{n_k}{2N}\log\det\Big(I + \frac{d}{n_k\epsilon^2}\,Z^\top\mathrm{diag}(\pi_k)Z\Big)$$
#
# Its determinant is what a gradient step would have to invert. ToST takes a **complete** basis $V_k$ of all $d$
# dimensions for each class and counts the second moments along its axes only, as if they were diagonal in it:
#
# $$R_{\mathrm{var}}(Z,\Pi\mid V) = \sum_k \frac{n_k}{2N}\sum_c
# \log\Big(1 + \frac{d}{n_k\epsilon^2}\sum_j \Pi_{jk}\,(v_{kc}^\top z_j)^2\Big)\;\ge\; R_c(Z\mid\Pi)$$
#
# That is Hadamard's inequality, $\det M \le \prod_c M_{cc}$ for positive definite $M$, so equality holds exactly
# where every $V_k$ diagonalises its $Z^\top\mathrm{diag}(\pi_k)Z$. Three choices of bases:

# %%
from objectives import RateReduction, VariationalRate

n = Pi.sum(0)
moments = [z.T @ (Pi[:, [k]] * z) for k in range(K)]
logdets = [np.linalg.slogdet(np.eye(d) + d / (n[k] * epsilon**2) * moments[k])[1] for k in range(K)]
Rc = sum(n[k] / (2 * N) * logdets[k] for k in range(K))


def variational(V):
    s = [Pi[:, k] @ (z @ V[k]) ** 2 for k in range(K)]
    return sum(n[k] / (2 * N) * np.log1p(d / (n[k] * epsilon**2) * s[k]).sum() for k in range(K))


rng = np.random.default_rng(0)
bases = {
    "each class's own eigenvectors": np.stack([np.linalg.eigh(M)[1] for M in moments]),
    "principal axes of all tokens": np.broadcast_to(np.eye(d), (K, d, d)).copy(),
    "random": np.linalg.qr(rng.standard_normal((K, d, d)))[0],
}
members = torch.from_numpy(Pi)
assert np.isclose(Rc, RateReduction(members, epsilon).compression(Z), rtol=1e-12)
print(f"R_c {Rc:.4f} nats;  R_var with ", end="")
for name, V in bases.items():
    value = variational(V)
    print(f"{name} {value:.4f}", end="; ")
    assert np.isclose(value, VariationalRate(torch.from_numpy(V), members, epsilon).value(Z), rtol=1e-12)
    assert np.isclose(value, Rc, rtol=1e-12) if "own" in name else value > 1.01 * Rc

# %% [markdown]
# ## 3. How large is the gap as a basis turns?
#
# Two dimensions to look at: the first two coordinates of the patches, weighted by their membership in head 0. Turn the
# basis $V$; the dashed line is the log-determinant, which does not know about bases.

# %%
from unrolling.knob import knob

plane, weight = z[:, :2], Pi[:, 0]
gram = 2 / (weight.sum() * epsilon**2) * plane.T @ (weight[:, None] * plane)
determinant = 0.5 * np.linalg.slogdet(np.eye(2) + gram)[1]


def turned(degrees):
    angle = np.deg2rad(degrees)
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def bound(degrees):
    return 0.5 * np.log1p(np.diag(turned(degrees).T @ gram @ turned(degrees))).sum()


angles = np.linspace(0, 180, 181)
curve = np.array([bound(a) for a in angles])


def draw(degrees):
    figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
    left.scatter(*plane.T, s=12 * weight, color=blue, lw=0)
    for axis, colour in zip(turned(degrees).T, (orange, green)):
        left.plot(*np.outer(axis, (-2.5, 2.5)), color=colour, lw=2)
    left.set_aspect("equal"), left.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), title="tokens, size: membership in head 0")
    right.plot(angles, curve, color=blue, label="variational")
    right.axhline(determinant, color=grey, ls="--", label="log-determinant")
    right.plot(degrees, bound(degrees), "o", color=orange, ms=9)
    right.set(xlabel="angle of the basis, degrees", ylabel="nats", title=f"gap {bound(degrees) - determinant:.3f} nats")
    right.set_ylim(determinant - 0.02, curve.max() + 0.04), right.legend(loc="upper right", ncol=2)


knob(draw, "angle", list(range(0, 180, 20)), start=2, text="tokens in the plane, a turning basis, and the bound")
assert (curve >= determinant - 1e-12).all()
own = np.rad2deg(np.arctan2(*np.linalg.eigh(gram)[1][::-1, 1])) % 90
assert np.isclose(bound(own), determinant, rtol=1e-12)
print(f"no gap at {own:.1f}° and every 90° from there; largest gap {curve.max() - determinant:.3f} nats")

# %% [markdown]
# ## 4. What is the step?
#
# A sum of logarithms of sums has an easy gradient, with $\Pi$ held constant. Heads keep only $p$ axes each (with
# these, $R_{\mathrm{var}}$ is no bound any more, but the sum over the axes that are left), and
#
# $$\nabla R_{\mathrm{var}} = \sum_k \frac{d}{N\epsilon^2}\,\mathrm{diag}(\pi_k)\,W_k\,
# \mathrm{diag}\Big(\frac{1}{1 + \frac{d}{n_k\epsilon^2}\,s_k}\Big)\,U_k^\top,\qquad
# s_k = \sum_j \Pi_{jk}\,(U_k^\top z_j)^{\circ 2}$$
#
# A token meets the others only through $s_k$ and $n_k$, $p + 1$ numbers a head. The fractions are gates: near 0 for
# strong channels, which hardly move, and near 1 for weak ones. The layer is a gradient step; here $\kappa L \le 1$.

# %%
from unrolling import TSSA

alpha = d / (N * epsilon**2)


def tssa(z, Pi, n):
    w = z @ u
    s = Pi.T[:, None] @ w**2  # (heads, 1, p)
    gates = 1 / (1 + d / epsilon**2 * s / n[:, None, None])
    return alpha * (Pi.T[..., None] * w * gates @ u.swapaxes(-1, -2)).sum(0), gates


update, gates = tssa(z, Pi, n)
layer = TSSA(d, K, U=U, basis="free", eta=1 / (2 * tau), epsilon=epsilon, step_size=1 / alpha).requires_grad_(False)
rate, after = layer.objective_at(Z), layer(Z)
size = np.linalg.norm(update / alpha)
errors = [float(np.linalg.norm(z - update / alpha - x.numpy()) / size) for x in (after, Z - rate.gradient(Z) / alpha)]
print(f"plain against layer {errors[0]:.1e}, against the gradient step {errors[1]:.1e};", end=" ")
print(f"R_var {rate.value(Z):.3f} → {rate.value(after):.3f};  gates {gates.min():.3f} … {gates.max():.3f}")
assert max(errors) < 1e-12 and rate.value(after) < rate.value(Z) < Rc and float(rate.lipschitz(Z)) <= alpha * (1 + 1e-9)

# %% [markdown]
# ## 5. What becomes of the segmentation?
#
# Iterate, with memberships computed anew before every step.

# %%


def walk(sign=1, restore=False, steps=50):
    path = [Z]
    for _ in range(steps):
        x = path[-1] - sign / alpha * layer.objective_at(path[-1]).gradient(path[-1])
        path.append(x / x.norm(dim=-1, keepdim=True) * Z.norm(dim=-1, keepdim=True) if restore else x)
    return path


def sharpness(x):
    return head_memberships(x, U, tau).amax(-1).mean().item()


path = walk()


def draw_step(step):
    figure, axes = plt.subplots(1, K, figsize=(8.5, 2.9), layout="constrained")
    draw_memberships(axes, head_memberships(path[step], U, tau).numpy())
    value = layer.objective_at(path[step]).value(path[step]).item()
    figure.suptitle(f"after {step} steps: R_var {value:.3f} nats, mean largest membership {sharpness(path[step]):.2f}")


knob(draw_step, "steps", [0, 5, 10, 15, 20, 25, 30, 40, 50], start=4, play=True, text="memberships as steps go by")
walks = {"steps": path, "tokens put back to their lengths": walk(restore=True), "and uphill": walk(-1, restore=True)}
for name, found in walks.items():
    print(f"{name:33s} mean largest membership {sharpness(Z):.2f} → {sharpness(found[-1]):.2f} (1/K = {1 / K:.2f})")
assert sharpness(path[-1]) < 0.26 and sharpness(walks["tokens put back to their lengths"][-1]) < 0.6
assert sharpness(walks["and uphill"][-1]) > sharpness(Z)

# %% [markdown]
# Compression dissolves the segmentation: a token moves in a head in proportion to its membership there, which takes
# away what made it a member. It is not only that short tokens have flat memberships: put back to their lengths after
# every step, tokens still lose their heads, and uphill they keep them. That is the step by itself, on fixed bases;
# trained networks have learned bases, free output matrices and normalisation between steps.
#
# ## 6. Would we notice?
#
# The softmax along the wrong axis (over tokens, as in attention between tokens), and $n_k$ forgotten in the gates, so
# that they see sums instead of means. Both run, and both lower the rate that the right layer declares.

# %%
over_tokens = softmax(tau * (w**2).sum(-1), axis=1).T
wrong = {
    "softmax over tokens": tssa(z, over_tokens, over_tokens.sum(0))[0],
    "n_k dropped": tssa(z, Pi, np.ones(K))[0],
}
for name, change in wrong.items():
    error = np.linalg.norm(change - update) / np.linalg.norm(update)
    lower = rate.value(Z - torch.from_numpy(change) / alpha).item()
    print(f"{name:20s} error {error:.3f} of the displacement;  R_var {rate.value(Z):.4f} → {lower:.4f}")
    assert error > 0.9 and lower < rate.value(Z)

# %% [markdown]
# ## 7. What does freezing Π hide?
#
# Memberships are made of tokens. Let them move, and with $g_{ik} = \partial R_{\mathrm{var}}/\partial \Pi_{ik}$ the
# gradient gains
#
# $$\sum_k 2\tau\,\mathrm{diag}\Big(\pi_k\circ\big(g_k - \textstyle\sum_l \pi_l\circ g_l\big)\Big)\,W_k\,U_k^\top$$
#
# How much is that on the photograph, over the temperature? And is the step always downhill on the function whose
# memberships move along? No: two tokens, (0, 1) and (20, 0), with the axes as heads and $\tau = \epsilon = 1$, where it
# is uphill.

# %%
from objectives import SoftVariationalRate


def cosine_and_ratio(soft, x):
    frozen, full = soft.frozen_at(x).gradient(x), soft.gradient(x)
    return float((frozen * full).sum() / frozen.norm() / full.norm()), float(frozen.norm() / full.norm())


temperatures = np.geomspace(0.1, 300, 15)
measured = np.array([cosine_and_ratio(SoftVariationalRate(U, float(t), epsilon), Z) for t in temperatures])
plt.figure(figsize=(5.5, 3.3), layout="constrained")
plt.semilogx(temperatures, measured[:, 0], "o-", color=blue, label="cosine")
plt.semilogx(temperatures, measured[:, 1], "s--", color=orange, label="norm ratio")
plt.axvline(tau, color=grey, ls=":"), plt.ylim(0, 1.05), plt.xlabel("temperature τ"), plt.legend()
plt.title("gradient with Π frozen against the full gradient", fontsize=10)
plt.show()
here = cosine_and_ratio(SoftVariationalRate(U, tau, epsilon), Z)
print(f"τ = {tau:.0f}: cosine {here[0]:.2f}, norm ratio {here[1]:.2f}")
assert measured.min() > 0.75 and here[0] > 0.9

pair = torch.tensor([[0.0, 1.0], [20.0, 0.0]], dtype=torch.float64)
soft = SoftVariationalRate(torch.eye(2, dtype=torch.float64).reshape(2, 2, 1), 1.0, 1.0)
x = pair.clone().requires_grad_()
soft.value(x).backward()
frozen = soft.frozen_at(pair)
down = pair - 0.1 * frozen.gradient(pair)
print(f"two tokens: cosine {cosine_and_ratio(soft, pair)[0]:.2f};  the frozen step takes R_var", end=" ")
print(f"{frozen.value(pair):.4f} → {frozen.value(down):.4f} with Π frozen, → {soft.value(down):.4f} with Π moving")
assert torch.allclose(x.grad, soft.gradient(pair)) and cosine_and_ratio(soft, pair)[0] < -0.9
assert frozen.value(down) < frozen.value(pair) and soft.value(down) > soft.value(pair)

# %% [markdown]
# ## 8. What does it cost?
#
# Two projections and the second moments, $2NdKp + NKp$ multiply-adds, counted while the layer runs; and no tensor on
# the way is larger than the tokens. MSSA of the same sizes multiplies every token with every other.

# %%
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from unrolling import MSSA


class Largest(TorchDispatchMode):
    """Remembers the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        sizes = [r.numel() for r in (result if isinstance(result, (tuple, list)) else [result]) if torch.is_tensor(r)]
        self.numbers = max([self.numbers, *sizes])
        return result


def counted(layer, tokens):
    x = torch.randn(tokens, d, dtype=torch.float64)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        layer(x)
    with torch.no_grad(), Largest() as largest:
        layer(x)
    return counter.get_total_flops() // 2, largest.numbers


pairs = MSSA(d, K, U=U, basis="free", form="softmax", kernel="plain")
print(f"{'tokens':>8s} {'TSSA':>12s} {'largest tensor':>15s} {'MSSA':>14s} {'largest tensor':>15s}")
for tokens in (256, 512, 1024):
    few, small = counted(layer, tokens)
    many, large = counted(pairs, tokens)
    print(f"{tokens:8,d} {few:12,d} {small:15,d} {many:14,d} {large:15,d}")
    assert few == 2 * tokens * d * K * p + tokens * K * p and small == tokens * d
    assert large == K * tokens**2

# %% [markdown]
# ## 9. And if no token may see a later one?
#
# All that a token learns of the others are sums, so a causal form takes prefix sums, over $j \le i$, and $i$ in the
# place of $N$. Its token $i$ is the plain layer's last token on the prefix. How much does the update of token $i$
# depend on token $j$? One row of patches of the photograph:

# %%
row = Z.reshape(*photo.grid, d)[18]
length = torch.arange(1, len(row) + 1, dtype=torch.float64).numpy()[:, None]
common = {"U": U, "basis": "free", "eta": 1 / (2 * tau), "epsilon": epsilon, "step_size": epsilon**2 / d}
plain, causal = (TSSA(d, K, causal=c, **common).requires_grad_(False) for c in (False, True))

wr, Pr = row.numpy() @ u, head_memberships(row, U, tau).numpy().T[..., None]
s = np.cumsum(Pr * wr**2, axis=1)
gates = 1 / (1 + d / epsilon**2 * s / np.cumsum(Pr, axis=1))
change = (d / (length * epsilon**2) * Pr * wr * gates @ u.swapaxes(-1, -2)).sum(0)
assert np.allclose(causal(row).numpy(), row.numpy() - epsilon**2 / d * change, rtol=1e-12)
assert all(torch.allclose(causal(row)[i], plain(row[: i + 1])[i], rtol=1e-12) for i in range(len(row)))

figure, axes = plt.subplots(1, 2, figsize=(7.5, 3.5), layout="constrained")
for axis, form, title in zip(axes, (plain, causal), ("plain", "causal")):
    jacobian = torch.autograd.functional.jacobian(form.update, row)
    reach = torch.linalg.matrix_norm(jacobian.transpose(1, 2))
    shown = axis.imshow(torch.where(reach > 0, reach, torch.nan).numpy(), norm="log", cmap="viridis")
    shown.set_clim(1e-6, 1)
    axis.set(xlabel="token j", ylabel="token i", title=title)
    assert (reach.triu(1) == 0).all() == (title == "causal")
figure.colorbar(shown, ax=axes, label="norm of ∂(update of i)/∂(token j)")
plt.show()

# %% [markdown]
# White: no dependence. A triangular Jacobian with anything below its diagonal is not symmetric, so the causal form is
# no gradient of a function of the sequence (nor is it with Π held constant: `proofs-check show tssa.causal.potential`).
# It descends one objective a token, that of the prefix that ends there, with the past held constant.
#
# ## 10. Check the layers
#
# **Exercise 1.** CBSA's channel attention ([3. CBSA](03_cbsa.py), section 8) shrinks channels by second moments, too.
# Which memberships, which ε and which step make TSSA of it?
#
# <details><summary>Solution</summary>
#
# ```python
# from unrolling import CBSA, Axes
# channel = CBSA(d, K, U=U, basis="free", representatives=Axes(), epsilon=epsilon, step_size=-1.0).requires_grad_(False)
# even = torch.full((N, K), 1 / K, dtype=torch.float64)   # no memberships at all
# same = K * VariationalRate(U, even, epsilon * (d / N) ** 0.5).gradient(Z)   # then d/(Nε²) is 1/ε², and n_k = N/K
# print(float((channel.update(Z) - same).norm() / same.norm()))
# assert torch.allclose(channel.update(Z), same, rtol=1e-10)
# ```
# </details>
#
# **Exercise 2.** Give every head the eigenvectors of its class, so that the bound is tight, and take one step. Is it
# tight afterwards?
#
# <details><summary>Solution</summary>
#
# ```python
# tight = VariationalRate(torch.from_numpy(bases["each class's own eigenvectors"]), members, epsilon)
# for x in (Z, Z - tight.gradient(Z) / alpha):
#     print(f"R_var {tight.value(x):.4f}, R_c {RateReduction(members, epsilon).compression(x):.4f}")
# gap = tight.value(x) - RateReduction(members, epsilon).compression(x)
# assert gap > 1e-3   # memberships are soft: tokens of one class move by different amounts, and with other classes
# ```
# </details>
#
# The cell below puts both layers to inputs of many scales, and the bound to the library's claim, whose wrong versions
# must fail. "Holds on 48 cases" is not a proof (Hadamard's inequality is one, of the bound); and for the layers it says
# that they descend with Π held constant, at a step for which section 7 shows what else can happen.

# %%
from proofs_check import Campaign, check_layer, find, run_claim

print(check_layer(layer))
print(check_layer(causal))
claim = run_claim(find("variational_rate.bound"), Campaign(cases=5))
rejected = sum(mutant.killed for mutant in claim.mutants)
print(f"{claim.id} {claim.status} on {claim.cases} cases; {rejected} of {len(claim.mutants)} wrong versions rejected")
