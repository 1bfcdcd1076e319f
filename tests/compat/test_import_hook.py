import json
import subprocess
import sys

import pytest

from acl_plugin.compat import import_hook, robustbench_copy

SERVER = """
import json, os, sys, traceback
import torch, torchvision  # which have no part in this
for line in sys.stdin:
    code, environment, path, output = json.loads(line)
    child = os.fork()
    if not child:
        os.environ.update(environment)
        sys.path[:0] = path
        written = os.open(output, os.O_WRONLY | os.O_CREAT)
        os.dup2(written, 1), os.dup2(written, 2)
        status = 1
        try:
            exec(code, {"__name__": "__main__"})
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(status)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@pytest.fixture(scope="module")
def server():
    """Starts processes with nothing imported but torch."""
    command = [sys.executable, "-W", "ignore", "-c", SERVER]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.stdin.close()
    process.wait(timeout=30)


@pytest.fixture
def python(server, tmp_path_factory):
    """Run code in a process of its own, with folders before all others on its path; what it prints."""

    def run(code, *path, **environment):
        output = tmp_path_factory.mktemp("printed") / "output"
        server.stdin.write(json.dumps([code, environment, [*map(str, path)], str(output)]) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        assert status == 0, output.read_text()
        return output.read_text().strip()

    return run


@pytest.mark.e2e
def test_autoattack_and_its_submodules_are_answered_for_after_import(python):
    code = """
import acl_plugin
from autoattack import AutoAttack
from autoattack.state import EvaluationState
import pyautoattack.state, acl_plugin.compat.autoattack_adapter as adapter
assert AutoAttack is adapter.AutoAttack
assert EvaluationState is pyautoattack.state.EvaluationState
assert pyautoattack.state.__name__ == "pyautoattack.state"
import robustbench
print(robustbench.benchmark.__module__)
"""
    assert python(code).splitlines()[-1] == "robustbench.eval"


@pytest.mark.e2e
def test_the_real_package_is_not_shadowed(python, tmp_path):
    (tmp_path / "autoattack").mkdir()
    (tmp_path / "autoattack" / "__init__.py").write_text("AutoAttack = 'the real one'")
    code = "import acl_plugin, autoattack; print(autoattack.AutoAttack)"
    assert python(code, tmp_path) == "the real one"


@pytest.mark.e2e
def test_without_import_of_ours_nothing_changes(python):
    code = """
try:
    import autoattack
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert python(code) == "autoattack"


@pytest.mark.e2e
@pytest.mark.parametrize("order", ["import timm, acl_plugin", "import acl_plugin, timm"])
def test_a_damaged_index_of_exports_breaks_nothing(order, python, tmp_path):
    (tmp_path / "exports.json").write_text("{")
    code = f"{order}\nprint(timm.is_model('resnet18'))"
    assert python(code, ACL_PLUGIN_HOME=str(tmp_path)) == "True"


OLD = {
    "old": {"robustbench/__init__.py": "from .utils import load_model", "robustbench/utils.py": "load_model = print"},
    "old_and_broken": {"robustbench/__init__.py": "from .data import x\n# from .eval import benchmark",
                       "robustbench/data.py": "import timm.no_such_module"},
    "files_deleted": {"robustbench/__init__.py": "from .eval import benchmark"},
    "init_deleted": {"robustbench/loaders.py": ""},
}  # fmt: skip


def damage_of(kind):
    """Without any other folder on its path, Python finds no record of an installed robustbench."""
    return robustbench_copy.ABSENT if kind == "init_deleted" else robustbench_copy.OVERWRITTEN


@pytest.mark.e2e
@pytest.mark.parametrize("kind", OLD)
def test_an_old_copy_of_robustbench_is_refused_with_its_cure(kind, python, tmp_path):
    for file, text in OLD[kind].items():
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).write_text(text)
    code = """
for _ in range(2):
    try:
        import acl_plugin, robustbench
    except ImportError as error:
        print(error)
"""
    if kind == "init_deleted":  # a folder without __init__.py loses against any package further on
        code = f"import torch, timm, acl_plugin\nimport sys\nsys.path = [{str(tmp_path)!r}]\n" + code
    told = python(code, tmp_path).splitlines()
    assert len(told) == 2
    cure = damage_of(kind).partition("Run: ")[2]
    assert all(line.endswith(cure) for line in told)


@pytest.mark.e2e
def test_an_old_copy_that_was_imported_before_is_reported(python, tmp_path):
    (tmp_path / "robustbench").mkdir()
    (tmp_path / "robustbench" / "__init__.py").write_text("")
    code = "import sys, robustbench\nsys.stderr = sys.stdout\nimport acl_plugin"
    told = python(code, tmp_path)
    assert told.endswith("robustbench==1.1.1")


@pytest.mark.e2e
def test_another_fault_of_robustbench_keeps_its_own_message(python, tmp_path):
    (tmp_path / "robustbench").mkdir()
    text = "import no_such_package\nfrom .eval import benchmark"
    (tmp_path / "robustbench" / "__init__.py").write_text(text)
    code = """
try:
    import acl_plugin, robustbench
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert python(code, tmp_path) == "no_such_package"


def test_installing_twice_changes_nothing():

    before = list(sys.meta_path)
    import_hook.install(after_timm=lambda: None)
    assert sys.meta_path == before
