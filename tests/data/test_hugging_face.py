import builtins
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from image_trees import refusal
from PIL import Image

from acl_plugin import pipeline, preset
from acl_plugin.cli.main import main
from acl_plugin.data import datasets
from acl_plugin.data.images import UNLABELED
from acl_plugin.data.pixels import DiskPixels
from conftest import TINY

hub = pytest.importorskip("datasets")

PIXELS = np.random.default_rng(0).integers(0, 256, (30, 10, 12, 3), dtype=np.uint8)
NAMES = ["ant", "bee", "cat", "dog"]
LABELS = [i % 4 for i in range(30)]
BY_CLASS = {"img": hub.Image(), "label": hub.ClassLabel(names=NAMES)}


@pytest.fixture(autouse=True)
def _apart(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def saved(folder, features=BY_CLASS, splits=(("train", 0, 20), ("test", 20, 30)), images=PIXELS, **columns):
    """A folder of parquet files, as the hub has them."""
    folder.mkdir(exist_ok=True)
    columns = {"img": [Image.fromarray(image) for image in images], "label": LABELS} | columns
    for split, start, stop in splits:
        part = {name: columns[name][start:stop] for name in features}
        table = hub.Dataset.from_dict(part, features=hub.Features(features))
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


def loaded(folder, **options):
    return datasets.load(preset(f"hf:{folder}", **options).data)


@pytest.mark.parametrize("where", ["ram", "disk"])
def test_a_folder_of_parquet_files(where, tmp_path):
    data = loaded(saved(tmp_path / "data"), data_memory=where, workers=0)
    assert isinstance(data.train.pixels, DiskPixels) == (where == "disk")
    assert data.classes == tuple(NAMES)
    pixels = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    for images, part in ((data.train, slice(0, 20)), (data.test, slice(20, 30))):
        assert torch.equal(images.read(), pixels[part])
        assert images.labels.tolist() == LABELS[part]
    few = loaded(tmp_path / "data", data_memory=where, workers=0, limit_train=8, image_size=[8, 16])
    assert (len(few.train), few.shape) == (8, (3, 8, 16))
    assert few.train.labels.tolist() == [LABELS[row] for row in few.train.rows]


@pytest.mark.parametrize("names", [["bee", "cat", "dog"], ["bee", "ant", "cat", "dog"], ["ant", "bee", "dog", "cat"]])
def test_files_that_number_their_classes_differently_are_refused(names, tmp_path):
    """The library would read the labels of the test images by the names of the training images."""
    folder = saved(tmp_path / "data", splits=[("train", 0, 20)])
    few = BY_CLASS | {"label": hub.ClassLabel(names=names)}
    saved(folder, few, [("test", 20, 30)], label=[label % len(names) for label in LABELS])
    number = next(i for i, name in enumerate(names) if name != NAMES[i])
    error = refusal(loaded, folder)
    files = [f"{split}-00000-of-00001.parquet" for split in ("test", "train")]
    assert error.parameter == "data"
    assert "numbers its classes differently" in str(error)
    for file, name in zip(files, (names[number], NAMES[number]), strict=True):
        assert f"{name} in {file}" in str(error)


def test_files_may_lack_the_last_classes(tmp_path):
    folder = saved(tmp_path / "data", splits=[("train", 0, 20)])
    few = BY_CLASS | {"label": hub.ClassLabel(names=NAMES[:3])}
    saved(folder, few, [("test", 20, 30)], label=[label % 3 for label in LABELS])
    assert loaded(folder).test.labels.tolist() == [label % 3 for label in LABELS[20:]]


def test_columns_are_found_or_named(tmp_path):
    several = BY_CLASS | {
        "coarse": hub.ClassLabel(names=["a", "b"]),
        "text": hub.Value("string"),
        "n": hub.Value("int64"),
    }
    extra = {
        "coarse": [i % 2 for i in range(30)],
        "text": [f"kind {i % 3}" for i in range(30)],
        "n": [i % 5 for i in range(30)],
    }
    folder = saved(tmp_path / "data", several, **extra)
    error = refusal(loaded, folder)
    assert (error.parameter, error.allowed) == ("label_column", ("label", "coarse"))
    assert refusal(loaded, folder, label_column="labels").parameter == "label_column"
    assert refusal(loaded, folder, label_column="label", image_column="label").parameter == "image_column"
    for column, classes in (
        ("coarse", ("a", "b")), ("text", ("kind 0", "kind 1", "kind 2")), ("n", tuple("01234")),
    ):  # fmt: skip
        data = loaded(folder, label_column=column)
        assert data.classes == classes
        values = [str(value) for value in extra[column][:20]] if column != "coarse" else extra["coarse"][:20]
        found = (
            [data.classes[label] for label in data.train.labels] if column != "coarse" else data.train.labels.tolist()
        )
        assert found == values


@pytest.mark.parametrize("kind", ["int64", "float64"])
def test_numbers_as_labels_are_sorted_as_numbers(kind, tmp_path):
    values = [i % 12 if kind == "int64" else float(i % 12) for i in range(30)]
    features = {"img": hub.Image(), "n": hub.Value(kind)}
    data = loaded(saved(tmp_path / "data", features, n=values), label_column="n")
    assert data.classes == tuple(str(value) for value in values[:12])
    assert data.train.labels.tolist() == [i % 12 for i in range(20)]


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("int64", [1, None]),
        ("string", ["a", None]),
        ("float64", [1, np.nan]),
        ("int64", [1, -1]),
        ("float64", [1, -1.0]),
        ("string", ["a", ""]),
    ],
)
def test_missing_values_are_no_class(kind, values, tmp_path):
    folder = saved(tmp_path / "data", {"img": hub.Image(), "n": hub.Value(kind)}, n=values * 15)
    error = refusal(loaded, folder, label_column="n")
    assert "10 of 20 images of the split train have no label" in str(error)
    assert (error.parameter, error.given) == ("label_column", "n")


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("value", [0.25, -1.5, float("inf")])
def test_numbers_that_are_no_classes_are_refused(kind, value, tmp_path):
    values = [float(i % 3) for i in range(29)] + [value]
    folder = saved(tmp_path / "data", {"img": hub.Image(), "n": hub.Value(kind)}, n=values)
    error = refusal(loaded, folder, label_column="n")
    assert f"{value} is no whole number; allowed is a column of names or whole numbers" in str(error)
    assert (error.parameter, error.given) == ("label_column", "n")


@pytest.mark.parametrize("column", [None, "text"])
def test_columns_that_could_hold_labels_are_named(column, tmp_path, capsys):
    features = {"img": hub.Image(), "text": hub.Value("string"), "n": hub.Value("int64"), "x": [hub.Value("int64")]}
    extra = {"text": [f"kind {i % 3}" for i in range(30)], "n": list(range(30)), "x": [[1]] * 30}
    data = loaded(saved(tmp_path / "data", features, **extra), label_column=column)
    assert bool(data.classes) == bool(column)
    err = capsys.readouterr().err
    assert err.count("taken without labels; labels in a column (text, n) take --label-column") == (column is None), err


def test_an_image_in_two_classes_is_counted(tmp_path, capsys):
    images = PIXELS.copy()
    images[1] = images[0]
    loaded(saved(tmp_path / "data", images=images))
    assert "2 of 30 images are in two or more classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "value"), [(hub.Sequence(hub.Value("int64")), [0, 1]), ({"a": hub.Value("int64")}, {"a": 1}), (None, None)]
)
def test_a_column_without_one_value_for_each_image_has_no_labels(kind, value, tmp_path):
    features = {"img": hub.Image(), "kind": kind or hub.Image()}
    values = [Image.fromarray(image) for image in PIXELS] if kind is None else [value] * 30
    folder = saved(tmp_path / "data", features, kind=values)
    error = refusal(loaded, folder, image_column="img", label_column="kind")
    assert (error.parameter, error.given) == ("label_column", "kind")


@pytest.mark.parametrize("first", [b"damaged", None])
def test_the_size_is_that_of_the_first_image_that_can_be_read(first, tmp_path):
    files = []
    for image in PIXELS:
        file = io.BytesIO()
        Image.fromarray(image).save(file, "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
    files[0] = None if first is None else {"bytes": first, "path": None}
    folder = saved(tmp_path / "data", img=files)
    data = loaded(folder, skip_unreadable=True)
    assert (data.shape, len(data.train)) == ((3, 10, 12), 19)
    assert "train[0] cannot be used" in str(refusal(loaded, folder))


def test_images_without_labels_are_for_a_pretraining(tmp_path):
    folder = saved(tmp_path / "data", {"img": hub.Image()}, splits=(("train", 0, 20),))
    data = loaded(folder)
    assert data.classes == ()
    assert set(data.train.labels.tolist()) == {UNLABELED}
    options = {k: v for k, v in TINY.items() if not k.startswith(("limit", "probe"))}
    run = pipeline.pretrain(preset(f"hf:{folder}", **options | {"objective": "simclr"}, image_size=8), tmp_path / "run")
    assert run.encoder_file.is_file()


@pytest.mark.e2e
@pytest.mark.parametrize("column", [None, "text"])
def test_a_run_without_labels_is_refused_before_the_pretraining(column, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "pretrain", lambda *_, **__: pytest.fail("pretrained"))
    folder = saved(tmp_path / "data", {"img": hub.Image(), "text": hub.Value("string")}, text=[None] * 30)
    options = {k: v for k, v in TINY.items() if not k.startswith("limit")}
    config = preset(f"hf:{folder}", **options, image_size=8, label_column=column)
    error = refusal(pipeline.run, config, tmp_path / "run")
    assert error.parameter == ("data" if column is None else "label_column")
    assert not (tmp_path / "run").exists()


def test_gray_images_stay_gray(tmp_path):
    folder = saved(tmp_path / "data", images=PIXELS[..., 0])
    assert torch.equal(loaded(folder).train.read(), torch.from_numpy(PIXELS[:20, None, :, :, 0]))
    assert loaded(folder, channels=3).shape == (3, 10, 12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder, "is no folder"),
        (lambda folder: folder.mkdir() or folder, "cannot be loaded"),
        (lambda folder: saved(folder, splits=(("test", 0, 9),)), "has no split train, but test"),
        (lambda folder: saved(folder, splits=(("train", 0, 9),)), "has no split test, but train"),
        (lambda folder: saved(folder, {"label": BY_CLASS["label"]}), "has no column of images, but label"),
        (lambda folder: saved(folder, label=[-1] * 30), "20 of 20 images of the split train have no label"),
        (lambda folder: "", "is missing"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(make, message, tmp_path):
    assert message in str(refusal(loaded, make(tmp_path / "data")))


def test_a_name_that_the_hub_does_not_have(monkeypatch):
    def failing(name):
        raise ConnectionError(f"Couldn't reach {name!r}\non the Hub")

    monkeypatch.setattr(hub, "load_dataset", failing)
    assert "hf:someone/something cannot be loaded" in str(refusal(loaded, "someone/something"))


@pytest.mark.parametrize("name", ["someone/something", "data/images", "./images", "/data/images", "~/images"])
def test_a_copy_is_read_from_its_folder_whatever_the_name(name, tmp_path):
    folder = saved(tmp_path / "copy")
    data, same = loaded(name, data_dir=folder), loaded(folder)
    assert data.name == f"hf:{name}"
    for images, others in ((data.train, same.train), (data.test, same.test)):
        assert images.fingerprint(data.classes) == others.fingerprint(same.classes)


def test_images_are_told_apart_where_the_library_would_hold_tables_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(hub.config, "IN_MEMORY_MAX_SIZE", 2**30)
    parts = [saved(tmp_path / "one"), saved(tmp_path / "other", images=255 - PIXELS)]
    one, other = (loaded(folder, data_memory="disk", workers=0) for folder in parts)
    assert one.train.fingerprint(one.classes) != other.train.fingerprint(other.classes)
    assert one.mean != other.mean


@pytest.mark.parametrize(("name", "options"), [("{}/gone", {}), ("someone/something", {"data_dir": "{}/gone"})])
def test_a_folder_that_has_moved_is_named(name, options, tmp_path):
    options = {option: Path(value.format(tmp_path)) for option, value in options.items()}
    error = refusal(loaded, name.format(tmp_path), **options)
    assert error.parameter == ("data_dir" if options else "data")
    assert "gone is no folder" in str(error)
    assert "`data_dir` names the folder of its files" in str(error)


def test_the_library_is_an_extra(monkeypatch, tmp_path):
    imported = builtins.__import__

    def without(name, *arguments):
        if name == "datasets":
            raise ImportError(name)
        return imported(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without)
    assert "acl-plugin[hf]" in str(refusal(loaded, tmp_path))


@pytest.mark.e2e
def test_a_whole_run_of_images_that_are_no_squares(tmp_path, few):
    """From the command line, exported and loaded as RobustBench's files."""
    from acl_plugin.leaderboard.registration import load_exported

    folder, out = saved(tmp_path / "data"), tmp_path / "run"
    small = [
        f"--{name.replace('_', '-')}={TINY[name]}" for name in ("backbone", "epochs", "batch_size", "probe_epochs")
    ]
    small += [
        '--backbone-kwargs={"stem_width": 4, "channels": [4, 8, 8, 8]}',
        "--objective=simclr",
        "--data-memory=disk",
    ]
    small += ["--image-size=[8, 12]"]
    assert main(["run", f"--data=hf:{folder}", "--out", str(out), *small, "--precision=32-true", "--limit-test=8"]) == 0
    assert main(["report", str(out)]) == 0
    (described,) = (out / "robustbench" / "models").rglob("*.json")
    assert load_exported(described).spec.shape == (3, 8, 12)
    moved = folder.rename(tmp_path / "moved")
    again = ["evaluate", str(out), "--attacks=[FGSM]", "--suite=standard"]
    assert main(again) == 2
    assert main([*again, f"--data-dir={moved}"]) == 0
