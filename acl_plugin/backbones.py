"""Any timm model by name as an encoder of images in [0, 1], and as a plain classifier."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from acl_plugin import routed_norm
from acl_plugin.errors import UsageError, unknown
from acl_plugin.exports import exported_names
from acl_plugin.projectors import PROJECTORS, SHARED


class Preprocess(nn.Module):
    """Resize if the network takes another size, then (x - mean) / std per channel, both as buffers.

    (B, C, H, W) in [0, 1] -> (B, C, H', W').
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float], size: tuple[int, int]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False)
        return (x - self.mean) / self.std


@dataclass(frozen=True)
class ModelSpec:
    """All that rebuilds a model but its weights.

    Attributes:
        backbone: timm name.
        kwargs: arguments of ``timm.create_model``.
        stem: ``cifar``, ``cifar_padding_2`` or ``native``.
        shape: (C, H, W) of the images.
        mean, std: normalisation of images in [0, 1], per channel.
        classes: names of the classes of the linear head; empty for an encoder.
        timm_version: version of timm that built it.
    """

    backbone: str
    kwargs: dict[str, Any]
    stem: Literal["cifar", "cifar_padding_2", "native"]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    timm_version: str = ""

    def to_dict(self) -> dict[str, Any]:
        """In plain JSON types."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSpec":
        """What ``to_dict`` wrote down."""
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**tuples)


class Encoder(nn.Module):
    """Backbone f and projector g on images in [0, 1], with one bank of BatchNorm per route.

    Args:
        spec: the model, without classes.
        routes: names of the norm banks; the first is the default.
        projector: one of ``projectors.PROJECTORS``.
    """

    def __init__(self, spec: ModelSpec, routes: Sequence[str] = ("clean",), projector: str = "three_layer") -> None:
        super().__init__()
        if projector not in PROJECTORS:
            raise unknown("projector", projector, PROJECTORS)
        self.spec, self.routes = spec, tuple(routes)
        backbone, input_size = create_backbone(spec)
        self.size = size = feature_size(backbone, spec.shape[0], input_size)
        self.preprocess = Preprocess(spec.mean, spec.std, input_size)
        self.backbone = routed_norm.add_routes(backbone, self.routes)
        self.projector = routed_norm.add_routes(PROJECTORS[projector](size), self.routes, shared=projector in SHARED)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, x: Tensor, route: str | None = None) -> Tensor:
        """f(x): (B, C, H, W) in [0, 1] -> (B, D)."""
        with routed_norm.route(self.backbone, self.routes[0] if route is None else route):
            return self.backbone(self.preprocess(x))

    def project(self, features: Tensor, route: str | None = None) -> Tensor:
        """g: (B, D) -> (B, P)."""
        with routed_norm.route(self.projector, self.routes[0] if route is None else route):
            return self.projector(features)

    def forward(self, x: Tensor, route: str | None = None) -> Tensor:
        """z = g(f(x)): (B, C, H, W) in [0, 1] -> (B, P)."""
        return self.project(self.features(x, route), route)

    def views(self, a: Tensor, b: Tensor, route: str | None = None) -> tuple[Tensor, Tensor]:
        """Embeddings (B, P) of two views, encoded as one batch."""
        za, zb = self(torch.cat([a, b]), route).chunk(2)
        return za, zb


class Classifier(nn.Module):
    """A plain network on images in [0, 1]: normalisation, timm backbone, linear head. (B, C, H, W) -> (B, classes)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        self.spec = spec
        self.backbone, input_size = create_backbone(spec)
        self.preprocess = Preprocess(spec.mean, spec.std, input_size)
        self.head = nn.Linear(feature_size(self.backbone, spec.shape[0], input_size), len(spec.classes))
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, D)."""
        return self.backbone(self.preprocess(x))

    def logits(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, classes), in the head's own precision, also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.to(self.head.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))


def backbone_names(pattern: str = "") -> list[str]:
    """timm's model names, by wildcard; exported classifiers are none."""
    import timm

    return [name for name in timm.list_models(pattern) if name not in exported_names()]


ELSEWHERE = {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
"""Arguments of ``timm.create_model`` by which it reads files and addresses; as pickles, which can execute any code."""


def create_backbone(spec: ModelSpec) -> tuple[nn.Module, tuple[int, int]]:
    """The timm model without its classifier, (B, C, H', W') preprocessed -> (B, D), and the (H', W') it takes.

    The ``cifar`` stem keeps the resolution of small images: the first convolution has stride 1 (3 x 3 if it was
    larger) and the pooling after it is gone; patches are an eighth of the side. A model whose patch cannot be
    changed gets images of eight patches a side instead. ``cifar_padding_2`` pads the first convolution by 2, as DeACL's
    code does. Norm layers that timm starts at zero start at one, as in every published ACL code.

    Raises:
        UsageError: for an unknown name, arguments that timm refuses, or images that the model cannot take.
    """
    import timm

    if not timm.is_model(spec.backbone) or spec.backbone.split(".")[0] in exported_names():
        raise unknown("backbone", spec.backbone, backbone_names())
    refused = sorted(ELSEWHERE & spec.kwargs.keys())
    if refused:
        raise UsageError(f"backbone argument {refused[0]!r} is not taken: weights of files come by acl-plugin import")
    config = timm.models.get_pretrained_cfg(spec.backbone)
    try:
        if config is not None and config.fixed_input_size:
            network, size = _create_fixed_size(spec, config.input_size[1])
        else:
            network, size = _create(spec), spec.shape[1:]
            if spec.stem != "native" and config is not None:
                padding = 2 if spec.stem == "cifar_padding_2" else 1
                _small_image_stem(network, config.first_conv, min(spec.shape[1:]), padding)
        for norm in network.modules():
            if isinstance(norm, _BatchNorm) and norm.affine and not norm.weight.any():
                nn.init.ones_(norm.weight)
        feature_size(network, spec.shape[0], size)
    except (TypeError, ValueError, RuntimeError, AssertionError, KeyError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        channels, height, width = spec.shape
        raise UsageError(
            f"backbone {spec.backbone!r} with arguments {spec.kwargs} and stem {spec.stem!r} "
            f"does not take {channels} x {height} x {width} images: {reason}"
        ) from error
    return network, size


def feature_size(network: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """D, measured with one black image."""
    with torch.no_grad(), routed_norm.inference(network):
        return network(torch.zeros(1, channels, *size)).shape[1]


def _create(spec: ModelSpec, **sizes: Any) -> nn.Module:
    import timm

    kwargs = {"num_classes": 0, "in_chans": spec.shape[0], **sizes, **spec.kwargs}
    network = timm.create_model(spec.backbone, pretrained=False, **kwargs)
    network.created_with = kwargs  # for code that rebuilds it without us
    return network


def _create_fixed_size(spec: ModelSpec, native: int) -> tuple[nn.Module, tuple[int, int]]:
    """A model that is built for one image size: patches are fitted to the images, or the images to the patches."""
    from timm.layers import PatchEmbed

    _, height, width = spec.shape
    given = spec.kwargs.get("img_size")
    if given is not None:
        return _create(spec), (given, given) if isinstance(given, int) else (given[0], given[1])
    if spec.stem == "native":
        return _create(spec), (native, native)
    try:
        return _create(spec, img_size=(height, width), patch_size=max(1, min(height, width) // 8)), (height, width)
    except TypeError:  # its patch size is part of its name
        embed = next((m for m in _create(spec).modules() if isinstance(m, PatchEmbed)), None)
        side = 8 * embed.patch_size[0] if embed is not None else native
        return _create(spec, img_size=side), (side, side)


def _small_image_stem(network: nn.Module, first_conv: str | Sequence[str] | None, side: int, padding: int) -> None:
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
