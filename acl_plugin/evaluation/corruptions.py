"""Measure accuracy under common corruptions, from published files or generated on the fly."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin.errors import UsageError, missing_extra, unknown
from acl_plugin.evaluation.batches import predicted
from acl_plugin.models import norm_banks
from acl_plugin.runtime.seeding import CORRUPTIONS, mixed_seed
from acl_plugin.validation import require_list

NAMES = (
    "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog brightness "
    "contrast elastic_transform pixelate jpeg_compression"
).split()
"""The 15 corruptions of Hendrycks and Dietterich (arXiv 1903.12261), and of RobustBench."""
SEVERITIES = (1, 2, 3, 4, 5)
PACKAGE = "imagecorruptions-imaug"
BATCH = 500

Corrupted = Callable[[str, int], tuple[Tensor, Tensor]]
"""Function from a corruption and a severity to (N, C, H, W) images in [0, 1] and (N,) labels."""


def accuracy_by_corruption(
    model: nn.Module,
    corrupted: Corrupted,
    *,
    names: Sequence[str] | None = None,
    batch_size: int = BATCH,
    earlier: Mapping[str, list[float]] | None = None,
) -> Iterator[dict[str, Any]]:
    """Measure a classifier's accuracy under each corruption and severity.

    Args:
        model: classifier of images in [0, 1] that returns (B, K) logits. It is evaluated in eval mode.
        corrupted: function that returns the images, such as ``generated``.
        names: subset of ``NAMES``; None for all.
        batch_size: images in a forward pass.
        earlier: accuracies of an interrupted evaluation, which are kept.

    Yields:
        After each corruption: ``accuracy`` by corruption, a list over severities 1 to 5, ``mean`` over all, and
        ``complete``.

    Raises:
        UsageError: for unknown names.
    """
    chosen = chosen_corruptions(names)
    accuracy = dict(earlier or {})
    for number, name in enumerate(chosen, 1):
        if name not in accuracy:
            accuracy[name] = [_accuracy(model, *corrupted(name, severity), batch_size) for severity in SEVERITIES]
        values = [value for row in accuracy.values() for value in row]
        mean = sum(values) / len(values)
        yield {"accuracy": dict(accuracy), "mean": mean, "complete": number == len(chosen)}


def chosen_corruptions(names: Sequence[str] | None) -> list[str]:
    """Return the corruptions to measure, without duplicates.

    Raises:
        UsageError: for an unknown name or an empty list.
    """
    require_list("names", names)
    for name in names or ():
        if name not in NAMES:
            raise unknown("corruption", name, NAMES, parameter="names")
    chosen = list(NAMES if names is None else dict.fromkeys(names))
    if not chosen:
        message = f"`names` []: allowed are {', '.join(NAMES)}"
        raise UsageError(message, parameter="names", given=names, allowed=tuple(NAMES))
    return chosen


def corrupt(pixels: Tensor, name: str, severity: int, seed: int) -> Tensor:
    """Corrupt one image without changing numpy's global random state.

    Args:
        pixels: (3, H, W) uint8.
        name: one of ``NAMES``.
        severity: 1 to 5.
        seed: seed of the noise.

    Returns:
        (3, H, W) uint8.
    """
    import numpy as np
    from imagecorruptions import corrupt as library

    with _seeded(seed % 2**32):
        changed = library(pixels.permute(1, 2, 0).contiguous().numpy(), corruption_name=name, severity=severity)
    return torch.from_numpy(np.array(changed)).permute(2, 0, 1)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Seed numpy's random state, and the new generators of the library, with ``seed`` inside the context."""
    import numpy as np

    state, new_generator = np.random.get_state(), np.random.default_rng
    np.random.seed(seed)
    np.random.default_rng = lambda *_: new_generator(seed)
    try:
        yield
    finally:
        np.random.default_rng = new_generator
        np.random.set_state(state)


def generated(pixels: Tensor, labels: Tensor, indices: Tensor, seed: int, levels: int = 255) -> Corrupted:
    """Return corruptions that are generated on the fly; their noise differs from the published files.

    Args:
        pixels: (N, 3, H, W) uint8, 32 x 32 or larger.
        labels: (N,) labels of the images.
        indices: (N,) positions in the dataset's own order, which determine the noise.
        seed: seed of the noise.
        levels: pixel value of white.

    Raises:
        UsageError: when the package is missing, or images cannot be corrupted.
    """
    try:
        import imagecorruptions  # noqa: F401
    except ImportError as error:
        raise missing_extra(
            "without `corruptions_dir`, corruptions are made", "corruptions", error, "corruptions_dir"
        ) from error
    _, channels, height, width = pixels.shape
    if channels != 3 or min(height, width) < 32 or levels != 255:
        raise UsageError(
            f"images of {channels} x {height} x {width} cannot be corrupted: they need 3 channels and 32 x 32 pixels",
            parameter="images", given=(channels, height, width), allowed="3 x 32 x 32 or larger",
        )  # fmt: skip

    def corrupted(name: str, severity: int) -> tuple[Tensor, Tensor]:
        kind = NAMES.index(name)
        changed = [
            corrupt(image, name, severity, mixed_seed(seed, CORRUPTIONS, kind, severity, index))
            for image, index in zip(pixels, indices.tolist(), strict=True)
        ]
        return torch.stack(changed).float() / 255, labels

    return corrupted


def generator_version() -> str:
    """Return the ``source`` of generated corruptions: the package and its version."""
    return f"generated by {PACKAGE} {version(PACKAGE)}"


def _accuracy(model: nn.Module, x: Tensor, y: Tensor, batch_size: int) -> float:
    with norm_banks.inference(model):
        return (predicted(model, x, batch_size) == y).double().mean().item()
