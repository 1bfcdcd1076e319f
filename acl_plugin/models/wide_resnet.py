"""WideResNets for small images, registered with timm as ``wrn28_10``, ``wrn34_10``, ``wrn34_20`` and ``wrn70_16``.

Names and shapes of the weights are those of TRADES and RobustBench, so that their checkpoints fit. timm's
``wide_resnet50_2`` is another network.

Source: Zagoruyko and Komodakis, Wide Residual Networks (arXiv 1605.07146), in the form of TRADES (arXiv 1901.08573): no
dropout, and a shortcut with a convolution starts after the block's first norm layer.
"""

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn


class WideBlock(nn.Module):
    """Residual block of two convolutions, each after BatchNorm and ReLU: (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut: nn.Module | None = (
            None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(h)
        return shortcut + self.conv2(F.relu(self.bn2(self.conv1(h)), inplace=True))


class WideResNet(nn.Module):
    """Map images (B, C, H, W) to logits (B, classes), or to features (B, D) without classes.

    Args:
        depth: number of convolutions on the longest path, 6n + 4 for n blocks in each of the three stages.
        width: factor of the channels 16, 32 and 64 of the stages; D is 64 ``width``.
        num_classes, in_chans, global_pool: as in timm.
    """

    block1: nn.Module
    block2: nn.Module
    block3: nn.Module
    global_pool: nn.Module
    fc: nn.Module

    def __init__(
        self, depth: int = 28, width: int = 10, *, num_classes: int = 10, in_chans: int = 3, global_pool: str = "avg"
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4 or width < 1:
            raise ValueError(f"depth {depth} and width {width}: allowed are depth 6n + 4 from 10 and width from 1")
        self.arguments = {"depth": depth, "width": width}
        channels = [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(in_chans, channels[0], 3, 1, 1, bias=False)
        for number, stride in ((1, 1), (2, 2), (3, 2)):
            inputs, outputs = channels[number - 1 : number + 1]
            later = [WideBlock(outputs, outputs, 1) for _ in range(depth // 6 - 1)]
            stage = nn.Sequential()
            stage.layer = nn.Sequential(WideBlock(inputs, outputs, stride), *later)
            setattr(self, f"block{number}", stage)
        self.bn1 = nn.BatchNorm2d(channels[3])
        self.relu = nn.ReLU(inplace=True)
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, channels[3], channels[3]
        names = ("block1", "block2", "relu")
        self.feature_info = [
            {"num_chs": count, "reduction": 2**n, "module": name}
            for n, (count, name) in enumerate(zip(channels[1:], names, strict=True))
        ]
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(self.fc, nn.Linear):
            nn.init.zeros_(self.fc.bias)

    def get_classifier(self) -> nn.Module:
        """Return the linear layer of the classes."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        """Replace the linear layer by a new one; none for 0 classes."""
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, pool_type=global_pool)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map: (B, C, H, W) -> (B, D, H / 4, W / 4)."""
        return self.relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits of a feature map, or its mean over places if ``pre_logits``."""
        x = self.global_pool(x)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


SIZES = {"wrn28_10": (28, 10), "wrn34_10": (34, 10), "wrn34_20": (34, 20), "wrn70_16": (70, 16)}
"""Depth and width by name."""
_CIFAR = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.247, 0.2435, 0.2616)}
default_cfgs = generate_default_cfgs(
    {
        name: {
            "num_classes": 10, "input_size": (3, 32, 32), "pool_size": (8, 8), "first_conv": "conv1",
            "classifier": "fc", "crop_pct": 1.0, "interpolation": "bilinear", **_CIFAR,
        }
        for name in SIZES
    }
)  # fmt: skip


def _entry(name: str) -> Callable[..., nn.Module]:
    """Return timm's entry point of a network."""
    depth, width = SIZES[name]

    def create(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        network: nn.Module = build_model_with_cfg(
            WideResNet, name, pretrained, feature_cfg={"out_indices": (0, 1, 2), "flatten_sequential": False},
            **{"depth": depth, "width": width, **kwargs},
        )  # fmt: skip
        return network

    create.__name__ = create.__qualname__ = name
    return create


for _name in SIZES:
    register_model(_entry(_name))
