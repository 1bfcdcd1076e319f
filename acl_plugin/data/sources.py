"""Sources of encoded images: where the bytes of each image are."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from torch import Tensor

from acl_plugin.data.image_files import is_gray_file, read_content
from acl_plugin.errors import UsageError


class Source(Protocol):
    """N encoded images by position. Processes that read them have copies of it, so it holds no images."""

    def __len__(self) -> int:
        """Return N."""

    def take(self, chosen: Tensor) -> Self:
        """Return the source of the images at the positions ``chosen``, (M,)."""

    def name(self, position: int) -> str:
        """Return the name of an image for messages, such as its path."""

    def content(self, position: int) -> bytes:
        """Return the bytes of an image file.

        Raises:
            UsageError: naming the image, when it cannot be read.
        """

    def identity(self) -> str:
        """Return a hash that changes with the images or their order, without reading them."""


@dataclass(frozen=True)
class Files:
    """Image files.

    Attributes:
        paths: (N,) array of encoded paths, as a million ``Path`` objects take half a gigabyte.
    """

    paths: np.ndarray

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "Files":
        """Return the source of these files, in this order."""
        return cls(np.array([os.fsencode(path) for path in paths], dtype=np.bytes_))

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, chosen: Tensor) -> "Files":
        return Files(self.paths[chosen.numpy()])

    def name(self, position: int) -> str:
        return os.fsdecode(self.paths[position])

    def content(self, position: int) -> bytes:
        return read_content(self.name(position))

    def identity(self) -> str:
        """Return a hash of paths, sizes and times of change; of a file that cannot be read, of its path alone."""
        digest = hashlib.sha256()
        for path in self.paths.tolist():
            try:
                status = os.stat(path)
                digest.update(b"%s\0%d %d\0" % (os.path.abspath(path), status.st_size, status.st_mtime_ns))
            except OSError:
                digest.update(b"%s\0\0" % os.path.abspath(path))
        return digest.hexdigest()


def is_gray(source: Source) -> bool:
    """Return whether all images that can be read are gray, by the headers up to the first that is not."""
    for position in range(len(source)):
        try:
            if not is_gray_file(source.content(position)):
                return False
        except UsageError:  # for the reader to report or to skip
            continue
    return True
