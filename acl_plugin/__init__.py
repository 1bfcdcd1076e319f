"""Adversarial contrastive learning for PyTorch: pretrain, probe, evaluate with AutoAttack, export to RobustBench."""

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from acl_plugin.compat import import_hook as _import_hook
from acl_plugin.version import VERSION

if TYPE_CHECKING:
    from acl_plugin import losses
    from acl_plugin.attacks.inner_attack import InnerAttack
    from acl_plugin.attacks.threat_model import ThreatModel
    from acl_plugin.config import RunConfig, preset
    from acl_plugin.data import datasets
    from acl_plugin.errors import EvaluationStopped, TrainingStopped, TrainingUnfinished, UsageError
    from acl_plugin.evaluation.own_encoder import evaluate_embedding
    from acl_plugin.evaluation.own_model import evaluate, evaluate_corruptions, evaluate_suite
    from acl_plugin.evaluation.results import Evaluation
    from acl_plugin.leaderboard.export import export as export_to_robustbench
    from acl_plugin.models.encoder import Classifier, Encoder
    from acl_plugin.models.protocol import EncoderProtocol
    from acl_plugin.models.wrapped import wrap_encoder
    from acl_plugin.objectives.base import Cost, Objective, Terms, Views
    from acl_plugin.pipeline import run
    from acl_plugin.probing.protocols import probe
    from acl_plugin.registry import available, create_objective, register
    from acl_plugin.reporting.report import report
    from acl_plugin.runs.models import load_classifier, load_encoder
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
    "evaluate_embedding",
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
_WHERE = {
    "Classifier": "models.encoder:Classifier",
    "Cost": "objectives.base:Cost",
    "Encoder": "models.encoder:Encoder",
    "EncoderProtocol": "models.protocol:EncoderProtocol",
    "Evaluation": "evaluation.results:Evaluation",
    "EvaluationStopped": "errors:EvaluationStopped",
    "InnerAttack": "attacks.inner_attack:InnerAttack",
    "Objective": "objectives.base:Objective",
    "RunConfig": "config:RunConfig",
    "Terms": "objectives.base:Terms",
    "ThreatModel": "attacks.threat_model:ThreatModel",
    "TrainingStopped": "errors:TrainingStopped",
    "TrainingUnfinished": "errors:TrainingUnfinished",
    "UsageError": "errors:UsageError",
    "Views": "objectives.base:Views",
    "available": "registry:available",
    "create_objective": "registry:create_objective",
    "datasets": "data.datasets",
    "evaluate": "evaluation.own_model:evaluate",
    "evaluate_corruptions": "evaluation.own_model:evaluate_corruptions",
    "evaluate_embedding": "evaluation.own_encoder:evaluate_embedding",
    "evaluate_suite": "evaluation.own_model:evaluate_suite",
    "export_to_robustbench": "leaderboard.export:export",
    "load_classifier": "runs.models:load_classifier",
    "load_encoder": "runs.models:load_encoder",
    "preset": "config:preset",
    "pretrain": "training.pretrain:pretrain",
    "probe": "probing.protocols:probe",
    "register": "registry:register",
    "report": "reporting.report:report",
    "run": "pipeline:run",
    "wrap_encoder": "models.wrapped:wrap_encoder",
}
"""Modules and attributes of the public names, imported on first use: PyTorch and Lightning take seconds."""


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        path, _, attribute = _WHERE[name].partition(":")
        module = importlib.import_module(f"acl_plugin.{path}")
        return getattr(module, attribute) if attribute else module
    if not name.startswith("_") and find_spec(f"acl_plugin.{name}") is not None:
        return importlib.import_module(f"acl_plugin.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def _register_exports() -> None:
    from acl_plugin.leaderboard.registration import register_exports

    register_exports()


_import_hook.install(after_timm=_register_exports)
