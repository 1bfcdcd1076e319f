"""Datasets by name, loaded as uint8 tensors."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acl_plugin.config import DataConfig
from acl_plugin.data.image_files import read_images, require_memory, require_varied
from acl_plugin.data.image_folders import LAYOUT, Split, list_splits
from acl_plugin.data.images import DataSet, Images
from acl_plugin.data.subsets import missing_classes, stratified, subset_rows
from acl_plugin.errors import UsageError
from acl_plugin.registry import DATASETS

logger = logging.getLogger(__name__)


def load(config: DataConfig) -> DataSet:
    """Load the dataset of ``config``, limited and resized as it specifies.

    Raises:
        UsageError: for an unknown name, a missing folder, or missing or damaged files.
    """
    data = DATASETS.get(config.data)(config)
    _require_rows(config, len(data.train), len(data.test))
    for split, images in (("training", data.train), ("test", data.test)):
        require_varied(images.pixels, f"{split} images of {data.name}")
    train, test = data.train.subset(config.limit_train), data.test.subset(config.limit_test)
    for split, images in (("training", train), ("test", test)):
        missing = missing_classes(images.labels, data.classes)
        if missing:
            details = f"{len(missing)} of {len(data.classes)} classes are missing: {', '.join(missing[:5])}"
            logger.warning(f"{data.name}: in the {len(images)} {split} images {details}")
    seen = int(torch.isin(test.hashes, train.hashes).sum())
    if seen > len(test) / 100:  # many published datasets contain a few
        logger.warning(f"{data.name}: {seen} of {len(test)} test images are training images as well")
    return replace(data, train=train.resized(config.image_size), test=test.resized(config.image_size))


def _require_rows(config: DataConfig, train: int, test: int) -> None:
    """Check that the limits do not exceed the numbers of training and test images."""
    for option, limit, count in (("limit_train", config.limit_train, train), ("limit_test", config.limit_test, test)):
        if limit is not None and limit > count:
            raise UsageError(
                f"`{option}` {limit}: {config.data} has {count} such images",
                parameter=option, given=limit, allowed=f"at most {count}",
            )  # fmt: skip


@DATASETS.register("digits")
def _digits(config: DataConfig) -> DataSet:
    """scikit-learn's 1,797 digits, 1 x 8 x 8; a fixed, stratified test set of 500."""
    import numpy as np
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    rows = np.arange(len(bunch.target))
    train, test = train_test_split(rows, test_size=500, stratify=bunch.target, random_state=0)

    def images(chosen: "np.ndarray") -> Images:
        pixels = torch.from_numpy(bunch.images[chosen].astype("uint8")).unsqueeze(1)
        labels = torch.from_numpy(bunch.target[chosen].astype("int64"))
        return Images(pixels, labels, torch.from_numpy(chosen.astype("int64")), levels=16)

    return DataSet("digits", images(train), images(test), tuple("0123456789"), (0.305,), (0.376,))


@DATASETS.register("digits_0_4")
def _digits_0_4(config: DataConfig) -> DataSet:
    """Digits 0 to 4 of the same split, for transfer from or to the others."""
    return _of_classes(_digits(config), range(5), "digits_0_4")


@DATASETS.register("digits_5_9")
def _digits_5_9(config: DataConfig) -> DataSet:
    """Digits 5 to 9 of the same split."""
    return _of_classes(_digits(config), range(5, 10), "digits_5_9")


@DATASETS.register("digits_val")
def _digits_val(config: DataConfig) -> DataSet:
    """Training images of digits, with a tenth held out as a test set for tuning."""
    return _held_out(_digits(config), "digits_val")


@DATASETS.register("cifar10_val")
def _cifar10_val(config: DataConfig) -> DataSet:
    """Training images of CIFAR-10, with a tenth held out as a test set for tuning."""
    return _held_out(_cifar10(replace(config, data="cifar10")), "cifar10_val")


def _held_out(data: DataSet, name: str) -> DataSet:
    test = stratified(data.train.labels, 0.1, 0)
    train, held_out = (data.train.take(chosen.nonzero().squeeze(1)) for chosen in (~test, test))
    return replace(data, name=name, train=train, test=held_out)


def _of_classes(data: DataSet, classes: range, name: str) -> DataSet:
    def images(of: Images) -> Images:
        chosen = of.take(((of.labels >= classes.start) & (of.labels < classes.stop)).nonzero().squeeze(1))
        return replace(chosen, labels=chosen.labels - classes.start)

    names = tuple(data.classes[c] for c in classes)
    return replace(data, name=name, train=images(data.train), test=images(data.test), classes=names)


@DATASETS.register("cifar10")
def _cifar10(config: DataConfig) -> DataSet:
    """CIFAR-10: 50,000 training and 10,000 test images, 3 x 32 x 32."""
    from torchvision.datasets import CIFAR10

    return _cifar(config, CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@DATASETS.register("cifar100")
def _cifar100(config: DataConfig) -> DataSet:
    """CIFAR-100: 50,000 training and 10,000 test images, 3 x 32 x 32."""
    from torchvision.datasets import CIFAR100

    return _cifar(config, CIFAR100, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))


@DATASETS.register("stl10")
def _stl10(config: DataConfig) -> DataSet:
    """STL-10: 5,000 training and 8,000 test images, labeled, 3 x 96 x 96; use --image-size 32 for transfer."""
    from torchvision.datasets import STL10

    root = _folder(config)
    if not config.download:
        _check_files([*STL10.train_list, *STL10.test_list], root, STL10.base_folder)

    def images(split: str) -> tuple[Images, tuple[str, ...]]:
        source = _opened(config, STL10, root, split=split)
        labels = torch.from_numpy(source.labels.astype("int64"))
        return Images(
            torch.from_numpy(source.data).contiguous(), labels, torch.arange(len(labels)), levels=255
        ), source.classes

    (train, classes), (test, _) = images("train"), images("test")
    return DataSet(config.data, train, test, tuple(classes), (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713))


@DATASETS.register("image_folder")
def _image_folder(config: DataConfig) -> DataSet:
    """Your own images in --data-dir, train/CLASS/* and test/CLASS/* (or val/CLASS/*), resized to --image-size."""
    root, side = config.data_dir, config.image_size
    if root is None or side is None:
        name, allowed = ("data_dir", f"a folder with {LAYOUT}") if root is None else ("image_size", "8 pixels or more")
        raise UsageError(f"image_folder needs `{name}`: {allowed}", parameter=name, given=None, allowed=allowed)
    if config.download:
        raise UsageError(
            "`download`: image_folder is a folder of your own. Leave the option out.",
            parameter="download",
            given=True,
            allowed=False,
        )
    splits = list_splits(root)
    _require_rows(config, *(len(split.labels) for split in splits))
    rows = [
        subset_rows(split.labels, limit or len(split.labels))
        for split, limit in zip(splits, (config.limit_train, config.limit_test), strict=True)
    ]
    require_memory(sum(map(len, rows)), 3, side)

    def images(split: Split, chosen: Tensor) -> Images:
        pixels, hashes = read_images([split.paths[row] for row in chosen.tolist()], side)
        return Images(pixels, split.labels[chosen], chosen, levels=255, hashes=hashes)

    train, test = map(images, splits, rows)
    mean, std = _mean_and_std(train)
    return DataSet(config.data, train, test, splits[0].classes, mean, std)


def _mean_and_std(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std per channel for pixels in [0, 1], from counts, as float32 images may exceed memory."""
    channels = images.pixels.transpose(0, 1)
    counts = torch.stack([channel.flatten().bincount(minlength=images.levels + 1) for channel in channels]).double()
    values = torch.arange(images.levels + 1, dtype=torch.float64) / images.levels
    mean = (counts * values).sum(1) / counts.sum(1)
    variance = (counts * (values - mean[:, None]) ** 2).sum(1) / (counts.sum(1) - 1)
    return tuple(mean.tolist()), tuple(variance.sqrt().clamp_min(1e-3).tolist())


def _cifar(config: DataConfig, kind: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> DataSet:
    root = _folder(config)
    if not config.download:
        lists = [*kind.train_list, *kind.test_list, (kind.meta["filename"], kind.meta["md5"])]
        _check_files(lists, root, kind.base_folder)

    def images(train: bool) -> Images:
        source = _opened(config, kind, root, train=train)
        pixels = torch.from_numpy(source.data).permute(0, 3, 1, 2).contiguous()
        labels = torch.tensor(source.targets, dtype=torch.int64)
        return Images(pixels, labels, torch.arange(len(labels)), levels=255)

    train, test = images(True), images(False)
    classes = tuple(kind(root, train=False).classes)
    return DataSet(config.data, train, test, classes, mean, std)


def _opened(config: DataConfig, kind: Any, root: Path, **split: Any) -> Any:
    """Return one split of a dataset of torchvision, downloaded if that is configured."""
    try:
        return kind(root, **split, download=config.download)
    except (RuntimeError, OSError) as error:
        message = f"{config.data} in {root}: {' '.join(str(error).split())}"
        allowed = f"the files of {config.data}"
        raise UsageError(message, parameter="data_dir", given=str(root), allowed=allowed) from error


def _folder(config: DataConfig) -> Path:
    if config.data_dir is None:
        message = f"{config.data} needs `data_dir` FOLDER; add `download` to let torchvision fetch it"
        raise UsageError(message, parameter="data_dir", given=None, allowed="a folder")
    if not config.download and not config.data_dir.is_dir():
        message = f"`data_dir` {config.data_dir}: no such folder; `download` lets torchvision fetch the data"
        raise UsageError(message, parameter="data_dir", given=str(config.data_dir), allowed="a folder that is there")
    return config.data_dir


def _check_files(expected: Sequence[tuple[str, str]], root: Path, folder: str) -> None:
    """Check names and MD5 of the files in ``root / folder``; unlike torchvision, name the missing or damaged one."""
    from torchvision.datasets.utils import check_integrity

    for name, md5 in expected:
        path = root / folder / name
        if not path.is_file():
            message = f"{path} is missing: `data_dir` is the folder that holds {folder}"
            raise UsageError(message, parameter="data_dir", given=str(root), allowed=f"the folder that holds {folder}")
        if not check_integrity(str(path), md5):
            message = f"{path} is damaged (its MD5 is not {md5}); delete it and use `download`"
            raise UsageError(message, parameter="data_dir", given=str(path), allowed=f"a file with MD5 {md5}")
