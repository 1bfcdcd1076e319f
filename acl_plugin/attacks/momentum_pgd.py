"""Projected gradient descent with momentum, as in the code of FARE (Schlarmann et al., ICML 2024)."""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.registry import ATTACKS


@ATTACKS.register("MomentumPGD")
class MomentumPGD:
    """PGD that follows the direction of a velocity v: v <- n(momentum v + n(g)), x' <- x' + alpha v.

    g is the gradient, and n the sign for Linf and the division by the L2 norm of each sample for L2. For Linf and a
    momentum below 1 the sign of v is that of g wherever g is not exactly 0, so that the result is PGD's but for pixels
    without a gradient, which move on. torchattacks' MIFGSM accumulates gradients and takes signs for the step alone.

    The interface is that of ``torchattacks.Attack``.

    Args:
        model: (B, C, H, W) -> (B, K) logits.
        eps: radius of the ball.
        alpha: step size, above 0.
        steps: number of steps, at least 1.
        momentum: factor of the velocity, at least 0.
        random_start: start at uniform noise in [-eps, eps], which is projected onto the ball for L2 and not clipped to
            [0, 1] before the first step; otherwise at the image. At the image itself a distance to the image's own
            embedding has no gradient.
        norm: ``Linf`` or ``L2``.

    Source: arXiv 2402.12336, its authors' code (train/pgd_train.py).
    """

    norms, whole_batch = ("Linf", "L2"), True
    supported_mode = ("default",)

    def __init__(
        self,
        model: Any,
        eps: float = 4 / 255,
        alpha: float = 1 / 255,
        steps: int = 10,
        *,
        momentum: float = 0.9,
        random_start: bool = True,
        norm: Literal["Linf", "L2"] = "Linf",
    ) -> None:
        self.model, self.eps, self.alpha, self.steps = model, eps, alpha, steps
        self.momentum, self.random_start, self.linf = momentum, random_start, norm == "Linf"

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return (B, C, H, W) adversarial examples of (B, C, H, W) images, away from (B,) labels."""
        delta = torch.zeros_like(images)
        if self.random_start:
            delta = self._project(delta.uniform_(-self.eps, self.eps))
        velocity = torch.zeros_like(images)
        for _ in range(self.steps):
            delta.requires_grad_()
            loss = F.cross_entropy(self.model(images + delta), labels)
            gradient = torch.autograd.grad(loss, delta)[0].nan_to_num(nan=0.0)
            velocity = self._direction(self.momentum * velocity + self._direction(gradient))
            delta = self._project(delta.detach() + self.alpha * velocity)
            delta = (images + delta).clamp(0, 1) - images
        return images + delta

    def _direction(self, gradient: Tensor) -> Tensor:
        return gradient.sign() if self.linf else F.normalize(gradient.flatten(1), dim=1).view_as(gradient)

    def _project(self, delta: Tensor) -> Tensor:
        return delta.clamp(-self.eps, self.eps) if self.linf else torch.renorm(delta, 2, 0, self.eps)
