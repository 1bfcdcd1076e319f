"""The threat model: norm and radius of a perturbation."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from acl_plugin.errors import UsageError
from acl_plugin.validation import require_eps


@dataclass(frozen=True)
class ThreatModel:
    """Bound a perturbation: ||x' - x|| <= eps in ``norm``, and x' in [0, 1].

    Args:
        norm: ``"Linf"`` or ``"L2"``.
        eps: above 0, and at most 1 for Linf; a number, or text such as ``"8/255"``. Images lie in [0, 1].

    Raises:
        UsageError: for an unknown norm, or an eps out of range.

    Example:
        >>> acl_plugin.ThreatModel("Linf", "8/255").eps == 8 / 255
        True
    """

    norm: str
    eps: float

    def __init__(self, norm: str, eps: float | str) -> None:
        value = require_eps(norm, eps)
        object.__setattr__(self, "norm", norm)
        object.__setattr__(self, "eps", value)

    @property
    def pgd(self) -> str:
        """Name of torchattacks' class for projected gradient descent (PGD) in this norm."""
        return "PGD" if self.norm == "Linf" else "PGDL2"

    def times(self, multiple: float) -> "ThreatModel":
        """Return the threat model with a multiple of eps, which is at most 1 for Linf."""
        eps = multiple * self.eps
        return ThreatModel(self.norm, eps if self.norm == "L2" else min(1.0, eps))

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """Project adversarial examples onto the eps ball and [0, 1].

        For Linf the result is the nearest such point. For L2 the perturbation is scaled down, then clipped.

        Args:
            adversarial, images: (B, C, H, W).
        """
        delta = adversarial - images
        if self.norm == "Linf":
            return (images + delta.clamp(-self.eps, self.eps)).clamp(0, 1)
        norms = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
        scale = (self.eps / norms).clamp_max(1).view(-1, 1, 1, 1)
        return (images + delta * scale).clamp(0, 1)


def require_threat(threat: Any) -> ThreatModel:
    """Return the threat model.

    Raises:
        UsageError: when it is missing or another object.
    """
    if not isinstance(threat, ThreatModel):
        given = "missing" if threat is None else type(threat).__name__
        message = f'`threat` is {given}; allowed is a ThreatModel, such as acl_plugin.ThreatModel("Linf", "8/255")'
        raise UsageError(message, parameter="threat", given=given, allowed="a ThreatModel")
    return threat
