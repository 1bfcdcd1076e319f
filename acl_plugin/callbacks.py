"""What Lightning calls during a pretraining: checkpoints, progress, and the CSV of metrics."""

import csv
import io
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only

from acl_plugin.config import RunConfig
from acl_plugin.guard import Guard
from acl_plugin.progress import Progress
from acl_plugin.run_dir import RunDir, torch_bytes, write_atomic


class Checkpoints(lightning.Callback):
    """The last checkpoint, and copies of the encoder, every few epochs, as long as the run is healthy.

    Within an epoch a checkpoint is made after ``often`` seconds without one, and when the user wants the run to end.
    Several ranks, which would have to agree on the step, make them at the ends of epochs alone.

    Args:
        run, config, guard: of the pretraining.
        interrupted: whether the user wants it to end now; it does after the step.
    """

    often = 600.0

    def __init__(self, run: RunDir, config: RunConfig, guard: Guard, interrupted: Callable[[], bool]) -> None:
        self.run, self.guard, self.interrupted = run, guard, interrupted
        self.every, self.keep_every = config.checkpoint_every, config.keep_every
        self.accumulated, self.ranks = config.accumulate_grad_batches, config.ranks
        self.saved = time.monotonic()

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        batches = batch_idx + 1
        if self.ranks == 1 and (batches % self.accumulated or batches == trainer.num_training_batches):
            return  # in the middle of an accumulated step, or about to be saved with the epoch
        leave = self.interrupted()
        if self.ranks == 1 and (leave or time.monotonic() - self.saved > self.often):
            self.guard.look()
            if self.guard.healthy:
                self._save(trainer)
        if leave:
            raise KeyboardInterrupt

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        done, last = trainer.current_epoch + 1, trainer.current_epoch + 1 == trainer.max_epochs
        self.guard.look()
        if not self.guard.healthy:
            return
        if self.keep_every and done % self.keep_every == 0 and not last and trainer.is_global_zero:
            pl_module.write_encoder(self.run.snapshot(done))
        if done % self.every == 0 or last:
            self._save(trainer)

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.run.checkpoint, weights_only=False)
        self.saved = time.monotonic()


class AtomicCheckpointIO(TorchCheckpointIO):
    """Checkpoints that are seen whole or not at all; the one before is kept as ``before.ckpt``."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        content = torch_bytes(checkpoint)
        if path.is_file():
            path.replace(path.with_name("before.ckpt"))
        write_atomic(path, content)


class ShowProgress(lightning.Callback):
    """The share of all epochs' steps that is done, and the time left."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        total, done = pl_module.steps_before(trainer.max_epochs), pl_module.steps_done()
        self.progress = Progress("pretrain", total, done, quiet=not trainer.is_global_zero)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.progress.advance()

    def teardown(self, *_: Any, **__: Any) -> None:
        if hasattr(self, "progress"):
            self.progress.close()


class CsvLogger(Logger):
    """One CSV file with a row per epoch, which a resumed run continues. (Lightning's own starts it anew.)"""

    name, version = "csv", ""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        epoch = int(metrics["epoch"])
        row: dict[str, Any] = {"epoch": epoch, "step": step, **{k: v for k, v in metrics.items() if k != "epoch"}}
        rows = list(csv.DictReader(self.path.read_text().splitlines())) if self.path.is_file() else []
        rows = [old for old in rows if int(old["epoch"]) < epoch]
        text = io.StringIO()
        columns = dict.fromkeys(name for each in [*rows, row] for name in each)  # some are not of every epoch
        writer = csv.DictWriter(text, fieldnames=list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, row])
        write_atomic(self.path, text.getvalue().encode())
