"""Sharpness-aware minimisation: look at the loss from a little way up its gradient."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def ascend(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None], rho: float) -> Iterator[None]:
    """Inside, the weights stand at theta + rho g / ||g||_2; afterwards they are restored exactly.

    Args:
        parameters: theta.
        gradients: g, one for each parameter; None counts as zero.
        rho: length of the step in weight space, at least 0.

    Source: SAM (arXiv 2010.01412), equation 2 with p = 2.
    """
    moved = [(p, g) for p, g in zip(parameters, gradients, strict=True) if g is not None]
    before = [p.detach().clone() for p, _ in moved]
    if moved:
        norm = torch.stack([g.norm() for _, g in moved]).norm()
        with torch.no_grad():
            for p, g in moved:
                p.add_(g * (rho / norm.clamp_min(1e-12)))
    try:
        yield
    finally:
        with torch.no_grad():
            for (p, _), value in zip(moved, before, strict=True):
                p.copy_(value)
