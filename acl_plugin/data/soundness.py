"""Check what a dataset's function returns, before hours of training depend on it."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from acl_plugin.config import DataConfig
from acl_plugin.data.images import UNLABELED, DataSet, Images
from acl_plugin.errors import UsageError, reason
from acl_plugin.registry import DATASETS


def sound(config: DataConfig) -> DataSet:
    """Return the dataset that the registered function of ``config`` returns.

    Raises:
        UsageError: for an unknown name; for a function of another distribution that fails; and for a field of the
            dataset with another type, shape or range than ``DataSet`` and ``Images`` have.
    """
    function = DATASETS.get(config.data)
    with _naming(config.data):
        data = function(config)
    _refuse(_faults(data), config.data)
    names, mean, std = tuple(map(str, data.classes)), tuple(map(float, data.mean)), tuple(map(float, data.std))
    return replace(data, classes=names, mean=mean, std=std)  # of Python's types, which files of weights may hold


def sound_unlabeled(data: DataSet, name: str) -> Images:
    """Return the unlabeled images of a dataset, after the checks of ``sound``.

    Raises:
        UsageError: when their function fails, or for images that cannot be joined with the training images.
    """
    assert data.unlabeled is not None
    with _naming(name, "its unlabeled images: "):
        images = data.unlabeled()
    faults = _faults_of("unlabeled", images, 0) or _faults_beside(data.train, "unlabeled", images)
    _refuse(faults[:1], name)
    return images


@contextmanager
def _naming(name: str, part: str = "") -> Iterator[None]:
    """Name the dataset whose function, of another distribution, fails inside the context."""
    try:
        yield
    except UsageError:
        raise
    except Exception as error:
        if DATASETS.get(name).__module__.startswith("acl_plugin."):
            raise  # of the system, such as a full disk
        raise DATASETS.broken(f"dataset {name!r} is broken: {part}{reason(error)}", name) from error


def _refuse(faults: Iterable[tuple[str, str, str]], name: str) -> None:
    for field, given, allowed in faults:
        message = f"dataset {name!r} is broken: {field} {given}; allowed is {allowed}"
        raise UsageError(message, parameter="data", given=name, allowed=allowed)


def _faults(data: Any) -> list[tuple[str, str, str]]:
    """Return the first fault of a dataset as field, what it is, and what is allowed; empty if there is none."""
    if not isinstance(data, DataSet):
        return [("its function returns", type(data).__name__, "an acl_plugin.data.images.DataSet")]
    names = data.classes
    if not isinstance(names, tuple) or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        return [("its classes are", repr(names)[:60], "a tuple of different texts")]
    if len(names) == 1:
        return [("it has", "one class", "two classes or more, or none")]
    if data.unlabeled is not None and not callable(data.unlabeled):
        return [("its unlabeled is", type(data.unlabeled).__name__, "a function that returns Images, or None")]
    faults = [fault for split in ("train", "test") for fault in _faults_of(split, getattr(data, split), len(names))]
    return faults[:1] or _faults_between(data)


def _faults_of(split: str, images: Any, classes: int) -> list[tuple[str, str, str]]:
    if not isinstance(images, Images):
        return [(f"its {split} is", type(images).__name__, "acl_plugin.data.images.Images")]
    pixels, name = images.pixels, f"its {split}.{{}} {{}}".format
    stored = hasattr(pixels, "sums") and hasattr(pixels, "read")
    if not (stored or (isinstance(pixels, Tensor) and pixels.dtype == torch.uint8)) or len(pixels.shape) != 4:
        return [(name("pixels", "are"), _described(pixels), "(N, C, H, W) uint8")]
    count = pixels.shape[0]
    for field in ("labels", "rows", "hashes"):
        values = getattr(images, field)
        if not isinstance(values, Tensor) or values.dtype != torch.int64 or values.shape != (count,):
            return [(name(field, "are"), _described(values), f"({count},) int64, one for each image")]
    if type(images.levels) is not int or not 1 <= images.levels <= 255:
        return [(name("levels", "is"), repr(images.levels), "a whole number from 1 to 255, the pixel value of white")]
    if not count:
        return []
    if isinstance(pixels, Tensor) and (most := int(pixels.max())) > images.levels:
        return [(name("pixels", "are up to"), str(most), f"at most its levels, {images.levels}")]
    if len(images.rows.unique()) < count:
        return [(name("rows", "are"), "equal for some images", "different numbers")]
    low, high = int(images.labels.min()), int(images.labels.max())
    unlabeled = low == high == UNLABELED and not classes
    if not unlabeled and (low < 0 or high >= classes):
        allowed = f"0 to {classes - 1}" if classes else f"{UNLABELED} for all, without classes"
        return [(name("labels", "are from"), f"{low} to {high}", allowed)]
    return []


def _faults_between(data: DataSet) -> list[tuple[str, str, str]]:
    first = data.train.pixels.shape[1:]
    if not len(data.train) and not len(data.test):
        return [("it has", "no images", "one image or more")]
    if faults := _faults_beside(data.train, "test", data.test):
        return faults
    fits: dict[str, Callable[[float], bool]] = {"mean": lambda value: 0 <= value <= 1, "std": lambda value: value > 0}
    for field, fit in fits.items():
        values = getattr(data, field)
        numbers = isinstance(values, tuple) and all(isinstance(v, Real) and math.isfinite(v) for v in values)
        if not numbers or len(values) != first[0] or not all(map(fit, values)):
            allowed = (
                f"a tuple of {first[0]} numbers {'from 0 to 1' if field == 'mean' else 'above 0'}, one per channel"
            )
            return [(f"its {field} is", repr(values)[:60], allowed)]
    return []


def _faults_beside(train: Images, split: str, images: Images) -> list[tuple[str, str, str]]:
    first, other = (tuple(each.pixels.shape[1:]) for each in (train, images))
    if len(images) and first != other:
        return [(f"its {split} images are", f"{other}", f"{first}, as its training images")]
    if len(images) and train.levels != images.levels:
        return [(f"its {split}.levels is", f"{images.levels}", f"{train.levels}, as that of train")]
    return []


def _described(value: Any) -> str:
    return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
