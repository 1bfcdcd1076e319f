"""Any timm model by name as an encoder of images in [0, 1], and as a plain classifier."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from acl_plugin import routed_norm
from acl_plugin.errors import UsageError, reason, unknown
from acl_plugin.memory_format import channels_last
from acl_plugin.projectors import PROJECTORS, SHARED
from acl_plugin.stems import small_image_stem
from acl_plugin.timm_names import backbone_names, check_name, registered_by

__all__ = ["Classifier", "Encoder", "ModelSpec", "Preprocess", "backbone_names", "create_backbone", "feature_size"]


class Preprocess(nn.Module):
    """Resize if the network takes another size, then (x - mean) / std per channel, both as buffers.

    (B, C, H, W) in [0, 1] -> (B, C, H', W').

    Args:
        mean, std: per channel.
        size: (H', W').
        antialias: average over all pixels where images shrink; without it, those that shrink to less than half
            lose pixels.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], size: tuple[int, int], antialias: bool = False
    ) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(-1, 1, 1))
        self.size, self.antialias = size, antialias

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != self.size:
            x = F.interpolate(x, self.size, mode="bilinear", align_corners=False, antialias=self.antialias)
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
        module: Python module that registered the backbone with timm, where it is not timm itself.
        every_pixel: enlarge images of which the network would drop border pixels. Files of models that were
            trained without this are read as False.
    """

    backbone: str
    kwargs: dict[str, Any]
    stem: Literal["cifar", "cifar_padding_2", "native"]
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...] = ()
    timm_version: str = ""
    module: str = field(default="", compare=False)
    every_pixel: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Return the fields in plain JSON types, with the module that registered the backbone."""
        recorded = replace(self, module=self.module or registered_by(self.backbone))
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(recorded).items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSpec":
        """Return what ``to_dict`` wrote."""
        tuples: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**{"every_pixel": False, **tuples})


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
        self.preprocess = _preprocess(spec, input_size)
        self.backbone = routed_norm.add_routes(backbone, self.routes)
        self.projector = routed_norm.add_routes(PROJECTORS[projector](size), self.routes, shared=projector in SHARED)
        channels_last(self)

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
        self.preprocess = _preprocess(spec, input_size)
        self.head = nn.Linear(feature_size(self.backbone, spec.shape[0], input_size), len(spec.classes))
        channels_last(self)

    def features(self, x: Tensor) -> Tensor:
        """(B, C, H, W) in [0, 1] -> (B, D)."""
        return self.backbone(self.preprocess(x))

    def logits(self, features: Tensor) -> Tensor:
        """(B, D) -> (B, classes), in the head's own precision, also under autocast."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.to(self.head.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:
        return self.logits(self.features(x))


ELSEWHERE = {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
"""Arguments of ``timm.create_model`` by which it reads files and addresses; as pickles, which can execute any code."""

TRIED = (64, 128, 224)
"""Sides of images that a refusal tries, to say what works."""


def create_backbone(spec: ModelSpec) -> tuple[nn.Module, tuple[int, int]]:
    """Build the timm model without its classifier, (B, C, H', W') preprocessed -> (B, D); return it and (H', W').

    The ``cifar`` stem keeps the resolution of small images: the first convolution has stride 1 (3 x 3 if it was
    larger) and the pooling after it is gone; patches are an eighth of the side. A model whose patch cannot be
    changed gets images of eight patches a side instead. ``cifar_padding_2`` pads the first convolution by 2, as DeACL's
    code does. Norm layers that timm starts at zero start at one, as in every published ACL code.

    Images of which the network would leave out pixels, or whose size it does not take, are enlarged: to the next
    multiple of 8 or 16, or to the next size that differs from the network's own by a multiple of 32.

    Args:
        spec: the model; its classes do not matter.

    Raises:
        UsageError: for an unknown name, arguments that timm refuses, or images that the model cannot take.
    """
    check_name(spec.backbone, spec.module)
    refused = sorted(ELSEWHERE & spec.kwargs.keys())
    if refused:
        raise UsageError(
            f"`backbone_kwargs.{refused[0]}` is not taken: a pretraining starts from random weights, it cannot start "
            f"from pretrained ones; to probe and evaluate a published checkpoint, use acl-plugin import",
            parameter="backbone_kwargs",
            given=spec.kwargs,
        )
    with torch.inference_mode(False), torch.enable_grad():
        try:
            return _fitted(spec)
        except MemoryError:
            raise
        except Exception as error:  # networks raise all kinds
            raise _refusal(spec, error) from error


def feature_size(network: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """Return D, measured with one black image."""
    with torch.no_grad(), routed_norm.inference(network):
        return network(torch.zeros(1, channels, *size)).shape[1]


def sees_every_pixel(network: nn.Module, channels: int, size: tuple[int, int]) -> bool:
    """Return whether every row and column of an image has an influence, whatever the weights.

    Lines with a gradient have one. Of the others, which can be a matter of the weights, NaN must come out.

    Args:
        network: (B, C, H, W) -> (B, D).
        channels: C.
        size: (H, W).

    Raises:
        ValueError: when the output is not (B, D), or it or its gradient is not finite, as those of SwinV2 with a window
            of one patch.
    """
    height, width = size
    image = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with routed_norm.inference(network):
        features = network(image)
        if not isinstance(features, Tensor) or features.ndim != 2 or not features.numel():
            found = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ValueError(f"its features of one image must be (1, D), not {found}")
        (gradient,) = torch.autograd.grad(features.square().sum(), image)
        strength = gradient.abs().sum(dim=(0, 1))
        if not (features.isfinite().all() and strength.isfinite().all()):
            raise ValueError("its features of an image, or their gradient, are not finite")
        lines: list[tuple[Any, Any]] = [(i, slice(None)) for i in range(height) if not strength[i].any()]
        lines += [(slice(None), i) for i in range(width) if not strength[:, i].any()]
        with torch.no_grad():
            return all(_influences(network, image.detach(), line) for line in lines)


def _influences(network: nn.Module, image: Tensor, line: tuple[Any, Any]) -> bool:
    image = image.clone()
    image[:, :, *line] = torch.nan
    return bool(network(image).isnan().any())


def _fitted(spec: ModelSpec) -> tuple[nn.Module, tuple[int, int]]:
    """The network for the images' own size, or the next one of which it sees every pixel."""
    first: Exception | None = None
    for size in _sizes(spec):
        try:
            network, taken = _build(spec, size)
            if sees_every_pixel(network, spec.shape[0], taken) or not spec.every_pixel:
                return network, taken
            height, width = taken
            error: Exception = ValueError(f"some pixels of {height} x {width} images would have no influence")
        except MemoryError:
            raise
        except Exception as raised:
            error = raised
        first = first or error
    assert first is not None
    raise first


def _sizes(spec: ModelSpec) -> list[tuple[int, int]]:
    """The images' own size, and larger ones."""
    _, height, width = spec.shape
    if not spec.every_pixel:
        return [(height, width)]
    own = _own_size(spec)
    sizes = [(-(-height // m) * m, -(-width // m) * m) for m in (1, 8, 16)]
    sizes.append((height + (own[0] - height) % 32, width + (own[1] - width) % 32))
    return list(dict.fromkeys(sizes))


def _own_size(spec: ModelSpec) -> tuple[int, int]:
    """(H, W) of the images that timm records for the network."""
    import timm

    config = timm.models.get_pretrained_cfg(spec.backbone)
    return (224, 224) if config is None else config.input_size[1:]


def _build(spec: ModelSpec, size: tuple[int, int]) -> tuple[nn.Module, tuple[int, int]]:
    """The network for images of ``size``, and the size that it takes."""
    import timm

    config = timm.models.get_pretrained_cfg(spec.backbone)
    if config is not None and config.fixed_input_size:
        network, size = _create_fixed_size(spec, size, config.input_size[1])
    else:
        network = _create(spec)
        if spec.stem != "native" and config is not None:
            small_image_stem(network, config.first_conv, min(size), 2 if spec.stem == "cifar_padding_2" else 1)
    for norm in network.modules():
        if isinstance(norm, _BatchNorm) and norm.affine and not norm.weight.any():
            nn.init.ones_(norm.weight)
    return network, size


def _create(spec: ModelSpec, **sizes: Any) -> nn.Module:
    import timm

    kwargs = {"num_classes": 0, "in_chans": spec.shape[0], **sizes, **spec.kwargs}
    network = timm.create_model(spec.backbone, pretrained=False, **kwargs)
    network.created_with = kwargs  # for code that rebuilds it without us
    return network


def _create_fixed_size(spec: ModelSpec, size: tuple[int, int], native: int) -> tuple[nn.Module, tuple[int, int]]:
    """A model that is built for one image size: patches are fitted to the images, or the images to the patches."""
    from timm.layers import PatchEmbed

    given = spec.kwargs.get("img_size")
    if given is not None:
        return _create(spec), (given, given) if isinstance(given, int) else (given[0], given[1])
    if spec.stem == "native":
        return _create(spec), (native, native)
    try:
        return _create(spec, img_size=size, patch_size=max(1, min(size) // 8)), size
    except TypeError:  # its patch size is part of its name
        embed = next((m for m in _create(spec).modules() if isinstance(m, PatchEmbed)), None)
        side = 8 * embed.patch_size[0] if embed is not None else native
        return _create(spec, img_size=side), (side, side)


def _refusal(spec: ModelSpec, error: Exception) -> UsageError:
    """The error, with the first of some other stems and sizes that works."""
    channels, height, width = spec.shape
    message = (
        f"`backbone` {spec.backbone!r} with arguments {spec.kwargs} and `stem` {spec.stem!r} "
        f"does not take {channels} x {height} x {width} images: {reason(error)}"
    )
    if not _works(_create, spec):
        wrong, given = ("backbone_kwargs", spec.kwargs) if spec.kwargs else ("backbone", spec.backbone)
        return UsageError(message, parameter=wrong, given=given)
    native = replace(spec, stem="native")
    sides = [side for side in sorted({*TRIED, max(_own_size(spec))}) if side > max(height, width)]
    larger = [replace(native, shape=(channels, side, side)) for side in sides]
    if sides:
        larger.insert(0, replace(spec, shape=larger[0].shape))
    others = {f"{o.shape[1]} x {o.shape[2]} with `stem` {o.stem!r}": o for o in (native, *larger) if o != spec}
    works = next((name for name, other in others.items() if _works(_fitted, other)), None)
    if works is None:
        message += f"; nor does it take {', '.join(others)}"
        return UsageError(message, parameter="backbone", given=spec.backbone)
    message += f"; it takes {works}"
    if others[works] is native:
        return UsageError(message, parameter="stem", given=spec.stem, allowed=("native",))
    return UsageError(message, parameter="image_size", given=(height, width), allowed=others[works].shape[1:])


def _works(build: Callable[[ModelSpec], Any], spec: ModelSpec) -> bool:
    try:
        build(spec)
    except MemoryError:
        raise
    except Exception:
        return False
    return True


def _preprocess(spec: ModelSpec, size: tuple[int, int]) -> Preprocess:
    _, height, width = spec.shape
    skips = height > 2 * size[0] or width > 2 * size[1]
    return Preprocess(spec.mean, spec.std, size, antialias=spec.every_pixel and skips)
