"""``LightningModule`` of a pretraining, for our own or any other Trainer and for any ``Objective``."""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.inputs import require_unit_range
from acl_plugin.config import RunConfig
from acl_plugin.data.augment import views
from acl_plugin.data.batches import ShuffledBatches
from acl_plugin.data.images import DataSet
from acl_plugin.data.view_options import strong, weak
from acl_plugin.errors import UsageError
from acl_plugin.models import low_rank, norm_banks
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.models.spec import spec_of
from acl_plugin.objectives.base import Objective, Views
from acl_plugin.objectives.branches import held, kept_modes
from acl_plugin.runs.discriminator import write_discriminator
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import write_encoder
from acl_plugin.runtime import seeding
from acl_plugin.runtime.device import compile_encoder
from acl_plugin.runtime.distributed import average
from acl_plugin.runtime.seeding import HOLDOUT, ORDER, STEP, mixed_seed
from acl_plugin.training.batch_size import check_sizes
from acl_plugin.training.coreset import Coreset
from acl_plugin.training.epoch_loader import EpochLoader
from acl_plugin.training.guard import Guard, check_gradient, own_temperature
from acl_plugin.training.knn import knn_accuracy
from acl_plugin.training.metrics import EpochMeans
from acl_plugin.training.optimizer import create_optimizer
from acl_plugin.training.schedules import ramp, rates
from acl_plugin.training.update import update


class Pretraining(lightning.LightningModule):
    """Train one objective on one encoder. The randomness of each step depends only on seed and step.

    The attached Trainer decides the number of devices and of epochs (``max_epochs``, or as many as ``max_steps``
    needs), over which all schedules extend. If it sets neither, the configuration's epochs are trained.
    """

    def __init__(
        self, config: RunConfig, data: DataSet, model: EncoderProtocol, objective: Objective, attack: InnerAttack
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config, self.data, self.images = config, data, data.pretraining
        self.model, self.objective = model, objective
        self.attack = replace(attack, on_moved=lambda share: self.means.add({"attack_moved": share}))
        decay = config.training.ema_decay
        self.averaged = None
        if decay:
            average_of = get_ema_multi_avg_fn(decay)
            self.averaged = AveragedModel(cast(nn.Module, model), multi_avg_fn=average_of, use_buffers=True)
            self.averaged.requires_grad_(False)
        self.started_from, self.teachers = dict[str, str](), dict[str, str]()  # records of weights of other runs
        self._begin(config)

    def _begin(self, planned: RunConfig) -> None:
        """Reset all state of an earlier training of this module, except the weights."""
        self.planned, self.length = planned, float(planned.training.epochs)
        self.coreset = None
        if planned.coreset.coreset != "none":
            self.coreset = Coreset(planned.coreset, planned.training, planned.machine.seed, self.images)
        self.rate = rates(planned.training, self.length)
        self.guard = Guard(planned.training, planned.objective.eps_ramp, own_temperature(self.objective))
        self.means, self.loader = EpochMeans(), EpochLoader(self)
        self.batches: ShuffledBatches | None = None
        self.seconds_before, self.started = 0.0, time.monotonic()

    @property
    def ranks(self) -> int:
        """Return the number of ranks."""
        return self.planned.machine.ranks

    @property
    def epoch(self) -> int:
        """Return the current or next epoch. (``current_epoch`` lags behind after a restart.)"""
        current: Any = self.trainer.fit_loop.epoch_progress.current
        return int(current.processed)

    def setup(self, stage: str) -> None:
        """Set the numbers of epochs and devices from the attached Trainer.

        Raises:
            UsageError: when there are too few images for its devices.
        """
        trainer, c = self.trainer, self.config
        assert trainer.max_epochs is not None
        c = c.replace(devices=trainer.world_size, num_nodes=1)
        check_sizes(c, self.data)
        if trainer.max_epochs >= 0:
            self._begin(c.replace(epochs=trainer.max_epochs))
        elif trainer.max_steps < 0:  # no limit, or max_time
            self._begin(c)
        else:
            self._begin(c.replace(epochs=1))
            self._extend(trainer.max_steps)

    def _extend(self, steps: int) -> None:
        """Plan as many epochs as ``steps`` optimizer steps need; the last one may be partial."""
        if not self._optimizer_steps(0):
            message = "`limit_train_batches` of the Trainer leaves no batch of an epoch; raise it"
            raise UsageError(message, parameter="limit_train_batches", given=0, allowed="a batch or more per epoch")
        epochs = max(1, steps // self._optimizer_steps(0))  # no epoch is longer than the first
        while True:
            self.planned = self.planned.replace(epochs=epochs)
            if self.coreset is not None:
                self.coreset.training = self.planned.training
            left = steps - sum(map(self._optimizer_steps, range(epochs - 1)))
            if left <= self._optimizer_steps(epochs - 1):
                break
            epochs += 1
        batches = self.batches_in(epochs - 1)
        self.length = epochs - 1 + min(left * self.config.training.accumulate_grad_batches, batches) / batches
        self.rate = rates(self.planned.training, self.length)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer = create_optimizer(self.config.training, self.objective.param_groups(self.model), self.model)
        self.peaks = [group["lr"] for group in optimizer.param_groups]  # the objective may set a rate per group
        return optimizer

    def train_dataloader(self) -> "EpochLoader":
        return self.loader

    def begin_epoch(self, resumed: Mapping[str, int]) -> ShuffledBatches:
        """Prepare objective and coreset for the current epoch, and return its batches.

        Args:
            resumed: loader state from a checkpoint; batches of this epoch that it already yielded are skipped.
        """
        epoch, c = self.epoch, self.planned
        self.means.begin(epoch)
        self.objective.on_epoch(epoch, c.training.epochs)
        if self.coreset is not None and self.coreset.is_due(epoch):
            scale = ramp(max(epoch, 1) / c.training.epochs, c.objective.eps_ramp)
            attack = replace(self.attack.scaled(scale), on_moved=None)
            self.coreset.renew(epoch, self.model, self.objective, attack, self.views_of)
        images = (self.images if self.coreset is None else self.coreset.images(epoch)).to(self.device)  # uint8: 150 MB
        seed = mixed_seed(c.machine.seed, ORDER)
        self.batches = ShuffledBatches(images, c.training.batch_size, seed, epoch, self.global_rank, self.ranks)
        self.batches.load_state_dict(resumed)
        return self.batches

    def seconds(self) -> float:
        """Return the duration of this start plus that of earlier ones up to the resumed checkpoints."""
        return self.seconds_before + time.monotonic() - self.started

    def on_fit_start(self) -> None:
        if self.config.machine.compile:
            compile_encoder(cast(nn.Module, self.model), self.device)

    def steps_before(self, epoch: int) -> int:
        """Return the number of batches in all epochs before ``epoch``, counted from 0."""
        if self.coreset is not None:
            return self.coreset.steps_before(epoch)
        return epoch * (len(self.images) // (self.config.training.batch_size * self.ranks))

    def batches_in(self, epoch: int) -> int:
        """Return the number of batches in ``epoch``, within the Trainer's ``limit_train_batches``."""
        whole, limit = self.images_allow(epoch), self.trainer.limit_train_batches
        return min(whole, limit) if isinstance(limit, int) else int(whole * limit)

    def images_allow(self, epoch: int) -> int:
        """Return the number of whole batches in the images of ``epoch``."""
        return self.steps_before(epoch + 1) - self.steps_before(epoch)

    def _optimizer_steps(self, epoch: int) -> int:
        return -(-self.batches_in(epoch) // self.config.training.accumulate_grad_batches)

    def optimizer_steps(self) -> int:
        """Return the number of optimizer steps of the whole training."""
        return sum(map(self._optimizer_steps, range(self.planned.training.epochs)))

    def steps_done(self) -> int:
        """Return the number of batches trained on over all starts."""
        epoch, state = self.epoch, self.loader.state_dict()
        return self.steps_before(epoch) + (state["done"] if state["epoch"] == epoch else 0)

    @property
    def at_end_of_epoch(self) -> bool:
        """Return whether all batches of the current epoch are done."""
        epoch, batches = self.current_epoch, self.batches
        return batches is not None and (batches.epoch, batches.done) == (epoch, self.batches_in(epoch))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seconds"] = self.seconds()
        checkpoint["means"] = self.means.state_dict()
        checkpoint["streak"] = self.guard.streak
        if self.coreset is not None:
            checkpoint["coreset"] = (self.coreset.chosen, self.coreset.chosen_at)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds_before = checkpoint["seconds"]
        self.means.load_state_dict(checkpoint["means"])
        self.guard.streak = checkpoint.get("streak", 0)  # earlier versions saved checkpoints only when it was 0
        if self.coreset is not None:
            self.coreset.chosen, self.coreset.chosen_at = checkpoint["coreset"]

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        assert self.batches is not None
        step = self.steps_before(self.batches.epoch) + batch_idx
        with seeding.isolated_rng(mixed_seed(self.config.machine.seed, STEP, step, self.global_rank), self.device):
            self._step(batch, batch_idx, self.batches.epoch, step)

    def _step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int, epoch: int, step: int) -> None:
        per_epoch = self.batches_in(epoch)
        position, total = epoch * per_epoch + batch_idx, per_epoch * self.length
        drawn = self.views_of(batch[0], batch[2])  # pixels and rows, without the labels
        if step == 0:
            for name in self.objective.needs:
                require_unit_range(getattr(drawn, name), "views")
        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        every = self.config.training.accumulate_grad_batches
        at = [self.rate(peak, position / per_epoch, 1 / per_epoch) for peak in self.peaks]
        scale = ramp((position + 1) / total, self.config.objective.eps_ramp)
        attack = replace(self.attack.scaled(scale), trusted=batch_idx > 0)  # avoids a synchronization
        for last in attack.times() if self.objective.attack_mode is not None else (True,):
            if batch_idx % every == 0:
                optimizer.zero_grad()
            with held(self.objective, batch_idx % every > 0), kept_modes(self):
                terms = self.objective.backward(self.model, drawn, attack)
            if self.guard.last < 0:
                check_gradient(self.model, self.config.objective.objective)
            if last:
                self.guard.watch(terms, step, position / total)
            self.means.add({"loss": terms.total.detach(), **terms.parts})
            if (batch_idx + 1) % every == 0 or batch_idx + 1 == per_epoch:
                counted = optimizer if last else optimizer.optimizer  # one step for each batch
                update(counted, self.config.training, at, batch_idx % every + 1)
                if self.averaged is not None:
                    self.averaged.update_parameters(cast(nn.Module, self.model))

    @property
    def kept(self) -> EncoderProtocol:
        """Return the encoder to keep: of the averaged weights if they are configured, and else the last."""
        return self.objective.downstream(self.model if self.averaged is None else cast(Any, self.averaged.module))

    def on_train_epoch_end(self) -> None:
        self._average_statistics()
        if self.batches is None or not self.at_end_of_epoch:
            return  # the epoch is incomplete, and so are its means
        self.log_dict(self.means.means(), sync_dist=self.ranks > 1)
        done = self.batches.epoch + 1
        if self.config.training.knn_every and done % self.config.training.knn_every == 0:
            kept, norm_bank = self.kept, self.objective.norm_banks[-1]
            with norm_banks.inference(kept):
                accuracy = knn_accuracy(kept, self.data.train, mixed_seed(self.config.machine.seed, HOLDOUT), norm_bank)
            self.log("knn_accuracy", accuracy, sync_dist=self.ranks > 1)
        endless = self.trainer.max_epochs == self.trainer.max_steps == -1
        if endless and done >= self.planned.training.epochs:
            self.trainer.should_stop = True  # the learning rate is 0 from here on

    def write_encoder(self, run: RunDir) -> None:
        """Write the current encoder as plain networks with one norm bank each."""
        objective, model = self.objective, self.kept
        benign, adversarial = objective.norm_banks[0], objective.norm_banks[-1]
        backbone = low_rank.merged(model.backbone)
        run.path.mkdir(exist_ok=True)
        if (discriminator := objective.discriminator()) is not None:
            write_discriminator(run, *discriminator)
        write_encoder(
            run,
            spec_of(model, self.data.shape),
            norm_banks.export(backbone, adversarial).state_dict(),
            norm_banks.export(backbone, benign).state_dict() if benign != adversarial else None,
            (
                getattr(model, "projector_name", objective.projector),
                norm_banks.export(model.projector, adversarial).state_dict(),
            ),
        )

    def views_of(self, pixels: Tensor, rows: Tensor) -> Views:
        """Return the views of a batch that the objective needs: (B, C, H, W) uint8 pixels and (B,) rows."""
        images, c = pixels.to(self.dtype) / self.images.levels, self.config.training
        drawn = {
            name: views(images, weak(c)) if name == "weak" else views(images, strong(c), self.objective.strength)
            for name in self.objective.needs
        }
        return Views(images=images, rows=rows, **drawn)

    def _average_statistics(self) -> None:
        """Average the running statistics over all ranks, so that those saved by rank 0 represent all.

        (Lightning's DDP broadcasts no buffers under manual optimization.)
        """
        norms = [norm for norm in self.modules() if isinstance(norm, _NormBase) and norm.running_mean is not None]
        average(buffer for norm in norms for buffer in (norm.running_mean, norm.running_var) if buffer is not None)
