"""Measure how much a loss rises when each weight moves in proportion to its size.

Both measures stay the same when the convolutions before BatchNorm layers are rescaled, which changes no output: the
perturbations are rescaled with the weights. In contrast, a ball of fixed radius reads any value.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from acl_plugin.losses.sharpness import norm, restored


def adaptive_sharpness(
    parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor], rho: float, steps: int = 5
) -> tuple[Tensor, Tensor]:
    """Return the losses at theta, and the largest ones found in the ball ||d / |theta| ||_2 <= rho around it.

    Projected gradient ascent on u = d / |theta| moves by rho / 2 along the normalized gradient, and projects onto the
    ball. The result is a lower bound of the maximum. The weights are restored exactly.

    Args:
        parameters: theta; parameters without ``requires_grad`` stay fixed.
        loss: returns the losses (B,) at the current weights; their mean is maximized.
        rho: radius, above 0.
        steps: number of ascent steps.

    Returns:
        (B,) losses at theta, and (B,) losses at the worst weights found.

    Source: ASAM (arXiv 2102.11600), equation 4 with the elementwise normalization operator.
    """
    moved = [p for p in parameters if p.requires_grad]
    found = []
    with restored(moved) as theta:
        sizes = [p.abs() for p in theta]
        u = [torch.zeros_like(p) for p in theta]
        for step in range(steps + 1):
            with torch.enable_grad():
                rows = loss()
                gradients = torch.autograd.grad(rows.mean(), moved, materialize_grads=True)
            found.append(rows.detach())
            if step == steps:
                break
            gradients = tuple(g * size for g, size in zip(gradients, sizes, strict=True))
            length = rho / 2 / norm(gradients).clamp_min(1e-30)
            u = [x + length * g for x, g in zip(u, gradients, strict=True)]
            shrink = rho / norm(u).clamp_min(rho)
            u = [shrink * x for x in u]
            _set(moved, theta, sizes, u)
    return found[0], max(found, key=lambda rows: rows.mean().item())


def noise_sharpness(
    parameters: Sequence[nn.Parameter],
    loss: Callable[[], Tensor],
    sigma: float,
    generator: torch.Generator,
    draws: int = 4,
) -> Tensor:
    """Return the expected losses (B,) under Gaussian noise of standard deviation sigma |theta|, over some draws.

    The weights are restored exactly.

    Args:
        parameters, loss: see ``adaptive_sharpness``.
        sigma: standard deviation relative to each weight, above 0.
        generator: source of the noise, on the CPU.
        draws: number of draws.
    """
    moved = [p for p in parameters if p.requires_grad]
    found = []
    with restored(moved) as theta, torch.no_grad():
        sizes = [p.abs() for p in theta]
        for _ in range(draws):
            noise = [sigma * torch.randn(p.shape, generator=generator).to(p) for p in theta]
            _set(moved, theta, sizes, noise)
            found.append(loss())
    return torch.stack(found).mean(0)


@torch.no_grad()
def _set(moved: Sequence[nn.Parameter], theta: Sequence[Tensor], sizes: Sequence[Tensor], u: Sequence[Tensor]) -> None:
    for p, start, size, each in zip(moved, theta, sizes, u, strict=True):
        p.copy_(start + size * each)
