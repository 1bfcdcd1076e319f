"""One verdict per test image, and the accuracies that are counted from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
"""The attacks of AutoAttack standard, in order."""


@dataclass(frozen=True)
class Verdict:
    """Hold the result of the attacks on one test image.

    Attributes:
        index: its position in the dataset's own order.
        label: its class.
        clean_prediction: the model's class for the image itself.
        broken_by: the first attack that changed a right prediction; None if the image is robust, or if the
            clean prediction is wrong already.
    """

    index: int
    label: int
    clean_prediction: int
    broken_by: str | None

    @property
    def clean(self) -> bool:
        """Return whether the clean prediction is right."""
        return self.clean_prediction == self.label

    @property
    def robust(self) -> bool:
        """Return whether the clean prediction is right and no attack has changed that."""
        return self.clean and self.broken_by is None


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return clean accuracy, robust accuracy, and the accuracy after each attack (cumulative), as fractions."""
    n = len(verdicts)
    after, cumulative = sum(v.clean for v in verdicts), {}
    for name in STANDARD:
        after -= sum(v.broken_by == name for v in verdicts)
        cumulative[name] = after / n
    clean, robust = (sum(values) / n for values in ([v.clean for v in verdicts], [v.robust for v in verdicts]))
    return {"clean_accuracy": clean, "robust_accuracy": robust, "cumulative_accuracy": cumulative}
