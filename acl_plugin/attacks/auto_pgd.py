"""AutoPGD as a maximizer of any loss."""

from typing import Any, Literal

from torch import Tensor

from acl_plugin.registry import ATTACKS


@ATTACKS.register("AutoPGD")
class AutoPGD:
    """APGD of AutoAttack, keeping for each sample the image with its highest loss.

    torchattacks' APGD keeps the last image that is misclassified, whatever its loss, and leaves misclassified samples
    alone: it is for classifiers. This one is for losses such as the distance of features. Step sizes are chosen per
    sample, so that a loss that couples the batch does not rise in every step.

    The interface is that of ``torchattacks.Attack``.

    Args:
        model: (B, C, H, W) -> (B, K) logits.
        eps: radius of the ball.
        steps: number of steps, at least 1; the first has a size of 2 eps.
        n_restarts: number of random starts, of which each sample keeps the best.
        rho: share of the steps between two checks of the step size in which the loss has to rise.
        norm: ``Linf`` or ``L2``.

    Source: Croce and Hein, arXiv 2003.01690, algorithm 1, by the package pyautoattack.
    """

    norms, whole_batch = ("Linf", "L2"), True
    supported_mode = ("default",)

    def __init__(
        self,
        model: Any,
        eps: float = 8 / 255,
        steps: int = 100,
        *,
        n_restarts: int = 1,
        rho: float = 0.75,
        norm: Literal["Linf", "L2"] = "Linf",
    ) -> None:
        self.model, self.eps, self.steps = model, eps, steps
        self.n_restarts, self.rho, self.norm = n_restarts, rho, norm

    def __call__(self, images: Tensor, labels: Tensor) -> Tensor:
        """Return (B, C, H, W) adversarial examples of (B, C, H, W) images, away from (B,) labels."""
        from pyautoattack.autopgd_base import APGDAttack

        settings = {"n_iter": self.steps, "norm": self.norm, "n_restarts": self.n_restarts, "rho": self.rho}
        attack = APGDAttack(self.model, **settings, eps=self.eps, loss="ce", device=images.device)
        adversarial: Tensor = attack.perturb(images, labels, best_loss=True)
        return adversarial.to(images.dtype)
