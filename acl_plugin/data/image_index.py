"""Index of images on disk: a hash and channel sums of each, computed once and kept in the user's data folder."""

import hashlib
import io
import logging
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from acl_plugin.data.form import Form
from acl_plugin.data.pixels import channel_sums
from acl_plugin.data.reading import each_image
from acl_plugin.data.sources import Source
from acl_plugin.runtime import file_locks
from acl_plugin.runtime.files import write_atomic
from acl_plugin.runtime.paths import data_home

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageIndex:
    """What is known of the M readable images of a source without reading them again.

    Attributes:
        positions: (M,) int64 positions in the source, ascending.
        hashes: (M,) int64 hashes of the files.
        sums: (M, C, 2) int64, see ``pixels.channel_sums``.
    """

    positions: Tensor
    hashes: Tensor
    sums: Tensor


def index_of(source: Source, form: Form, skip_unreadable: bool = False) -> ImageIndex:
    """Return the index of a source, from its file or by decoding every image once.

    The file is named after the identity of the source and the form, so that changed images have another one. Where it
    cannot be written, each command computes the index again, with a warning.

    Raises:
        UsageError: for the first image that cannot be read, unless such images are skipped.
    """
    key = hashlib.sha256(f"{source.identity()} {form}".encode()).hexdigest()[:32]
    path = data_home() / "images" / f"{key}.npz"
    with _locked(path):
        kept = _read(path)
        if kept is None or (len(kept.positions) < len(source) and not skip_unreadable):
            kept = _computed(source, form, skip_unreadable)
            _write(path, kept)
    return kept


def _computed(source: Source, form: Form, skip_unreadable: bool) -> ImageIndex:
    positions, hashes = torch.empty(2, len(source), dtype=torch.int64)
    sums = torch.empty(len(source), form.channels, 2, dtype=torch.int64)
    count = 0
    for position, pixels, file_hash in each_image(source, form, skip_unreadable, "index of the images"):
        positions[count], hashes[count], sums[count] = position, file_hash, channel_sums(pixels[None])[0]
        count += 1
    return ImageIndex(positions[:count], hashes[:count], sums[:count])


def _read(path: Path) -> ImageIndex | None:
    try:
        with path.open("rb") as file:  # NumPy leaves a damaged file open
            stored = np.load(file, allow_pickle=False)
            return ImageIndex(*(torch.from_numpy(stored[name]) for name in ("positions", "hashes", "sums")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        logger.warning(f"{path} is damaged ({type(error).__name__}); the images are indexed again")
        return None


def _write(path: Path, index: ImageIndex) -> None:
    content = io.BytesIO()
    np.savez(content, **{name: value.numpy() for name, value in vars(index).items()})
    try:
        write_atomic(path, content.getvalue())
    except OSError as error:
        logger.warning(f"the index of the images is not kept: {path} cannot be written ({error.strerror})")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time make an index, so that ranks share the work; where a lock is possible."""
    lock: AbstractContextManager = nullcontext()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = (path.parent / ".lock").open("ab")
    except OSError:
        pass
    with lock as file:
        if file is not None:
            file_locks.lock(file, wait=True)
        yield
