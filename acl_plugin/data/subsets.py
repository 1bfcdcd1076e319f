"""Subsets of a labeled dataset that keep its class proportions."""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from acl_plugin.config import DataConfig
from acl_plugin.errors import UsageError

if TYPE_CHECKING:
    from acl_plugin.data.images import Images


def subset_rows(labels: Tensor, n: int, seed: int = 0) -> Tensor:
    """Return the indices of ``n`` images in the class proportions of all, up to one image per class.

    All subsets are prefixes of one random order that is balanced at every length. A smaller subset is thus part of a
    larger one, and neither depends on the order in which the classes are stored.

    Args:
        labels: (N,) class of each image.
        n: number of images; N or more returns all.
        seed: seed of the order within each class. All runs use the same, so that their results are comparable.

    Returns:
        (n,) indices, ascending.
    """
    if n >= len(labels):
        return torch.arange(len(labels))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    place = torch.empty(len(labels), dtype=torch.float64)
    for c in labels.unique():
        members = order[labels[order] == c]
        place[members] = (torch.arange(len(members), dtype=torch.float64) + 0.5) / len(members)
    return order[place[order].argsort(stable=True)][:n].sort().values


def stratified(labels: Tensor, share: float, seed: int) -> Tensor:
    """Select a random fraction of each class, at least one image: (N,) labels -> (N,) bool."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for c in labels.unique():
        members = order[labels[order] == c]
        chosen[members[: max(1, round(share * len(members)))]] = True
    return chosen


def read_rows(path: Path, images: "Images", option: str, last: int | None = None) -> Tensor:
    """Read numbers of images of the dataset from a NumPy file: return an (N,) bool mask of ``images``.

    Args:
        path: file of integers from 0 (.npy), such as those of ACL's code.
        images: N images, or a part of the dataset; numbers of other images are left out.
        option: option that names the file, for messages.
        last: largest number of the dataset; None if it is unknown, as with a limit.

    Raises:
        UsageError: when the file cannot be read, or has other content.
    """
    import numpy as np

    allowed = "a .npy file of the numbers of images, from 0"
    try:
        numbers = np.load(path, allow_pickle=False)
    except Exception as error:  # of any type, for damaged files
        message = f"`{option}` {path}: allowed is {allowed} ({' '.join(str(error).split())[:80]})"
        raise UsageError(message, parameter=option, given=str(path), allowed=allowed) from error
    fits = isinstance(numbers, np.ndarray) and numbers.size and np.issubdtype(numbers.dtype, np.integer)
    above = numbers[numbers > last].tolist() if fits and last is not None else []
    if not fits or numbers.min() < 0 or above or not np.isin(numbers, images.rows.cpu().numpy()).any():
        found = f" ({len(above)} are larger, such as {above[0]})" if above else ""
        message = (
            f"`{option}` {path}: allowed is {allowed} to {int(images.rows.max()) if last is None else last}{found}"
        )
        raise UsageError(message, parameter=option, given=str(path), allowed=allowed)
    return torch.isin(images.rows.cpu(), torch.from_numpy(numbers.reshape(-1).astype("int64")))


def missing_classes(labels: Tensor, classes: tuple[str, ...]) -> list[str]:
    """Return the names of the classes that do not occur in ``labels`` (N,)."""
    there = set(labels.tolist())
    return [name for number, name in enumerate(classes) if number not in there]


def require_rows(config: DataConfig, train: int, test: int) -> None:
    """Check that the limits do not exceed the numbers of training and test images."""
    for option, limit, count in (("limit_train", config.limit_train, train), ("limit_test", config.limit_test, test)):
        if limit is not None and limit > count:
            raise UsageError(
                f"`{option}` {limit}: {config.data} has {count} such images",
                parameter=option, given=limit, allowed=f"at most {count}",
            )  # fmt: skip
