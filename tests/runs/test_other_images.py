"""A result belongs to the images that it was made of: every stage refuses others, and names what differs."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import ended, started

from acl_plugin import UsageError, config, load_classifier, pipeline
from acl_plugin.cli.main import main
from acl_plugin.data import datasets
from acl_plugin.evaluation.run_folder import evaluate
from acl_plugin.evaluation.storage import read_verdicts
from acl_plugin.evaluation.verdicts import by_class, class_names
from acl_plugin.reporting.report import report
from acl_plugin.runs.folder import RunDir
from acl_plugin.training.pretrain import pretrain
from conftest import OPTIONS, TINY, shorten

CPU = torch.device("cpu")
CLASSES = ("ape", "bee", "cat", "dog")
SETTINGS = TINY | {
    "image_size": 8, "augment": "digits", "precision": "32-true", "limit_train": None, "limit_test": None,
    "probe_batch_size": 8, "probe_lr": 0.1, "probe_augment": "none", "keep_every": 1,
    "objective": "acl_ds",
}  # fmt: skip


def picture(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A folder with images, and a run on them with every stage done; to be copied."""
    folder = tmp_path_factory.mktemp("original")
    for c, name in enumerate(CLASSES):
        for split, count in (("train", 5), ("test", 4)):
            for i in range(count):
                picture(folder / "images" / split / name / f"{i}.png", 100 * c + 10 * (split == "test") + i)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACL_PLUGIN_HOME", str(folder / "home"))
        shorten(patch.setattr)
        pipeline.run(settings(folder), folder / "run")
        assert main(["evaluate", str(folder / "run"), "--suite", "standard", "--attacks", '["FGSM", "PGDL2"]']) == 0
        assert main(["audit", str(folder / "run"), "--limit", "20"]) == 0
    return folder


@pytest.fixture
def there(original, tmp_path):
    folder = tmp_path / "there"
    shutil.copytree(original, folder)
    return folder


def settings(folder, **options):
    return config.preset("image_folder", **SETTINGS | {"data_dir": folder / "images"} | options)


def change(folder, how, split):
    images = folder / "images"
    if how == "pixels":
        picture(images / split / "bee" / "1.png", 12345)
    elif how == "labels":
        one, other = images / split / "bee" / "1.png", images / split / "cat" / "1.png"
        one.rename(folder / "kept.png")
        other.rename(one)
        (folder / "kept.png").rename(other)
    elif how == "number":
        picture(images / split / "bee" / "7.png", 12345)
    else:
        for each in ("train", "test"):
            (images / each / "bee").rename(images / each / "wasp")


TOLD = {
    "pixels": "the pixels of the images",
    "labels": "the pixels of the images",  # in their order the images are others
    "number": "number of images",
    "classes": "classes wasp only here; bee only there",
}


def commands(folder):
    run, where = str(folder / "run"), ["--data-dir", str(folder / "images")]
    return {
        "probe": ("train", ["probe", run, *where]),
        "audit": ("train", ["audit", run, "--limit", "20", "--overwrite"]),
        "evaluate": ("test", ["evaluate", run, *where]),
    }


@pytest.mark.e2e
@pytest.mark.parametrize("how", TOLD)
@pytest.mark.parametrize("stage", ["probe", "audit", "evaluate"])
def test_a_stage_refuses_other_images(there, stage, how, capsys, few):
    split, command = commands(there)[stage]
    change(there, how, split)
    config_file = there / "run" / "config.yaml"  # the folder was copied, and audit reads where the images are
    config_file.write_text(config_file.read_text().replace(str(settings(there).data.data_dir), str(there / "images")))
    text = config_file.read_text().splitlines()
    lines = [f"  data_dir: {there / 'images'}" if line.startswith("  data_dir:") else line for line in text]
    config_file.write_text("\n".join(lines) + "\n")
    before = {path: path.read_bytes() for path in (there / "run").rglob("*.json")}
    assert main(command) == 2
    told = capsys.readouterr().err
    assert (TOLD[how] if how != "classes" or stage != "evaluate" else "wasp only here") in told, told
    assert {path: path.read_bytes() for path in (there / "run").rglob("*.json")} == before


@pytest.mark.e2e
@pytest.mark.parametrize("how", ["pixels", "classes"])
def test_an_interrupted_pretraining_does_not_resume_with_other_images(there, how, tmp_path):
    class Stop(RuntimeError):
        pass

    def stop(*_):
        raise Stop

    options, run = settings(there, objective="simclr"), tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr("acl_plugin.training.pretrain.Pretraining.write_encoder", stop)
        pretrain(options, run)
    change(there, how, "train")
    with pytest.raises(UsageError, match=TOLD[how]) as error:
        pretrain(options, run)
    assert error.value.parameter == "data_dir"
    assert error.value.given["n"] >= 20


@pytest.mark.e2e
@pytest.mark.parametrize("split", ["train", "test"])
def test_a_finished_run_is_not_taken_for_one_on_other_images(there, split, few):
    change(there, "pixels", split)
    with pytest.raises(UsageError) as error:
        pipeline.run(settings(there), there / "run")
    assert error.value.parameter in ("data_dir", "overwrite")


@pytest.mark.e2e
def test_the_same_images_elsewhere_are_the_same(there, few):
    before = (there / "run" / "evaluation.json").read_bytes()
    evaluate(RunDir(there / "run"), settings(there), CPU)
    assert (there / "run" / "evaluation.json").read_bytes() == before


@pytest.mark.e2e
def test_a_suite_on_other_images_is_refused_or_overwritten(there, capsys):
    change(there, "pixels", "test")
    where = ["--data-dir", str(there / "images"), "--suite", "standard"]
    command = ["evaluate", str(there / "run"), *where, "--attacks", '["FGSM"]']
    assert main(command) == 2
    assert main([*command, "--overwrite"]) == 0
    suite = json.loads((there / "run" / "suite.json").read_text())
    assert list(suite["rows"]) == ["FGSM"]  # none of the other images
    assert "other images: the pixels of the images" in capsys.readouterr().err


@pytest.mark.e2e
def test_classes_by_other_names_are_refused_or_mapped(there, few):
    run = RunDir(there / "run")
    before = json.loads(run.evaluation_file.read_text())
    change(there, "classes", "test")
    for path in (run.evaluation_file, run.evaluation_key_file):
        path.unlink()
    with pytest.raises(UsageError, match="wasp only here; bee only in the classifier") as error:
        evaluate(run, settings(there), CPU)
    assert (error.value.parameter, error.value.allowed) == ("class_map", CLASSES)
    mapped = evaluate(run, settings(there, class_map={"wasp": "bee"}), CPU)
    assert mapped["clean_accuracy"] == before["clean_accuracy"]  # sorted, wasp is the last class, and bee the second
    assert (mapped["class_map"], mapped["classifier_classes"]) == ({"wasp": "bee"}, list(CLASSES))
    rows = by_class(read_verdicts(run.verdicts_file), class_names(mapped))
    assert {row.name: row.n for row in rows} == {"ape": 4, "bee": 4, "cat": 4, "dog": 4}
    report([run], there / "page.html")
    assert "bee" in (there / "page.html").read_text()
    for wrong in ({"wasp": "fly"}, {"fly": "bee"}):
        with pytest.raises(UsageError) as error:
            evaluate(run, settings(there, class_map=wrong), CPU)
        assert error.value.parameter == "class_map"


@pytest.mark.e2e
def test_labels_follow_the_mapping(there):
    change(there, "classes", "test")
    found = datasets.load(settings(there).data)
    assert found.classes == ("ape", "cat", "dog", "wasp")
    labels = found.test_for(CLASSES, {"wasp": "bee"}).labels
    assert [CLASSES[label] for label in labels] == [
        {"wasp": "bee"}.get(found.classes[own], found.classes[own]) for own in found.test.labels
    ]


@pytest.mark.e2e
def test_a_run_records_what_it_has_seen(there):
    kept = json.loads((there / "run" / "images.json").read_text())
    assert kept["train"]["classes"] == list(CLASSES)
    assert (kept["train"]["n"], kept["test"]["n"], kept["train_rows"]) == (20, 16, None)
    for name in ("probe.json", "evaluation.json", "suite.json"):
        images = json.loads((there / "run" / name).read_text())["images"]
        assert images == kept["train" if name == "probe.json" else "test"], name
    audit = json.loads((there / "run" / "audit.json").read_text())
    assert audit["settings"]["train_images"] == kept["train"]
    assert load_classifier(there / "run").spec.classes == CLASSES


@pytest.mark.e2e
def test_runs_on_other_images_are_not_audited_together(there, finished_run, capsys):
    assert main(["audit", str(there / "run"), str(finished_run), "--out", str(there / "joint"), "--limit", "20"]) == 2
    told = capsys.readouterr().err
    assert "cannot be audited together" in told
    assert "dataset digits, there image_folder" in told
    assert not (there / "joint").exists()


@pytest.mark.e2e
def test_limits_keep_the_shares_of_sorted_classes_and_are_recorded(there, tmp_path, capsys):
    options = settings(there, limit_train=8, limit_test=8, objective="simclr", batch_size=4)
    found = datasets.load(options.data)
    assert found.test.labels.bincount().tolist() == [2, 2, 2, 2]
    assert found.test.rows.tolist() == datasets.load(options.data).test.rows.tolist()
    run = pretrain(options, tmp_path / "limited")
    assert json.loads(run.images_file.read_text())["train_rows"] == found.train.rows.tolist()
    capsys.readouterr()
    assert len(datasets.load(settings(there, limit_test=2).data).test) == 2
    assert "2 of 4 classes are missing" in capsys.readouterr().err


@pytest.mark.e2e
def test_a_folder_with_a_log_in_it_can_become_a_run(there, tmp_path):
    out = tmp_path / "logged"
    out.mkdir()
    for name in ("log.txt", "slurm-12.out"):
        (out / name).write_text("")
    pretrain(settings(there, objective="simclr"), out)
    assert (out / "encoder.pt").is_file()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("")
    with pytest.raises(UsageError) as error:
        pretrain(settings(there, objective="simclr"), tmp_path / "other")
    assert error.value.parameter == "out"
    assert [path.name for path in Path(tmp_path / "other").iterdir()] == ["thesis.tex"]


@pytest.mark.e2e
def test_harmless_options_may_change_between_two_starts(there, few, capsys):
    before = (there / "run" / "evaluation.json").read_bytes()
    changed = {"eval_batch_size": 3, "checkpoint_every": 2, "knn_every": 1, "keep_every": 2}
    pipeline.run(settings(there, **changed), there / "run")
    assert (there / "run" / "evaluation.json").read_bytes() == before
    assert "keeps them" in capsys.readouterr().err


@pytest.mark.e2e
def test_test_images_that_are_training_images_are_counted(there, capsys):
    datasets.load(settings(there).data)
    assert "training images as well" not in capsys.readouterr().err
    for i in range(2):
        shutil.copy(there / "images" / "train" / "ape" / f"{i}.png", there / "images" / "test" / "ape" / f"{i}.png")
    datasets.load(settings(there).data)
    assert "2 of 16 test images are training images as well" in capsys.readouterr().err


@pytest.mark.e2e
def test_output_may_be_redirected_into_the_runs_folder(tmp_path):
    """By any name: the file is the standard output, or error, of the command."""
    command = ["pretrain", "--out", "run", *OPTIONS, "--objective", "simclr"]
    (tmp_path / "run").mkdir()
    said, errors = tmp_path / "run" / "said", tmp_path / "run" / "errors"
    assert ended(started(command, said, errors, folder=tmp_path)) == 0
    assert (tmp_path / "run" / "encoder.pt").is_file()
    assert "encoder: run/encoder.pt" in (tmp_path / "run" / "said").read_text()


def grayed(folder, split="test"):
    for path in (folder / "images" / split).rglob("*.png"):
        Image.open(path).convert("L").save(path)


@pytest.mark.parametrize("stage", ["evaluate", "probe"])
def test_images_of_another_form_are_refused(stage, there, capsys):
    grayed(there, "train")
    grayed(there)
    before = {path: path.read_bytes() for path in there.rglob("*") if path.is_file() and path.name != ".lock"}
    run = str(there / "run")
    assert main([stage, run, "--overwrite", f"--data-dir={there / 'images'}"]) == 2
    assert "its images are 1x8x8, and those of the training 3x8x8; the files changed" in capsys.readouterr().err
    after = {path: path.read_bytes() for path in there.rglob("*") if path.is_file() and path.name != ".lock"}
    assert before == after


def test_images_have_as_many_channels_with_a_limit_as_without(tmp_path):
    for c, name in enumerate(CLASSES):
        for split in ("train", "test"):
            for i in range(4):
                picture(tmp_path / "images" / split / name / f"{i}.png", 100 * c + 10 * (split == "test") + i)
    grayed(tmp_path, "train")
    grayed(tmp_path)
    picture(tmp_path / "images" / "test" / "dog" / "3.png", 7)
    for limits in ({}, {"limit_test": 4}, {"limit_train": 4, "limit_test": 8}):
        assert datasets.load(settings(tmp_path, **limits).data).shape == (3, 8, 8)
    grayed(tmp_path)
    assert datasets.load(settings(tmp_path).data).shape == (1, 8, 8)
