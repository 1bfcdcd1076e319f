"""Labeled images of 8 bits."""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.data.fingerprint import Fingerprint, class_differences, image_hashes
from acl_plugin.data.form import Form, size_of
from acl_plugin.data.pixels import Pixels, channel_sums, joined, read, stream
from acl_plugin.data.reading import require_memory
from acl_plugin.data.subsets import stratified, subset_rows
from acl_plugin.errors import UsageError, unknown

UNLABELED = -1
"""Label of an image without one."""


@dataclass(frozen=True)
class Images:
    """N images.

    Attributes:
        pixels: (N, C, H, W) uint8, in memory or read when they are used.
        labels: (N,) int64; ``UNLABELED`` for images that only a pretraining sees.
        rows: (N,) int64 indices of the images in the original order of the dataset.
        levels: pixel value of white; ``pixels / levels`` lies in [0, 1].
        hashes: (N,) int64, equal on every machine: hashes of the files, or of the pixels at the original size. None
            computes them from ``pixels``.
        unreadable: names of images that are left out, as they cannot be read.
    """

    pixels: Pixels
    labels: Tensor
    rows: Tensor
    levels: int
    hashes: Tensor = None  # type: ignore[assignment]
    unreadable: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.hashes is None:
            if not isinstance(self.pixels, Tensor):
                given, allowed = type(self.pixels).__name__, "a tensor (N, C, H, W), such as uint8"
                message = f"`pixels` of type {given}: allowed is {allowed}"
                raise UsageError(message, parameter="pixels", given=given, allowed=allowed)
            object.__setattr__(self, "hashes", image_hashes(self.pixels))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Tensor) -> "Images":
        """Return the images at the indices ``chosen``, (M,)."""
        taken = {name: getattr(self, name)[chosen] for name in ("pixels", "labels", "rows", "hashes")}
        return replace(self, **taken)

    def followed_by(self, others: "Images") -> "Images":
        """Return these images and then the others, of the same shape and levels."""
        both: dict[str, Any] = {
            n: torch.cat([getattr(self, n), getattr(others, n)]) for n in ("labels", "rows", "hashes")
        }
        unreadable = self.unreadable + others.unreadable
        return replace(self, pixels=joined(self.pixels, others.pixels), unreadable=unreadable, **both)

    def subset(self, n: int | None) -> "Images":
        """Return n images in the class proportions of all; None for all images. See ``subsets.subset_rows``."""
        return self if n is None or n >= len(self) else self.take(subset_rows(self.labels, n))

    def to(self, device: torch.device) -> "Images":
        """Return the same images, in the same order, on a device; pixels on disk stay there."""
        pixels = self.pixels.to(device) if isinstance(self.pixels, Tensor) else self.pixels
        return replace(self, pixels=pixels, labels=self.labels.to(device), rows=self.rows.to(device))

    def fingerprint(self, classes: Sequence[str]) -> Fingerprint:
        """Return the fingerprint of these images, to compare with that of another run."""
        return Fingerprint.of(self.hashes, self.labels, self.pixels.shape[1:], classes)

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and std per channel for pixels in [0, 1], from exact sums."""
        count = len(self) * self.pixels.shape[2] * self.pixels.shape[3]
        mean, std = [], []
        for total, squares in channel_sums(self.pixels).sum(0).tolist():
            mean.append(total / count / self.levels)
            variance = (squares * count - total**2) / (count * max(1, count - 1))  # whole numbers of any size
            std.append(max(variance**0.5 / self.levels, 1e-3))
        return tuple(mean), tuple(std)

    def resized(self, image_size: int | list[int] | None) -> "Images":
        """Resize to a side, or [height, width], by antialiased bilinear interpolation; None keeps the size.

        Raises:
            UsageError: when the result exceeds the memory limit.
        """
        if image_size is None or self.pixels.shape[2:] == size_of(image_size):
            return self
        assert isinstance(self.pixels, Tensor), "images on disk have their size"
        height, width = size_of(image_size)
        require_memory(len(self), Form(height, width, channels=self.pixels.shape[1]))
        parts = []
        for pixels in self.pixels.split(max(1, 2**24 // (height * width))):
            small = F.interpolate(pixels.float(), (height, width), mode="bilinear", antialias=True)
            parts.append(small.round().clamp(0, self.levels).to(torch.uint8))
        return replace(self, pixels=torch.cat(parts))

    def floats(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the images from ``start`` to ``stop``: (stop - start, C, H, W) float32 in [0, 1]."""
        return self.read(start, stop).float() / self.levels

    def read(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the pixels of the images from ``start`` to ``stop``: (stop - start, C, H, W) uint8."""
        if isinstance(self.pixels, Tensor):
            return self.pixels[start:stop]
        return read(self.pixels, torch.arange(len(self))[start:stop])

    def stream(self, batches: Iterable[Tensor]) -> Iterator[Tensor]:
        """Yield the pixels of each batch of positions, (B, C, H, W) uint8; see ``pixels.stream``."""
        return stream(self.pixels, batches)


@dataclass(frozen=True)
class DataSet:
    """Training and test images, with their classes and normalization.

    Labeled images are in ``train`` and ``test``. Pretraining uses ``pretraining``.

    Attributes:
        name: name on the command line; for RobustBench's datasets, also the name there.
        train, test: images of the two splits.
        classes: names of the classes.
        mean, std: statistics of the training images in [0, 1], one value per channel.
        unlabeled: returns further images for the pretraining, with rows of their own; None without any. They are read
            at the first use, as a probe does without them.
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    unlabeled: Callable[[], Images] | None = None

    @cached_property
    def pretraining(self) -> Images:
        """Images of ``train``, and the unlabeled ones after them."""
        return self.train if self.unlabeled is None else self.train.followed_by(self.unlabeled())

    def require_labels(self, what: str) -> None:
        """Refuse a dataset without classes.

        Args:
            what: what needs labels, for the message.

        Raises:
            UsageError: with the commands to run instead.
        """
        if not self.classes:
            raise without_labels(self.name, what)

    def require_test(self) -> None:
        """Refuse a dataset without test images.

        Raises:
            UsageError: naming the dataset.
        """
        if not len(self.test):
            raise UsageError(f"{self.name} has no test images to evaluate on", parameter="data", given=self.name)

    def require_shape(self, trained_on: tuple[int, int, int]) -> None:
        """Refuse images of another shape (C, H, W) than those that a model was trained on, as after a change of files.

        Raises:
            UsageError: with both shapes.
        """
        if self.shape != trained_on:
            given, own = ("x".join(map(str, shape)) for shape in (self.shape, trained_on))
            message = f"`data` {self.name}: its images are {given}, and those of the training {own}; the files changed"
            raise UsageError(message, parameter="data", given=given, allowed=own)

    def held_out(self, name: str, share: float = 0.1) -> "DataSet":
        """Return the dataset ``name`` whose test images are a share of each class of the training images."""
        test = stratified(self.train.labels, share, 0)
        train, held_out = (self.train.take(chosen.nonzero().squeeze(1)) for chosen in (~test, test))
        return replace(self, name=name, train=train, test=held_out)

    def fingerprints(self) -> dict[str, Any]:
        """Return the fingerprint and the rows (None for all) of each split, as JSON types."""
        found: dict[str, Any] = {"dataset": self.name}
        for split, images in (("train", self.train), ("test", self.test)):
            whole = torch.equal(images.rows.cpu(), torch.arange(len(images)))
            found[split] = images.fingerprint(self.classes).to_dict()
            found[f"{split}_rows"] = None if whole else images.rows.tolist()
            if images.unreadable:
                found[f"{split}_unreadable"] = list(images.unreadable)
        return found

    def test_for(self, classes: Sequence[str], class_map: Mapping[str, str]) -> Images:
        """Return the test images with labels as indices into the ``classes`` of a classifier.

        Args:
            classes: names of the classifier's classes.
            class_map: mapping from this dataset's class names to the classifier's, where they differ.

        Raises:
            UsageError: when the names differ without a mapping, or the mapping contains an unknown class.
        """
        self.require_labels("an evaluation")
        for name in class_map:
            if name not in self.classes:
                raise unknown(f"class of {self.name} in class_map:", name, self.classes, parameter="class_map")
        if tuple(classes) == self.classes and not class_map:
            return self.test
        names = [class_map.get(name, name) for name in self.classes]
        if not class_map or not set(names) <= set(classes):
            details = class_differences(self.classes if not class_map else names, classes)
            example = {name: name if name in classes else classes[0] for name in self.classes[:2]}
            raise UsageError(
                f"the classes of {self.name} are not the classifier's ({details.replace('there', 'in the classifier')})"
                f"; pass `class_map`, such as '{json.dumps(example)}', from the names here to the classifier's",
                parameter="class_map", given=dict(class_map) or None, allowed=tuple(classes),
            )  # fmt: skip
        positions = torch.tensor([list(classes).index(name) for name in names])
        return replace(self.test, labels=positions[self.test.labels])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images."""
        c, h, w = self.train.pixels.shape[1:]
        return c, h, w


def without_labels(name: str, what: str) -> UsageError:
    """Return the error about a dataset without labels, and what needs them."""
    return UsageError(
        f"`data` {name} has images without labels, and {what} needs labels: pretrain on them alone by acl-plugin "
        f"pretrain, then acl-plugin transfer RUN --data NAME --out OTHER to a labeled dataset",
        parameter="data", given=name, allowed="a labeled dataset",
    )  # fmt: skip


@torch.no_grad()
def batched(
    function: Callable[[Tensor], Tensor], images: Images | Tensor, device: torch.device, batch_size: int = 500
) -> Tensor:
    """Apply ``function`` to all images in batches, without augmentation or gradient.

    Args:
        function: (B, C, H, W) in [0, 1] -> (B, ...).
        images: images of a dataset, or (N, C, H, W) in [0, 1].
        device: device of the batches.
        batch_size: B, images per batch.

    Returns:
        (N, ...) on the CPU.
    """
    positions = torch.arange(len(images)).split(batch_size) if len(images) else ()
    if isinstance(images, Tensor):
        parts: Iterator[Tensor] = (images[part] for part in positions)
    else:
        levels = images.levels
        parts = (part.to(device).float() / levels for part in images.stream(positions))
    return torch.cat([function(part.to(device)).cpu() for part in parts])
