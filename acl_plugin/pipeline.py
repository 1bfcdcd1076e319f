"""The full pipeline: pretrain, probe, evaluate, export. Completed stages are skipped."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from acl_plugin.config import ROWS, RunConfig, check
from acl_plugin.data import datasets
from acl_plugin.data.fingerprint import setting_differences
from acl_plugin.data.images import DataSet, without_labels
from acl_plugin.data.own_images import is_unlabeled
from acl_plugin.errors import UsageError
from acl_plugin.evaluation.chunks import evaluated_images
from acl_plugin.evaluation.run_folder import evaluate
from acl_plugin.leaderboard.export import export
from acl_plugin.probing.held_out import checked
from acl_plugin.probing.protocols import configured, probe
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.growth import earlier_epochs
from acl_plugin.runs.lock import alone
from acl_plugin.runs.records import read_record
from acl_plugin.runs.resume import OtherSettings, refuse
from acl_plugin.runtime.device import require_device
from acl_plugin.runtime.distributed import continue_alone, require_script
from acl_plugin.training.pretrain import pretrain

logger = logging.getLogger(__name__)


def run(
    config: RunConfig,
    out: Path | str,
    device: torch.device | str | None = None,
    *,
    overwrite: bool = False,
    **trainer_options: Any,
) -> dict[str, Any]:
    """Run all stages of ``config`` in the folder ``out``; skip completed ones.

    If the export fails, for example with fewer than four classes, the result is still returned and a line on stderr
    gives the reason.

    Args:
        config: see ``acl_plugin.config.preset``.
        out: run folder, new or with the same configuration.
        device: device of probe and evaluation; None for that of ``config.machine.accelerator``, as in pretraining.
        overwrite: remove all files of a run that is in the folder, whatever its configuration.
        trainer_options: see ``acl_plugin.training.pretrain.pretrain``.

    Returns:
        The contents of ``evaluation.json``.

    Raises:
        UsageError, TrainingStopped: see the stages. An unfinished pretraining ends the pipeline.
    """
    check(config)
    if device is not None:
        require_device(device)
    if trainer_options.get("encoder") is not None:
        message = "`encoder`: the probe rebuilds networks of timm by name. Pass your own encoder to `pretrain` instead"
        raise UsageError(message, parameter="encoder", given=type(trainer_options["encoder"]).__name__, allowed=None)
    require_script(config.machine.devices, guarded=True)
    if is_unlabeled(config.data):  # found after the pretraining otherwise
        raise without_labels(config.data.data, "a probe")
    with alone(), datasets.shared():
        _check_later_stages(config, RunDir(out), overwrite)
        folder = pretrain(config, out, overwrite=overwrite, **trainer_options)
        continue_alone(config.machine.ranks)
        if not _is_probed(folder):
            probe(folder, device=device)
        with _of_stage("evaluate", folder):
            result = evaluate(folder, device=device)
        _export(folder)
    return result


def _check_later_stages(config: RunConfig, folder: RunDir, overwrite: bool) -> None:
    """Find mistakes of the probe and the evaluation, which would cost a whole pretraining otherwise.

    Raises:
        UsageError: see the stages.
    """
    folder.check_config(config, overwrite, growing=True)
    data = datasets.load(config.data)
    if _is_probed(folder) and not overwrite and earlier_epochs(folder, config) is None:
        with _of_stage("probe", folder):
            refuse(folder.path, _probe_differences(config, data, read_record(folder.probe_file)), "a probe")
        return
    checked(data, config)
    evaluated_images(data, config, data.classes)


def _probe_differences(config: RunConfig, data: DataSet, record: Mapping[str, Any]) -> list[str]:
    """Return the settings in which the record of a probe differs, without files that are no longer there."""
    gone = [name for name in ROWS if (file := getattr(config.probe, name)) is not None and not Path(file).is_file()]
    settings = configured(config.replace(**dict.fromkeys(gone)), data)
    return setting_differences({k: v for k, v in settings.items() if k in record and k not in gone}, record)


def _is_probed(folder: RunDir) -> bool:
    """Return whether a run has a classifier, and the record of its probe."""
    return folder.classifier_file.is_file() and folder.probe_file.is_file()


@contextmanager
def _of_stage(stage: str, folder: RunDir) -> Iterator[None]:
    """Name the command that makes the result of a stage again: `overwrite` of a run repeats the pretraining as well."""
    try:
        yield
    except OtherSettings as error:
        message = (
            f"{error.found}. Run acl-plugin {stage} {folder.path} --overwrite to make it again by the configuration of "
            f"the run; `overwrite` here would also replace the pretraining"
        )
        raise UsageError(message, parameter="overwrite", given=False, allowed=(True,)) from error


def _export(folder: RunDir) -> None:
    """Export the classifier. The export is optional, so that a failure does not hide the result."""
    try:
        export(folder)
    except Exception as error:
        details = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UsageError) and error.parameter == "name":
            details = f"its name {error.given} is taken; acl-plugin export {folder.path} --name NAME takes another one"
        logger.warning(f"{folder.path}: the export is skipped: {details}")
