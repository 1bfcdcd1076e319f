"""Datasets by name, loaded as uint8 tensors."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from acl_plugin.config import DataConfig
from acl_plugin.config.ranges import SMALLEST
from acl_plugin.data.images import DataSet, Images
from acl_plugin.data.own_images import read_tree
from acl_plugin.data.pixels import require_varied
from acl_plugin.data.soundness import sound, sound_unlabeled
from acl_plugin.data.subsets import missing_classes, require_rows
from acl_plugin.errors import UsageError
from acl_plugin.registry import DATASETS
from acl_plugin.runtime.defaults import usual_defaults

logger = logging.getLogger(__name__)


_shared: ContextVar[list[tuple[DataConfig, DataSet]] | None] = ContextVar("shared", default=None)


@contextmanager
def shared() -> Iterator[None]:
    """Load a dataset once for all that is done in this context, and keep it in memory until the end."""
    token = _shared.set([])
    try:
        yield
    finally:
        _shared.reset(token)


@usual_defaults()
def load(config: DataConfig) -> DataSet:
    """Load the dataset of ``config``, limited and resized as it specifies.

    Raises:
        UsageError: for an unknown name, a missing folder, or missing or damaged files.
    """
    if not isinstance(config, DataConfig):
        allowed = "the section `data` of a configuration, such as acl_plugin.preset('digits').data"
        message = f"`config` is {type(config).__name__}; allowed is {allowed}"
        raise UsageError(message, parameter="config", given=type(config).__name__, allowed=allowed)
    known = _shared.get()
    if known is None:
        return _loaded(config)
    found = [data for other, data in known if other == config]
    if not found:
        found.append(_loaded(config))
        known.append((config, found[0]))
    return found[0]


def _loaded(config: DataConfig) -> DataSet:
    data = sound(config)
    require_rows(config, *(len(images) + len(images.unreadable) for images in (data.train, data.test)))
    for split, images in (("training", data.train), ("test", data.test)):
        require_varied(images.pixels, images.hashes, f"{split} images of {data.name}")
    train, test = data.train.subset(config.limit_train), data.test.subset(config.limit_test)
    for split, images in (("training", train), ("test", test)):
        missing = missing_classes(images.labels, data.classes)
        if missing and len(images):
            details = f"{len(missing)} of {len(data.classes)} classes are missing: {', '.join(missing[:5])}"
            logger.warning(f"{data.name}: in the {len(images)} {split} images {details}")
    _warn_of_seen(data.name, test.hashes, train.hashes, "test images are training images")
    train, test = train.resized(config.image_size), test.resized(config.image_size)
    if min(train.pixels.shape[2:]) < SMALLEST:
        given, allowed = " x ".join(map(str, train.pixels.shape[2:])), f"{SMALLEST} x {SMALLEST} pixels or more"
        message = f"`data` {data.name}: its images are {given}; allowed are {allowed}: add `image_size`"
        raise UsageError(message, parameter="data", given=given, allowed=allowed)
    first = 1 + max(int(images.rows.max()) for images in (data.train, data.test) if len(images))
    unlabeled = [partial(_limited, data, config)] if data.unlabeled is not None else []
    if config.unlabeled is not None:
        unlabeled.append(partial(read_tree, config, train))
    joined = partial(_joined, unlabeled, first, data, train.hashes) if unlabeled else None
    return replace(data, train=train, test=test, unlabeled=joined)


def _warn_of_seen(name: str, hashes: Tensor, others: Tensor, what: str) -> None:
    """Warn of images that are among others, if they are more than a few, which many datasets contain."""
    seen = int(torch.isin(hashes, others).sum())
    if seen > len(hashes) / 100:
        logger.warning(f"{name}: {seen} of {len(hashes)} {what} as well")


def _limited(data: DataSet, config: DataConfig) -> Images:
    """Return the dataset's own unlabeled images, limited and resized."""
    return sound_unlabeled(data, config.data).subset(config.limit_unlabeled).resized(config.image_size)


def _joined(unlabeled: Sequence[Callable[[], Images]], first: int, data: DataSet, trained_on: Tensor) -> Images:
    """Return all unlabeled images, with rows that begin at ``first``; warn of test and training images among them."""
    found, *others = (each() for each in unlabeled)
    for each in others:
        found = found.followed_by(replace(each, rows=each.rows + 1 + int(found.rows.max())))
    require_varied(found.pixels, found.hashes, "unlabeled images")
    _warn_of_seen(data.name, data.test.hashes, found.hashes, "test images are unlabeled images of the pretraining")
    _warn_of_seen(data.name, trained_on, found.hashes, "training images are unlabeled images of the pretraining")
    return replace(found, rows=first + found.rows)


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
    return _digits(config).held_out("digits_val")


def _of_classes(data: DataSet, classes: range, name: str) -> DataSet:
    def images(of: Images) -> Images:
        chosen = of.take(((of.labels >= classes.start) & (of.labels < classes.stop)).nonzero().squeeze(1))
        return replace(chosen, labels=chosen.labels - classes.start)

    names = tuple(data.classes[c] for c in classes)
    return replace(data, name=name, train=images(data.train), test=images(data.test), classes=names)
