"""Imports only go down: a module imports modules of its own layer or a lower one."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import acl_plugin

PACKAGE = Path(acl_plugin.__file__).parent
LAYERS = [
    "errors version progress randomness interruption epoch_means paths threat_model values fingerprint subsets",
    "registry unused config exports checkpoint_file import_hook figures distributed",
    "acceleration tables",
    "image_files",
    "image_folders",
    "losses layouts schedules lars projectors divergence sharpness bounds correlation "
    "data views routed_norm autoattack_adapter attack_classes attack_inputs autograd_scope "
    "stems timm_names memory_format",
    "backbones",
    "architectures",
    "inner_attack run_dir folding",
    "objective lock records completion probe_checkpoints",
    "branches pseudo_labels verdicts broken_images model_checks published sgd linear_head full_finetune",
    "knn semi_supervised provenance stub imported_head",
    "recipes",
    "guard coreset",
    "pretraining trainer_options callbacks",
    "lpaft",
    "trainer probe evaluate suite corruptions",
    "whole_run",
    "submission",
    "leaderboard importers transfer audit",
    "pipeline repeat",
    "report status",
    "cli",
    "__main__ __init__",
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names.split()}
HEAVY = ("timm", "torchattacks", "robustbench", "lightning", "matplotlib", "kornia", "sklearn", "autoattack")


def module_of(path):
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            if node.module in ("acl_plugin", "acl_plugin.objectives"):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = module_of(path)
    for name in imports_of(path):
        parts = name.split(".")
        if parts[0] == "acl_plugin" and len(parts) > 1 and parts[1] in LEVEL:
            allowed = LEVEL[parts[1]] <= LEVEL[own]
            assert allowed, f"{own} (layer {LEVEL[own]}) imports {parts[1]} (layer {LEVEL[parts[1]]})"


def test_import_is_light():
    code = f"import sys, acl_plugin; print([m for m in {HEAVY!r} if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "[]"
