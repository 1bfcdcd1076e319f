"""Sharpness-aware minimization (SAM), its adaptive form (ASAM), and a measure of sharpness."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from acl_plugin.validation import refused_value, require_not_negative, require_positive


@contextmanager
def ascend(
    parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], rho: float, adaptive: bool = False
) -> Iterator[None]:
    """Move the weights to theta + e inside the context, then restore them exactly.

    SAM: e = rho g / ||g||_2. ASAM (``adaptive``): e = rho theta^2 g / || |theta| g ||_2 with products per weight, which
    does not depend on the scale of a layer.

    Args:
        parameters: theta.
        gradients: g, one per parameter; None counts as zero.
        rho: radius in weight space, at least 0.
        adaptive: move by ASAM.

    Raises:
        UsageError: for a negative rho.

    Source: SAM (arXiv 2010.01412), equation 2 with p = 2; ASAM (arXiv 2102.11600), equation 2, without its eta.

    Example:
        >>> theta, g = torch.nn.Parameter(torch.tensor([2.0, 1.0])), torch.tensor([3.0, 8.0])
        >>> with acl_plugin.losses.sharpness.ascend([theta], [g], 0.5, adaptive=True):
        ...     print(theta.data)
        tensor([2.6000, 1.4000])
    """
    require_not_negative(rho=rho)
    moved = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    with restored([p for p, _ in moved]):
        if moved and adaptive:
            scaled = norm([p.detach().abs() * g for p, g in moved])
            _move([(p, p.detach().square() * g) for p, g in moved], rho, scaled)
        elif moved:
            _move(moved, rho)
        yield


def sharpness(
    parameters: Sequence[nn.Parameter], loss: Callable[[], Tensor], rho: float, steps: int = 10
) -> tuple[float, float]:
    """Return the loss at theta and the largest loss found in the ball ||d||_2 <= rho around it.

    Projected gradient ascent moves by rho / 4 along the normalized gradient at theta + d, then projects onto the ball.
    The result is a lower bound of the maximum. The weights are restored exactly.

    Args:
        parameters: theta; parameters without ``requires_grad`` stay fixed.
        loss: returns the loss () at the current weights.
        rho: radius in weight space, above 0.
        steps: number of ascent steps, at least 1.

    Returns:
        The loss at theta, and max_d loss(theta + d), which is at least as large.

    Raises:
        UsageError: for a radius or a number of steps that is not above 0, or parameters that all stay fixed.
    """
    require_positive(rho=rho, steps=steps)
    if not any(p.requires_grad for p in parameters):
        raise refused_value("parameters", "all fixed", "parameters of which some require a gradient")
    moved = [p for p in parameters if p.requires_grad]
    found = []
    with restored(moved) as theta:
        for _ in range(steps + 1):
            with torch.enable_grad():
                value = loss()
                gradients = torch.autograd.grad(value, moved, materialize_grads=True)
            found.append(value.item())
            _move(list(zip(moved, gradients, strict=True)), rho / 4)
            with torch.no_grad():
                away = norm([p - start for p, start in zip(moved, theta, strict=True)])
                for p, start in zip(moved, theta, strict=True):
                    p.copy_(start + (p - start) * (rho / away.clamp_min(rho)))
    return found[0], max(found)


@contextmanager
def restored(parameters: Sequence[nn.Parameter]) -> Iterator[list[Tensor]]:
    """Restore the weights bit for bit on exit; yield copies of them."""
    before = [p.detach().clone() for p in parameters]
    try:
        yield before
    finally:
        with torch.no_grad():
            for p, value in zip(parameters, before, strict=True):
                p.copy_(value)


def norm(tensors: Sequence[Tensor]) -> Tensor:
    """Return the Euclidean norm () over all entries of all tensors."""
    return torch.stack([t.norm() for t in tensors]).norm()


@torch.no_grad()
def _move(moved: Sequence[tuple[nn.Parameter, Tensor]], length: float, total: Tensor | None = None) -> None:
    """Move all parameters along their directions times ``length`` / ``total``; None is the norm of all directions."""
    total = (norm([g for _, g in moved]) if total is None else total).clamp_min(1e-12)
    for p, g in moved:
        p.add_(g * (length / total))
