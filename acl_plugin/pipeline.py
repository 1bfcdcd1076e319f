"""The full pipeline: pretrain, probe, evaluate, export. Completed stages are skipped."""

import logging
from pathlib import Path
from typing import Any

import torch

from acl_plugin.config import RunConfig, check
from acl_plugin.data import datasets
from acl_plugin.data.images import without_labels
from acl_plugin.data.own_images import is_unlabeled
from acl_plugin.errors import UsageError
from acl_plugin.evaluation.chunks import evaluated_images
from acl_plugin.evaluation.run_folder import evaluate
from acl_plugin.leaderboard.export import export
from acl_plugin.probing.held_out import checked
from acl_plugin.probing.protocols import probe
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.growth import earlier_epochs
from acl_plugin.runs.lock import alone
from acl_plugin.runtime.device import require_device
from acl_plugin.runtime.distributed import require_script
from acl_plugin.training.pretrain import pretrain

logger = logging.getLogger(__name__)


def run(
    config: RunConfig,
    out: Path,
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
        if not (folder.classifier_file.is_file() and folder.probe_file.is_file()):
            probe(folder, device=device)
        result = evaluate(folder, device=device)
        _export(folder)
    return result


def _check_later_stages(config: RunConfig, folder: RunDir, overwrite: bool) -> None:
    """Find mistakes of the probe and the evaluation, which would cost a whole pretraining otherwise.

    Raises:
        UsageError: see the stages.
    """
    folder.check_config(config, overwrite, growing=True)
    probed = folder.classifier_file.is_file() and folder.probe_file.is_file()
    if probed and not overwrite and earlier_epochs(folder, config) is None:
        return
    data = datasets.load(config.data)
    checked(data, config)
    evaluated_images(data, config, data.classes)


def _export(folder: RunDir) -> None:
    """Export the classifier. The export is optional, so that a failure does not hide the result."""
    try:
        export(folder)
    except Exception as error:
        details = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, UsageError) and error.parameter == "name":
            details = f"its name {error.given} is taken; acl-plugin export {folder.path} --name NAME takes another one"
        logger.warning(f"{folder.path}: the export is skipped: {details}")
