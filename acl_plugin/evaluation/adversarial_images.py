"""Check adversarial images against the threat model, and recount the verdicts from the stored images."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import EvaluationStopped
from acl_plugin.evaluation.batches import batch
from acl_plugin.evaluation.target import Target
from acl_plugin.evaluation.verdicts import STANDARD, Verdict


class Kept(Protocol):
    """Storage of successful adversarial examples, by chunk of test images and attack."""

    def adversarial(self, start: int, name: str) -> tuple[Tensor, Tensor]:
        """Return positions (M,) and images (M, C, H, W) of attack ``name`` on the chunk that begins at ``start``."""

    def described(self, start: int, name: str) -> str:
        """Return the name of these images for error messages."""

    lines: str
    """Name of the verdicts for error messages."""


@torch.no_grad()
def recount(kept: Kept, target: Target, found: Sequence[Verdict]) -> None:
    """Recount the verdicts from the test images and the stored adversarial examples.

    Args:
        kept: the stored adversarial examples.
        target: classifier in eval mode, and N images in chunks of ``batch_size``.
        found: N verdicts to verify.

    Raises:
        EvaluationStopped: when a clean prediction differs, or a stored image does not fool the model or lies outside
            the threat model.
    """
    model, size, device = target.model, target.batch_size, target.device
    for start in range(0, len(target.images), size):
        x = batch(target.images, start, start + size, device)
        here = found[start : start + size]
        if model(x).argmax(1).tolist() != [v.clean_prediction for v in here]:
            raise EvaluationStopped(
                f"clean predictions of images {start} to {start + len(x) - 1} are not those recorded"
            )
        for name in STANDARD:
            expected = [start + i for i, v in enumerate(here) if v.broken_by == name]
            positions, x_adv = kept.adversarial(start, name)
            if positions.tolist() != expected:
                raise EvaluationStopped(f"{kept.described(start, name)} is not what {kept.lines} says")
            if expected:
                check_threat(name, x_adv.to(device), x[positions.to(device) - start], target.threat)
                if (model(x_adv.to(device)).argmax(1).cpu() == target.labels[positions]).any():
                    raise EvaluationStopped(f"images of {kept.described(start, name)} do not break the model")


def check_threat(name: str, x_adv: Tensor, x: Tensor, threat: ThreatModel) -> None:
    """Raise an error for adversarial images (B, C, H, W) of ``x`` that leave the ball or the box, or are not finite.

    Raises:
        EvaluationStopped: naming the attack.
    """
    delta = (x_adv - x).flatten(1)
    size = (delta.abs().amax(1) if threat.norm == "Linf" else delta.norm(dim=1)).max().item()
    inside = x_adv.min().item() >= 0 and x_adv.max().item() <= 1
    if not (x_adv.isfinite().all() and inside and size <= threat.eps * (1 + 1e-4) + 1e-6):
        raise EvaluationStopped(
            f"{name} left the threat model: size {size:.6f} for eps {threat.eps:.6f}, in [0, 1]: {inside}"
        )
