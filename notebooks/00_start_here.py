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
# # Start here: a layer is an arrow, an objective is a landscape
#
# An attention layer moves tokens. Downhill on what? For many layers there is an answer: a function of the tokens
# whose descent step *is* the layer's forward pass, to rounding. This page shows it in one picture, tries it on a
# photograph, draws the map of all layers and objectives here, and says how to read a verdict. At the end you will
# know what "holds", "evidence", "refuted" and "vacuous" mean, and which notebook to open next.
#
# Tokens are **rows** throughout: $Z$ is $N \times d$. Papers have them in columns.
#
# ## 1. Can attention go downhill?
#
# Take keys $k_j$ in the plane, and for a query $q$ the energy
#
# $$E(q) = \tfrac12 \Vert q\Vert^2 - \tfrac1s \log\sum_j e^{s\, q\cdot k_j},
# \qquad q - \nabla E(q) = \mathrm{softmax}(s\, q K^\top)\, K$$
#
# (modern Hopfield networks, arXiv 2008.02217). The step of size 1 is attention itself. Arrows below are gradient
# steps, by autograd, of the energy written in one line; rings are what `torch` calls attention. Turn $s$ up: at first
# there is one valley for all keys, at last one for each.

# %%
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.nn.functional import scaled_dot_product_attention

from objectives import CrossAttentionEnergy
from unrolling.knob import knob

BLUE, ORANGE, GREY = "#0072b2", "#d55e00", "#8a8c93"
rng = np.random.default_rng(1)
keys = torch.tensor([[1.0, 0.3], [0.2, 1.1], [-1.0, 0.7], [-0.7, -0.9], [0.6, -1.0]], dtype=torch.float64)
queries = torch.from_numpy(rng.uniform(-1.7, 1.7, size=(14, 2)))
axis_points = torch.linspace(-1.9, 1.9, 120, dtype=torch.float64)
plane = torch.cartesian_prod(axis_points, axis_points)


def energy(q, s):
    return 0.5 * (q * q).sum(-1) - torch.logsumexp(s * q @ keys.T, -1) / s


def descended(q, s):
    q = q.clone().requires_grad_()
    return (q - torch.autograd.grad(energy(q, s).sum(), q)[0]).detach()


def draw_landscape(s):
    figure, axis = plt.subplots(figsize=(6.2, 5.6), layout="constrained")
    heights = energy(plane, s).reshape(120, 120).T
    axis.contourf(axis_points, axis_points, heights, 18, cmap="Blues_r", alpha=0.6)
    arrow = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.005}
    axis.quiver(*queries.T, *(descended(queries, s) - queries).T, color="black", **arrow)
    axis.plot(*scaled_dot_product_attention(queries, keys, keys, scale=s).T, "o", ms=11, mfc="none", mec=ORANGE, mew=2)
    axis.plot(*keys.T, "k+", ms=11, mew=2), axis.set_aspect("equal"), axis.set(xlim=(-1.9, 1.9), ylim=(-1.9, 1.9))
    axis.set_title(f"s = {s:g}: arrows descend, rings attend, crosses are keys")


scales = [0.5, 1.0, 2.0, 3.0, 5.0, 8.0, 15.0, 30.0]
knob(draw_landscape, "s", scales, start=4, text="contours of an energy; its steps end where attention does")
for s, valleys in ((0.5, 1), (30.0, 5)):
    attended = scaled_dot_product_attention(queries, keys, keys, scale=s)
    library = queries - CrossAttentionEnergy(keys, s, quadratic=True).gradient(queries)
    for landed in (attended, library):
        assert (descended(queries, s) - landed).norm() < 1e-13 * (landed - queries).norm()
    q = plane[::37]
    for _ in range(200):
        q = descended(q, s)
    assert len(np.unique(q.round(decimals=4), axis=0)) == valleys

# %% [markdown]
# ## 2. And on a photograph?
#
# Four words, and one contract. An **objective** $f$ is a scalar function of tokens. A **step** makes new tokens of
# it. A **layer** *declares* objective and step size, and *implements* a fast formula that calls neither. A **claim**
# says that they agree:
#
# $$\mathrm{layer}(Z) = Z - \kappa\,\nabla f(Z)$$
#
# Here the tokens are patches of a photograph, and $f = R_c$ adds up the coding rates of their coordinates in three
# subspaces ([1. The coding rate](01_coding_rate.py),
# [2. From the coding rate to attention](02_from_rate_to_attention.py)); the layer is MSSA, multi-head subspace
# self-attention. On the right: how far it moves each patch, against the length of its token. Patches with edges and
# texture move most, even ones least.

# %%
from objectives import SubspaceCodingRate
from proofs_check.inputs import default_image, from_image
from unrolling import MSSA

photo = from_image(default_image())
Z = torch.from_numpy(photo.tokens)
N, d = Z.shape
K, p, epsilon = 3, 8, 0.5
U = torch.from_numpy(np.linalg.qr(rng.normal(size=(d, d)))[0].reshape(d, K, p).transpose(1, 0, 2).copy())
beta = p / (N * epsilon**2)

z = Z.clone().requires_grad_()
f = sum(0.5 * torch.logdet(torch.eye(p, dtype=z.dtype) + beta * (z @ U_k).T @ (z @ U_k)) for U_k in U)
step = Z - torch.autograd.grad(f, z)[0] / beta
layer = MSSA(d, K, U=U, epsilon=epsilon, step_size=1 / beta)
moved = layer(Z).detach() - Z
error = float((Z + moved - step).norm() / moved.norm())
print(f"{N} patches; the layer and the step differ by {error:.1e} of what the step moves")
assert error < 1e-12 and torch.isclose(f, SubspaceCodingRate(U, epsilon).value(Z))

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 4.4), layout="constrained")
left.imshow(photo.image), left.set_title(f"{photo.grid[0]} × {photo.grid[1]} patches"), left.axis("off")
share = (moved.norm(dim=1) / Z.norm(dim=1)).reshape(photo.grid)
shown = right.imshow(share, cmap="cividis", vmin=0)
right.set_title("step / token, in length"), right.axis("off"), figure.colorbar(shown, shrink=0.8)
plt.show()
grey = photo.image.mean(-1).reshape(photo.grid[0], photo.patch, photo.grid[1], photo.patch)
contrast = grey.std((1, 3))
assert np.corrcoef(contrast.ravel(), share.ravel())[0, 1] > 0.8

# %% [markdown]
# ## 3. Up or down?
#
# Does attention compress? The exact step descends $R_c$ while $\kappa < 2/\beta$ (here $\kappa = 1/\beta$). Published
# blocks *add* the softmax form, $Z + \mathrm{MSSA}(Z)$, with
#
# $$\mathrm{MSSA}(Z) = \sum_k \mathrm{softmax}(s W_k W_k^\top)\, W_k U_k^\top, \qquad W_k = Z U_k$$
#
# Added, it raises the rate here; subtracted, it lowers it. But every rate falls when all tokens shrink, so look also
# at the same tokens brought to norm 1: there the two change places, and ½ Z + ½ MSSA is Z + MSSA. Whether attention
# compresses is a question of sign, skip connection and norm. Other tokens may answer it differently (claim
# `mssa.sign.table`).

# %%
Rc = SubspaceCodingRate(U, epsilon)
coordinates = [Z @ U_k for U_k in U]
mssa = sum(torch.softmax(w @ w.T / p**0.5, -1) @ w @ U_k.T for w, U_k in zip(coordinates, U))
rules = {"Z": Z, "exact step": step, "½ Z + ½ MSSA": 0.5 * (Z + mssa), "Z − MSSA": Z - mssa, "Z + MSSA": Z + mssa}
nats = {name: float(Rc.value(x)) for name, x in rules.items()}
unit = {name: float(Rc.value(x / x.norm(dim=-1, keepdim=True))) for name, x in rules.items()}

figure, axes = plt.subplots(1, 2, figsize=(9, 3), sharey=True, layout="constrained")
for axis, found, title in ((axes[0], nats, "R_c in nats"), (axes[1], unit, "R_c of the tokens at norm 1")):
    colours = [GREY if x == found["Z"] else ORANGE if x > found["Z"] else BLUE for x in found.values()]
    axis.bar_label(axis.barh([*found], [*found.values()], color=colours), fmt="%.2f", padding=3)
    axis.axvline(found["Z"], color=GREY, lw=1), axis.set_title(title), axis.margins(x=0.15)
axes[0].invert_yaxis()
plt.show()
assert max(nats["exact step"], nats["Z − MSSA"]) < nats["Z"] < nats["Z + MSSA"]
assert unit["exact step"] < unit["Z + MSSA"] < unit["Z"] < unit["Z − MSSA"]

# %% [markdown]
# ## 4. Which layer goes down which landscape?
#
# The map, drawn from what `proofs-check list --markdown` prints: it builds every layer and asks it. On a solid line
# the objective is one function; on a dashed one something is held constant (keys, weights, memberships, data), mostly
# what was computed from the tokens themselves, so that the objective is another function at every point. What such an
# objective stands in for is in grey; how well it does is measured, not claimed.

# %%
from proofs_check.table import layers_table

rows = [line for line in layers_table().splitlines() if line.startswith("|")][2:]
table = [[cell.strip(" `") for cell in row.split("|")[1:-1]] for row in rows]
order = list(dict.fromkeys(line[2] for line in table))
lines = sorted(table, key=lambda line: order.index(line[2]))  # rows of one objective side by side
height = {name: np.mean([row for row, line in enumerate(lines) if line[2] == name]) for name in order}
instead = {name: sorted({line[4] for line in lines if line[2] == name} - {"–"}) for name in order}

styles = {"nothing is frozen": {"color": BLUE, "ls": "-"}, "something is frozen": {"color": ORANGE, "ls": "--"}}
figure, axis = plt.subplots(figsize=(9, 6.6), layout="constrained")
for row, (name, form, objective, frozen, _, _) in enumerate(lines):
    axis.text(-0.02, row, f"{name} · {form}", ha="right", va="center", fontsize=8.5)
    style = styles["nothing is frozen" if frozen == "nothing" else "something is frozen"]
    axis.plot([0, 1], [row, height[objective]], lw=1.5, **style)
for objective, y in height.items():
    said = axis.text(1.02, y, objective, va="center", fontsize=8.5)
    small = f"   for {', '.join(instead[objective])}" if instead[objective] else ""
    axis.annotate(small, (1, 0.5), xycoords=said, va="center", fontsize=7.5, color="#6b6d74")
for name, style in styles.items():
    axis.plot([], [], lw=1.5, label=name, **style)
axis.legend(frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.45, 0.97))
axis.set(xlim=(-1.6, 2.7), ylim=(len(lines), -1)), axis.axis("off")
plt.show()
free = sum(line[3] == "nothing" for line in lines)
print(f"{len(lines)} rows, {len(order)} objectives; {free} rows freeze nothing")

# %% [markdown]
# ## 5. What does a verdict say?
#
# A claim has a **kind**, and its run ends in a **verdict**:
#
# - **holds** on so many *cases*: structured and drawn tokens of many sizes, scales and ranks. Agreement in numbers;
#   not a proof.
# - **evidence**: the cases that could have told right from wrong. Zero tokens move nowhere, and show nothing.
# - **error** and **tolerance**: for steps, the error is relative to what the step *moves*, never to the tokens. The
#   tolerance is what rounding may do to the case at hand.
# - **wrong versions** (mutants): sign flipped, ε for ε², another count in β … Each must be rejected on some case.
# - **vacuous**: it held, but let a wrong version through, or under half its cases were evidence. That fails the run.
# - **refuted**: natural to believe, and false; the counterexample was found again in this run.
# - **measured**: numbers are reported, their size is not claimed. **open**: a conjecture that this run did not break.
#
# One claim of each kind, with few cases. Dots are the library's worst errors, crosses those of wrong versions,
# divided by their tolerances. (Wrong versions of refuted and open statements have no error: they are rejected where
# the statement would come out otherwise.)

# %%
from proofs_check import Campaign, find, run_claim

names = """mssa.step.exact coding_rate.singular_values mssa.sign.exact_descends coding_rate.hessian mssa.neumann
coding_rate.cost mssa.sign.table mssa.sign.minus_descends mssa.sign.fewest_tokens""".split()
verdicts = [run_claim(find(name), Campaign(cases=5)) for name in names]
for v in verdicts:
    rejected = f"{sum(m.killed for m in v.mutants)}/{len(v.mutants)}"
    print(f"{v.kind:10} {v.status:8} {v.cases:2} cases, {v.evidence:2} evidence, {rejected:>5} rejected. {v.statement}")
    assert v.status in ("holds", "measured", "refuted", "open") and all(m.killed for m in v.mutants)

figure, axis = plt.subplots(figsize=(8.5, 3.6), layout="constrained")
for row, v in enumerate(verdicts):
    wrong = [min(m.margin, 1e14) for m in v.mutants if m.margin is not None]
    axis.plot(wrong, [row] * len(wrong), "x", color=ORANGE, label="wrong versions" if row == 0 else None)
    worst = v.worst_error / v.tolerance if v.tolerance else 0.0
    axis.plot(max(worst, 1e-8), row, "o", color=BLUE, label="the library" if row == 0 else None)
axis.axvline(1, color="black", lw=1), axis.set_xscale("log"), axis.set_xlim(3e-9, 3e14), axis.invert_yaxis()
axis.set_yticks(range(len(verdicts)), [f"{v.id}  ({v.kind})" for v in verdicts])
axis.set_xlabel("error / tolerance (1e-8 stands for less, 1e14 for more)")
axis.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# ## 6. What does "vacuous" look like?
#
# Take a good claim and a bad choice of cases: only ε = 1. The right gradient agrees on all of them, and so does the
# one with ε where ε² belongs. The claim lets it through, and says so.

# %%
import dataclasses

claim = find("coding_rate.gradient")
always_one = claim.domain.map(lambda case: dataclasses.replace(case, epsilon=1.0, scale=1.0))
blind = run_claim(dataclasses.replace(claim, domain=always_one, structured=()), Campaign(cases=10))
print(f"{blind.status}: agreed on {blind.cases} cases, error {blind.worst_error:.0e}, but {blind.reason}")
assert blind.status == "vacuous" and "epsilon for its square" in blind.reason

# %% [markdown]
# ## 7. And a failure?
#
# The same mistake in a layer. The message says on how many inputs the forward pass is not the declared step; what is
# wrong, if it is one of the known mistakes; and the smallest input that shows it, as lines to paste.

# %%
from torch import nn

from proofs_check import ClaimFailed, check_layer


class Mistaken(nn.Module):
    dim, step_size = d, 1 / beta

    def objective_at(self, x):
        return SubspaceCodingRate(U, epsilon)

    def forward(self, x):
        return MSSA(d, K, U=U, epsilon=epsilon**0.5, step_size=self.step_size)(x)


message = ""
try:
    check_layer(Mistaken())
except ClaimFailed as problem:
    message = str(problem)
print(message)
assert "epsilon stands where epsilon² belongs" in message

# %% [markdown]
# ## 8. Where to go?
#
# 1. [The coding rate](01_coding_rate.py): a number of ε-balls, and what exact steps do to singular values, animated.
# 2. [From the coding rate to attention](02_from_rate_to_attention.py): one photograph, every step.
# 3. [CBSA](03_cbsa.py): contract a few representatives, and let all tokens follow.
# 4. [ToST](04_tost.py): attention without a product of two tokens, from the statistics of channels.
# 5. [ISTA and the CRATE block](05_ista_and_crate.py): the feed-forward block as sparse coding.
# 6. [DEPICT](06_depict.py): principal directions as classes, and their products with patches as masks.
# 7. [MiTA](07_mita.py): attention as a regression that few landmarks and routed keys approximate.
# 8. [Energies of softmax layers](08_energies.py): what softmax attention descends exactly, and what freezing hides.
# 9. [Breaking proofs](09_breaking_proofs.py): what every random draw confirms, and a few tokens break.
# 10. [Your own layer](10_your_own_layer.py): derive one, check it, and train it.
#
# **Exercise 1.** Leave $\frac12\Vert q\Vert^2$ out of the energy of section 1. What is the step now, and where does
# it lead?
#
# <details><summary>Solution</summary>
#
# ```python
# without, q = CrossAttentionEnergy(keys, 5.0), queries
# for _ in range(20):
#     q = q - without.gradient(q)  # q + attention(q): a skip connection, and no valley to stop in
# print(without.value(queries), without.value(q), q.norm(dim=1).min())
# assert without.value(q) < without.value(queries) and q.norm(dim=1).min() > 10
# ```
# </details>
#
# **Exercise 2.** How many claims are there of each kind, and how many wrong versions do they have to reject?
#
# <details><summary>Solution</summary>
#
# ```python
# from collections import Counter
#
# from proofs_check import CLAIMS
#
# print(Counter(claim.kind for claim in CLAIMS), sum(len(claim.mutants) for claim in CLAIMS))
# assert all(claim.mutants for claim in CLAIMS)
# ```
# </details>
#
# The last cell holds three layers to their contract on 48 inputs each. That they hold says that the code is the
# declared step, to rounding, on those inputs; not that it is so on all, nor that the objective is a good one.

# %%
from unrolling import CBSA, TSSA, SequencePool

torch.manual_seed(0)
for one in (layer, CBSA(12, 3, representatives=SequencePool(4), form="softmax"), TSSA(12, 3)):
    print(check_layer(one))
