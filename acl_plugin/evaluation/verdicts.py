"""What an evaluation found out about each test image, and how it is kept."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from acl_plugin.errors import UsageError
from acl_plugin.runtime.files import write_atomic

STANDARD = ("apgd-ce", "apgd-t", "fab-t", "square")
"""The attacks of AutoAttack standard, in order."""


@dataclass(frozen=True)
class Verdict:
    """What happened to one test image.

    Attributes:
        index: its row in the data set's own order.
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
        """Whether the clean prediction is right."""
        return self.clean_prediction == self.label

    @property
    def robust(self) -> bool:
        """Whether it is right and no attack has changed that."""
        return self.clean and self.broken_by is None


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Clean accuracy, robust accuracy, and the accuracy after each attack (cumulative), as fractions."""
    n = len(verdicts)
    after, cumulative = sum(v.clean for v in verdicts), {}
    for name in STANDARD:
        after -= sum(v.broken_by == name for v in verdicts)
        cumulative[name] = after / n
    clean, robust = (sum(values) / n for values in ([v.clean for v in verdicts], [v.robust for v in verdicts]))
    return {"clean_accuracy": clean, "robust_accuracy": robust, "cumulative_accuracy": cumulative}


def write(path: Path, verdicts: Sequence[Verdict]) -> None:
    """One line for each, the whole file at once."""
    write_atomic(path, "".join(json.dumps(asdict(v)) + "\n" for v in verdicts).encode())


def read(path: Path) -> list[Verdict]:
    """The lines of a file, none when there is no such file.

    Raises:
        UsageError: when it is damaged.
    """
    if not path.is_file():
        return []
    try:
        return [Verdict(**json.loads(line)) for line in path.read_text().splitlines()]
    except (OSError, ValueError, TypeError) as error:
        message = f"{path} is damaged ({error}); delete it to evaluate again"
        raise UsageError(message, parameter="run", given=str(path), allowed="a file as it was written") from error
