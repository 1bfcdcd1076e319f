"""The channels_last memory format, in which convolutions are fastest."""

from typing import TypeVar

from torch import channels_last as by_channels
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def channels_last(model: Network) -> Network:
    """Convert the weights to channels_last in place, where torch supports it, and return the model.

    torch has no such format for 3D convolutions. On a CPU, the gradient of a strided 1 x 1 convolution on three
    channels (RepVGG's stem) writes out of bounds in this format.
    """
    if all(p.ndim < 5 for p in model.parameters()) and not any(map(_overflows, model.modules())):
        model.to(memory_format=by_channels)  # type: ignore[call-overload]
    return model


def _overflows(layer: nn.Module) -> bool:
    return (
        isinstance(layer, nn.Conv2d)
        and layer.kernel_size == (1, 1)
        and layer.stride != (1, 1)
        and layer.in_channels < 8
    )
