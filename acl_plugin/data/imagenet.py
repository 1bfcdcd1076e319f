"""ImageNet and TinyImageNet in the folders that they are distributed in."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import torch

from acl_plugin.config import DataConfig
from acl_plugin.data.form import size_of
from acl_plugin.data.image_folders import list_split
from acl_plugin.data.images import DataSet
from acl_plugin.data.own_images import Listing, read_splits
from acl_plugin.data.published_sets import dataset_folder
from acl_plugin.data.sources import Files
from acl_plugin.errors import UsageError, missing_extra, pip_install
from acl_plugin.registry import DATASETS

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TINY_IMAGENET = "tiny-imagenet-200"


@DATASETS.register("imagenet")
def _imagenet(config: DataConfig) -> DataSet:
    """ImageNet: train/WNID/* if it is there, and the 5,000 images of val/WNID/* that RobustBench tests on."""
    _refuse_download(config, "put its folders train and val into `data_dir`, with a folder for each class")
    size = size_of(config.image_size or 224)
    if size == (224, 224) and config.resize != 256:
        message = (
            f"`resize` {config.resize}: RobustBench tests on ImageNet's images at 224 pixels after a resize to 256"
        )
        raise UsageError(message, parameter="resize", given=config.resize, allowed=256)
    root = dataset_folder(config)
    classes, names = robustbench_images()
    number = {c: i for i, c in enumerate(classes)}
    test = [(root / "val" / name, name.partition("/")[0]) for name in names]
    for path, _ in test:
        if not path.is_file():
            raise _wrong_folder(path, "is missing, and is one of the images that RobustBench tests on")
    train: Listing = Files.of([]), torch.zeros(0, dtype=torch.int64)
    if (root / "train").is_dir():
        split = list_split(root / "train")
        if split.classes != tuple(classes):
            odd = sorted(set(split.classes) ^ set(classes))
            what = "is missing" if odd[0] in number else "is no class of ImageNet"
            raise _wrong_folder(root / "train" / odd[0], what)
        train = Files.of(split.paths), split.labels
    pair = read_splits(config, train, _listing(test, number), size, as_stored=True)  # as RobustBench reads them
    return DataSet(config.data, *pair, tuple(classes), MEAN, STD)


def robustbench_images() -> tuple[list[str], list[str]]:
    """Return the WordNet ids of ImageNet's classes, in order, and RobustBench's 5,000 test images as WNID/NAME.

    Raises:
        UsageError: when robustbench is not installed, or incomplete.
    """
    try:
        folder = files("robustbench") / "helper_files"
        number = json.loads((folder / "imagenet_class_to_id_map.json").read_text("utf-8"))
        names = (folder / "imagenet_test_image_ids.txt").read_text("utf-8").split()
    except ImportError as error:
        what = "`data` imagenet tests on the images that robustbench lists"
        raise missing_extra(what, "robustbench", error, "data") from error
    except (OSError, ValueError) as error:
        remedy = pip_install("--force-reinstall --no-deps robustbench")
        message = f"`data` imagenet tests on the images that robustbench lists, and lacks here; run: {remedy}"
        raise UsageError(message, parameter="data", given="imagenet", allowed="with robustbench installed") from error
    return sorted(number, key=number.__getitem__), names


@DATASETS.register("tiny_imagenet")
def _tiny_imagenet(config: DataConfig) -> DataSet:
    """TinyImageNet-200: 100,000 training and 10,000 validation images, 3 x 64 x 64, in tiny-imagenet-200."""
    _refuse_download(config, f"put the folder {TINY_IMAGENET} into `data_dir`")
    root = dataset_folder(config) / TINY_IMAGENET
    classes = sorted(_listed(root / "wnids.txt"))
    train = [(path, c) for c in classes for path in sorted((root / "train" / c / "images").glob("*.JPEG"))]
    annotations = root / "val" / "val_annotations.txt"
    rows = [line.split("\t")[:2] for line in _listed(annotations)]
    for row in rows:
        if len(row) < 2:
            raise _wrong_tiny_folder(annotations, f"has a line without a tab between image and class, {row[0][:40]!r}")
    test = [(root / "val" / "images" / name, c) for name, c in rows]
    number = {c: i for i, c in enumerate(classes)}
    for listed in (train, test):
        for path, c in listed:
            if c not in number or not path.is_file():
                what = f"is missing, and {TINY_IMAGENET} lists it" if c in number else f"has an unknown class {c}"
                raise _wrong_tiny_folder(path, what)
    for c in set(classes) - {c for _, c in train}:
        raise _wrong_tiny_folder(root / "train" / c / "images", "has no image *.JPEG")

    images = read_splits(config, _listing(train, number), _listing(test, number), size_of(config.image_size or 64))
    return DataSet(config.data, *images, tuple(classes), *images[0].mean_and_std())


def _listed(path: Path) -> list[str]:
    """Return the lines of a text file of TinyImageNet."""
    if not path.is_file():
        raise _wrong_tiny_folder(path, "is missing")
    try:
        lines = [line for line in path.read_text("utf-8").splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise _wrong_tiny_folder(path, f"is no text in UTF-8 ({error})") from error
    if not lines:
        raise _wrong_tiny_folder(path, "is empty")
    return lines


def _wrong_tiny_folder(path: Path, what: str) -> UsageError:
    allowed = f"the folder that holds {TINY_IMAGENET}, as it is distributed"
    message = f"{path} {what}: `data_dir` is {allowed}; for folders by class use `data` image_folder"
    return UsageError(message, parameter="data_dir", given=str(path), allowed=allowed)


def _listing(images: Sequence[tuple[Path, str]], number: Mapping[str, int]) -> Listing:
    return Files.of([path for path, _ in images]), torch.tensor([number[c] for _, c in images])


def _refuse_download(config: DataConfig, remedy: str) -> None:
    if config.download:
        message = f"`download`: nothing downloads {config.data}; {remedy}"
        raise UsageError(message, parameter="download", given=True, allowed=False)


def _wrong_folder(path: Path, what: str) -> UsageError:
    allowed = "the folder that holds ImageNet's train and val, with a folder for each class"
    message = f"{path} {what}: `data_dir` is {allowed}"
    return UsageError(message, parameter="data_dir", given=str(path), allowed=allowed)
