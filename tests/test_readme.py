"""The README's Python and numbers are as they stand there."""

import json
import os
import re
import subprocess
import sys

import pytest

import acl_plugin
from acl_plugin import registry
from conftest import OPTIONS, ROOT, TINY

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def block_with(words):
    """The one block of the README that has these words."""
    (found,) = [block for block in BLOCKS if words in block]
    return found


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    registry.unregister("half_adversarial")


def test_a_finished_run_is_loaded(folder, finished_run):
    (folder / "runs").mkdir()
    (folder / "runs" / "digits").symlink_to(finished_run)
    scope = {}
    exec(block_with('load_classifier("runs/digits")'), scope)
    assert scope["model"].spec.shape == scope["encoder"].spec.shape == (1, 8, 8)


def test_the_objective_is_a_program_and_a_plugin(folder):
    source = block_with("HalfAdversarial(acl_plugin.Objective)")
    assert len([line for line in source.splitlines() if line]) <= 20
    (folder / "half_adversarial.py").write_text(source)
    command = block_with("python half_adversarial.py").split()
    assert command[0] == "python"
    done = subprocess.run(
        [sys.executable, *command[1:], *OPTIONS, "--limit-test=4", "--epochs=1"], env=os.environ, capture_output=True
    )
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads((folder / "runs" / "half" / "evaluation.json").read_text())["n"] == 4
    assert "nce_half" in (folder / "runs" / "half" / "metrics.csv").read_text()
    exec(source, {"__name__": "half_adversarial"})
    assert "half_adversarial" in acl_plugin.available()


def test_lightning(folder, few):
    from acl_plugin import config

    with pytest.MonkeyPatch.context() as patch:
        small = {k: v for k, v in TINY.items() if k not in ("epochs", "limit_test")}
        patch.setattr(config, "PRESETS", {"digits": small})
        scope = {}
        exec(block_with("lightning.Trainer("), scope)
    assert (folder / "runs" / "acl_ds" / "evaluation.json").is_file()
    assert scope["module"].trainer.current_epoch == 2


def test_numbers_are_those_of_the_results():
    results = (ROOT / "benchmarks" / "RESULTS.md").read_text()
    table = README[README.index("| | clean | AutoAttack |") : README.index("[benchmarks/RESULTS.md]")]
    numbers = re.findall(r"\d+\.\d ± \d+\.\d", table)
    assert len(numbers) == 8
    assert all(number in results for number in numbers)


def test_links_lead_somewhere():
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), (page, target)
