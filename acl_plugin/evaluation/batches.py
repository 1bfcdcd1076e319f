"""Read batches of test images from a tensor or 8-bit storage, on the device of a model."""

from itertools import chain
from typing import Protocol

import torch
from torch import Tensor, nn


class Stored(Protocol):
    """Images that are not stored as floats, such as ``acl_plugin.data.images.Images``."""

    def __len__(self) -> int:
        """Return the number of images."""

    def floats(self, start: int = 0, stop: int | None = None) -> Tensor:
        """Return (stop - start, C, H, W) floats in [0, 1]."""


ImageSource = Tensor | Stored
"""(N, C, H, W) floats in [0, 1], or ``Stored`` images."""


def batch(images: ImageSource, start: int, stop: int | None, device: torch.device) -> Tensor:
    """Return the images from ``start`` to ``stop`` as floats in [0, 1] on ``device``."""
    floats = images[start:stop] if isinstance(images, Tensor) else images.floats(start, stop)
    return floats.to(device)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the model's first weight or buffer, or the CPU if it has none."""
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def predicted(model: nn.Module, images: ImageSource, batch_size: int) -> Tensor:
    """Return the (N,) predicted labels, on the CPU."""
    return outputs(model, images, batch_size).argmax(1)


@torch.no_grad()
def outputs(model: nn.Module, images: ImageSource, batch_size: int) -> Tensor:
    """Return the (N, K) outputs, on the CPU."""
    device = device_of(model)
    starts = range(0, len(images), batch_size)
    return torch.cat([model(batch(images, start, start + batch_size, device)).cpu() for start in starts])
