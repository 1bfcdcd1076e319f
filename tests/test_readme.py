"""The Python of the README runs as it stands there."""

import re

import pytest

import acl_plugin
from acl_plugin import registry
from conftest import ROOT, TINY

BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    registry.unregister("half_adversarial")


def test_blocks_run(folder, few, tiny_config):
    from acl_plugin import config, pipeline

    pipeline.run(tiny_config, folder / "runs" / "digits")
    load, objective, run = BLOCKS
    scope = {}
    exec(load, scope)
    assert scope["model"].spec.shape == (1, 8, 8)
    exec(objective, scope)
    assert "half_adversarial" in acl_plugin.available()
    assert len(objective.splitlines()) <= 20
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            config, "PRESETS", {"digits": {k: v for k, v in TINY.items() if k not in ("epochs", "limit_test")}}
        )
        exec(run, scope)
    assert (folder / "runs" / "half" / "evaluation.json").is_file()
    assert "nce_half" in (folder / "runs" / "half" / "metrics.csv").read_text()
