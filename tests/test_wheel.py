"""A wheel in an environment of its own: the command, and an objective that another distribution brings."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from test_readme import block_with

import acl_plugin
from conftest import OPTIONS, ROOT

PYPROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"

[project]
name = "half-adversarial"
version = "1"

[tool.setuptools]
py-modules = ["half_adversarial"]

"""


CODE = """
import runpy, sys
import acl_plugin.cli.main as cli
print(cli.__file__)
assert cli.main(["list", "objectives"]) == 0
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Tells where the package is, lists objectives, and runs the script of the command in the same process."""


@pytest.fixture
def environment(tmp_path_factory):
    """The scripts of a fresh environment that has our wheel, that of another distribution, and what they depend on."""
    folder = tmp_path_factory.mktemp("wheel")
    other = folder / "other"
    other.mkdir()
    (other / "half_adversarial.py").write_text(block_with("HalfAdversarial(acl_plugin.Objective)"))
    (other / "pyproject.toml").write_text(PYPROJECT + block_with('entry-points."acl_plugin.objectives"'))
    python = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    source = folder / "source"  # setuptools leaves a folder behind where it builds
    shutil.copytree(ROOT / "acl_plugin", source / "acl_plugin", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["wheel", "--no-deps", "--no-build-isolation", "-w", str(folder / "wheels"), str(source), str(other)]
    subprocess.run([*python, *build], check=True, capture_output=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    scripts = folder / "venv" / "bin"
    site = next((folder / "venv" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    wheels = [str(wheel) for wheel in (folder / "wheels").glob("*.whl")]
    assert len(wheels) == 2
    install = ["--python", str(scripts / "python"), "install", "--no-deps", "--no-index", "--no-compile", *wheels]
    subprocess.run([*python, *install], check=True, capture_output=True)
    return scripts


def run(script, *arguments, folder):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(script), *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.e2e
def test_the_wheel_is_whole_and_runs_the_objective_of_another_distribution(environment, tmp_path):
    assert run(environment / "acl-plugin", "--version", folder=tmp_path).strip() == acl_plugin.__version__
    options = [*OPTIONS, "--limit-test=3", "--epochs=1", "--probe-lr=0", "--objective=half_adversarial"]  # all wrong
    given = [environment / "acl-plugin", "run", "--out", "run", *options]
    where, *shown = run(environment / "python", "-c", CODE, *given, folder=tmp_path).splitlines()
    assert Path(where).is_relative_to(environment.parent)
    assert (Path(where).parents[1] / "py.typed").is_file()
    line = next(line for line in shown if line.startswith("half_adversarial"))
    assert "One NT-Xent between a benign view and an adversarial one" in line
    assert any("AutoAttack" in line for line in shown)
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text())["n"] == 3
    assert "nce_half" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
