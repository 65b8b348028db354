"""What several tests need: reverse mode, a sampled smoothness constant."""

import torch


def reverse_mode(objective, x):
    z = x.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(objective.value(z).sum(), z)
    return gradient


def sampled_stretch(objective, x, draws=20):
    """The largest ‖∇f(a) − ∇f(b)‖ / ‖a − b‖ seen near x, on one token set."""
    x = x.reshape(-1, *x.shape[-2:])[0]
    stretches = []
    for size in torch.logspace(-3, 1, draws).tolist():
        a, b = (x + size * torch.randn_like(x) for _ in range(2))
        stretches.append(float((objective.gradient(a) - objective.gradient(b)).norm() / (a - b).norm()))
    return max(stretches)
