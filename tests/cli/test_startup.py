"""Help, lists, completions and mistakes answer without importing PyTorch, whose import takes seconds."""

import json
import os
import subprocess
import sys

import pytest
from processes import ended, started

import acl_plugin
from acl_plugin.registry import BOARDS, DATASETS, EXPORTERS, OBJECTIVES, PROTOCOLS, SUITES

COMMANDS = {
    "--help": 0,
    "--version": 0,
    "list objectives": 0,
    "list backbones --pattern vit_tiny*": 0,
    "list attacks": 0,
    "list data": 0,
    "list formats": 0,
    "list published": 0,
    "run --help": 0,
    "evaluate --help": 0,
    "probe --help": 0,
    "runn": 2,
    "list attack": 2,
    "run --out x --objektive simclr": 2,
    "run --out x --objective simclrr": 2,
    "run --out x --data cifer10": 2,
    "run --out x --epochs -1": 2,
    "run --out x --epochs many": 2,
    "run --out x --norm L7": 2,
    "run --out x --eps 2": 2,
    "run --out x --probe-protocol alff": 2,
    "run --out x --config missing.yaml": 2,
    "pretrain --lr 0.1": 2,
    "find-rate --lr high": 2,
    "probe missing": 2,
    "evaluate missing": 2,
    "audit missing": 2,
    "report missing": 2,
    "status missing": 2,
    "export missing": 2,
    "benchmark missing": 2,
    "transfer missing --out x": 2,
    "evaluate --model timm:resnet18 --data digits --suite standart --out y": 2,
}
HEAVY = ("torch", "torchvision", "timm", "lightning", "sklearn", "numpy", "matplotlib")
PROGRAM = """
import contextlib, io, json, sys
from acl_plugin.cli.main import main
found = {}
for line in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            status = main(line.split())
        except SystemExit as end:
            status = end.code
    found[line] = status, [name for name in HEAVY if name in sys.modules]
print(json.dumps(found))
"""


def run_python(code, *arguments, cwd):
    command = [sys.executable, "-c", f"HEAVY = {HEAVY!r}\n{code}", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=cwd).stdout


@pytest.mark.e2e
def test_commands_that_compute_nothing_import_no_pytorch(tmp_path):
    for kept in ("objectives", "backbones", "attacks", "data"):
        assert ended(started(["list", kept], folder=tmp_path)) == 0  # writes the list
    found = json.loads(run_python(PROGRAM, json.dumps([*COMMANDS]), cwd=tmp_path))
    for line, status in COMMANDS.items():
        assert found[line] == [status, []], line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.e2e
def test_completion_imports_no_pytorch(tmp_path):
    code = """
import os, sys
from acl_plugin.cli.main import main
end = os._exit
def ended(status):
    print([name for name in HEAVY if name in sys.modules], flush=True)
    end(0)
os._exit = ended
main()
"""
    for line in (
        "acl-plugin run --objective acl",
        "acl-plugin run --attack fr",
        "acl-plugin probe run --probe-protocol s",
        "acl-plugin pr",
    ):
        offered = tmp_path / "offered"
        asked = {
            "_ARGCOMPLETE": "1",
            "COMP_LINE": line,
            "COMP_POINT": str(len(line)),
            "_ARGCOMPLETE_IFS": " ",
            "_ARGCOMPLETE_STDOUT_FILENAME": str(offered),
        }
        command = [sys.executable, "-c", f"HEAVY = {HEAVY!r}\n{code}"]
        shown = subprocess.run(command, env=os.environ | asked, capture_output=True, text=True, cwd=tmp_path).stdout
        assert shown.strip() == "[]"
        assert offered.read_text()


@pytest.mark.e2e
def test_importing_the_package_imports_no_pytorch_and_every_public_name_is_found(tmp_path):
    code = """
import acl_plugin, sys
print([name for name in HEAVY if name in sys.modules])
try:
    acl_plugin.nothing
except AttributeError as error:
    print(error)
"""
    first, error = run_python(code, cwd=tmp_path).splitlines()
    assert first == "[]"
    assert not [name for name in acl_plugin.__all__ if getattr(acl_plugin, name, None) is None]
    assert acl_plugin.config.__name__ == "acl_plugin.config"
    assert acl_plugin.losses.__name__ == "acl_plugin.losses"
    assert acl_plugin.datasets.__name__ == "acl_plugin.data.datasets"
    assert error == "module 'acl_plugin' has no attribute 'nothing'"
    assert {*acl_plugin.__all__} == {*acl_plugin._WHERE, "losses"}


@pytest.mark.parametrize("registry", [OBJECTIVES, DATASETS, PROTOCOLS, SUITES, EXPORTERS, BOARDS], ids=lambda r: r.kind)
def test_names_are_registered_by_the_modules_that_are_declared(registry):
    assert registry.names()
    for name in registry.names():
        assert registry.get(name).__module__ == registry._modules[name]
