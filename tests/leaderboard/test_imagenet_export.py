"""A run on ImageNet, from its folders to RobustBench."""

import json

import pytest
import torch

from acl_plugin import load_classifier, pipeline, preset
from acl_plugin.data import datasets
from acl_plugin.leaderboard import submission
from acl_plugin.leaderboard.model_info import local_reason
from acl_plugin.runs.folder import RunDir
from conftest import TINY
from conftest import spec as spec_of


@pytest.mark.e2e
def test_a_run_on_imagenet_is_loaded_and_prepared_by_robustbench(imagenet, tmp_path):
    import robustbench
    from robustbench.data import PREPROCESSINGS, get_preprocessing
    from robustbench.model_zoo.enums import BenchmarkDataset, ThreatModel

    options = TINY | {"objective": "simclr", "epochs": 1, "probe_epochs": 1, "limit_test": 4, "precision": "32-true"}
    config = preset("imagenet", data_dir=imagenet, objective_kwargs={}, **options)
    evaluation = pipeline.run(config, tmp_path / "run")
    assert (evaluation["n"], evaluation["eps"]) == (4, pytest.approx(4 / 255))
    run = RunDir(tmp_path / "run")
    (described,) = (run.robustbench_folder / "models").rglob("*.json")
    (info,) = (run.robustbench_folder / "local" / "model_info").rglob("*.json")
    assert "subset: 4 of 5000 test images" in json.loads(info.read_text())["footnote"]

    model = robustbench.load_model(described.stem, dataset="imagenet", threat_model="Linf")
    x = datasets.load(config.data).test.floats()
    torch.testing.assert_close(model(x), load_classifier(run.path)(x), atol=1e-5, rtol=0)
    prepare = get_preprocessing(BenchmarkDataset.imagenet, ThreatModel.Linf, described.stem, None)
    steps = [str(step) for step in prepare.transforms]
    assert steps == [str(step) for step in PREPROCESSINGS["Res256Crop224"].transforms]
    (code,) = (run.robustbench_folder / "local" / "submission").rglob(f"{described.stem}.py")
    assert "'crop_pct': 0.875" in code.read_text()


def test_a_whole_evaluation_is_for_the_leaderboard():
    spec = spec_of((3, 224, 224), classes=tuple(map(str, range(1000))), stem="native")
    evaluation = {"dataset": "imagenet", "threat_model": "Linf", "eps": 4 / 255, "n": 5000}
    assert local_reason(evaluation, spec) is None
    assert "takes 4/255" in local_reason(evaluation | {"eps": 8 / 255}, spec)
    assert "classes were mapped" in local_reason(evaluation | {"class_map": {"cat": "dog"}}, spec)
    assert "Res256Crop224" in submission.zoo_entry("Mine", "imagenet", "Linf")
    assert "preprocessing" not in submission.zoo_entry("Mine", "cifar10", "Linf")
