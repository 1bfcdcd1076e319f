"""ResNets of GSA-RSL's code, registered with timm as ``gsa_resnet18``, ``34``, ``50`` and ``101``.

Its blocks add their input only where a convolution changes its shape: the identity of all other residual connections is
missing. Its checkpoints are weights of this network, not of a ResNet, although names and shapes are the same.

Source: arXiv 2311.09671, the authors' code (e574b92, models/resnet.py).
"""

from collections.abc import Callable
from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn


class Zeros(nn.Module):
    """Shortcut that adds nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x)


class WithoutIdentity(BasicBlock):
    """Basic block of GSA-RSL's code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.downsample = getattr(self, "downsample", None) or Zeros()


class BottleneckWithoutIdentity(Bottleneck):
    """Bottleneck block of GSA-RSL's code."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.downsample = getattr(self, "downsample", None) or Zeros()


LAYERS: dict[str, tuple[type[nn.Module], tuple[int, ...]]] = {
    "gsa_resnet18": (WithoutIdentity, (2, 2, 2, 2)),
    "gsa_resnet34": (WithoutIdentity, (3, 4, 6, 3)),
    "gsa_resnet50": (BottleneckWithoutIdentity, (3, 4, 6, 3)),
    "gsa_resnet101": (BottleneckWithoutIdentity, (3, 4, 23, 3)),
}
default_cfgs = generate_default_cfgs(
    {name: {"num_classes": 1000, "first_conv": "conv1", "classifier": "fc"} for name in LAYERS}
)


def _entry(name: str) -> Callable[..., nn.Module]:
    """Return timm's entry point of a network."""
    block, layers = LAYERS[name]

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        network: nn.Module = build_model_with_cfg(
            ResNet, name, pretrained, **{"block": block, "layers": layers, **kwargs}
        )
        return network

    create.__name__ = create.__qualname__ = name
    return create


for _name in LAYERS:
    register_model(_entry(_name))
