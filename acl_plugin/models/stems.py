"""Stems for small images: a first convolution that keeps their resolution, or patches of an eighth of their side."""

from collections.abc import Sequence

from torch import nn


def small_image_stem(network: nn.Module, first_conv: str | Sequence[str] | None, side: int, padding: int) -> None:
    """Change the stem in place.

    Args:
        network: of timm.
        first_conv: timm's record of the first layer; of several, the first counts.
        side: of the images, the shorter one.
        padding: of the new 3 x 3 convolution.
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
    for pool in ("maxpool", "stem.pool", "features.pool0"):  # of ResNets, pre-activation ResNets, DenseNets
        if pool in dict(network.named_modules()):
            network.set_submodule(pool, nn.Identity())


def _conv_like(conv: nn.Conv2d, kernel: int, stride: int, padding: int) -> nn.Conv2d:
    bias = conv.bias is not None
    new = type(conv)(conv.in_channels, conv.out_channels, kernel, stride=stride, padding=padding, bias=bias)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new
