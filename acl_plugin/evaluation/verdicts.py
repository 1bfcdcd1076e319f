"""Record one verdict per test image, and compute accuracies from the verdicts."""

import math
from collections.abc import Mapping, Sequence
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
        adversarial_prediction: predicted class of the image that changed it; None if there is none, and in files of
            earlier versions.
    """

    index: int
    label: int
    clean_prediction: int
    broken_by: str | None
    adversarial_prediction: int | None = None

    @property
    def clean(self) -> bool:
        """Return whether the clean prediction is correct."""
        return self.clean_prediction == self.label

    @property
    def robust(self) -> bool:
        """Return whether the clean prediction is correct under every attack."""
        return self.clean and self.broken_by is None

    @property
    def prediction(self) -> int | None:
        """Return the predicted class under attack; None if it was not recorded."""
        return self.clean_prediction if self.broken_by is None else self.adversarial_prediction


@dataclass(frozen=True)
class OfClass:
    """Accuracies on the images of one class.

    Attributes:
        name: name of the class.
        n: number of its images.
        clean, robust: accuracies, from 0 to 1; None without images.
    """

    name: str
    n: int
    clean: float | None
    robust: float | None


def class_names(record: Mapping[str, Any]) -> list[str]:
    """Return the names of the classes that labels and predictions number: the classifier's, if classes were mapped."""
    return list(record.get("classifier_classes", record["images"]["classes"]))


def by_class(verdicts: Sequence[Verdict], classes: Sequence[str]) -> list[OfClass]:
    """Return clean and robust accuracy of each class, in the order of ``classes``."""
    found = []
    for number, name in enumerate(classes):
        own = [v for v in verdicts if v.label == number]
        clean, robust = sum(v.clean for v in own), sum(v.robust for v in own)
        found.append(OfClass(name, len(own), *(count / len(own) if own else None for count in (clean, robust))))
    return found


def confusion(verdicts: Sequence[Verdict], classes: Sequence[str]) -> list[list[int]]:
    """Return the numbers of images by true class (row) and predicted class under attack (column).

    An image that no attack broke counts with its clean prediction; one whose prediction was not recorded is left out.
    """
    counts = [[0] * len(classes) for _ in classes]
    for verdict in verdicts:
        if verdict.prediction is not None:
            counts[verdict.label][verdict.prediction] += 1
    return counts


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Return clean accuracy, robust accuracy, and the cumulative accuracy after each attack, as fractions."""
    n = len(verdicts)
    after, cumulative = sum(v.clean for v in verdicts), {}
    for name in STANDARD:
        after -= sum(v.broken_by == name for v in verdicts)
        cumulative[name] = after / n
    clean, robust = (sum(values) / n for values in ([v.clean for v in verdicts], [v.robust for v in verdicts]))
    return {"clean_accuracy": clean, "robust_accuracy": robust, "cumulative_accuracy": cumulative}


def after_attacks(record: Mapping[str, Any]) -> dict[str, float]:
    """Return the cumulative accuracy after each attack that ran: AA-reduced leaves out targeted APGD."""
    skipped = set() if record["version"] == "standard" else {"apgd-t"}
    return {name: value for name, value in record["cumulative_accuracy"].items() if name not in skipped}


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of n images, in percent.

    Source: Wilson, Probable Inference, JASA 1927.
    """
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)
