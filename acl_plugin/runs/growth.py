"""More epochs for a run that was trained for fewer."""

import logging
import shutil
from pathlib import Path

from acl_plugin.config import RunConfig
from acl_plugin.errors import UsageError
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.records import read_record
from acl_plugin.runtime.files import write_atomic, write_json

logger = logging.getLogger(__name__)

GROWN = "grown_from"
"""Entry of pretraining.json: the numbers of epochs that were planned before."""


def earlier_epochs(run: RunDir, config: RunConfig) -> int | None:
    """Return the number of epochs that the run was planned for, if it has a checkpoint and the configuration has more.

    Raises:
        UsageError: when the encoder is finished and has no checkpoint to go on from.
    """
    if not run.config_file.is_file():
        return None
    before = run.read_config().training.epochs
    if config.training.epochs <= before:
        return None
    if run.checkpoint_file.is_file():
        return before
    if run.encoder_file.is_file():
        message = f"`epochs` {config.training.epochs}: {run.path} has an encoder and no checkpoint to go on from"
        raise UsageError(message, parameter="epochs", given=config.training.epochs, allowed=before)
    return None


def grow(run: RunDir, before: int, epochs: int) -> None:
    """Put the results of the earlier epochs into ``RUN/after-N-epochs``, so that the run is unfinished again.

    Exports stay where they are, as RobustBench's index names them.
    """
    kept = RunDir(run.path / f"after-{before}-epochs")
    finished = run.encoder_file.is_file() or kept.encoder_file.is_file()  # there, after a kill in this function
    record = read_record(run.pretraining_file) if run.pretraining_file.is_file() else {}
    if finished:
        kept.path.mkdir(exist_ok=True)
        if not kept.pretraining_file.is_file():
            write_json(kept.pretraining_file, record)
        write_atomic(kept.config_file, run.config_file.read_bytes())
        for name, path in _moved(run).items():
            if path.exists():
                _move(path, vars(kept)[name])
    write_json(run.pretraining_file, {GROWN: sorted({*record.get(GROWN, ()), before})})
    where = f"; the results so far are in {kept.path.name}" if finished else ""
    text = f"{run.path} grows from {before} to {epochs} epochs{where}. All schedules extend over {epochs} epochs from "
    logger.warning(text + "here on: the result is not that of a run with so many epochs from the beginning")


STAYING = frozenset(
    "path config_file own_encoder_file images_file checkpoint_file earlier_checkpoint_file metrics_file "
    "pretraining_file robustbench_folder".split()
)
"""Parts of a run folder that stay, or are copied."""


def _moved(run: RunDir) -> dict[str, Path]:
    """Return the parts of a run folder that are moved; first the encoder, without which the run is unfinished."""
    parts = {name: path for name, path in vars(run).items() if name not in STAYING}
    return {"encoder_file": parts.pop("encoder_file"), **parts}


def _move(path: Path, to: Path) -> None:
    """Move a file or folder to a place where one of an interrupted growth may be."""
    if to.is_dir():
        shutil.rmtree(to)
    path.replace(to)


def record_of(run: RunDir, epochs: int) -> dict[str, list[int]]:
    """Return the entry of pretraining.json about earlier plans, of a run that is now of ``epochs`` epochs."""
    record = read_record(run.pretraining_file) if run.pretraining_file.is_file() else {}
    before = [planned for planned in record.get(GROWN, ()) if planned < epochs]
    return {GROWN: before} if before else {}
