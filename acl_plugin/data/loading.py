"""Load images of a source, into memory or to be read from disk when they are used."""

import logging
import os

import torch
from torch import Tensor

from acl_plugin.config import DataConfig
from acl_plugin.data.form import Form
from acl_plugin.data.image_index import index_of
from acl_plugin.data.images import Images
from acl_plugin.data.pixels import DiskPixels, Pixels
from acl_plugin.data.reading import fits, read_images, require_memory
from acl_plugin.data.sources import Source
from acl_plugin.errors import UsageError

logger = logging.getLogger(__name__)

MOST_WORKERS = 8
"""Number of reading processes by default, at most; more rarely read faster."""


def on_disk(config: DataConfig, count: int, form: Form) -> bool:
    """Return whether images are read from disk when they are used, as configured or as they exceed the memory limit.

    Raises:
        UsageError: when they are configured to be in memory and exceed its limit.
    """
    if config.data_memory == "ram":
        require_memory(count, form, ", or `data_memory` disk")
    return config.data_memory == "disk" or not fits(count, form)


def load_images(config: DataConfig, source: Source, form: Form, labels: Tensor, rows: Tensor, *, disk: bool) -> Images:
    """Return the images of a source.

    Args:
        config: whether unreadable images are skipped, and the number of reading processes.
        source: N images.
        form: their form.
        labels, rows: (N,) each, see ``Images``.
        disk: read them when they are used, by an index that is kept.

    Raises:
        UsageError: for an image that cannot be read, unless ``skip_unreadable`` is set and another one can.
    """
    pixels: Pixels
    if disk:
        index = index_of(source, form, config.skip_unreadable)
        positions, hashes = index.positions, index.hashes
        workers = min(MOST_WORKERS, os.cpu_count() or 1) if config.workers is None else config.workers
        pixels = DiskPixels(source.take(positions), form, index.sums, workers)
    else:
        pixels, hashes, positions = read_images(source, form, config.skip_unreadable)
    unreadable = _others(source, positions)
    if unreadable and not len(positions):
        message = f"`skip_unreadable`: none of {len(source)} images can be read, such as {unreadable[0]}"
        raise UsageError(message, parameter="skip_unreadable", given=True, allowed="one image or more that can be read")
    if unreadable:
        shown = ", ".join(unreadable[:3]) + (", ..." if len(unreadable) > 3 else "")
        logger.warning(f"skipped {len(unreadable)} of {len(source)} images that cannot be read: {shown}")
    return Images(pixels, labels[positions], rows[positions], form.levels, hashes, unreadable)


def _others(source: Source, positions: Tensor) -> tuple[str, ...]:
    """Return the names of the images at other positions."""
    left = torch.ones(len(source), dtype=torch.bool)
    left[positions] = False
    return tuple(source.name(position) for position in left.nonzero().squeeze(1).tolist())
