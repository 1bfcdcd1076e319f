"""What a set of labeled images is, in a few hashes that are the same on every machine."""

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
    rows = pixels.cpu().contiguous().flatten(1).numpy()
    return torch.tensor([bytes_hash(row.tobytes()) for row in rows], dtype=torch.int64)


def bytes_hash(content: bytes) -> int:
    """Return a signed 64-bit hash of ``content``."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little", signed=True)


@dataclass(frozen=True)
class Fingerprint:
    """A set of labeled images, in a form that two sets can be compared by.

    Attributes:
        n: number of images.
        size: [C, H, W] as the model sees them.
        classes: names of the classes.
        pixels: SHA-256 over the hashes of the images, in their order and at their own size.
        labels: SHA-256 over the labels.
        content: SHA-256 over the pairs of image and label, in whatever order.
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
        """Return it in plain JSON types."""
        return asdict(self)

    def differences(self, other: Mapping[str, Any]) -> list[str]:
        """Name what is not the same as in ``other``, which ``to_dict`` gave."""
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
        """Refuse images that are not those of ``other``; None, of a time when nothing was recorded, is not compared.

        Raises:
            UsageError: ``what`` (such as "the training images") differs, with what differs and the ``remedy``.
        """
        found = [] if other is None else self.differences(other)
        if found:
            raise UsageError(
                f"{what} are not those of before: other {'; '.join(found)}; {remedy}",
                parameter="data_dir", given=self.to_dict(), allowed=dict(other or {}),
            )  # fmt: skip


def setting_differences(settings: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Name the settings of a result that are not those of ``before``; ``images`` is a fingerprint."""
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
    """Name the classes that one side has and the other does not, or say that their order is another."""
    new, gone = [c for c in ours if c not in theirs], [c for c in theirs if c not in ours]
    parts = [
        f"{', '.join(names[:shown])} {where}" for names, where in ((new, "only here"), (gone, "only there")) if names
    ]
    return "; ".join(parts) or "in another order"


def _sha(values: Tensor) -> str:
    return hashlib.sha256(values.to(torch.int64).cpu().contiguous().numpy().astype("<i8").tobytes()).hexdigest()


def _shown(value: Any) -> str:
    return " x ".join(map(str, value)) if isinstance(value, list) else str(value)
