"""Rooms: imports only go down, and what others may use in their own loops knows neither run folders nor options."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import acl_plugin

PACKAGE = Path(acl_plugin.__file__).parent
FLOORS = [
    "errors version",
    "runtime registry validation",
    "config",
    "losses data compat",
    "models",
    "attacks",
    "objectives runs",
    "probing evaluation",
    "training theory leaderboard reporting",
    "pipeline",
    "cli",
    "__init__ __main__",
]
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
PURE = (
    "losses models attacks objectives evaluation.autoattack evaluation.adversarial_images evaluation.batches "
    "evaluation.checks evaluation.corruptions evaluation.inputs evaluation.isolation evaluation.suite "
    "evaluation.target evaluation.verdicts"
).split()
"""What works in anybody's loop."""
HEAVY = ("timm", "torchattacks", "robustbench", "lightning", "matplotlib", "kornia", "sklearn", "autoattack")
FILES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES, MOST_IN_FUNCTION, MOST_PARAMETERS = 300, 50, 6
"""Parameters beside options that are passed by keyword."""


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports_of(path):
    """Modules of the package, without its name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("acl_plugin.") for name in names if name.startswith("acl_plugin."))


def rooms(path):
    own = name_of(path).partition(".")[0]
    return own, {name.partition(".")[0] for name in imports_of(path)} & FLOOR.keys() - {own}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_go_down(path):
    own, others = rooms(path)
    for other in others:
        assert FLOOR[other] <= FLOOR[own], f"{own} imports {other}, which is above it"


@pytest.mark.e2e
def test_no_circle_of_rooms():
    above = {}
    for path in FILES:
        own, others = rooms(path)
        above.setdefault(own, set()).update(others)
    while free := [room for room, others in above.items() if not others & above.keys()]:
        for room in free:
            del above[room]
    assert above == {}


@pytest.mark.e2e
def test_what_is_pure_reaches_no_run_folder_no_options_and_no_files():
    modules = {name_of(path): path for path in FILES}

    def reached(name, seen):
        if name not in seen and name in modules:
            seen.add(name)
            for other in imports_of(modules[name]):
                reached(other, seen)
                reached(other.rpartition(".")[0], seen)
        return seen

    for name in modules:
        if name.startswith(tuple(PURE)) and not name.endswith("__init__"):
            wrong = {other for other in reached(name, set()) if other.startswith(("runs", "config", "runtime.files"))}
            assert not wrong, f"{name} reaches {wrong}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_and_functions_are_short(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            documented = len((ast.get_docstring(node, clean=False) or "").splitlines())
            lines = node.end_lineno - node.lineno + 1 - documented
            assert lines <= MOST_IN_FUNCTION, f"{node.name} has {lines} lines"
            names = [each.arg for each in (*node.args.posonlyargs, *node.args.args) if each.arg not in ("self", "cls")]
            foreign = name_of(path).startswith("compat.")  # the parameters of the class that is replaced
            assert len(names) <= MOST_PARAMETERS or foreign, f"{node.name} has the parameters {names}"


@pytest.mark.e2e
def test_import_is_light_and_needs_no_fcntl():
    """As on Windows; the files that lock are imported as well."""
    code = (
        "import sys; sys.modules['fcntl'] = None; import acl_plugin; "
        f"print([m for m in {HEAVY!r} if m in sys.modules]); import acl_plugin.runs.lock; "
        "import acl_plugin.leaderboard.index, acl_plugin.cli.main; print(acl_plugin.runtime.file_locks.fcntl)"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.split() == ["[]", "None"]


@pytest.mark.e2e
def test_the_library_prints_nothing():
    """It logs; what the user asked to see is printed by the command line, and by the script of submissions."""
    for path in FILES:
        if name_of(path) not in ("runtime.messages", "runtime.progress", "leaderboard.repeat"):
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            prints = [n.lineno for n in calls if isinstance(n.func, ast.Name) and n.func.id == "print"]
            assert not prints or name_of(path).startswith("cli."), f"{name_of(path)}: lines {prints}"
