"""Labeled images as uint8 tensors."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.data.fingerprint import Fingerprint, class_differences, image_hashes
from acl_plugin.data.image_files import require_memory
from acl_plugin.data.subsets import stratified, subset_rows
from acl_plugin.errors import UsageError, unknown

UNLABELED = -1
"""Label of an image without one."""


@dataclass(frozen=True)
class Images:
    """N images in memory.

    Attributes:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64; ``UNLABELED`` for images that only a pretraining sees.
        rows: (N,) int64 indices of the images in the original order of the dataset.
        levels: pixel value of white; ``pixels / levels`` lies in [0, 1].
        hashes: (N,) int64, equal on every machine: hashes of the files, or of the pixels at the original size. None
            computes them from ``pixels``.
    """

    pixels: Tensor
    labels: Tensor
    rows: Tensor
    levels: int
    hashes: Tensor = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.hashes is None:
            object.__setattr__(self, "hashes", image_hashes(self.pixels))

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, chosen: Tensor) -> "Images":
        """Return the images at the indices ``chosen``, (M,)."""
        taken = {name: getattr(self, name)[chosen] for name in ("pixels", "labels", "rows", "hashes")}
        return replace(self, **taken)

    def followed_by(self, others: "Images") -> "Images":
        """Return these images and then the others, of the same shape and levels."""
        joined: dict[str, Any] = {
            n: torch.cat([getattr(self, n), getattr(others, n)]) for n in ("pixels", "labels", "rows", "hashes")
        }
        return replace(self, **joined)

    def subset(self, n: int | None) -> "Images":
        """Return n images in the class proportions of all; None for all images. See ``subsets.subset_rows``."""
        return self if n is None or n >= len(self) else self.take(subset_rows(self.labels, n))

    def to(self, device: torch.device) -> "Images":
        """Return the same images, in the same order, on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("pixels", "labels", "rows")}
        return replace(self, **moved)

    def fingerprint(self, classes: Sequence[str]) -> Fingerprint:
        """Return the fingerprint of these images, to compare with that of another run."""
        return Fingerprint.of(self.hashes, self.labels, self.pixels.shape[1:], classes)

    def mean_and_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return mean and std per channel for pixels in [0, 1], from counts, as float32 images may exceed memory."""
        channels = self.pixels.transpose(0, 1)
        counts = torch.stack([channel.flatten().bincount(minlength=self.levels + 1) for channel in channels]).double()
        values = torch.arange(self.levels + 1, dtype=torch.float64) / self.levels
        mean = (counts * values).sum(1) / counts.sum(1)
        variance = (counts * (values - mean[:, None]) ** 2).sum(1) / (counts.sum(1) - 1)
        return tuple(mean.tolist()), tuple(variance.sqrt().clamp_min(1e-3).tolist())

    def resized(self, side: int | None) -> "Images":
        """Resize to ``side`` x ``side`` pixels by antialiased bilinear interpolation; None keeps the size.

        Raises:
            UsageError: when the result exceeds the memory limit.
        """
        if side is None or self.pixels.shape[2:] == (side, side):
            return self
        require_memory(len(self), self.pixels.shape[1], side)
        parts = []
        for pixels in self.pixels.split(max(1, 2**24 // side**2)):
            small = F.interpolate(pixels.float(), (side, side), mode="bilinear", antialias=True)
            parts.append(small.round().clamp(0, self.levels).to(torch.uint8))
        return replace(self, pixels=torch.cat(parts))

    def floats(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return the images from ``start`` to ``stop``: (stop - start, C, H, W) float32 in [0, 1]."""
        return self.pixels[start:stop].float() / self.levels


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

    def held_out(self, name: str, share: float = 0.1) -> "DataSet":
        """Return the dataset ``name`` whose test images are a share of each class of the training images."""
        test = stratified(self.train.labels, share, 0)
        train, held_out = (self.train.take(chosen.nonzero().squeeze(1)) for chosen in (~test, test))
        return replace(self, name=name, train=train, test=held_out)

    def fingerprints(self) -> dict[str, Any]:
        """Return the fingerprint and the rows (None for all) of each split, as JSON types."""
        found: dict[str, Any] = {"dataset": self.name}
        for split, images in (("train", self.train), ("test", self.test)):
            rows = images.rows.tolist()
            found[split] = images.fingerprint(self.classes).to_dict()
            found[f"{split}_rows"] = None if rows == list(range(len(rows))) else rows
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
    starts = [slice(i, i + batch_size) for i in range(0, len(images), batch_size)]
    parts = (images[s] if isinstance(images, Tensor) else images.floats(s.start, s.stop) for s in starts)
    return torch.cat([function(part.to(device)).cpu() for part in parts])
