"""CIFAR-10, CIFAR-100 and STL-10 in the folders that they are distributed in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from acl_plugin.config import DataConfig
from acl_plugin.data.images import UNLABELED, DataSet, Images
from acl_plugin.errors import UsageError
from acl_plugin.registry import DATASETS


@DATASETS.register("cifar10")
def _cifar10(config: DataConfig) -> DataSet:
    """CIFAR-10: 50,000 training and 10,000 test images, 3 x 32 x 32."""
    from torchvision.datasets import CIFAR10

    return _cifar(config, CIFAR10, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))


@DATASETS.register("cifar10_val")
def _cifar10_val(config: DataConfig) -> DataSet:
    """Training images of CIFAR-10, with a tenth held out as a test set for tuning."""
    return _cifar10(replace(config, data="cifar10")).held_out("cifar10_val")


@DATASETS.register("cifar100")
def _cifar100(config: DataConfig) -> DataSet:
    """CIFAR-100: 50,000 training and 10,000 test images, 3 x 32 x 32."""
    from torchvision.datasets import CIFAR100

    return _cifar(config, CIFAR100, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762))


@DATASETS.register("stl10")
def _stl10(config: DataConfig) -> DataSet:
    """STL-10: 5,000 training and 8,000 test images, labeled, 3 x 96 x 96; use --image-size 32 for transfer."""
    train, classes = _of_stl10(config, "train")
    test, _ = _of_stl10(config, "test")
    return DataSet(config.data, train, test, classes, (0.4467, 0.4398, 0.4066), (0.2603, 0.2566, 0.2713))


@DATASETS.register("stl10_unlabeled")
def _stl10_unlabeled(config: DataConfig) -> DataSet:
    """STL-10 with its 100,000 unlabeled images for the pretraining; a probe uses the 5,000 labeled ones."""
    return replace(_stl10(config), unlabeled=lambda: _of_stl10(config, "unlabeled")[0])


def _of_stl10(config: DataConfig, split: str) -> tuple[Images, tuple[str, ...]]:
    """Return the images of one split, and the names of the classes."""
    from torchvision.datasets import STL10

    root = dataset_folder(config)
    if not config.download:
        _check_files([*STL10.train_list, *STL10.test_list], root, STL10.base_folder)
    source = _opened(config, STL10, root, split=split)
    labels = torch.full((len(source.data),), UNLABELED) if split == "unlabeled" else torch.from_numpy(source.labels)
    images = Images(torch.from_numpy(source.data).contiguous(), labels.long(), torch.arange(len(labels)), levels=255)
    return images, tuple(source.classes)


def _cifar(config: DataConfig, kind: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> DataSet:
    root = dataset_folder(config)
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


def dataset_folder(config: DataConfig) -> Path:
    """Return the configured folder of a dataset.

    Raises:
        UsageError: when none is configured, or it is missing and not downloaded.
    """
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
