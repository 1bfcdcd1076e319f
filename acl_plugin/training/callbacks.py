"""Lightning callbacks of a pretraining: checkpoints and progress."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
from lightning.pytorch.callbacks import Checkpoint, Timer
from lightning.pytorch.plugins.io import TorchCheckpointIO

from acl_plugin.config import TrainingConfig
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime.files import torch_bytes, write_atomic
from acl_plugin.runtime.progress import Progress


class Checkpoints(Checkpoint):
    """Save checkpoints, and copies of the encoder, every few epochs while the run is healthy.

    Within an epoch, a checkpoint is saved ``often`` seconds after the last one, and before the run stops: on a signal,
    after ``steps`` steps, or when ``should_stop`` was set. It waits for the end of gradient accumulation. Several ranks
    would have to agree on the step, so they save checkpoints only at the end of epochs.

    As a Lightning ``Checkpoint``, it is called after all other callbacks.

    Args:
        run: run folder.
        training: intervals between checkpoints and between copies of the encoder, and accumulated batches.
        ranks: number of processes that train together.
        interrupted: returns whether the user interrupted the run, which then stops after the step.
        steps: number of steps after which this start stops; None for no limit.
    """

    often = 600.0

    def __init__(
        self,
        run: RunDir,
        training: TrainingConfig,
        ranks: int,
        interrupted: Callable[[], bool],
        steps: int | None = None,
    ) -> None:
        self.run, self.interrupted, self.steps = run, interrupted, steps
        self.every, self.keep_every = training.checkpoint_every, training.keep_every
        self.accumulated, self.ranks = training.accumulate_grad_batches, ranks
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
            return  # gradients are accumulating, or the end of the epoch saves next
        interrupted = self.interrupted()
        leave = interrupted or self.stopping
        if leave or time.monotonic() - self.saved > self.often:
            pl_module.guard.look()
            pl_module.guard.check_weights(pl_module.model)
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
            return  # the epoch is incomplete; resuming from a checkpoint saved here would skip its rest
        done = pl_module.batches.epoch + 1
        last = done == pl_module.planned.training.epochs
        pl_module.guard.look()
        pl_module.guard.check_weights(pl_module.model)
        healthy = pl_module.guard.healthy
        if healthy and self.keep_every and done % self.keep_every == 0 and not last and trainer.is_global_zero:
            pl_module.write_encoder(self.run.snapshot(done))
        if self.stopping or (healthy and (done % self.every == 0 or last)):
            self._save(trainer)

    def on_save_checkpoint(self, trainer: lightning.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        for timer in _timers(trainer):  # a time limit applies to each start separately
            checkpoint["callbacks"].pop(timer.state_key, None)

    def ended_by(self, trainer: lightning.Trainer) -> str:
        """Return the reason why the training stopped early."""
        if self.steps is not None and trainer.global_step - self.first >= self.steps:
            return f"`max_steps` {self.steps}"
        left = [timer.time_remaining() for timer in _timers(trainer)]
        return "`max_time`" if any(seconds is not None and seconds <= 0 for seconds in left) else "a callback"

    def _defer_stop(self, trainer: lightning.Trainer) -> None:
        """Defer a requested stop until a checkpoint can be saved."""
        enough = self.steps is not None and trainer.global_step - self.first >= self.steps
        self.stopping = self.stopping or trainer.should_stop or enough
        trainer.should_stop = False

    def _save(self, trainer: lightning.Trainer) -> None:
        trainer.save_checkpoint(self.run.checkpoint_file, weights_only=False)
        self.saved = time.monotonic()


def _timers(trainer: Any) -> list[Timer]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Timer)]


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints atomically, and keep the previous one of the run as ``before.ckpt``."""

    def __init__(self, run: RunDir) -> None:
        super().__init__()
        self.run = run

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        path = Path(path)
        content = torch_bytes(checkpoint)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path == self.run.checkpoint_file and path.is_file():
            path.replace(self.run.earlier_checkpoint_file)
        write_atomic(path, content)


class ShowProgress(lightning.Callback):
    """Show the share of completed steps over all epochs, and the remaining time."""

    def on_train_start(self, trainer: lightning.Trainer, pl_module: Any) -> None:
        total, done = pl_module.steps_before(pl_module.planned.training.epochs), pl_module.steps_done()
        self.progress = Progress("pretrain", total, done, quiet=not trainer.is_global_zero)

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: Any) -> None:
        self.progress.advance()

    def teardown(self, *_: Any, **__: Any) -> None:
        if hasattr(self, "progress"):
            self.progress.close()
