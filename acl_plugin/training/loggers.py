"""Loggers of a pretraining: CSV and TensorBoard always, and Weights & Biases or MLflow by name."""

import hashlib
import os
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from acl_plugin.config import RunConfig
from acl_plugin.errors import missing_extra
from acl_plugin.runs.folder import RunDir
from acl_plugin.training.metrics import CsvLogger

PROJECT = "acl_plugin"
"""Name of the project or experiment."""


def create_loggers(config: RunConfig, run: RunDir) -> list[Logger]:
    """Return the loggers of a run; a service gets the name of its folder.

    Raises:
        UsageError: when the package of the service is not installed.
    """
    own: list[Logger] = [CsvLogger(run.metrics_file), TensorBoardLogger(run.path, name="", version="tensorboard")]
    name = config.training.logger
    if name == "none":
        return own
    try:
        service = _service(name, run)
    except (ImportError, ModuleNotFoundError) as error:
        raise missing_extra(f"`logger` {name}", name, error, "logger") from error
    return [*own, service]


def log_options(loggers: list[Logger], config: RunConfig) -> None:
    """Send all options to the service, which may write into the run folder."""
    if config.training.logger != "none":
        _, _, service, *_ = loggers
        service.log_hyperparams(config.options())


def _service(name: str, run: RunDir) -> Any:
    if name == "mlflow":
        beside = run.path.resolve().parent  # one file for all runs in a folder; MLflow creates it at once
        beside.mkdir(parents=True, exist_ok=True)
        place = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{beside}/mlflow.db")
        return MLFlowLogger(PROJECT, run_name=run.path.name, tracking_uri=place)
    identity = hashlib.sha256(str(run.path.resolve()).encode()).hexdigest()[:8]  # a resumed run continues its curves
    return WandbLogger(run.path.name, str(run.path), project=PROJECT, id=identity, resume="allow")
