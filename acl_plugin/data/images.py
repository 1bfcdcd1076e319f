"""Labeled images as uint8 tensors."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.data.fingerprint import Fingerprint, class_differences, image_hashes
from acl_plugin.data.image_files import require_memory
from acl_plugin.data.subsets import subset_rows
from acl_plugin.errors import UsageError, unknown


@dataclass(frozen=True)
class Images:
    """N images in memory.

    Attributes:
        pixels: (N, C, H, W) uint8.
        labels: (N,) int64.
        rows: (N,) int64, each image's row in the dataset's own order.
        levels: pixel value of white; ``pixels / levels`` lies in [0, 1].
        hashes: (N,) int64, what each image is on every machine: a hash of its file, or of its pixels at their own
            size. None takes the pixels given.
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
        """Return the images at ``chosen``, (M,) positions."""
        taken = {name: getattr(self, name)[chosen] for name in ("pixels", "labels", "rows", "hashes")}
        return replace(self, **taken)

    def subset(self, n: int | None) -> "Images":
        """Return n images that keep the shares of the classes, see ``subsets.subset_rows``; all of them for None."""
        return self if n is None or n >= len(self) else self.take(subset_rows(self.labels, n))

    def to(self, device: torch.device) -> "Images":
        """Return the same images in a device's memory; their order of rows stays."""
        moved = {name: getattr(self, name).to(device) for name in ("pixels", "labels", "rows")}
        return replace(self, **moved)

    def fingerprint(self, classes: Sequence[str]) -> Fingerprint:
        """Return what these images of ``classes`` are, to be compared with those of another start."""
        return Fingerprint.of(self.hashes, self.labels, self.pixels.shape[1:], classes)

    def resized(self, side: int | None) -> "Images":
        """Every image at ``side`` x ``side`` pixels, by antialiased bilinear interpolation; as it is for None.

        Raises:
            UsageError: when they would not fit into the machine's memory.
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
        """(stop - start, C, H, W) float32 in [0, 1]."""
        return self.pixels[start:stop].float() / self.levels


@dataclass(frozen=True)
class DataSet:
    """Train and test images, with what the models need to know of them.

    Attributes:
        name: name on the command line, and RobustBench's where it has the dataset.
        classes: names of the classes.
        mean, std: per channel, of training images in [0, 1].
    """

    name: str
    train: Images
    test: Images
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def fingerprints(self) -> dict[str, Any]:
        """Return what the images are, and which of each split a limit has left (None: all), in plain JSON types."""
        found: dict[str, Any] = {"dataset": self.name}
        for split, images in (("train", self.train), ("test", self.test)):
            rows = images.rows.tolist()
            found[split] = images.fingerprint(self.classes).to_dict()
            found[f"{split}_rows"] = None if rows == list(range(len(rows))) else rows
        return found

    def test_for(self, classes: Sequence[str], class_map: Mapping[str, str]) -> Images:
        """Return the test images with labels that count the ``classes`` of a classifier.

        Args:
            classes: names of the classes of the classifier.
            class_map: names of our classes, and of the classifier's that they are, where the names differ.

        Raises:
            UsageError: when the names do not agree and no mapping is given, or when it names an unknown class.
        """
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
        """(C, H, W)."""
        c, h, w = self.train.pixels.shape[1:]
        return c, h, w


@torch.no_grad()
def batched(
    function: Callable[[Tensor], Tensor], images: Images | Tensor, device: torch.device, batch_size: int = 500
) -> Tensor:
    """``function`` of all images, un-augmented, a batch at a time and without gradient: (N, ...) on the CPU.

    Args:
        images: of a dataset, or (N, C, H, W) in [0, 1].
    """
    starts = [slice(i, i + batch_size) for i in range(0, len(images), batch_size)]
    parts = (images[s] if isinstance(images, Tensor) else images.floats(s.start, s.stop) for s in starts)
    return torch.cat([function(part.to(device)).cpu() for part in parts])
