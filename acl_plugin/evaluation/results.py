"""Results of evaluations: accuracies, verdicts per image, and all settings that affect them."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import UsageError, unknown
from acl_plugin.evaluation.verdicts import OfClass, Verdict, after_attacks, by_class, class_names, confusion
from acl_plugin.runtime.files import write_json
from acl_plugin.runtime.paths import user_path


@dataclass(frozen=True)
class _Result:
    """Common part of all results.

    Attributes:
        values: settings and results in plain JSON types.
    """

    values: dict[str, Any]

    @property
    def n(self) -> int:
        """Return the number of test images."""
        return int(self.values["n"])

    @property
    def seconds(self) -> float:
        """Return the duration of the last call, in seconds."""
        return float(self.values["seconds"])

    def to_dict(self) -> dict[str, Any]:
        """Return settings and results in plain JSON types."""
        return dict(self.values)

    def save(self, path: Path | str) -> None:
        """Write ``to_dict()`` as JSON to the file ``path``.

        Raises:
            UsageError: when the file cannot be written.
        """
        file = user_path(path, "path")
        try:
            write_json(file, self.to_dict())
        except OSError as error:
            message = f"`path` {file} cannot be written: {error.strerror}"
            raise UsageError(message, parameter="path", given=str(file), allowed="a file in a folder") from error

    @property
    def flags(self) -> tuple[str, ...]:
        """Return reasons to doubt the result, such as AutoAttack's warnings; empty if there are none."""
        return tuple(self.values.get("flags", ()))

    def _warnings(self) -> list[str]:
        return [f"  warning: {flag}" for flag in self.flags]

    def _heading(self, attack: str) -> str:
        values = self.values
        threat = f", {values['threat_model']} eps {values['eps']:.4g}" if "eps" in values else ""
        return f"{attack}{threat}, {self.n} images, seed {values['seed']}"


@dataclass(frozen=True)
class _Accuracies(_Result):
    """Common part of the results of classifiers."""

    @property
    def clean_accuracy(self) -> float:
        """Return the accuracy on the clean images, from 0 to 1."""
        return float(self.values["clean_accuracy"])


@dataclass(frozen=True)
class Evaluation(_Accuracies):
    """AutoAttack's verdicts on a classifier, and the resulting accuracies.

    Attributes:
        values: settings and accuracies in plain JSON types.
        verdicts: one per image, in the order of the images.

    Example:
        >>> evaluation = acl_plugin.evaluate(model, x, y, acl_plugin.ThreatModel("Linf", "8/255"))  # doctest: +SKIP
        >>> evaluation.robust_accuracy, [v.index for v in evaluation.verdicts if not v.robust]  # doctest: +SKIP
    """

    verdicts: tuple[Verdict, ...]

    @property
    def robust_accuracy(self) -> float:
        """Return the share of images that are classified correctly under every attack, from 0 to 1."""
        return float(self.values["robust_accuracy"])

    def by_class(self) -> list[OfClass]:
        """Return clean and robust accuracy of each class."""
        return by_class(self.verdicts, class_names(self.values))

    def confusion(self) -> list[list[int]]:
        """Return the numbers of images by true class (row) and predicted class under attack (column)."""
        return confusion(self.verdicts, class_names(self.values))

    @property
    def threat(self) -> ThreatModel:
        """Return norm and radius of the perturbations."""
        return ThreatModel(self.values["threat_model"], self.values["eps"])

    def to_dict(self) -> dict[str, Any]:
        """Return settings, accuracies and verdicts in plain JSON types."""
        return {**self.values, "verdicts": [asdict(verdict) for verdict in self.verdicts]}

    def __str__(self) -> str:
        """Return a few lines with the accuracy after each attack."""
        version = self.values["version"]
        name = "AutoAttack standard" if version == "standard" else f"{version} (AutoAttack without apgd-t)"
        rows = {"clean": self.clean_accuracy, **after_attacks(self.values), "robust": self.robust_accuracy}
        lines = [f"  {row:9}{100 * value:6.2f} %" for row, value in rows.items()]
        return "\n".join([self._heading(name), *lines, *self._warnings()])


@dataclass(frozen=True)
class SuiteEvaluation(_Accuracies):
    """Accuracy under each attack of the suite.

    Attributes:
        values: settings, ``rows`` (by attack: accuracy, budget, positions of the misclassified images), ``curve`` and
            ``left_out`` in plain JSON types.
    """

    @property
    def worst_case(self) -> float:
        """Return the accuracy under the worst attack of the threat model for each image: an upper bound."""
        return float(self.values["worst_case"])

    def __str__(self) -> str:
        """Return a few lines with the accuracy under each attack."""
        rows = {"clean": self.clean_accuracy, **{k: row["accuracy"] for k, row in self.values["rows"].items()}}
        lines = [f"  {row:12}{100 * value:6.2f} %" for row, value in (rows | {"worst case": self.worst_case}).items()]
        lines += [f"  {name:12}left out: {why}" for name, why in self.values["left_out"].items()]
        return "\n".join([self._heading("standard attacks"), *lines, *self._warnings()])


@dataclass(frozen=True)
class CorruptionEvaluation(_Accuracies):
    """Accuracy under each corruption.

    Attributes:
        values: settings and ``accuracy`` (by corruption, a list over severities 1 to 5) in plain JSON types.
    """

    @property
    def mean(self) -> float:
        """Return the mean accuracy over corruptions and severities, from 0 to 1."""
        return float(self.values["mean"])

    def __str__(self) -> str:
        """Return a few lines with the accuracy by severity under each corruption."""
        rows = self.values["accuracy"].items()
        lines = [f"  {name:18}" + "".join(f"{100 * value:8.2f} %" for value in row) for name, row in rows]
        means = [f"  {'clean':18}{100 * self.clean_accuracy:8.2f} %", f"  {'mean':18}{100 * self.mean:8.2f} %"]
        return "\n".join([self._heading(f"corruptions {self.values['source']}"), *lines, *means])


@dataclass(frozen=True)
class EmbeddingEvaluation(_Result):
    """How far adversarial examples move the features of an encoder.

    Attributes:
        values: settings and ``distances`` (see ``embedding.embedding_shift``) in plain JSON types.
    """

    def moved(self, distance: str = "cosine") -> list[float]:
        """Return how far the strongest attack moves each image: N distances, ``cosine`` or ``relative L2``.

        Raises:
            UsageError: for another distance.
        """
        if distance not in self.values["distances"]:
            raise unknown("`distance`", distance, self.values["distances"], parameter="distance")
        return list(self.values["distances"][distance]["by_image"])

    def __str__(self) -> str:
        """Return a line for each distance."""
        lines = []
        for name, found in self.values["distances"].items():
            row = found["strongest"]
            lines.append(f"  {name:12} mean {row['mean']:.4g}, worst {row['worst']:.4g}")
        return "\n".join([self._heading("features"), *lines, *self._warnings()])
