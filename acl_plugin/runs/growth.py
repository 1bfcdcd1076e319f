"""More epochs for a run that was trained for fewer."""

import logging

from acl_plugin.config import RunConfig
from acl_plugin.errors import UsageError
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.records import read_record
from acl_plugin.runtime.files import write_json

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
    record = read_record(run.pretraining_file) if run.pretraining_file.is_file() else {}
    finished = run.encoder_file.is_file()
    write_json(run.pretraining_file, {GROWN: sorted({*record.get(GROWN, ()), before})})
    if finished:
        kept = RunDir(run.path / f"after-{before}-epochs")
        kept.path.mkdir(exist_ok=True)
        write_json(kept.pretraining_file, record)
        kept.config_file.write_bytes(run.config_file.read_bytes())
        for name, path in vars(run).items():
            if name not in STAYING and path.exists():
                path.replace(vars(kept)[name])
        run.encoder_file.replace(kept.encoder_file)  # last: without it, the run is unfinished
    where = f"; the results so far are in {kept.path.name}" if finished else ""
    text = f"{run.path} grows from {before} to {epochs} epochs{where}. All schedules extend over {epochs} epochs from "
    logger.warning(text + "here on: the result is not that of a run with so many epochs from the beginning")


STAYING = frozenset(
    "path config_file images_file checkpoint_file earlier_checkpoint_file metrics_file encoder_file pretraining_file "
    "robustbench_folder".split()
)
"""Parts of a run folder that stay, or are copied."""


def record_of(run: RunDir) -> dict[str, list[int]]:
    """Return the entry of pretraining.json about earlier plans."""
    record = read_record(run.pretraining_file) if run.pretraining_file.is_file() else {}
    return {GROWN: record[GROWN]} if GROWN in record else {}
