"""Determine the image normalization that a published network expects."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from acl_plugin.errors import UsageError, unknown
from acl_plugin.models.pretrained import of_channels
from acl_plugin.runs.layouts import NORMALIZATIONS, Layout, Normalization


def normalization_of(
    path: Path,
    layout: Layout,
    keys: Iterable[str],
    stored: dict[str, Tensor],
    said: str | None,
    channels: int,
) -> Normalization:
    """Return the mean and std that the file stores, or else those of the layout for a network with these keys.

    Those of the layout are averaged for another number of channels than their three.

    Raises:
        UsageError: if neither is known and ``said`` is None, ``said`` differs from what the file stores, or the stored
            values are not a mean and a std by channel of the images.
    """
    if said is not None and said not in NORMALIZATIONS:
        raise unknown("normalization", said, NORMALIZATIONS)
    if stored:
        values = [tuple(buffer.flatten().tolist()) for buffer in stored.values()]
        whole = [len(each) for each in values] == [channels] * 2 and all(map(math.isfinite, values[0]))
        if not whole or not all(0 < value < math.inf for value in values[1]):
            raise misfit(
                path,
                f"a normalization by mean and std of {channels} channels",
                f"it stores {dict(zip(stored, values, strict=True))}",
            )
        if said is not None and not _close(values, NORMALIZATIONS[said]):
            raise UsageError(
                f"`normalization` {said}: {path} stores another one, {tuple(values)}; leave the option out",
                parameter="normalization", given=said, allowed=tuple(values),
            )  # fmt: skip
        return values[0], values[1]
    known = layout.normalization_of(keys) if said is None else NORMALIZATIONS[said]
    if known is None:
        raise UsageError(
            f"{path} does not store how its images are normalized, as the files of its authors do; say it by "
            f"`normalization`: {', '.join(NORMALIZATIONS)}",
            parameter="normalization", given=None, allowed=tuple(NORMALIZATIONS),
        )  # fmt: skip
    return of_channels(known, channels)


def _close(one: Sequence[Sequence[float]], other: Sequence[Sequence[float]]) -> bool:
    return all(len(a) == len(b) for a, b in zip(one, other, strict=True)) and torch.allclose(
        torch.tensor(one), torch.tensor(other), atol=1e-4
    )


def misfit(path: Path, what: str, details: str) -> UsageError:
    """Return the error about a file that does not match a network."""
    message = f"{path} does not fit {what}: {details}"
    return UsageError(message, parameter="file", given=str(path), allowed=f"the weights of {what}")
