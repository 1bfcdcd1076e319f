"""Every file in examples/ runs, at small size, and is short."""

import importlib.util
import json
import math
import shutil

import pytest

import acl_plugin
from acl_plugin.attacks.catalogue import attack_names
from conftest import QUICK, ROOT, TINY

EXAMPLES = ROOT / "examples"
ANY = {k: v for k, v in TINY.items() if k != "objective"}
"""For examples of one objective."""
SMALL = {k: v for k, v in TINY.items() if k not in ("backbone", "backbone_kwargs")} | {"epochs": 1, "probe_epochs": 1}


def example(name):
    """The module of a file in examples/."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_an_example_is_short_and_starts_with_its_command(path):
    source = path.read_text()
    assert len(source.splitlines()) < 60
    assert f"\npython examples/{path.name}" in source


@pytest.mark.e2e
def test_evaluate_your_model(few):
    evaluation = example("evaluate_your_model").main(steps=40, test_images=20)
    assert evaluation.n == 20
    assert evaluation.robust_accuracy <= evaluation.clean_accuracy
    assert [verdict.index for verdict in evaluation.verdicts] == list(range(20))


@pytest.mark.e2e
def test_own_objective_learns():
    losses = example("own_objective").main(epochs=3, batch_size=64, limit_train=256)
    assert losses[-1] < losses[0] < math.log(2 * 64 - 1) + 0.5


@pytest.mark.e2e
def test_digits(tmp_path, few):
    result = example("digits").main(tmp_path / "run", **ANY)
    assert result["n"] == TINY["limit_test"]
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == result


@pytest.mark.e2e
def test_swap_backbone(tmp_path, few, monkeypatch):
    module = example("swap_backbone")
    monkeypatch.setitem(module.BACKBONES["vit_tiny_patch16_224"], "backbone_kwargs", {"depth": 1, "embed_dim": 96})
    assert module.main(tmp_path, **SMALL | QUICK).keys() == module.BACKBONES.keys()
    for backbone in module.BACKBONES:
        assert acl_plugin.load_classifier(tmp_path / backbone).spec.backbone == backbone


@pytest.mark.e2e
def test_swap_attack(tmp_path, few):
    module = example("swap_attack")
    assert set(module.ATTACKS) <= set(attack_names("Linf", mode="pairwise"))
    assert module.main(tmp_path, **ANY | {"epochs": 1}).keys() == module.ATTACKS.keys()


@pytest.mark.e2e
def test_export_to_robustbench(tmp_path, finished_run):
    run = shutil.copytree(finished_run, tmp_path / "run")
    info = example("export_to_robustbench").main(run, "Author2026Digits")
    assert info.parent.parts[-5:-2] == ("robustbench", "local", "model_info")
    assert json.loads(info.read_text())["authors"] == "A. Author"
