"""Fingerprints of labeled images: hashes that are equal on every machine."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from acl_plugin.errors import UsageError


def image_hashes(pixels: Tensor) -> Tensor:
    """Return a 64-bit hash of the bytes of each image: (N, C, H, W) uint8 -> (N,) int64.

    50,000 images of 3 x 32 x 32 take less than half a second.
    """
    rows = pixels.cpu().resolve_neg().contiguous().flatten(1).numpy()
    return torch.tensor([bytes_hash(row.tobytes()) for row in rows], dtype=torch.int64)


def bytes_hash(content: bytes) -> int:
    """Return a signed 64-bit hash of ``content``."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


@dataclass(frozen=True)
class Fingerprint:
    """Fingerprint of a set of labeled images, to compare two sets.

    Attributes:
        n: number of images.
        size: [C, H, W] of the model's input images.
        classes: names of the classes.
        pixels: SHA-256 over the image hashes, in order and at the original size.
        labels: SHA-256 over the labels.
        content: SHA-256 over the pairs of image and label, independent of their order.
    """

    n: int
    size: list[int]
    classes: list[str]
    pixels: str
    labels: str
    content: str

    @classmethod
    def of(cls, hashes: Tensor, labels: Tensor, size: Sequence[int], classes: Sequence[str]) -> "Fingerprint":
        """Return the fingerprint of images with (N,) ``image_hashes`` and (N,) labels."""
        pairs = torch.stack([hashes.cpu(), labels.cpu()], 1)
        pairs = pairs[pairs[:, 1].argsort(stable=True)]
        pairs = pairs[pairs[:, 0].argsort(stable=True)]
        return cls(len(labels), list(size), list(classes), _sha(hashes), _sha(labels), _sha(pairs))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON types."""
        return asdict(self)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Return the differences from ``other``, a result of ``to_dict``, one phrase each."""
        found = [
            f"{name} {_shown(value)}, there {_shown(other.get(key))}"
            for key, name, value in (("n", "number of images", self.n), ("size", "image size", self.size))
            if value != other.get(key)
        ]
        if self.classes != other.get("classes"):
            found.append(f"classes {class_differences(self.classes, other.get('classes') or ())}")
        if self.content == other.get("content"):
            if self.pixels != other.get("pixels"):
                found.append("the order of the images")
        elif self.n == other.get("n"):
            changed = [name for name in ("pixels", "labels") if getattr(self, name) != other.get(name)]
            found += [f"the {' and the '.join(changed)} of the images"] if changed else []
        return found

    def require(self, other: Mapping[str, Any] | None, what: str, remedy: str) -> None:
        """Check that the images are those of ``other``; None, where no fingerprint was recorded, passes.

        Args:
            other: result of ``to_dict``, or None.
            what: the images, for the message, such as "the training images".
            remedy: advice at the end of the message.

        Raises:
            UsageError: listing the differences.
        """
        found = [] if other is None else self.differences(other)
        if found:
            raise UsageError(
                f"{what} are not those of before: other {'; '.join(found)}; {remedy}",
                parameter="data_dir", given=self.to_dict(), allowed=dict(other or {}),
            )  # fmt: skip


def setting_differences(settings: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Return the settings of a result that differ from ``before``, one phrase each; ``images`` is a fingerprint."""
    found = []
    for name, value in settings.items():
        there = before.get(name)
        if value == there:
            continue
        if name == "images" and isinstance(there, dict):
            found += [f"other images: {difference}" for difference in Fingerprint(**value).differences(there)]
        else:
            found.append(f"{name} {value}, there {there}")
    return found


def class_differences(ours: Sequence[str], theirs: Sequence[str], shown: int = 5) -> str:
    """Return a phrase that lists the classes found on one side only, or states that the order differs."""
    new, gone = [c for c in ours if c not in theirs], [c for c in theirs if c not in ours]
    parts = [
        f"{', '.join(names[:shown])} {where}" for names, where in ((new, "only here"), (gone, "only there")) if names
    ]
    return "; ".join(parts) or "in another order"


def _sha(values: Tensor) -> str:
    return hashlib.sha256(values.to(torch.int64).cpu().contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def _shown(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
