"""Images of any number of channels and any shape, from the pretraining to the report."""

import pytest
import torch

from acl_plugin import pipeline, preset
from acl_plugin.cli.main import main
from acl_plugin.data.images import DataSet, Images
from acl_plugin.registry import DATASETS
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.models import load_classifier
from conftest import TINY


@pytest.fixture
def dataset():
    """Registers a dataset of images of a shape, whose classes have different means."""
    names = []

    def add(channels, height, width):
        def drawn(n, seed):
            noise = torch.Generator().manual_seed(seed)
            pixels = torch.randint(0, 128, (n, channels, height, width), dtype=torch.uint8, generator=noise)
            labels = torch.arange(n) % 4
            return Images(pixels + (30 * labels).view(-1, 1, 1, 1).byte(), labels, torch.arange(n), 255)

        @DATASETS.register("shaped")
        def shaped(config):
            statistics = drawn(24, 0).mean_and_std()
            return DataSet("shaped", drawn(24, 0), drawn(12, 1), ("a", "b", "c", "d"), *statistics)

        names.append("shaped")

    yield add
    for name in names:
        DATASETS.unregister(name)


@pytest.mark.e2e
@pytest.mark.parametrize(
    ("shape", "augment"), [((1, 8, 20), "digits"), ((2, 16, 10), "simclr"), ((5, 12, 12), "digits")], ids=str
)
def test_a_run_on_images_of_any_shape(shape, augment, dataset, tmp_path, few, capsys):
    dataset(*shape)
    small = {k: v for k, v in TINY.items() if not k.startswith("limit")} | {"epochs": 1, "probe_epochs": 1}
    own = {"objective": "acl_ds", "augment": augment, "probe_augment": "weak", "precision": "32-true", "blur": 0.5}
    own = {k: v for k, v in own.items() if k != "blur" or augment == "simclr"}
    evaluation = pipeline.run(preset("shaped", **small | own, objective_kwargs={}), tmp_path / "run")
    assert evaluation["images"]["size"] == list(shape)
    x = torch.rand(3, *shape)
    assert load_classifier(tmp_path / "run")(x).shape == (3, 4)
    attacks = ["FGSM", "PGDL2", "PGD-20, least likely"]
    assert main(["evaluate", str(tmp_path / "run"), "--suite=standard", f"--attacks={attacks}".replace("'", '"')]) == 0
    assert main(["report", str(tmp_path / "run")]) == 0
    assert RunDir(tmp_path / "run").report_file.is_file()
