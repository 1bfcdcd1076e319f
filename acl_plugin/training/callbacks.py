"""What Lightning calls during a pretraining: checkpoints, progress, and the CSV of metrics."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from acl_plugin.config import RunConfig
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.files import torch_bytes, write_atomic
from acl_plugin.runtime.progress import Progress


class Checkpoints(Checkpoint):
    """Make checkpoints, and copies of the encoder, every few epochs, as long as the run is healthy.

    Within an epoch a checkpoint is made after ``often`` seconds without one, and when the run is to end: by a signal,
    after ``steps`` steps, or when somebody has set ``should_stop``. That waits for the end of an accumulated step.
    Several ranks, which would have to agree on the step, make checkpoints at the ends of epochs alone.

    As a ``Checkpoint`` of Lightning it is called after all other callbacks.

    Args:
        run, config: of the pretraining.
        interrupted: whether the user wants it to end now; it does after the step.
        steps: after how many steps of this start it ends; None for no limit.
    """

    often = 600.0

    def __init__(
        self, run: RunDir, config: RunConfig, interrupted: Callable[[], bool], steps: int | None = None
    ) -> None:
        self.run, self.interrupted, self.steps = run, interrupted, steps
        self.every, self.keep_every = config.checkpoint_every, config.keep_every
        self.accumulated, self.ranks = config.accumulate_grad_batches, config.ranks
        self.saved, self.first, self.stopping = time.monotonic(), 0, False

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self.first = trainer.global_step

    def on_train_batch_end(
        self, trainer: lightning.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._defer_stop(trainer)
        if self.ranks > 1:
            if self.interrupted():
                raise KeyboardInterrupt
            return
        if (batch_idx + 1) % self.accumulated or pl_module.at_end_of_epoch:
            return  # in the middle of an accumulated step, or about to be saved with the epoch
        interrupted = self.interrupted()
        leave = interrupted or self.stopping
        if leave or time.monotonic() - self.saved > self.often:
            pl_module.guard.look()
            if leave or pl_module.guard.healthy:
                self._save(trainer)
        if interrupted:
            raise KeyboardInterrupt
        trainer.should_stop = self.stopping

    def on_train_epoch_end(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        self._defer_stop(trainer)
        if self.ranks > 1:
            self.stopping = trainer.strategy.reduce_boolean_decision(self.stopping, all=False)
        trainer.should_stop = self.stopping or not pl_module.at_end_of_epoch
        if not pl_module.at_end_of_epoch:
            return  # the epoch was left; a checkpoint made here would skip the rest of it
        done = pl_module.batches.epoch + 1
        last = done == pl_module.planned.epochs
        pl_module.guard.look()
        healthy = pl_module.guard.healthy
        if healthy and self.keep_every and done % self.keep_every == 0 and not last and trainer.is_global_zero:
            pl_module.write_encoder(self.run.snapshot(done))
        if self.stopping or (healthy and (done % self.every == 0 or last)):
            self._save(trainer)

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        for timer in _timers(trainer):  # a limit of time is one of each start
            checkpoint["callbacks"].pop(timer.state_key, None)

    def ended_by(self, trainer: lightning.Trainer) -> str:
        """Return what ended the training early."""
        if self.steps is not None and trainer.global_step - self.first >= self.steps:
            return f"`max_steps` {self.steps}"
        left = [timer.time_remaining() for timer in _timers(trainer)]
        return "`max_time`" if any(seconds is not None and seconds <= 0 for seconds in left) else "a callback"

    def _defer_stop(self, trainer: lightning.Trainer) -> None:
        """Take over the wish to stop, until a checkpoint can be made."""
        enough = self.steps is not None and trainer.global_step - self.first >= self.steps
        self.stopping = self.stopping or trainer.should_stop or enough
        trainer.should_stop = False

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.run.checkpoint, weights_only=False)
        self.saved = time.monotonic()


def _timers(trainer: Any) -> list[Timer]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Timer)]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints that are seen whole or not at all; the run's one before is kept as ``before.ckpt``."""

    def __init__(self, run: RunDir) -> None:
        super().__init__()
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        content = torch_bytes(checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path == self.run.checkpoint and path.is_file():
            path.replace(self.run.checkpoint_before)
        write_atomic(path, content)


class ShowProgress(lightning.Callback):
    """The share of all epochs' steps that is done, and the time left."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        total, done = pl_module.steps_before(pl_module.planned.epochs), pl_module.steps_done()
        self.progress = Progress("pretrain", total, done, quiet=not trainer.is_global_zero)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.progress.advance()

    def teardown(self, *_: Any, **__: Any) -> None:
        if hasattr(self, "progress"):
            self.progress.close()
