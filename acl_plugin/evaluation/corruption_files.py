"""Load corrupted test images from CIFAR-10-C and CIFAR-100-C, or generate them on the fly."""

from pathlib import Path

import torch
from torch import Tensor

from acl_plugin.data.images import DataSet, Images
from acl_plugin.errors import UsageError, missing_extra
from acl_plugin.evaluation.corruptions import NAMES, Corrupted, generated, generator_version
from acl_plugin.runtime.paths import user_path

FOLDERS = {"cifar10": "CIFAR-10-C", "cifar100": "CIFAR-100-C"}


def corrupted(data: DataSet, images: Images, folder: Path | None, seed: int) -> tuple[str, Corrupted]:
    """Return the corruptions of the test images of ``data``, preceded by the name of their source.

    Args:
        data: the dataset.
        images: the selected test images, with labels numbered as by the classifier.
        folder: contains the published folders; None to generate the corruptions on the fly.
        seed: seed of the noise.

    Raises:
        UsageError: for a missing folder or package, or images that cannot be corrupted.
    """
    if folder is None:
        made = generated(images.read(), images.labels, images.rows, seed, images.levels)
        return generator_version(), made
    read = read_folder(data, folder, images.labels)
    return FOLDERS[data.name], read


def read_folder(data: DataSet, folder: Path, labels: Tensor) -> Corrupted:
    """Return the selected corrupted test images of a published folder.

    Args:
        data: CIFAR-10 or CIFAR-100.
        folder: contains CIFAR-10-C or CIFAR-100-C.
        labels: (N,) labels of the test images, numbered as by the classifier.

    Raises:
        UsageError: for another dataset, missing files, or files of other images.
    """
    if data.name not in FOLDERS:
        raise UsageError(
            f"there are corruption folders of {', '.join(FOLDERS)} only, not of {data.name}",
            parameter="corruptions_dir", given=str(folder), allowed=tuple(FOLDERS),
        )  # fmt: skip
    folder = user_path(folder, "corruptions_dir")
    place, rows = folder / FOLDERS[data.name], data.test.rows
    missing = [f"{name}.npy" for name in ("labels", *NAMES) if not (place / f"{name}.npy").is_file()]
    if missing:
        raise UsageError(
            f"{place} lacks {', '.join(missing[:3])}; `corruptions_dir` is the folder that holds {FOLDERS[data.name]}",
            parameter="corruptions_dir", given=str(folder), allowed=f"a folder with {FOLDERS[data.name]}",
        )  # fmt: skip

    def read(name: str, severity: int) -> tuple[Tensor, Tensor]:
        try:
            from robustbench.data import load_cifar10c, load_cifar100c
        except ImportError as error:
            raise missing_extra(
                f"{FOLDERS[data.name]} needs RobustBench", "robustbench", error, "corruptions_dir"
            ) from error

        load = {"cifar10": load_cifar10c, "cifar100": load_cifar100c}[data.name]
        x, y = load(n_examples=int(rows.max()) + 1, severity=severity, data_dir=str(folder), corruptions=[name])
        if not torch.equal(y.long()[rows], data.test.labels):
            raise UsageError(
                f"{place}/labels.npy does not have the labels of the test images of {data.name}; the files "
                f"are damaged or in another order",
                parameter="corruptions_dir", given=str(folder), allowed=f"{FOLDERS[data.name]} as published",
            )  # fmt: skip
        return x[rows], labels

    return read
