"""Encoders from any ``nn.Module``, for use with every objective."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from acl_plugin.errors import UsageError, reason
from acl_plugin.models import norm_banks
from acl_plugin.models.copies import copied, require_values
from acl_plugin.models.encoder import BackboneAndProjector, Preprocess
from acl_plugin.models.feature_extractor import FeatureExtractor, Features
from acl_plugin.models.norm_banks import check_names
from acl_plugin.models.recompute import plain_blocks
from acl_plugin.runtime import seeding
from acl_plugin.runtime.defaults import usual_defaults
from acl_plugin.validation import refused_value

PerChannel = float | Sequence[float] | None


class WrappedEncoder(BackboneAndProjector):
    """Encoder around a copy of any module; see ``wrap_encoder``.

    Attributes:
        shape: (C, H, W) of the images.
        size: D, size of the features.
        norm_banks: names of the norm banks.
        backbone: the copy with its feature extraction.
        projector: g.
    """

    def __init__(
        self, preprocess: Preprocess, backbone: FeatureExtractor, shape: tuple[int, int, int], size: int, *,
        norm_banks: Sequence[str], projector: str, normalized: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(preprocess, backbone, size, norm_banks, projector, normalized)
        self.shape = shape

    def unwrap(self, norm_bank: str | None = None) -> nn.Module:
        """Return a copy of the module with the trained weights, of the original class and with the original keys.

        Args:
            norm_bank: name of the norm bank to keep; None for the first.

        Returns:
            The module, in the mode and on the device of the encoder. Its input is that of the original: resized and
            normalized images.

        Raises:
            UsageError: for an unknown norm bank.

        Example:
            >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
            >>> encoder = acl_plugin.wrap_encoder(net, (3, 8, 8), norm_banks=("clean", "adv"))
            >>> encoder.unwrap("adv").state_dict().keys() == net.state_dict().keys()
            True
        """
        exported = norm_banks.export(self.backbone, self.norm_banks[0] if norm_bank is None else norm_bank)
        return plain_blocks(exported.get_submodule("module"))


@usual_defaults()
def wrap_encoder(
    module: nn.Module,
    shape: tuple[int, int, int],
    *,
    features: Features = None,
    input_size: int | tuple[int, int] | None = None,
    input_range: tuple[float, float] = (0.0, 1.0),
    mean: PerChannel = None,
    std: PerChannel = None,
    projector: str = "three_layer",
    norm_banks: Sequence[str] = ("clean",),
    normalized: bool = False,
) -> WrappedEncoder:
    """Wrap any module as an encoder that every objective can train.

    The encoder takes images (B, C, H, W) in [0, 1]. It resizes them to ``input_size``, scales them to ``input_range``,
    subtracts ``mean`` and divides by ``std``, then calls the module. It trains a deep copy: ``module`` keeps its
    weights, modes, gradients and layers. ``unwrap`` returns the trained copy with the original layers. The encoder is
    in training mode, like a new module, and on the module's device. Weights without ``requires_grad`` stay frozen.

    Args:
        module: any network, with or without pretrained weights.
        shape: (C, H, W) of the images.
        features: features to train and probe: None for the module's output; a function (module, x) -> features; the
            name of a layer (a submodule such as ``"layer4"``, captured by a forward hook) or of a method (such as
            ``"forward_features"``). Features are (B, D). Feature maps (B, C', H', W') are averaged over H' and W'.
            Tokens (B, T, D) raise an error: select with ``features=lambda module, x: module(x)[:, 0]``.
        input_size: side or (H', W') in pixels of the module's input; None for the images' own size.
        input_range: module's input values for black and white, before ``mean`` and ``std``.
        mean, std: normalization in ``input_range``, a number or one per channel; None for 0 and 1.
        projector: name for ``projectors.create_projector``; objectives specify theirs as ``objective.projector``.
        norm_banks: names of the norm banks; objectives specify theirs as ``objective.norm_banks``. Each BatchNorm
            layer is copied once per norm bank.
        normalized: divide features by their L2 norm; objectives specify theirs as ``objective.normalized``.

    Returns:
        The encoder; see ``EncoderProtocol``.

    Raises:
        UsageError: when ``module`` is not a module or cannot be copied, for inconsistent arguments, and for features
            that are not (B, D), not finite, or without a gradient.

    Example:
        >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
        >>> objective = acl_plugin.create_objective("acl_ds")
        >>> own = {"norm_banks": objective.norm_banks, "projector": objective.projector}
        >>> encoder = acl_plugin.wrap_encoder(net, (3, 8, 8), **own)
        >>> encoder.features(torch.rand(2, 3, 8, 8), "adv").shape
        torch.Size([2, 8])
    """
    network = _copied(module)
    channels, height, width = _shape(shape)
    size = (height, width) if input_size is None else _side(input_size)
    preprocess = _preprocess(channels, size, (height, width), input_range, mean, std)
    check_names(norm_banks)
    tensors = (t for t in chain(network.parameters(), network.buffers()) if t.dtype.is_floating_point)
    like = next(((t.device, t.dtype) for t in tensors), (torch.device("cpu"), torch.get_default_dtype()))
    if like[1] in (torch.float16, torch.bfloat16):
        message = f"module has weights in {like[1]}; encoders train in float32, or with autocast: call float() on it"
        raise UsageError(message, parameter="module", given=like[1], allowed=torch.float32)
    preprocess.to(*like)
    extractor = FeatureExtractor(network, features)
    images = torch.rand(2, channels, height, width, generator=torch.Generator().manual_seed(0)).to(*like)
    found = _feature_size(extractor, preprocess, images)
    _check_training(extractor, preprocess, images.detach())
    own: Any = {"norm_banks": norm_banks, "projector": projector, "normalized": normalized}
    encoder = WrappedEncoder(preprocess, copied(extractor), (channels, height, width), found, **own)
    encoder.projector.to(*like)
    _check_banks(encoder, images.detach())
    return encoder.train()


def _copied(module: Any) -> nn.Module:
    allowed = "an instance of torch.nn.Module"
    if not isinstance(module, nn.Module):
        given = f"the class {module.__name__}" if isinstance(module, type) else type(module).__name__
        message = f"module is {given}: allowed is {allowed}"
        raise UsageError(message, parameter="module", given=given, allowed=allowed)
    if any(is_lazy(buffer) for buffer in module.buffers()):  # type: ignore[no-untyped-call]
        message = "module has statistics that are not initialized; call it on a batch of images first"
        raise UsageError(message, parameter="module", given="lazy buffers", allowed="initialized buffers")
    require_values(module, "module")
    try:
        network = copied(module)
    except Exception as error:  # deepcopy fails with exceptions of any type
        message = f"module {type(module).__name__} cannot be copied: {reason(error)}"
        raise UsageError(message, parameter="module", given=type(module).__name__, allowed=allowed) from error
    if any(map(_is_program, network.modules())):
        message = f"module is a compiled program ({type(module).__name__}), whose norm layers cannot be replaced: pass "
        raise UsageError(
            f"{message}the Python module that it was made of", parameter="module", given=type(module).__name__,
            allowed=allowed,
        )  # fmt: skip
    return network


def _is_program(module: nn.Module) -> bool:
    """Return whether a module is a program of TorchScript or torch.export, with norms as operations, not layers."""
    operations = module.graph.nodes if isinstance(module, torch.fx.GraphModule) else ()
    return isinstance(module, torch.jit.ScriptModule) or any(
        isinstance(each.target, torch._ops.OpOverload) for each in operations
    )


def _shape(shape: Any) -> tuple[int, int, int]:
    sizes = tuple(shape) if isinstance(shape, Sequence) and not isinstance(shape, str) else ()
    if len(sizes) != 3 or not all(_is_size(each) for each in sizes):
        raise refused_value("shape", shape, "(C, H, W) of the images, whole numbers above 0")
    return sizes


def _side(input_size: Any) -> tuple[int, int]:
    sizes = (input_size, input_size) if isinstance(input_size, int) else input_size
    if not isinstance(sizes, Sequence) or len(sizes) != 2 or not all(_is_size(each) for each in sizes):
        raise refused_value("input_size", input_size, "a side or (H, W) in pixels, whole numbers above 0")
    return sizes[0], sizes[1]


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _preprocess(
    channels: int, size: tuple[int, int], images: tuple[int, int], input_range: Any, mean: PerChannel, std: PerChannel
) -> Preprocess:
    """Return resizing, scaling and normalization as one ``Preprocess``: (x (high - low) + low - mean) / std."""
    low, high = _channels("input_range", input_range, 2)
    if not low < high:
        raise refused_value("input_range", input_range, "(low, high) with low < high, such as (-1, 1) or (0, 255)")
    if (mean is None) != (std is None):
        missing = "mean" if mean is None else "std"
        raise refused_value(missing, None, "numbers per channel, as the other of mean and std is given")
    means = _channels("mean", 0.0 if mean is None else mean, channels)
    stds = _channels("std", 1.0 if std is None else std, channels)
    if not low <= min(means) <= max(means) <= high:
        allowed = f"numbers in `input_range` ({low:g}, {high:g}); for those of 8-bit values, pass input_range=(0, 255)"
        raise refused_value("mean", mean, allowed)
    if min(stds) <= 0:
        raise refused_value("std", std, "numbers above 0")
    width = high - low
    shrinks = any(given > 2 * taken for given, taken in zip(images, size, strict=True))
    return Preprocess([(m - low) / width for m in means], [s / width for s in stds], size, antialias=shrinks)


def _channels(name: str, value: Any, count: int) -> list[float]:
    numbers = [value] * count if isinstance(value, int | float) and name != "input_range" else value
    if isinstance(numbers, Tensor):
        numbers = numbers.flatten().tolist()
    fits = isinstance(numbers, Sequence) and len(numbers) == count
    if not fits or not all(isinstance(each, int | float) and math.isfinite(each) for each in numbers):
        of_what = "numbers, low and high" if name == "input_range" else f"numbers, one for each of {count} channels"
        raise refused_value(name, value, of_what)
    return [float(each) for each in numbers]


def _check_banks(encoder: WrappedEncoder, images: Tensor) -> None:
    """Refuse a module that does more with its BatchNorm layers than to call them, such as to read their weights."""
    given = encoder.norm_banks
    wrong = f"fails with norm banks {given}, which replace its BatchNorm layers"
    refused = _refused(wrong, "let it call them alone, or give one norm bank", "norm_banks", given, "one norm bank")
    with torch.no_grad(), norm_banks.evaluation(encoder), refused:
        for name in given:
            encoder.features(images, name)


@contextmanager
def _refused(wrong: str, remedy: str, parameter: str, given: Any, allowed: Any) -> Iterator[None]:
    """Raise exceptions of the module, which can be of any type, as a ``UsageError``."""
    try:
        yield
    except (UsageError, MemoryError):
        raise
    except Exception as error:
        message = f"the module {wrong}: {reason(error)}; {remedy}"
        raise UsageError(message, parameter=parameter, given=given, allowed=allowed) from error


def _feature_size(extractor: FeatureExtractor, preprocess: Preprocess, images: Tensor) -> int:
    """Return D, measured in eval mode; check that attacks can use the features."""
    shape = tuple(images.shape[1:])
    own = shape, "the shape of its images"
    refused = _refused(f"does not take images of shape {shape}", "pass shape and `input_size`", "shape", *own)
    with norm_banks.evaluation(extractor), refused:
        with torch.no_grad():
            extractor(preprocess(images))  # builds lazy layers
        weights = [p for p in extractor.parameters() if p.requires_grad]
        images.requires_grad_()
        features = extractor(preprocess(images))
        total = features.square().sum()
        gradients = torch.autograd.grad(total, [images, *weights], allow_unused=True) if total.requires_grad else ()
    _check_gradients(features, gradients, bool(weights))
    return features.shape[1]


def _check_training(extractor: FeatureExtractor, preprocess: Preprocess, images: Tensor) -> None:
    """Refuse a module that fails in training mode alone, or gives other features there, such as further outputs."""
    trial = copied(extractor).train()
    own = "training mode", "a module to train"
    refused = _refused("fails in training mode", "call it in training mode to see where", "module", *own)
    with torch.no_grad(), seeding.isolated_rng(0, images.device), refused:
        trial(preprocess(images))


def _check_gradients(features: Tensor, gradients: Sequence[Tensor | None], trainable: bool) -> None:
    of_images = gradients[0] if gradients else None
    problem = ""
    if of_images is None:
        problem = "have no gradient with respect to the images, which attacks need (is there a torch.no_grad?)"
    elif trainable and all(gradient is None for gradient in gradients[1:]):
        problem = "do not depend on the weights: a function `features` must use the module that it is given"
    elif not (features.isfinite().all() and of_images.isfinite().all()):
        problem = "of random images, or their gradient, are not finite"
    if problem:
        allowed = "finite features with gradients"
        raise UsageError(f"the module's features {problem}", parameter="features", given=None, allowed=allowed)
