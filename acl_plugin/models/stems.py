"""Stems for small images: a first convolution that keeps the resolution, or patches of an eighth of the side."""

from collections.abc import Sequence

from torch import nn


def small_image_stem(network: nn.Module, first_conv: str | Sequence[str] | None, side: int, padding: int) -> None:
    """Replace the stem in place.

    Args:
        network: timm model.
        first_conv: timm's record of the first layer; if there are several, the first is replaced.
        side: shorter side of the images in pixels.
        padding: padding of the new 3 x 3 convolution.
    """
    name = first_conv if isinstance(first_conv, str) else (first_conv or [""])[0]
    if not name:
        return
    if not isinstance(network.get_submodule(name), nn.Conv2d):  # a deep stem
        inner = network.get_submodule(name).named_modules()
        name = next((f"{name}.{n}" for n, m in inner if isinstance(m, nn.Conv2d)), "")
    conv = network.get_submodule(name)
    if not isinstance(conv, nn.Conv2d) or conv.stride == (1, 1):
        return
    if conv.kernel_size == conv.stride:  # a patch embedding
        patch = max(1, side // 8)
        network.set_submodule(name, _conv_like(conv, kernel=patch, stride=patch, padding=0))
        return
    network.set_submodule(name, _conv_like(conv, kernel=3, stride=1, padding=padding))
    for pool in ("maxpool", "stem.pool", "features.pool0"):  # ResNet, pre-activation ResNet, DenseNet
        if pool in dict(network.named_modules()):
            network.set_submodule(pool, nn.Identity())


def _conv_like(conv: nn.Conv2d, kernel: int, stride: int, padding: int) -> nn.Conv2d:
    bias = conv.bias is not None
    new = type(conv)(conv.in_channels, conv.out_channels, kernel, stride=stride, padding=padding, bias=bias)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new
