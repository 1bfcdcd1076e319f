"""The README's Python, commands, table and numbers are as they stand there."""

import re

import pytest

from benchmarks import methods
from conftest import ROOT

README = (ROOT / "README.md").read_text()
PAGES = [README, *(path.read_text() for path in sorted((ROOT / "docs").rglob("*.md")))]
BLOCKS = [block for page in PAGES for block in re.findall(r"^```\w*\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL)]


def block_with(words):
    """The one block of the README and the docs that has these words; pages may repeat a block."""
    (found,) = {block for block in BLOCKS if words in block}
    return found


@pytest.mark.e2e
def test_a_finished_run_is_loaded(tmp_path, monkeypatch, finished_run):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(finished_run)
    scope = {}
    exec(block_with('load_classifier("runs/digits")'), scope)
    assert scope["model"].spec.shape == scope["encoder"].spec.shape == (1, 8, 8)


@pytest.mark.e2e
def test_a_model_is_evaluated_in_eight_lines(capsys, few):
    source = block_with("torch.linalg.lstsq")
    assert len([line for line in source.splitlines() if line]) <= 8
    exec(source, {})
    shown, printed = block_with("AutoAttack standard, Linf").splitlines(), capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == [line.split()[0] for line in shown]
    assert printed[0] == shown[0]


@pytest.mark.parametrize(("marker", "words"), [("run", "acl-plugin run --out runs/digits"), ("test", "-m pytest")])
def test_the_commands_that_ci_takes_follow_their_markers(marker, words):
    after = README.split(f"<!-- {marker} -->\n")[1]
    assert after.startswith("```\n")
    assert words in after.removeprefix("```\n").split("\n```\n")[0]


@pytest.mark.e2e
def test_the_table_of_methods_is_that_of_the_registry_and_the_results():
    assert "\n".join(methods.table()) in README
