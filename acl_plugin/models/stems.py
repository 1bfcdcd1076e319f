"""Stems for small images: a first convolution with a small stride and no pooling, or small patches."""

from collections.abc import Sequence

from torch import nn

SMALL_IMAGE_STEMS: dict[str, dict[str, int]] = {
    "cifar": {},
    "cifar_padding_2": {"padding": 2},
    "cifar_stride_2": {"stride": 2},
}
"""Arguments of ``small_image_stem`` by the name of the stem."""


def small_image_stem(
    network: nn.Module, first_conv: str | Sequence[str] | None, side: int, padding: int = 1, stride: int = 1
) -> None:
    """Replace the stem in place.

    Args:
        network: timm model.
        first_conv: timm's record of the first layer; if there are several, the first is replaced.
        side: shorter side of the images in pixels.
        padding, stride: of the new 3 x 3 convolution. Patches are as many eighths of the side as the stride.
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
        patch = max(1, side * stride // 8)
        network.set_submodule(name, _conv_like(conv, kernel=patch, stride=patch, padding=0))
        return
    network.set_submodule(name, _conv_like(conv, kernel=3, stride=stride, padding=padding))
    for pool in ("maxpool", "stem.pool", "features.pool0"):  # ResNet, pre-activation ResNet, DenseNet
        if pool in dict(network.named_modules()):
            network.set_submodule(pool, nn.Identity())


def _conv_like(conv: nn.Conv2d, kernel: int, stride: int, padding: int) -> nn.Conv2d:
    bias = conv.bias is not None
    new = type(conv)(conv.in_channels, conv.out_channels, kernel, stride=stride, padding=padding, bias=bias)
    nn.init.kaiming_normal_(new.weight, mode="fan_out", nonlinearity="relu")
    return new
