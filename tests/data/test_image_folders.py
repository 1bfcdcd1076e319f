import shutil

import numpy as np
import pytest
from PIL import Image

from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.data.image_folders import labeled_inside, list_splits, tree_of
from acl_plugin.errors import UsageError


@pytest.fixture
def root(tmp_path):
    """A folder of train and test with the classes cat and dog, of two images each."""
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            picture(tmp_path / split / name / "b.png")
            picture(tmp_path / split / name / "a.JPG")
    return tmp_path


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)


def names(split):
    return [path.relative_to(split.folder).as_posix() for path in split.paths]


def refusal(root):
    with pytest.raises(UsageError) as error:
        list_splits(root)
    assert error.value.parameter == "data_dir"
    assert str(error.value.given) in str(error.value)
    assert "\n" not in str(error.value)
    return error.value


def test_files_are_sorted_by_class_and_name_whatever_the_case_of_the_suffix(root):
    picture(root / "train" / "cat" / "more" / "0.png")
    train, test = list_splits(root)
    assert names(train) == ["cat/a.JPG", "cat/b.png", "cat/more/0.png", "dog/a.JPG", "dog/b.png"]
    assert train.labels.tolist() == [0, 0, 0, 1, 1]
    assert names(test) == ["cat/a.JPG", "cat/b.png", "dog/a.JPG", "dog/b.png"]
    assert train.classes == test.classes == ("cat", "dog")


def test_what_systems_leave_behind_is_skipped(root, capsys):
    expected = [names(split) for split in list_splits(root)]
    for split in ("train", "test"):
        for place in (root, root / split, root / split / "cat"):
            for name in ("._a.png", ".DS_Store", "Thumbs.db", "desktop.ini"):
                (place / name).write_bytes(b"no image")
            for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".hidden"):
                picture(place / name / "c.png")
    assert [names(split) for split in list_splits(root)] == expected
    assert capsys.readouterr().err == ""


def test_other_files_that_are_skipped_are_counted(root, capsys):
    (root / "train" / "cat" / "notes.txt").write_text("notes")
    picture(root / "test" / "loose.png")
    train, test = list_splits(root)
    assert (len(train.paths), len(test.paths)) == (4, 4)
    (line,) = capsys.readouterr().err.splitlines()
    assert "skipped 2 files" in line
    assert "notes.txt" in line


def test_val_is_the_test_split_where_there_is_no_test(root):
    shutil.copytree(root / "test", root / "val")
    assert list_splits(root)[1].folder == root / "test"
    shutil.rmtree(root / "test")
    assert list_splits(root)[1].folder == root / "val"


def test_links_are_followed(root, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (root / "train" / "cat").rename(elsewhere / "cat")
    (root / "train" / "cat").symlink_to(elsewhere / "cat")
    (root / "test" / "dog" / "a.JPG").rename(elsewhere / "a.JPG")
    (root / "test" / "dog" / "a.JPG").symlink_to(elsewhere / "a.JPG")
    train, test = list_splits(root)
    assert names(train) == names(test) == ["cat/a.JPG", "cat/b.png", "dog/a.JPG", "dog/b.png"]


def test_images_count_once(root):
    (root / "train" / "cat" / "again").symlink_to(root / "train" / "cat")
    assert refusal(root).given == str(root / "train" / "cat" / "again")
    (root / "train" / "cat" / "again").unlink()
    (root / "train" / "cow").symlink_to(root / "train" / "cat")
    shutil.copytree(root / "test" / "cat", root / "test" / "cow")
    assert refusal(root).given == str(root / "train" / "cow")


@pytest.mark.parametrize("place", ["test", "test/cat", "test/cat/a.JPG"])
def test_training_images_are_no_test_images(place, root):
    source = root / place.replace("test", "train", 1)
    link = root / place
    shutil.rmtree(link) if link.is_dir() else link.unlink()
    link.symlink_to(source)
    if source.is_file():
        (root / "other.JPG").write_bytes(source.read_bytes())
        source.unlink()
        source.symlink_to(root / "other.JPG")
        source = root / "other.JPG"
    assert refusal(root).given.startswith(str(source))


@pytest.mark.parametrize("change", ["test to train", "train to test"])
def test_a_link_to_an_image_of_the_other_split_is_refused(change, root):
    place, _, other = change.split()
    (root / place / "cat" / "c.png").symlink_to(f"../../{other}/cat/b.png")
    error = refusal(root)
    assert error.given == str((root / other / "cat" / "b.png").resolve())
    assert "is in train and test" in str(error)


@pytest.mark.parametrize(("place", "other"), [("dog", "cat"), ("cat", "dog")])
def test_a_link_to_an_image_of_another_class_is_refused(place, other, root):
    (root / "train" / place / "c.png").symlink_to(f"../{other}/b.png")
    error = refusal(root)
    assert error.given == str(root / "train" / place)
    assert "b.png, as another class has" in str(error)


def test_links_to_what_no_folder_lists_are_followed(root):
    picture(root / "train" / "cat" / ".kept.png")
    (root / "test" / "cat" / "c.png").symlink_to("../../train/cat/.kept.png")
    (root / "notes.txt").write_text("notes")
    for split in ("train", "test"):
        (root / split / "cat" / "notes.txt").symlink_to(root / "notes.txt")
    _, test = list_splits(root)
    assert "cat/c.png" in names(test)


def no_folder(root):
    return root / "nowhere"


def no_train(root):
    (root / "train").rename(root / "Train")
    return root


def no_test(root):
    shutil.rmtree(root / "test")
    return root


def no_class_folders(root):
    shutil.rmtree(root / "train")
    picture(root / "train" / "0.png")
    return root / "train"


def nothing(root):
    shutil.rmtree(root / "test")
    (root / "test").mkdir()
    return root / "test"


def class_without_test(root):
    picture(root / "train" / "wolf" / "0.png")
    return root / "test"


def class_without_training(root):
    picture(root / "test" / "wolf" / "0.png")
    return root / "train"


def one_class(root):
    for split in ("train", "test"):
        shutil.rmtree(root / split / "dog")
    return root


def empty_class(root):
    for split in ("train", "test"):
        (root / split / "wolf").mkdir()
    return root / "train"


def class_without_images(root):
    for path in (root / "test" / "dog").iterdir():
        path.rename(path.with_suffix(".txt"))
    return root / "test"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (no_folder, ""), (no_train, "Train"), (no_test, "val"), (no_class_folders, "in no folder of a class"),
        (nothing, "CLASS"), (class_without_test, "wolf"), (class_without_training, "wolf"), (one_class, "cat"),
        (empty_class, "wolf"), (class_without_images, "dog"),
    ],
)  # fmt: skip
def test_other_layouts_are_refused(change, named, root):
    folder = change(root)
    error = refusal(folder if change is no_folder else root)
    assert error.given == str(folder)
    assert named in str(error)


@pytest.mark.parametrize("training", ["training", "Training", "train"])
@pytest.mark.parametrize("test", ["testing", "validation", "valid", "Valid", "eval", "dev"])
def test_other_names_of_splits_are_refused_with_the_names_that_are_read(training, test, root):
    """Their test images would be pretrained on, without labels."""
    (root / "train").rename(root / training)
    (root / "test").rename(root / test)
    assert tree_of(root) == []
    with pytest.raises(UsageError, match="train/CLASS/\\* and test/CLASS/\\*") as error:
        datasets.load(preset("image_folder", data_dir=root, image_size=8).data)
    renamed = f"Rename {test} to test" if training == "train" else f"Rename {training} to train"
    assert renamed in str(error.value)
    (root / training).rename(root / "train")
    (root / test).rename(root / "test")
    assert [len(split.paths) for split in list_splits(root)] == [4, 4]


@pytest.mark.parametrize("name", ["training", "testing", "validation", "valid"])
def test_one_such_name_is_a_folder_of_images_without_labels(name, tmp_path):
    picture(tmp_path / name / "0.png")
    picture(tmp_path / "ship" / "0.png")
    assert len(tree_of(tmp_path)) == 2


def test_a_folder_that_cannot_be_read_is_named(root, monkeypatch):
    def forbidden(top, onerror, **options):
        onerror(PermissionError(13, "Permission denied", str(top)))

    monkeypatch.setattr("os.walk", forbidden)
    assert refusal(root).given == str(root / "train" / "cat")


def noise(path, seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.mark.parametrize("memory", ["ram", "disk"])
@pytest.mark.parametrize(
    ("copies", "count"),
    [
        ([], 0), ([("train/cat/1.png", "train/dog/9.png")], 2), ([("train/cat/1.png", "train/cat/9.png")], 0),
        ([("train/cat/1.png", "test/dog/9.png"), ("test/dog/2.png", "train/cat/8.png")], 4),
    ],
)  # fmt: skip
def test_equal_images_in_two_classes_are_counted_once(copies, count, memory, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("ACL_PLUGIN_HOME", str(tmp_path / "home"))
    root = tmp_path / "images"
    for number, folder in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        for i in range(3):
            noise(root / folder / f"{i}.png", 10 * number + i)
    for source, copy in copies:
        shutil.copy(root / source, root / copy)
    datasets.load(preset("image_folder", data_dir=root, image_size=8, data_memory=memory, workers=0).data)
    err = capsys.readouterr().err
    assert (f"{count} of {12 + len(copies)} images are in two or more classes" in err) == bool(count), err
    assert err.count("two or more classes") == bool(count)


def test_training_images_among_the_unlabeled_ones_are_counted(tmp_path, capsys):
    root = tmp_path / "images"
    for number, folder in enumerate(("train/cat", "train/dog", "test/cat", "test/dog")):
        for i in range(3):
            noise(root / folder / f"{i}.png", 10 * number + i)
    noise(tmp_path / "others" / "0.png", 100)
    options = {"data_dir": root, "image_size": 8}
    assert len(datasets.load(preset("image_folder", **options, unlabeled=tmp_path / "others").data).pretraining) == 7
    assert capsys.readouterr().err == ""
    for limit, seen in ((None, 6), (4, 4)):
        config = preset("image_folder", **options, limit_train=limit, unlabeled=root / "train")
        assert len(datasets.load(config.data).pretraining) == 6 + seen
        what = f"{seen} of {seen} training images are unlabeled images of the pretraining as well"
        assert what in capsys.readouterr().err


@pytest.mark.parametrize(
    ("made", "inside"),
    [
        (("sets/a/Train", "sets/a/val"), "sets/a"),
        (("a/train/cat", "a/test/cat"), "a"),
        (("b/test", "b/train", "a/Val/cat", "a/train/dog"), "a"),
        (("sets/a/training", "sets/a/Validation/cat"), "sets/a"),
        (("vehicles/train", "vehicles/ship"), None),  # a class
        (("a/train", "b/test"), None),
        (("a", "b/c"), None),
    ],
)
def test_a_labeled_dataset_inside_of_a_tree_is_named(made, inside, tmp_path, capsys):
    """Its test images would be pretrained on without a word."""
    top = tmp_path / "train" / "test"  # folders above the tree do not count
    for number, folder in enumerate(made):
        picture(path := top / folder / f"{number}.png")
        Image.effect_noise((8, 8), 64).save(path)
    assert labeled_inside(top, tree_of(top)) == (inside and top / inside)
    datasets.load(preset("image_folder", data_dir=top, image_size=8).data)
    err = capsys.readouterr().err
    expected = f"all {len(made)} images in {top} are taken without labels, test images as well"
    assert err == (
        f"image_folder: {expected}; for a labeled dataset give --data-dir {top / inside}\n" if inside else ""
    )
