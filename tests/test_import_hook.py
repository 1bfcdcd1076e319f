import subprocess
import sys

import pytest


def python(code, **environment):
    import os

    env = {**os.environ, **environment}
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, env=env)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_autoattack_and_its_submodules_are_answered_for_after_import():
    code = """
import acl_plugin
from autoattack import AutoAttack
from autoattack.state import EvaluationState
import pyautoattack.state, acl_plugin.autoattack_adapter as adapter
assert AutoAttack is adapter.AutoAttack
assert EvaluationState is pyautoattack.state.EvaluationState
assert pyautoattack.state.__name__ == "pyautoattack.state"
import robustbench
print(robustbench.benchmark.__module__)
"""
    assert python(code).splitlines()[-1] == "robustbench.eval"


def test_the_real_package_is_not_shadowed(tmp_path):
    (tmp_path / "autoattack").mkdir()
    (tmp_path / "autoattack" / "__init__.py").write_text("AutoAttack = 'the real one'")
    code = "import acl_plugin, autoattack; print(autoattack.AutoAttack)"
    assert python(code, PYTHONPATH=str(tmp_path)) == "the real one"


def test_without_import_of_ours_nothing_changes():
    code = """
try:
    import autoattack
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert python(code) == "autoattack"


@pytest.mark.parametrize("order", ["import timm, acl_plugin", "import acl_plugin, timm"])
def test_a_damaged_index_of_exports_breaks_nothing(order, tmp_path):
    (tmp_path / "exports.json").write_text("{")
    code = f"{order}\nprint(timm.is_model('resnet18'))"
    assert python(code, ACL_PLUGIN_HOME=str(tmp_path)) == "True"


def test_installing_twice_changes_nothing():
    from acl_plugin import import_hook

    before = list(sys.meta_path)
    import_hook.install(after_timm=lambda: None)
    assert sys.meta_path == before
