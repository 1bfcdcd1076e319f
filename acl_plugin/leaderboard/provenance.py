"""Determine the training images of a run's classifier from the run's own files."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from acl_plugin import config as configuration
from acl_plugin.config import RunConfig
from acl_plugin.errors import UsageError
from acl_plugin.models.pretrained import PRETRAINED
from acl_plugin.models.pretrained_teacher import Pretrained
from acl_plugin.registry import OBJECTIVES
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.initialization import TEACHERS, replaced
from acl_plugin.runs.pseudo_labels import read_pseudo_labels
from acl_plugin.runs.records import read_record

PART_OF = {
    "cifar10_val": "cifar10",
    "digits_val": "digits",
    "digits_0_4": "digits",
    "digits_5_9": "digits",
    "stl10_unlabeled": "stl10",
}
"""Datasets whose images are all training images of another dataset."""


BASE = "base_kwargs."
"""Prefix of the settings of an objective's base."""
SECTIONS = ("objective", "threat", "training", "coreset")
"""Sections of the configuration that determine a pretraining."""


@dataclass
class Sources:
    """Images that an encoder was trained on.

    Attributes:
        seen: dataset -> use of its images.
        unknown: sources whose images are not recorded.
    """

    seen: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)

    def add(self, other: "Sources", how: str) -> None:
        """Add the sources of another part of the training, which ``how`` names."""
        for name in other.seen:
            self.seen.setdefault(name, f"{how} a run trained on {name}")
        self.unknown += other.unknown


def sources(run: RunDir, students: tuple[Path, ...] = ()) -> Sources:
    """Return the training images of a run's encoder, including those of teachers and pseudo-labels.

    Args:
        run: run folder.
        students: resolved folders of the runs that led here, as ``run`` is a teacher of the last.

    Raises:
        UsageError: when a file of the run is damaged.
    """
    if (here := run.path.resolve()) in students:
        return Sources(unknown=[f"run {run.path.name}, which was replaced by a student of its own"])
    students = (*students, here)
    config, found = run.read_config(), Sources()
    record = read_record(run.pretraining_file) if run.pretraining_file.is_file() else None
    if config.objective.objective == "imported":
        found.unknown.append(f"imported checkpoint {config.objective.objective_kwargs.get('file', '')}".strip())
    elif record is None:
        found.unknown.append(f"pretraining of {run.path.name}, which has no {run.pretraining_file.name}")
    else:
        pretrained_on = run.pretrained_on()
        if record.get("transferred_from") == config.data.data == "image_folder":
            found.unknown.append("another image_folder")
        found.seen[pretrained_on] = f"pretrained on {pretrained_on}"
        if config.encoder.init is not None:
            recorded = record.get("init", {}).get("encoder_sha256")
            found.add(_of_teacher(RunDir(config.encoder.init), recorded, students, "run"), "started from")
        if record.get("pretrained"):
            name = record["pretrained"]["name"]
            found.seen[f"the weights {name}"] = f"started from the pretrained weights {name}"
        if record.get("unlabeled"):
            found.seen[f"unlabeled {record['unlabeled']}"] = f"pretrained on unlabeled images ({record['unlabeled']})"
    for objective, name, value in settings_of(config):
        setting = name.removeprefix(BASE)
        named = Pretrained.of(value) if setting == "teacher" else None
        if config.objective.objective == "imported" or not (isinstance(value, str) or named):
            continue
        if setting == "teacher" and (value == PRETRAINED or named):
            name = named.name if named else config.encoder.backbone
            found.seen[f"the weights {name}"] = f"taught by the pretrained weights {name}"
        elif setting == "teacher":
            found.add(_of_teacher(RunDir(value), (record or {}).get(TEACHERS, {}).get(name), students), "taught by")
        elif setting == "pseudo_labels":
            found.add(_of_labels(Path(value)), "trained on pseudo-labels of")
        elif is_path(objective, setting, value):
            found.unknown.append(f"objective setting {setting} {Path(value).name}")
    return found


def settings_of(config: RunConfig) -> list[tuple[str, str, Any]]:
    """Return the settings of a run's objective and of its base, such as ``base_kwargs.teacher``.

    Returns:
        The name of the objective that takes it, the setting and its value.
    """
    settings, base = config.objective.objective_kwargs, config.objective.objective_kwargs.get("base_kwargs")
    own = [(config.objective.objective, name, value) for name, value in settings.items()]
    of_base = base.items() if isinstance(base, dict) else ()
    return own + [(str(settings.get("base")), f"{BASE}{name}", value) for name, value in of_base]


def is_path(objective: str, setting: str, value: str) -> bool:
    """Return whether a setting of an objective leads to a file or folder that is there.

    A setting that takes a path, by ``Objective.from_files``, may name a folder alone. Any other text counts only if it
    is written as a path: the name ``acl_ds`` is none, whatever the working directory contains.
    """
    path = Path(value)
    takes = objective not in OBJECTIVES or setting.removeprefix(BASE) in getattr(
        OBJECTIVES.get(objective), "from_files", ()
    )
    return (takes or path.name != value or bool(path.suffix)) and path.exists()


def pretraining(run: RunDir) -> dict[str, Any]:
    """Return what a run's files record of its pretraining, by section of the configuration.

    The configuration of an imported run has the presets of its dataset beside the checkpoint, which say nothing about
    the pretraining. That of a transferred one has the threat model of its target, and its record that of its source.
    """
    options = configuration.to_dict(run.read_config())
    if options["objective"]["objective"] == "imported":
        return {"objective": {name: options["objective"][name] for name in ("objective", "objective_kwargs")}}
    record = read_record(run.pretraining_file) if run.pretraining_file.is_file() else {}
    if "transferred_from" in record:
        options["threat"] = record.get("threat", {})  # earlier records have none
    return {section: options[section] for section in SECTIONS if options[section]}


def additional_data(run: RunDir, data: str, given: bool | None = None) -> tuple[bool, str]:
    """Return RobustBench's ``additional_data`` for a result on ``data``, with the reason.

    Args:
        run: a probed and evaluated run.
        data: dataset of the evaluation.
        given: the author's own statement; required only if the run's files do not decide.

    Raises:
        UsageError: when the files do not decide and ``given`` is None, or when they contradict ``given``.
    """
    found = sources(run)
    others = [how for name, how in found.seen.items() if data not in (name, PART_OF.get(name))]
    if others and given is False:
        raise _error(given, f"the run was {others[0]}, which is not part of {data}. Leave the option out", (True,))
    if others:
        return True, "; ".join(others)
    unknown = "; ".join(found.unknown)
    if unknown and given is None:
        why = f"no file records the images behind the {unknown}"
        raise _error(given, f"{why}. Pass true if they go beyond the training images of {data}, else false")
    if unknown or given:
        return bool(given), "stated by the author" + (f" ({unknown})" if unknown else "")
    return False, f"pretrained and probed on {data} alone"


def _error(given: bool | None, text: str, allowed: tuple[bool, ...] = (True, False)) -> UsageError:
    shown = "" if given is None else f" {str(given).lower()}"
    return UsageError(f"`additional_data`{shown}: {text}", parameter="additional_data", given=given, allowed=allowed)


def of_snapshot(run: RunDir) -> RunDir | None:
    """Return the run that kept an encoder in a folder on its way; None if it is no such folder."""
    return RunDir(run.path.parents[1]) if run.path.parent.name == "checkpoints" else None


def _of_teacher(run: RunDir, recorded: str | None, students: tuple[Path, ...], what: str = "teacher") -> Sources:
    """Return the sources of another run's encoder, whose ``weights_hash`` was recorded; None in earlier records."""
    whole = of_snapshot(run) or run
    if not whole.config_file.is_file():
        return Sources(unknown=[f"{what} {run.path.name}, which is not there"])
    if replaced(run, recorded):
        return Sources(unknown=[f"{what} {run.path.name}, where another run is now"])
    return sources(whole, students)


def _of_labels(path: Path) -> Sources:
    provenance: dict[str, Any] = read_pseudo_labels(path).provenance if path.is_file() else {}
    seen = provenance.get("seen")
    if not isinstance(seen, list):
        why = "does not record them" if path.is_file() else "is not there"
        return Sources(unknown=[f"pseudo-labels {path.name}, which file {why}"])
    return Sources(seen={str(name): "" for name in seen})
