"""The whole job: pretrain, probe, evaluate, export. Each stage that is done already is skipped."""

from pathlib import Path
from typing import Any

import torch

from acl_plugin.config import RunConfig
from acl_plugin.evaluate import evaluate
from acl_plugin.leaderboard import export
from acl_plugin.probe import probe
from acl_plugin.trainer import pretrain


def run(config: RunConfig, out: Path, device: torch.device | str = "cpu", **trainer_options: Any) -> dict[str, Any]:
    """Do the whole job of ``config`` in the folder ``out``, or what is left of it.

    Args:
        config: see ``acl_plugin.config.preset``.
        out: run folder, new or of the same configuration.
        device: for probe and evaluation; pretraining takes ``config.accelerator``.
        trainer_options: see ``acl_plugin.trainer.pretrain``.

    Returns:
        The contents of ``evaluation.json``.

    Raises:
        UsageError, TrainingStopped: as the stages do.
    """
    folder = pretrain(config, out, **trainer_options)
    if not (folder.classifier.is_file() and folder.probe.is_file()):
        probe(folder, config, torch.device(device))
    result = evaluate(folder, config, torch.device(device))
    export(folder, config)
    return result
