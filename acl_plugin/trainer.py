"""Pretraining by Lightning: it knows Objective, and no recipe."""

import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from acl_plugin import data as datasets
from acl_plugin import randomness, routed_norm
from acl_plugin.acceleration import compile_encoder, precision, training_device
from acl_plugin.backbones import Encoder, ModelSpec
from acl_plugin.callbacks import AtomicCheckpointIO, Checkpoints, CsvLogger, ShowProgress
from acl_plugin.config import RunConfig
from acl_plugin.coreset import Coreset, held_out_count
from acl_plugin.data import DataSet, Images, ShuffledBatches
from acl_plugin.distributed import average
from acl_plugin.epoch_means import EpochMeans
from acl_plugin.errors import UsageError
from acl_plugin.guard import Guard
from acl_plugin.inner_attack import InnerAttack, ThreatModel, require_unit_range
from acl_plugin.interruption import deferred
from acl_plugin.knn import knn_accuracy
from acl_plugin.lars import LARS
from acl_plugin.lock import locked
from acl_plugin.objective import Objective, Views
from acl_plugin.randomness import HOLDOUT, INITIALISATION, ORDER, STEP, mixed_seed
from acl_plugin.records import read_metrics
from acl_plugin.registry import create_objective
from acl_plugin.run_dir import RunDir, read_intact, write_encoder, write_json
from acl_plugin.views import WEAK, views


def pretrain(config: RunConfig, out: Path, **trainer_options: Any) -> RunDir:
    """Pretrain an encoder as ``config`` says, or go on where an earlier start was stopped.

    Args:
        config: see ``acl_plugin.config.preset``.
        out: run folder, new or of the same configuration.
        trainer_options: further options of ``lightning.Trainer``, such as ``num_nodes``; ``logger`` and
            ``callbacks`` are added to ours.

    Raises:
        UsageError: before anything is written, for a configuration that cannot be run.
        KeyboardInterrupt: after SIGINT.
        TrainingStopped: when the loss is not finite or the encoder has collapsed; the last good checkpoint is kept.
    """
    run = RunDir(out)
    run.check_config(config)
    data = datasets.load(config)
    run.check_images(data)
    module = build(config, data)
    if run.encoder.is_file():  # what it was made with stays as it is written down
        return run
    if run.metrics.is_file():
        read_metrics(run.metrics)  # damage is told before the first step, and not after the first epoch
    run.start(config)
    with locked(run.path):
        run.record_images(data)
        _fit(module, run, trainer_options)
    return run


def _fit(module: "Pretraining", run: RunDir, trainer_options: dict[str, Any]) -> None:
    config, resume = module.config, _checkpoint(run)
    with deferred() as interrupted:
        trainer = _trainer(config, run, Checkpoints(run, config, module.guard, interrupted), trainer_options)
        try:
            trainer.fit(module, ckpt_path=resume, weights_only=True)
        except SystemExit as error:  # what Lightning makes of SIGINT
            raise KeyboardInterrupt from error
    if not trainer.is_global_zero:
        raise SystemExit(0)  # the first process goes on alone
    record = {"epochs": config.epochs, "seconds": round(module.seconds(), 1), "resumed": resume is not None}
    write_json(run.pretraining, record | {"precision": trainer.precision})
    module.write_encoder(run)


def _checkpoint(run: RunDir) -> Path | None:
    """The last checkpoint, or the one before it, to go on from; None to begin.

    The last is left where it is damaged, which is told; and where only the row of its last epoch is not in
    ``metrics.csv``, as the process was killed between the two.
    """
    logged = len(read_metrics(run.metrics)) if run.metrics.is_file() else 0
    for path in (run.checkpoint, run.checkpoint_before):
        if path.is_file():
            try:
                content = read_intact(path)
                content["means"]
                epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
            except Exception as error:  # the unpickler raises all kinds
                told = " ".join(str(error).split())[:80]
                print(f"{path} is damaged ({told}); going on from what is before it", file=sys.stderr)
                continue
            if epochs != logged + 1:
                return path
    return None


def build(config: RunConfig, data: DataSet) -> "Pretraining":
    """Model, objective and attack of a run, with everything checked that can be checked before training.

    Raises:
        UsageError: for names, settings or sizes that do not fit.
    """
    training_device(config)  # or it is told now that there is none
    threat = ThreatModel.parse(config.norm, config.eps)
    attack = InnerAttack(threat, config.attack, config.attack_steps, config.attack_kwargs)
    objective = create_objective(config.objective, **config.objective_kwargs)
    attack.check(objective.attack_view, data.shape[0])
    if config.coreset != "none" and config.ranks > 1:
        raise UsageError(f"--coreset {config.coreset} works on one device, not on {config.ranks}")
    held_out = held_out_count(len(data.train)) if config.coreset != "none" else 0
    if config.batch_size * config.ranks > len(data.train) - held_out:
        given = f"--batch-size {config.batch_size} on {config.ranks} device(s)"
        raise UsageError(f"{given}: there are only {len(data.train) - held_out} training images")
    with randomness.private(mixed_seed(config.seed, INITIALISATION)):
        model = Encoder(model_spec(config, data), objective.routes, objective.projector)
        objective.setup(model)
    objective.check_images(data.train)
    return Pretraining(config, data, model, objective, attack)


def model_spec(config: RunConfig, data: DataSet) -> ModelSpec:
    """The encoder that ``config`` names, for the images of ``data``."""
    import timm

    return ModelSpec(
        backbone=config.backbone,
        kwargs=config.backbone_kwargs,
        stem=config.stem,
        shape=data.shape,
        mean=data.mean,
        std=data.std,
        timm_version=timm.__version__,
    )


class Pretraining(lightning.LightningModule):
    """One objective on one encoder. Every step's randomness is a function of seed and step alone."""

    def __init__(
        self, config: RunConfig, data: DataSet, model: Encoder, objective: Objective, attack: InnerAttack
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config, self.data = config, data
        self.model, self.objective = model, objective
        self.attack = replace(attack, on_moved=lambda share: self.means.add({"attack_moved": share}))
        self.ranks = config.ranks
        self.coreset = Coreset(config, data.train) if config.coreset != "none" else None
        self.guard = Guard(config, objective.temperature)
        self.means = EpochMeans()
        self.seconds_before, self.started = 0.0, time.monotonic()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        from timm.optim import create_optimizer_v2

        c = self.config
        groups = self.objective.param_groups(self.model)
        if c.optimizer == "lars":
            return LARS(groups, lr=c.lr, weight_decay=c.weight_decay)
        return create_optimizer_v2(groups, opt=c.optimizer, lr=c.lr, weight_decay=c.weight_decay, momentum=0.9)

    def train_dataloader(self) -> ShuffledBatches:
        """Called before each epoch."""
        epoch, c = self.current_epoch, self.config
        self.means.begin(epoch)
        self.objective.on_epoch(epoch, c.epochs)
        if self.coreset is not None and self.coreset.is_due(epoch):
            attack = replace(self.attack.scaled(ramp(max(epoch, 1) / c.epochs, c.eps_ramp)), on_moved=None)
            self.coreset.renew(epoch, self.model, self.objective, attack, self._views)
        seed = mixed_seed(c.seed, ORDER)
        images = self._images().to(self.device)  # uint8: CIFAR-10 takes 150 MB of a GPU
        self.batches = ShuffledBatches(images, c.batch_size, seed, epoch, self.global_rank, self.ranks)
        return self.batches

    def seconds(self) -> float:
        """Of this start, and of the earlier ones up to the checkpoints that were gone on from."""
        return self.seconds_before + time.monotonic() - self.started

    def on_fit_start(self) -> None:
        if self.config.compile:
            compile_encoder(self.model, self.device)

    def steps_before(self, epoch: int) -> int:
        """How many steps all epochs before ``epoch``, counted from 0, have."""
        if self.coreset is not None:
            return self.coreset.steps_before(epoch)
        return epoch * (len(self.data.train) // (self.config.batch_size * self.ranks))

    def steps_done(self) -> int:
        """How many steps all starts together have done."""
        return self.steps_before(self.batches.epoch) + self.batches.done

    def _images(self) -> Images:
        return self.data.train if self.coreset is None else self.coreset.images

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["seconds"] = self.seconds()
        checkpoint["means"] = self.means.state_dict()
        if self.coreset is not None:
            checkpoint["coreset"] = (self.coreset.chosen, self.coreset.chosen_at)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.seconds_before = checkpoint["seconds"]
        self.means.load_state_dict(checkpoint["means"])
        if self.coreset is not None:
            self.coreset.chosen, self.coreset.chosen_at = checkpoint["coreset"]

    def training_step(self, batch: tuple[Tensor, Tensor, Tensor], batch_idx: int) -> None:
        pixels, _, rows = batch
        per_epoch, step = len(self.batches), self.steps_before(self.current_epoch) + batch_idx
        position, total = self.current_epoch * per_epoch + batch_idx, per_epoch * self.config.epochs
        torch.manual_seed(mixed_seed(self.config.seed, STEP, step, self.global_rank))
        drawn = self._views(pixels, rows)
        if step == 0:
            require_unit_range(torch.stack([getattr(drawn, name) for name in self.objective.needs]), "views")

        optimizer = self.optimizers()
        assert isinstance(optimizer, LightningOptimizer)
        every = self.config.accumulate_grad_batches
        if batch_idx % every == 0:
            optimizer.zero_grad()
        scale = ramp((position + 1) / total, self.config.eps_ramp)
        attack = replace(self.attack.scaled(scale), trusted=batch_idx > 0)  # else a step would wait for the device
        terms = self.objective.backward(self.model, drawn, attack)
        self.guard.watch(terms, step, position / total)
        self.means.add({"loss": terms.total.detach(), **terms.parts})
        if (batch_idx + 1) % every == 0 or batch_idx + 1 == per_epoch:
            rate = self.config.lr * learning_rate(position / total, self.config.warmup)
            for group in optimizer.param_groups:
                group["lr"] = rate
                self._average([p.grad for p in group["params"] if p.grad is not None], batch_idx % every + 1)
            optimizer.step()

    def on_train_epoch_end(self) -> None:
        self.log_dict(self.means.means(), sync_dist=self.ranks > 1)
        done = self.current_epoch + 1
        if self.config.knn_every and done % self.config.knn_every == 0:
            kept, route = self.objective.downstream(self.model), self.objective.routes[-1]
            with routed_norm.inference(kept):
                accuracy = knn_accuracy(kept, self.data.train, mixed_seed(self.config.seed, HOLDOUT), route)
            self.log("knn_accuracy", accuracy, sync_dist=self.ranks > 1)

    def write_encoder(self, run: RunDir) -> None:
        """What is kept of the training so far, as plain networks with one norm bank each."""
        objective, model = self.objective, self.objective.downstream(self.model)
        benign, adversarial = objective.routes[0], objective.routes[-1]
        run.path.mkdir(exist_ok=True)
        write_encoder(
            run,
            model.spec,
            routed_norm.export(model.backbone, adversarial).state_dict(),
            routed_norm.export(model.backbone, benign).state_dict() if benign != adversarial else None,
            (objective.projector, routed_norm.export(model.projector, adversarial).state_dict()),
        )

    def _views(self, pixels: Tensor, rows: Tensor) -> Views:
        images = pixels.to(self.dtype) / self.data.train.levels
        augment = self.config.augment
        drawn = {
            name: views(images, WEAK[augment]) if name == "weak" else views(images, augment, self.objective.strength)
            for name in self.objective.needs
        }
        return Views(images=images, rows=rows, **drawn)

    def _average(self, gradients: list[Tensor], batches: int) -> None:
        """Over accumulated batches and ranks. (Lightning's DDP leaves gradients alone outside manual_backward.)"""
        average(gradients)
        if batches > 1:
            torch._foreach_div_(gradients, batches)


def ramp(progress: float, share: float) -> float:
    """min(1, progress / share): how much of eps is in use at ``progress`` in (0, 1] of the training."""
    return min(1.0, progress / share) if share else 1.0


def learning_rate(progress: float, warmup: float) -> float:
    """Share of the peak rate: linear over the first ``warmup`` of the training, then half a cosine to 0."""
    if progress < warmup:
        return progress / warmup
    return (1 + math.cos(math.pi * (progress - warmup) / max(1e-12, 1 - warmup))) / 2


def _trainer(config: RunConfig, run: RunDir, checkpoints: Checkpoints, options: dict[str, Any]) -> lightning.Trainer:
    loggers = [CsvLogger(run.metrics), TensorBoardLogger(run.path, name="", version="tensorboard")]
    callbacks = [ShowProgress(), checkpoints]
    ours: dict[str, Any] = {
        "accelerator": config.accelerator,
        "devices": config.devices,
        "num_nodes": config.num_nodes,
        "precision": precision(config.precision, training_device(config)),
        "strategy": "ddp" if config.ranks > 1 else "auto",
        "max_epochs": config.epochs,
        "plugins": [AtomicCheckpointIO()],
        "default_root_dir": run.path,
        "reload_dataloaders_every_n_epochs": 1,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": [*loggers, *options.pop("logger", [])],
        "callbacks": [*callbacks, *options.pop("callbacks", [])],
    }
    return lightning.Trainer(**{**ours, **options})
