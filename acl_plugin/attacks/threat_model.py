"""What an adversary may do: norm and radius."""

import math
from dataclasses import dataclass
from numbers import Real

from torch import Tensor

from acl_plugin.errors import UsageError, unknown

NORMS = ("Linf", "L2")


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
        if norm not in NORMS:
            raise unknown("norm", norm, NORMS)
        allowed = "a number or a fraction such as 8/255, above 0" + (" and at most 1" if norm == "Linf" else "")
        try:
            value = _number(eps)
            fits = 0 < value <= (1 if norm == "Linf" else math.inf) and math.isfinite(value)
        except (TypeError, ValueError, ZeroDivisionError, OverflowError):
            fits = False
        if not fits:
            shown = f"{eps:g}" if isinstance(eps, float) else repr(eps)
            message = f"`eps` {shown}: allowed is {allowed} for {norm}, as images lie in [0, 1]"
            raise UsageError(message, parameter="eps", given=eps, allowed=allowed)
        object.__setattr__(self, "norm", norm)
        object.__setattr__(self, "eps", value)

    @classmethod
    def parse(cls, norm: str, eps: float | str) -> "ThreatModel":
        """Return ``ThreatModel(norm, eps)``."""
        return cls(norm, eps)

    @property
    def pgd(self) -> str:
        """The torchattacks class of projected gradient descent in this norm."""
        return "PGD" if self.norm == "Linf" else "PGDL2"

    def project(self, adversarial: Tensor, images: Tensor) -> Tensor:
        """Return the nearest point of ball and box, for Linf; for L2 scale the perturbation down, then clip.

        Args:
            adversarial, images: (B, C, H, W).
        """
        delta = adversarial - images
        if self.norm == "Linf":
            return (images + delta.clamp(-self.eps, self.eps)).clamp(0, 1)
        norms = delta.flatten(1).norm(dim=1).clamp_min(1e-12)
        scale = (self.eps / norms).clamp_max(1).view(-1, 1, 1, 1)
        return (images + delta * scale).clamp(0, 1)


def _number(given: float | str) -> float:
    if isinstance(given, str):
        above, *below = (float(part) for part in given.split("/"))
        if len(below) > 1:
            raise ValueError(given)
        return above / below[0] if below else above
    if isinstance(given, bool) or not isinstance(given, Real):
        raise TypeError(given)
    return float(given)
