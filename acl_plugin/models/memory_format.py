"""The order of weights in memory that convolutions are fastest with."""

from typing import TypeVar

from torch import channels_last as by_channels
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def channels_last(model: Network) -> Network:
    """Order the weights by channels, in place, and return the model; leave a network for which torch cannot.

    It has no such order for three-dimensional convolutions, and on a CPU the gradient of a 1 x 1 convolution with
    stride on three channels (RepVGG's stem) writes past its memory with it.
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
