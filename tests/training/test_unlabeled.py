"""Runs whose pretraining has images without labels."""

import json

import pytest
from PIL import Image

from acl_plugin import pipeline
from acl_plugin.cli.main import main
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.data.images import UNLABELED
from acl_plugin.errors import UsageError
from acl_plugin.runs.folder import RunDir
from conftest import OPTIONS, TINY


@pytest.fixture
def tree(tmp_path):
    for number in range(10):
        (tmp_path / "tree" / str(number % 3)).mkdir(parents=True, exist_ok=True)
        Image.radial_gradient("L").rotate(30 * number).save(tmp_path / "tree" / str(number % 3) / f"{number}.png")
    return tmp_path / "tree"


@pytest.mark.e2e
def test_the_pretraining_sees_all_images_and_the_later_stages_the_labeled_ones(tree, tmp_path, few):
    options = TINY | {"objective": "acl_ds", "knn_every": 1, "epochs": 1}
    result = pipeline.run(preset("digits", **options, unlabeled=tree), tmp_path / "run")
    run = RunDir(tmp_path / "run")
    last = run.metrics_file.read_text().splitlines()[-1]
    assert last.split(",")[1] == "2"  # the third step, as 16 + 10 images are three batches of 8
    assert json.loads(run.probe_file.read_text())["n"] == 16
    assert result["n"] == TINY["limit_test"]
    assert json.loads(run.pretraining_file.read_text())["unlabeled"] == "tree"
    assert json.loads(run.images_file.read_text())["pretraining"]["n"] == 26
    assert "unlabeled images (tree)" in next(run.robustbench_folder.rglob("model_info/*/*/*.json")).read_text()


@pytest.mark.e2e
def test_lpaft_is_on_all_images_and_pseudo_labels_are_of_all(tree, tmp_path, few, capsys):
    small = [*OPTIONS, "--epochs=1", "--unlabeled", str(tree)]
    run, labels = str(tmp_path / "run"), str(tmp_path / "labels.npz")
    assert main(["pretrain", "--out", run, *small, "--objective=dynacl"]) == 0
    probe = ["probe", run, "--lpaft=dynacl", "--aft-epochs=1"]
    assert main(probe) == 0
    before = (tmp_path / "run" / "classifier.pt").stat().st_mtime_ns
    assert main(probe) == 0  # the same again
    assert (tmp_path / "run" / "classifier.pt").stat().st_mtime_ns == before
    first = next(tree.rglob("*.png"))
    content = first.read_bytes()
    Image.linear_gradient("L").save(first)
    for again in (probe, [*probe, "--overwrite"]):
        assert main(again) == 2
        assert "labeled and unlabeled images of digits are not those of before" in capsys.readouterr().err
    first.write_bytes(content)
    assert main(["pseudo-labels", run, "--out", labels, "--clusters", "[2]"]) == 0
    advcl = ["--objective=advcl", f"--objective-kwargs.pseudo_labels={labels}"]
    assert main(["pretrain", "--out", str(tmp_path / "other"), *small, *advcl]) == 0
    assert main(["pretrain", "--out", str(tmp_path / "less"), *small[:-2], *advcl]) == 0  # a part of the images


@pytest.mark.e2e
def test_other_unlabeled_images_are_refused_on_resumption_and_a_probe_does_without(tree, tmp_path):
    config = preset("digits", **TINY | {"objective": "simclr", "epochs": 1}, unlabeled=tree)
    run = pipeline.pretrain(config, tmp_path / "run")
    run.encoder_file.unlink()
    first = next(tree.rglob("*.png"))
    content = first.read_bytes()
    Image.linear_gradient("L").save(first)
    with pytest.raises(UsageError, match="labeled and unlabeled images of digits are not those of before"):
        pipeline.pretrain(config, run.path)
    first.write_bytes(content)
    pipeline.pretrain(config, run.path)
    for path in tree.rglob("*.png"):
        path.unlink()
    assert main(["probe", str(run.path), "--probe-epochs=1"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--unlabeled", "nowhere"], "`unlabeled`: nowhere is no folder"),
        (["--limit-unlabeled", "3"], "is not used with `data` digits"),
        (["--limit-unlabeled", "99"], "has 10 images"),
    ],
)
def test_mistakes_are_one_line_and_write_nothing(options, message, tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    more = ["--unlabeled", str(tree)] if "99" in options else []
    assert main(["pretrain", "--out", "run", *OPTIONS, "--objective=simclr", *options, *more]) == 2
    shown = capsys.readouterr().err.strip().splitlines()
    assert len(shown) == 1
    assert message.replace("`", "--", 1).replace("`", "").split(" ", 1)[1] in shown[0].replace("`", "")
    assert not (tmp_path / "run").exists()


@pytest.mark.e2e
def test_a_folder_without_labels_is_pretrained_on_and_probed_elsewhere(tree, tmp_path, few, capsys):
    small = [*(option for option in OPTIONS if not option.startswith(("--limit", "--eps"))), "--epochs=1"]
    folder = ["--data=image_folder", f"--data-dir={tree}", "--image-size=8"]
    run = str(tmp_path / "run")
    assert main(["pretrain", "--out", run, *folder, *small, "--objective=simclr"]) == 0
    for command in (["probe", run], ["audit", run], ["evaluate", run], ["run", "--out", "x", *folder, *small]):
        assert main(command) == 2, command
        assert "labels" in capsys.readouterr().err or command[0] == "evaluate"  # which lacks a classifier first
    assert main(["pseudo-labels", run, "--out", str(tmp_path / "labels.npz"), "--clusters", "[2]"]) == 0
    other = tmp_path / "labeled"
    for split in ("train", "test"):
        for kind in "ab":
            (other / split / kind).mkdir(parents=True)
            for number in range(4):
                picture = Image.radial_gradient("L").rotate(40 * number + 7 * (kind == "a") + (split == "test"))
                picture.save(other / split / kind / f"{number}.png")
    there = ["--data=image_folder", f"--data-dir={other}", "--image-size=8"]
    assert main(["transfer", run, "--out", str(tmp_path / "to"), *there]) == 0
    assert main(["probe", str(tmp_path / "to"), "--probe-epochs=1"]) == 0


def test_a_tree_is_one_without_names_of_splits(tree, tmp_path):
    data = datasets.load(preset("image_folder", data_dir=tree, image_size=8).data)
    assert (len(data.train), len(data.test), data.classes, data.shape) == (10, 0, (), (1, 8, 8))
    assert data.train.labels.tolist() == [UNLABELED] * 10
    part = datasets.load(preset("image_folder", data_dir=tree, image_size=8, limit_train=4).data)
    assert len(part.train) == 4
    (tree / "Train").mkdir()
    with pytest.raises(UsageError, match="has no folder"):
        datasets.load(preset("image_folder", data_dir=tree, image_size=8).data)
