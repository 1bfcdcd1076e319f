"""Pretrain with Lightning in a run folder, resuming an interrupted run."""

import logging
from pathlib import Path
from typing import Any

import lightning
from lightning.fabric.plugins.environments.lightning import LightningEnvironment

from acl_plugin.config import RunConfig, check
from acl_plugin.config.published_pretrainings import pretraining_is
from acl_plugin.data import datasets
from acl_plugin.errors import TrainingUnfinished, UsageError, reason
from acl_plugin.models.protocol import EncoderProtocol, require_encoder
from acl_plugin.models.spec import spec_of
from acl_plugin.runs import own_encoder
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.growth import earlier_epochs, grow, record_of
from acl_plugin.runs.initialization import TEACHERS, require_apart, require_same
from acl_plugin.runs.lock import alone, locked
from acl_plugin.runs.records import read_metrics
from acl_plugin.runtime.device import precision, training_device
from acl_plugin.runtime.distributed import (
    is_first_of,
    known_to_lightning,
    require_launcher,
    require_others,
    require_script,
    temporary_group,
)
from acl_plugin.runtime.files import read_intact, write_json
from acl_plugin.runtime.signals import deferred
from acl_plugin.training.build import build
from acl_plugin.training.callbacks import AtomicCheckpointIO, Checkpoints, ShowProgress
from acl_plugin.training.loggers import create_loggers, log_options
from acl_plugin.training.module import Pretraining
from acl_plugin.training.trainer_options import as_list, check_options, create_trainer

logger = logging.getLogger(__name__)


def pretrain(
    config: RunConfig,
    out: Path | str,
    encoder: EncoderProtocol | None = None,
    *,
    overwrite: bool = False,
    **trainer_options: Any,
) -> RunDir:
    """Pretrain an encoder as configured, or resume an interrupted pretraining.

    ``encoder.pt`` and ``pretraining.json`` are written after the last step. If the pretraining stops earlier, the same
    call resumes it, with weights that are bit-identical to those of an uninterrupted run.

    Args:
        config: see ``acl_plugin.config.preset``.
        out: run folder, new or of the same configuration. With more epochs than before, the run continues from its last
            checkpoint; results of the fewer epochs are kept in ``RUN/after-N-epochs``.
        encoder: your own encoder, such as ``acl_plugin.wrap_encoder(...)`` with the objective's norm banks and
            projector, in place of ``config.encoder.backbone``; a copy of it is trained. The folder records its class
            name as ``backbone``. Pass the same encoder to resume, and to ``acl_plugin.load_encoder(out, encoder=...)``.
        overwrite: remove all files of a run that is in the folder, whatever its configuration.
        trainer_options: further options of ``lightning.Trainer`` that do not change the trained weights, see
            ``acl_plugin.training.trainer_options.FREE``. ``logger`` and ``callbacks`` are added to ours; ``max_time``
            and ``max_steps`` (of the optimizer) limit this start only.

    Returns:
        The run folder.

    Raises:
        UsageError: for an invalid configuration or option, before anything is written.
        KeyboardInterrupt: after SIGINT.
        TrainingUnfinished: when it stopped before its last step, after saving a checkpoint.
        TrainingStopped: when the loss is not finite or the encoder collapsed; the last good checkpoint is kept.
    """
    run = RunDir(out)
    check(config)
    require_launcher(config.machine.num_nodes)
    with alone():
        given, first = check_options(config, trainer_options), is_first_of(config.machine.ranks)
        if encoder is not None:
            config = _recorded(config, encoder)
        own = None if encoder is None else own_encoder.described(encoder)
        run.check_config(config, overwrite, growing=True)
        if own is not None and not overwrite:
            own_encoder.check(run, own)
        before = None if overwrite else earlier_epochs(run, config)
        data = datasets.load(config.data)
        if not overwrite:
            run.check_images(data, pretraining=True)
        if run.encoder_file.is_file() and not overwrite and before is None:
            return _complete(run, config)
        module = build(config, data, encoder)
        require_apart(run, config, ["init", *module.teachers])
        require_others(config.machine.ranks)
        require_script(config.machine.devices)
        if run.metrics_file.is_file() and not overwrite:
            read_metrics(run.metrics_file)  # finds damage before the first step, not after the first epoch
        with deferred() as interrupted, known_to_lightning(config.machine.ranks):
            checkpoints = Checkpoints(run, config.training, config.machine.ranks, interrupted, _limit(given))
            trainer = _trainer(config, run, checkpoints, given)
            with locked(run.path, create=True, first=first):
                if first:  # the others would see the folder before or after it is cleared
                    if before is not None:
                        grow(run, before, config.training.epochs)
                    run.start(config, overwrite)
                    run.record_images(data, pretraining=True)
                    if own is not None:
                        own_encoder.record(run, own)
                log_options(trainer.loggers, config)
                _fit(module, run, trainer, checkpoints, None if overwrite else _checkpoint(run))
    return run


def _complete(run: RunDir, config: RunConfig) -> RunDir:
    """Return a complete run after its checks; it keeps the records of how it was made, and needs no teacher."""
    require_same(run, config)
    if config.machine.accelerator != run.read_config().machine.accelerator:
        training_device(config.machine.accelerator)
    run.record_config(config)
    return run


def _recorded(config: RunConfig, encoder: EncoderProtocol) -> RunConfig:
    """Return the configuration with the user's own encoder as its backbone."""
    spec = spec_of(require_encoder(encoder, "encoder"), (0, 0, 0))
    return config.replace(backbone=spec.backbone, backbone_kwargs=spec.kwargs, stem=spec.stem)


def _limit(options: dict[str, Any]) -> int | None:
    """Remove and return ``max_steps``: Lightning would also count the steps of earlier starts."""
    steps = options.pop("max_steps", -1)
    return None if steps == -1 else steps


def _fit(
    module: Pretraining, run: RunDir, trainer: lightning.Trainer, checkpoints: Checkpoints, resume: Path | None
) -> None:
    try:
        with temporary_group():
            trainer.fit(module, ckpt_path=resume, weights_only=True)
    except SystemExit as error:  # raised by Lightning on SIGINT
        raise KeyboardInterrupt from error
    except RuntimeError as error:
        if resume is None or "loading state_dict" not in str(error):
            raise
        message = f"`encoder` is another network than that which {run.path} was started with: {reason(error)}"
        raise UsageError(message, parameter="encoder", given=reason(error), allowed="the same network") from error
    if not trainer.is_global_zero:
        raise SystemExit(0)  # the first process continues alone
    done, total = trainer.global_step, module.optimizer_steps()
    if done != total:
        ended = f"{checkpoints.ended_by(trainer)} ended the pretraining after {done} of {total} steps"
        raise TrainingUnfinished(f"{run.path}: {ended}; the same command resumes it", done, total)
    config = module.config
    record: dict[str, Any] = {
        "epochs": config.training.epochs,
        "seconds": round(module.seconds(), 1),
        "resumed": resume is not None,
    }
    record |= record_of(run, config.training.epochs)
    record["published"] = pretraining_is(config.options())
    if module.started_from:
        record["init" if config.encoder.init is not None else "pretrained"] = module.started_from
    if module.teachers:
        record[TEACHERS] = module.teachers
    if config.data.unlabeled is not None:
        record["unlabeled"] = config.data.unlabeled.name
    write_json(run.pretraining_file, record | {"precision": trainer.precision})
    module.write_encoder(run)


def _checkpoint(run: RunDir) -> Path | None:
    """Return the checkpoint to resume from, the last or the one before it, or None to start from scratch.

    The last one is skipped if it is damaged, with a warning, or if only the row of its last epoch is missing from
    ``metrics.csv``, because the process was killed between the two writes.
    """
    logged = len(read_metrics(run.metrics_file)) if run.metrics_file.is_file() else 0
    for path in (run.checkpoint_file, run.earlier_checkpoint_file):
        if path.is_file():
            try:
                content = read_intact(path)
                content["means"]
                epochs = content["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"]
            except Exception as error:  # the unpickler raises many types
                details = " ".join(str(error).split())[:80]
                logger.warning(f"{path} is damaged ({details}); resuming from the checkpoint before it")
                continue
            if epochs != logged + 1:
                return path
    return None


def _trainer(config: RunConfig, run: RunDir, checkpoints: Checkpoints, options: dict[str, Any]) -> lightning.Trainer:
    loggers = create_loggers(config, run)
    ours: dict[str, Any] = {
        "accelerator": config.machine.accelerator,
        "devices": config.machine.devices,
        "num_nodes": config.machine.num_nodes,
        "precision": precision(config.machine.precision, training_device(config.machine.accelerator)),
        "strategy": "ddp" if config.machine.ranks > 1 else "auto",
        "max_epochs": config.training.epochs,
        "plugins": [AtomicCheckpointIO(run), *([LightningEnvironment()] if config.machine.ranks == 1 else [])],
        "default_root_dir": run.path,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    added = {
        "logger": [*loggers, *as_list(options.get("logger"))],
        "callbacks": [ShowProgress(), *as_list(options.get("callbacks")), checkpoints],
    }
    return create_trainer(ours | options | added, options)
