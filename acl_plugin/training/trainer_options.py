"""Check options of ``lightning.Trainer``: only those that cannot change the weights are accepted."""

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

import lightning
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import callbacks as lightning_callbacks
from lightning.pytorch.loggers import Logger

from acl_plugin.config import RunConfig
from acl_plugin.errors import UsageError, unknown
from acl_plugin.validation import check_value

FREE = frozenset(
    "logger callbacks max_time max_steps profiler detect_anomaly log_every_n_steps enable_progress_bar "
    "enable_model_summary enable_autolog_hparams default_root_dir".split()
)
"""Options that are passed on. All others must equal the value that the pretraining uses."""
CONFIGURED = {
    "accelerator": "accelerator",
    "devices": "devices",
    "num_nodes": "num_nodes",
    "precision": "precision",
    "max_epochs": "epochs",
    "accumulate_grad_batches": "accumulate_grad_batches",
}
"""Options that are fields of the configuration, mapped to the field's name."""
INSTEAD = {
    "enable_checkpointing": "a pretraining always makes checkpoints, so that it can resume; set `checkpoint_every`",
    "min_epochs": "set `epochs` of the configuration",
    "min_steps": "set `epochs` of the configuration",
    "limit_train_batches": "set `limit_train` of the configuration",
    "overfit_batches": "set `limit_train` of the configuration",
    "gradient_clip_val": "set `clip_grad_norm` of the configuration",
    "fast_dev_run": "set `epochs` and `limit_train` of the configuration, or pass `max_steps` to stop early",
    "strategy": "set `devices` of the configuration; above 1 they train by ddp",
    "deterministic": "call torch.use_deterministic_algorithms first",
    "benchmark": "set torch.backends.cudnn.benchmark first",
}
"""Advice for rejected options; any other one is to be left out."""
CHANGES_WEIGHTS = tuple(
    getattr(lightning_callbacks, name)
    for name in (
        "BaseFinetuning BatchSizeFinder GradientAccumulationScheduler LearningRateFinder ModelPruning "
        "StochasticWeightAveraging WeightAveraging"
    ).split()
    if hasattr(lightning_callbacks, name)
)
"""Lightning callbacks that change the trained weights."""


def check_options(config: RunConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options to pass on, without those that are None.

    Args:
        config: configuration of the run.
        options: keyword arguments of ``lightning.Trainer``.

    Raises:
        UsageError: for an option that is unknown, or that would change the training.
    """
    defaults = signature_defaults()
    given = {name: value for name, value in options.items() if value is not None}
    for name, value in given.items():
        if name not in defaults:
            raise unknown("option of lightning.Trainer", name, defaults, parameter=name)
        _check_option(name, value, config, defaults)
    return {name: value for name, value in given.items() if name in FREE}


def _check_option(name: str, value: Any, config: RunConfig, defaults: Mapping[str, Any]) -> None:
    if name == "max_steps" and value != -1 and (type(value) is not int or value < 1):
        allowed = "-1 or a whole number above 0"
        raise UsageError(f"`max_steps` {value!r}: allowed is {allowed}", parameter=name, given=value, allowed=allowed)
    if name == "max_time":
        _check_time(value)
    elif name == "callbacks":
        _check_callbacks(as_list(value))
    elif name == "logger" and not isinstance(value, bool):
        _check_kind(name, as_list(value), Logger)
    elif name in FREE and name != "logger":
        check_value(name, value, inspect.signature(lightning.Trainer).parameters[name].annotation)
    if name in FREE:
        return
    field = CONFIGURED.get(name)
    used = config.options()[field] if field else {"enable_checkpointing": True}.get(name, defaults[name])
    if value != used:
        todo = f"set `{field}` of the configuration" if field else INSTEAD.get(name, "leave it out")
        message = f"`{name}` {value!r}: a pretraining runs with {used!r}; {todo}"
        raise UsageError(message, parameter=name, given=value, allowed=(used,))


def _check_time(value: Any) -> None:
    allowed = "a time above 0: a timedelta, a mapping of its arguments, or text of days:hours:minutes:seconds"
    try:
        left = lightning_callbacks.Timer(duration=value).time_remaining()
    except (MisconfigurationException, ValueError, TypeError, AttributeError, OverflowError):
        left = None
    if left is None or left <= 0:
        raise UsageError(
            f"`max_time` {value!r}: allowed is {allowed}", parameter="max_time", given=value, allowed=allowed
        )


def _check_callbacks(callbacks: list[Any]) -> None:
    _check_kind("callbacks", callbacks, lightning.Callback)
    for callback in callbacks:
        if isinstance(callback, CHANGES_WEIGHTS):
            name = type(callback).__name__
            message = f"`callbacks`: {name} changes what is trained, which is not in the configuration; leave it out"
            raise UsageError(message, parameter="callbacks", given=callback, allowed="callbacks that only watch")


def _check_kind(name: str, values: list[Any], kind: type) -> None:
    for value in values:
        if not isinstance(value, kind):
            allowed = f"a lightning {kind.__name__} or a list of them"
            raise UsageError(f"`{name}` {value!r}: allowed is {allowed}", parameter=name, given=value, allowed=allowed)


def as_list(value: Any) -> list[Any]:
    """Return a list of a value that may be None, a single object or several."""
    if value is None or isinstance(value, bool):
        return []
    return list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]


def signature_defaults() -> dict[str, Any]:
    """Return all parameters of ``lightning.Trainer`` with their defaults."""
    parameters = inspect.signature(lightning.Trainer).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def create_trainer(options: dict[str, Any], given: Iterable[str]) -> lightning.Trainer:
    """Return a Trainer with ``options``, unaffected by environment variables ``PL_TRAINER_...``.

    Args:
        options: all options, ours and the user's.
        given: names of the user's options.

    Raises:
        UsageError: for a value that Lightning rejects.
    """
    try:
        return lightning.Trainer(**signature_defaults() | options)
    except (MisconfigurationException, ValueError, TypeError, RuntimeError) as error:
        names, details = ", ".join(given), " ".join(str(error).split())
        if not names:  # more devices than there are, or other ones than a launcher's
            message = f"`devices` {options['devices']}: {details}"
            raise UsageError(message, parameter="devices", given=options["devices"], allowed=details) from error
        allowed, values = f"what lightning.Trainer takes: {details}", [options[name] for name in given]
        message = f"lightning.Trainer refuses {names}: {details}"
        raise UsageError(message, parameter=names, given=values, allowed=allowed) from error
