"""Record one verdict per test image, and compute accuracies from the verdicts."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
"""The attacks of AutoAttack standard, in order."""


@dataclass(frozen=True)
class Verdict:
    """Result of the attacks on one test image.

    Attributes:
        index: position in the dataset's own order.
        label: true class.
        clean_prediction: predicted class of the clean image.
        broken_by: the first attack that changed a correct prediction; None if the image is robust, or if the clean
            prediction is wrong.
    """

    index: int
    label: int
    clean_prediction: int
    broken_by: str | None

    @property
    def clean(self) -> bool:
        """Return whether the clean prediction is correct."""
        return self.clean_prediction == self.label

    @property
    def robust(self) -> bool:
        """Return whether the clean prediction is correct under every attack."""
        return self.clean and self.broken_by is None


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return clean accuracy, robust accuracy, and the cumulative accuracy after each attack, as fractions."""
    n = len(verdicts)
    after, cumulative = sum(v.clean for v in verdicts), {}
    for name in STANDARD:
        after -= sum(v.broken_by == name for v in verdicts)
        cumulative[name] = after / n
    clean, robust = (sum(values) / n for values in ([v.clean for v in verdicts], [v.robust for v in verdicts]))
    return {"clean_accuracy": clean, "robust_accuracy": robust, "cumulative_accuracy": cumulative}
