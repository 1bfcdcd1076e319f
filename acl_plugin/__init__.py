"""Adversarial contrastive learning for PyTorch: pretrain, probe, evaluate with AutoAttack, export to RobustBench."""

from acl_plugin import objectives as _objectives  # noqa: F401 (importing it registers ours; the same below)
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.compat import import_hook as _import_hook
from acl_plugin.data import datasets as _datasets  # noqa: F401
from acl_plugin.errors import EvaluationStopped, UsageError
from acl_plugin.evaluation.own_model import evaluate, evaluate_corruptions, evaluate_suite
from acl_plugin.evaluation.results import Evaluation
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.models.wrapped import wrap_encoder
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.probing import protocols as _protocols  # noqa: F401
from acl_plugin.registry import available, create_objective, register
from acl_plugin.runs.models import load_classifier, load_encoder
from acl_plugin.version import VERSION

__version__ = VERSION
__all__ = [
    "Cost",
    "EncoderProtocol",
    "Evaluation",
    "EvaluationStopped",
    "InnerAttack",
    "Objective",
    "Terms",
    "ThreatModel",
    "UsageError",
    "Views",
    "available",
    "create_objective",
    "evaluate",
    "evaluate_corruptions",
    "evaluate_suite",
    "load_classifier",
    "load_encoder",
    "register",
    "wrap_encoder",
]


def _register_exports() -> None:
    from acl_plugin.leaderboard.registration import register_exports

    register_exports()


_import_hook.install(after_timm=_register_exports)
