"""Adversarial contrastive learning for PyTorch: pretrain, probe, evaluate with AutoAttack, export to RobustBench."""

from acl_plugin import import_hook as _import_hook
from acl_plugin import recipes as _recipes  # noqa: F401 (importing it registers our objectives)
from acl_plugin.errors import UsageError
from acl_plugin.inner_attack import InnerAttack, ThreatModel
from acl_plugin.objective import Cost, Objective, Terms, Views
from acl_plugin.registry import available, create_objective, register
from acl_plugin.run_dir import load_classifier, load_encoder
from acl_plugin.version import VERSION

__version__ = VERSION
__all__ = [
    "Cost",
    "InnerAttack",
    "Objective",
    "Terms",
    "ThreatModel",
    "UsageError",
    "Views",
    "available",
    "create_objective",
    "load_classifier",
    "load_encoder",
    "register",
]


def _register_exports() -> None:
    from acl_plugin.leaderboard import register_exports

    register_exports()


_import_hook.install(after_timm=_register_exports)
