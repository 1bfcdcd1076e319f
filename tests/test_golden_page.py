"""The page of golden numbers lists everything that is registered, and every commit and file of numbers."""

import json
import re
from typing import get_args, get_type_hints

import pytest

import acl_plugin
from acl_plugin.config.sections import TrainingConfig
from acl_plugin.registry import PROTOCOLS
from acl_plugin.runs.layouts import LAYOUTS
from conftest import ROOT

PAGE = (ROOT / "docs" / "explanation" / "golden.md").read_text()
FILES = sorted((ROOT / "tests" / "golden").glob("*.json"))
REGISTERED = {
    "Objectives": acl_plugin.available,
    "Losses of probes": PROTOCOLS.names,
    "Learning rates": lambda: get_args(get_type_hints(TrainingConfig)["schedule"]),
    "Checkpoints": lambda: LAYOUTS,
}
NONE = "Without numbers of an authors' code"


def listed(title):
    """Names in the first column of a section's table."""
    section = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    return set(re.findall(r"`([^`]+)`", " ".join(re.findall(r"^\| ([^|]*)\|", section, flags=re.MULTILINE))))


@pytest.mark.parametrize("title", REGISTERED)
def test_everything_that_is_registered_is_listed(title):
    assert set(REGISTERED[title]()) <= listed(title) | listed(NONE)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_files_and_commits_are_listed(path):
    text = path.read_text()
    commits = set(re.findall(r'"commit": ?"([0-9a-f]{7})[0-9a-f]{33}"', text))
    commits |= set(re.findall(r'"source": ?"[^"]* ([0-9a-f]{7})\b', text))
    commits |= set(re.findall(r'"version": ?"([^"]+)"', text))  # of a library
    assert commits
    assert all(commit in PAGE for commit in commits)
    assert f"`{path.name}`" in PAGE
    assert len(text) < 100_000
    json.loads(text)
