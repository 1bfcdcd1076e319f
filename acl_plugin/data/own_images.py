"""Images of one's own: folders by class, and trees of images without labels."""

import logging
from pathlib import Path

import torch
from torch import Tensor

from acl_plugin.config import DataConfig
from acl_plugin.data.form import Form, size_of
from acl_plugin.data.image_folders import LAYOUT, labeled_inside, list_splits, list_unlabeled, tree_of
from acl_plugin.data.images import UNLABELED, DataSet, Images
from acl_plugin.data.loading import load_images, on_disk
from acl_plugin.data.sources import Files, Source, is_gray
from acl_plugin.data.subsets import require_rows, subset_rows
from acl_plugin.errors import UsageError
from acl_plugin.registry import DATASETS

logger = logging.getLogger(__name__)

Listing = tuple[Source, Tensor]
"""N images and their (N,) labels."""


@DATASETS.register("image_folder")
def _image_folder(config: DataConfig) -> DataSet:
    """Your own images in --data-dir, train/CLASS/* and test/CLASS/* (or val/CLASS/*), or any tree without labels."""
    root, image_size = config.data_dir, config.image_size
    if root is None or image_size is None:
        name, allowed = ("data_dir", f"a folder with {LAYOUT}") if root is None else ("image_size", "8 pixels or more")
        raise UsageError(f"image_folder needs `{name}`: {allowed}", parameter=name, given=None, allowed=allowed)
    if config.download:
        raise UsageError(
            "`download`: image_folder is a folder of your own. Leave the option out.",
            parameter="download",
            given=True,
            allowed=False,
        )
    tree = tree_of(root)
    if tree:
        inside = labeled_inside(root, tree)
        if inside is not None:
            what = f"image_folder: all {len(tree)} images in {root} are taken without labels, test images as well"
            logger.warning(f"{what}; for a labeled dataset give --data-dir {inside}")
        return _of_tree(config, tree, size_of(image_size))
    train, test = list_splits(root)
    first, second = ((Files.of(split.paths), split.labels) for split in (train, test))
    pair = read_splits(config, first, second, size_of(image_size))
    warn_of_several_classes(config.data, *pair)
    return DataSet(config.data, *pair, train.classes, *pair[0].mean_and_std())


def warn_of_several_classes(name: str, train: Images, test: Images) -> None:
    """Warn of images that are equal to an image of another class, by their hashes."""
    hashes, labels = (torch.cat([getattr(train, field), getattr(test, field)]) for field in ("hashes", "labels"))
    found, classes = torch.stack([hashes, labels], 1).unique(dim=0)[:, 0].unique(return_counts=True)
    several = int(torch.isin(hashes, found[classes > 1]).sum())
    if several:
        logger.warning(f"{name}: {several} of {len(hashes)} images are in two or more classes, as equal images")


def is_unlabeled(config: DataConfig) -> bool:
    """Return whether the configured images are a tree without labels, without reading them."""
    return config.data == "image_folder" and config.data_dir is not None and bool(tree_of(config.data_dir))


def _of_tree(config: DataConfig, paths: list[Path], size: tuple[int, int]) -> DataSet:
    """Return a dataset without labels, classes and test images, for a pretraining."""
    nothing = torch.zeros(0, dtype=torch.int64)
    unknown = torch.full((len(paths),), UNLABELED)
    train, test = read_splits(config, (Files.of(paths), unknown), (Files.of([]), nothing), size)
    return DataSet(config.data, train, test, (), *train.mean_and_std())


def read_splits(
    config: DataConfig, train: Listing, test: Listing, size: tuple[int, int], *, as_stored: bool = False
) -> tuple[Images, Images]:
    """Return the training and test images of a configuration, of which only those within its limits are read.

    Args:
        config: configuration with the limits, and where the images are held.
        train, test: N images with their (N,) labels.
        size: height and width in pixels to which they are resized.
        as_stored: see ``image_files.decode``.

    Raises:
        UsageError: for a limit above the number of images, an image that cannot be read, or too little memory.
    """
    require_rows(config, len(train[0]), len(test[0]))
    limits = config.limit_train, config.limit_test
    rows = [subset_rows(labels, n or len(labels)) for (_, labels), n in zip((train, test), limits, strict=True)]
    sources = [source.take(chosen) for (source, _), chosen in zip((train, test), rows, strict=True)]
    gray = config.channels is None and all(is_gray(source) for source, _ in (train, test))  # equal for all limits
    form = Form(*size, config.resize, config.channels or (1 if gray else 3), as_stored=as_stored)
    disk = on_disk(config, sum(map(len, rows)), form)
    first, second = (
        load_images(config, source, form, labels[chosen], chosen, disk=disk)
        for source, (_, labels), chosen in zip(sources, (train, test), rows, strict=True)
    )
    return first, second


def read_tree(config: DataConfig, like: Images) -> Images:
    """Return the images in the folder ``unlabeled``, at any depth and without labels, in the form of other images.

    They are resized to the same size; for one channel, they become gray.

    Args:
        config: configuration with the folder, the number of images to read, and where they are held.
        like: images that they are joined with.

    Raises:
        UsageError: for a folder without images, or fewer than ``limit_unlabeled``.
    """
    root, limit = config.unlabeled, config.limit_unlabeled
    assert root is not None
    paths = list_unlabeled(root)
    if limit is not None and limit > len(paths):
        message = f"`limit_unlabeled` {limit}: {root} has {len(paths)} images"
        raise UsageError(message, parameter="limit_unlabeled", given=limit, allowed=f"at most {len(paths)}")
    chosen = subset_rows(torch.zeros(len(paths)), limit or len(paths))
    _, channels, height, width = like.pixels.shape
    form = Form(height, width, config.resize, channels, like.levels)
    labels, disk = torch.full_like(chosen, UNLABELED), on_disk(config, len(chosen), form)
    return load_images(config, Files.of(paths).take(chosen), form, labels, chosen, disk=disk)
