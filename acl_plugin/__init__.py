"""Adversarial contrastive learning for PyTorch: pretrain, probe, evaluate with AutoAttack, export to RobustBench."""

import importlib
from typing import TYPE_CHECKING, Any

from acl_plugin import losses
from acl_plugin import objectives as _objectives  # noqa: F401 (importing it registers ours; the same below)
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.compat import import_hook as _import_hook
from acl_plugin.config import RunConfig, preset
from acl_plugin.data import datasets
from acl_plugin.errors import EvaluationStopped, TrainingStopped, TrainingUnfinished, UsageError
from acl_plugin.evaluation.own_model import evaluate, evaluate_corruptions, evaluate_suite
from acl_plugin.evaluation.results import Evaluation
from acl_plugin.models.encoder import Classifier, Encoder
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.models.wrapped import wrap_encoder
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.probing.protocols import probe
from acl_plugin.registry import available, create_objective, register
from acl_plugin.runs.models import load_classifier, load_encoder
from acl_plugin.version import VERSION

if TYPE_CHECKING:
    from acl_plugin.leaderboard.export import export as export_to_robustbench
    from acl_plugin.pipeline import run
    from acl_plugin.reporting.report import report
    from acl_plugin.training.pretrain import pretrain

__version__ = VERSION
__all__ = [
    "Classifier",
    "Cost",
    "Encoder",
    "EncoderProtocol",
    "Evaluation",
    "EvaluationStopped",
    "InnerAttack",
    "Objective",
    "RunConfig",
    "Terms",
    "ThreatModel",
    "TrainingStopped",
    "TrainingUnfinished",
    "UsageError",
    "Views",
    "available",
    "create_objective",
    "datasets",
    "evaluate",
    "evaluate_corruptions",
    "evaluate_suite",
    "export_to_robustbench",
    "load_classifier",
    "load_encoder",
    "losses",
    "preset",
    "pretrain",
    "probe",
    "register",
    "report",
    "run",
    "wrap_encoder",
]
_LATER = {
    "export_to_robustbench": ("acl_plugin.leaderboard.export", "export"),
    "pretrain": ("acl_plugin.training.pretrain", "pretrain"),
    "report": ("acl_plugin.reporting.report", "report"),
    "run": ("acl_plugin.pipeline", "run"),
}
"""Names imported on first use, as their modules import Lightning or other slow packages."""


def __getattr__(name: str) -> Any:
    if name == "pipeline":
        return importlib.import_module("acl_plugin.pipeline")
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _LATER[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})


def _register_exports() -> None:
    from acl_plugin.leaderboard.registration import register_exports

    register_exports()


_import_hook.install(after_timm=_register_exports)
