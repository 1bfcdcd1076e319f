"""Backbones: any timm model by name, adapted to the size of the images."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from acl_plugin.errors import UsageError, reason
from acl_plugin.models import norm_banks
from acl_plugin.models.small_maps import small_maps
from acl_plugin.models.spec import ModelSpec
from acl_plugin.models.stems import SMALL_IMAGE_STEMS, small_image_stem
from acl_plugin.models.timm_names import check_name

ELSEWHERE = {"pretrained", "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"}
"""Arguments of ``timm.create_model`` that load files or URLs, possibly as pickles, which can execute any code."""

TRIED = (64, 128, 224)
"""Image sizes in pixels that an error message tries, to suggest one that works."""
PATCHES = (14, 16, 32)
"""Sides of patches, of whose multiples an error message tries the next input size."""


def create_backbone(spec: ModelSpec) -> tuple[nn.Module, tuple[int, int]]:
    """Create a timm model without its classifier.

    The ``cifar`` stem keeps the resolution of small images: the first convolution has stride 1 (and a 3 x 3 kernel if
    it was larger), the pooling after it is removed, and patches are an eighth of the side. A model with a fixed patch
    size gets images of eight patches per side instead. ``cifar_padding_2`` pads the first convolution by 2, as DeACL's
    code does. ``cifar_stride_2`` has stride 2, patches of a quarter of the side, and four patches per side. Norm layers
    that timm initializes to zero start at one, as in all published ACL code.

    Images are enlarged if the network would ignore some pixels or does not support their size: to the next multiple of
    8 or 16, or to the next size that differs from the network's own by a multiple of 32.

    Args:
        spec: the model; its classes are ignored.

    Returns:
        The network, preprocessed images (B, C, H', W') -> (B, D), and (H', W').

    Raises:
        UsageError: for an unknown name, arguments that timm rejects, or images that the model does not support.
    """
    check_name(spec.backbone, spec.module)
    refused = sorted(ELSEWHERE & spec.kwargs.keys())
    if refused:
        raise UsageError(
            f"`backbone_kwargs.{refused[0]}` is not taken; to start from timm's weights give `pretrained`, to probe "
            f"and evaluate a published checkpoint use acl-plugin import",
            parameter="backbone_kwargs",
            given=spec.kwargs,
        )
    if spec.kwargs.get("num_classes", 0) != 0:
        message = "`backbone_kwargs.num_classes` is not taken: an encoder has no classifier, and the probe trains one"
        raise UsageError(
            message, parameter="backbone_kwargs", given=spec.kwargs, allowed="other arguments of the network"
        )
    with torch.inference_mode(False), torch.enable_grad():
        try:
            return _fitted(spec)
        except MemoryError:
            raise
        except Exception as error:  # networks raise exceptions of any type
            raise _refusal(spec, error) from error


def feature_size(network: nn.Module, channels: int, size: tuple[int, int]) -> int:
    """Return D, the size of the features, measured with one black image."""
    with torch.no_grad(), norm_banks.inference(network):
        return network(torch.zeros(1, channels, *size)).shape[1]


def sees_every_pixel(network: nn.Module, channels: int, size: tuple[int, int]) -> bool:
    """Return whether every row and column of an image can influence the features, independent of the weights.

    Rows and columns with a nonzero gradient do. For the others, where the gradient can vanish for these weights only,
    NaN pixels must give NaN features.

    Args:
        network: (B, C, H, W) -> (B, D).
        channels: C.
        size: (H, W).

    Raises:
        ValueError: when the output is not (B, D), or when it or its gradient is not finite, as for SwinV2 with a window
            of one patch.
    """
    height, width = size
    image = torch.rand(1, channels, *size, generator=torch.Generator().manual_seed(0)).requires_grad_()
    with norm_banks.inference(network):
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
    """Return the network and the smallest supported size of which it uses every pixel."""
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
    """Return the sizes to try: the images' own, then larger ones."""
    height, width = spec.input_size or spec.shape[1:]
    if not spec.every_pixel:
        return [(height, width)]
    own = _own_size(spec)
    sizes = [(-(-height // m) * m, -(-width // m) * m) for m in (1, 8, 16)]
    sizes.append((height + (own[0] - height) % 32, width + (own[1] - width) % 32))
    return list(dict.fromkeys(sizes))


def _own_size(spec: ModelSpec) -> tuple[int, int]:
    """Return the image size (H, W) that timm records for the network."""
    import timm

    config = timm.models.get_pretrained_cfg(spec.backbone)
    return (224, 224) if config is None else config.input_size[1:]


def _build(spec: ModelSpec, size: tuple[int, int]) -> tuple[nn.Module, tuple[int, int]]:
    """Create the network for images of ``size``; return it and its input size."""
    import timm

    config = timm.models.get_pretrained_cfg(spec.backbone)
    if config is not None and config.fixed_input_size:
        network, size = _create_fixed_size(spec, size, config.input_size[1])
    else:
        network = _create(spec)
        if spec.stem in SMALL_IMAGE_STEMS and config is not None:
            small_image_stem(network, config.first_conv, min(size), **SMALL_IMAGE_STEMS[spec.stem])
    for norm in network.modules():
        if isinstance(norm, _BatchNorm) and norm.affine and not norm.weight.any():
            nn.init.ones_(norm.weight)
    return small_maps(network), size


def _create(spec: ModelSpec, **sizes: Any) -> nn.Module:
    import timm

    kwargs = {"num_classes": 0, "in_chans": spec.shape[0], **sizes, **spec.kwargs}
    network = timm.create_model(spec.backbone, pretrained=False, **kwargs)
    network.created_with = kwargs  # for code that rebuilds it without this package
    return network


def _create_fixed_size(spec: ModelSpec, size: tuple[int, int], native: int) -> tuple[nn.Module, tuple[int, int]]:
    """Create a model with a fixed image size; adapt its patches to the images, or the images to its patches."""
    from timm.layers import PatchEmbed

    given = spec.kwargs.get("img_size")
    if given is not None:
        return _create(spec), (given, given) if isinstance(given, int) else (given[0], given[1])
    if spec.stem == "native":
        own = (native, native)
        if spec.input_size in (None, own):
            return _create(spec), own
        return _create(spec, img_size=size), size
    patches = 8 // SMALL_IMAGE_STEMS[spec.stem].get("stride", 1)
    try:
        return _create(spec, img_size=size, patch_size=max(1, min(size) // patches)), size
    except TypeError:  # its patch size is part of its name
        embed = next((m for m in _create(spec).modules() if isinstance(m, PatchEmbed)), None)
        side = patches * embed.patch_size[0] if embed is not None else native
        return _create(spec, img_size=side), (side, side)


def _refusal(spec: ModelSpec, error: Exception) -> UsageError:
    """Return the error for a network that does not support the images, with a stem and size that work."""
    if spec.input_size is not None and _works(_create, spec):
        return _refused_size(spec, spec.input_size, error)
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


def _refused_size(spec: ModelSpec, size: tuple[int, int], error: Exception) -> UsageError:
    """Return the error for an input size, with the next multiple of a usual patch that works, or the network's own."""
    multiples = {-(-max(size) // patch) * patch for patch in PATCHES}
    sides = [side for side in [*sorted(multiples), max(_own_size(spec))] if (side, side) != size]
    works = next((side for side in sides if _works(_fitted, replace(spec, input_size=(side, side)))), None)
    hint = f"nor {', '.join(map(str, sides))}" if works is None else f"it takes {works}"
    message = f"`input_size` {max(size)}: `backbone` {spec.backbone!r} does not take it ({reason(error)}); {hint}"
    return UsageError(message, parameter="input_size", given=size, allowed=works)


def _works(build: Callable[[ModelSpec], Any], spec: ModelSpec) -> bool:
    try:
        build(spec)
    except MemoryError:
        raise
    except Exception:
        return False
    return True
