"""A robustbench whose files are not those that were installed is found without importing it."""

import sys
from importlib import invalidate_caches

import pytest

from acl_plugin import errors
from acl_plugin.compat import robustbench_copy
from acl_plugin.compat.robustbench_copy import ABSENT, OVERWRITTEN, damage, found_damage

RECORD = "robustbench/__init__.py,sha256=abc,4\nrobustbench/eval.py,,6\nrobustbench-9.9.dist-info/RECORD,,\n"


@pytest.fixture
def site(tmp_path, monkeypatch):
    """The only folder that packages are found in, with a whole robustbench."""
    (tmp_path / "robustbench").mkdir()
    (tmp_path / "robustbench" / "__init__.py").write_text("a = 1"[:4])
    (tmp_path / "robustbench" / "eval.py").write_text("bb = 2")
    (tmp_path / "robustbench-9.9.dist-info").mkdir()
    (tmp_path / "robustbench-9.9.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: robustbench\n")
    (tmp_path / "robustbench-9.9.dist-info" / "RECORD").write_text(RECORD)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "robustbench", raising=False)
    invalidate_caches()
    return tmp_path


def test_a_whole_one(site):
    assert found_damage() is None


@pytest.mark.parametrize("file", ["__init__.py", "eval.py"])
@pytest.mark.parametrize("text", [None, "of another length"])
def test_a_file_that_was_overwritten_or_deleted(file, text, site):
    path = site / "robustbench" / file
    path.unlink() if text is None else path.write_text(text)
    assert found_damage() == damage()
    assert damage().startswith(OVERWRITTEN)


def test_an_old_copy_without_an_installed_one(site):
    for path in (site / "robustbench-9.9.dist-info").iterdir():
        path.unlink()
    (site / "robustbench-9.9.dist-info").rmdir()
    assert found_damage() == damage()
    assert damage().startswith(ABSENT)
    for path in (site / "robustbench").iterdir():
        path.unlink()
    (site / "robustbench").rmdir()
    invalidate_caches()
    assert found_damage() is None


@pytest.mark.parametrize(("installed", "installer"), [(True, "pip"), (False, "uv pip")])
@pytest.mark.parametrize("recorded", [None, {}])
def test_each_message_ends_with_a_command_that_is_there(recorded, installed, installer, monkeypatch):
    monkeypatch.setattr(robustbench_copy, "_recorded", lambda: recorded)
    monkeypatch.setattr(errors, "find_spec", lambda name: installed or None)
    assert "\n" not in damage()
    assert damage().partition(" Run: ")[2].startswith(f"{installer} install ")
