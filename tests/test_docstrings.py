"""Every example of a docstring runs and prints what it shows."""

import doctest
import importlib
import pkgutil

import pytest
import torch

import acl_plugin

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
NAMES = {"torch": torch, "acl_plugin": acl_plugin}
"""Names that examples use without an import, as does the reader of a page."""


def examples():
    for module in pkgutil.walk_packages(acl_plugin.__path__, "acl_plugin."):
        if module.name.endswith("__main__"):
            continue
        for each in doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module.name)):
            if each.examples:
                yield pytest.param(each, id=each.name)


@pytest.mark.e2e
@pytest.mark.parametrize("example", list(examples()))
def test_an_example_prints_what_it_shows(example, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    example.globs = {**example.globs, **NAMES}
    printed = []
    doctest.DocTestRunner(optionflags=FLAGS).run(example, out=printed.append)
    assert not printed, "".join(printed)
