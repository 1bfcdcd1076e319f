"""Check a user's model and test images, and convert them for evaluation."""

from collections.abc import Iterator, Sequence, Sized
from itertools import chain
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader, Dataset, IterableDataset

from acl_plugin.attacks.inputs import check_images, check_values, require_bright
from acl_plugin.errors import UsageError, reason
from acl_plugin.evaluation.batches import device_of
from acl_plugin.evaluation.checks import CHECKED, check_classifier
from acl_plugin.models.copies import copied, require_values
from acl_plugin.runtime.autograd import check_autograd, constant
from acl_plugin.runtime.device import require_device

ImageData = Tensor | Dataset[Any] | DataLoader[Any]
SOURCES = "a tensor (N, C, H, W) in [0, 1] with `labels`, a torch Dataset of (image, label), or a DataLoader of it"


def on_device(model: Any, device: torch.device | str | None) -> tuple[nn.Module, torch.device]:
    """Return the model to attack and its device: the model itself, or a copy when ``device`` is another one.

    Raises:
        UsageError: for an object that is not a module, weights without gradients, or an unavailable device.
    """
    if not isinstance(model, nn.Module):
        message = f"`model` is {type(model).__name__}; allowed is a torch.nn.Module that returns (B, K) logits"
        raise UsageError(message, parameter="model", given=type(model).__name__, allowed="a torch.nn.Module")
    if any(is_lazy(tensor) for tensor in chain(model.parameters(), model.buffers())):  # type: ignore[no-untyped-call]
        message = "`model` has weights that are not initialized; call it on a batch of images first"
        raise UsageError(message, parameter="model", given="lazy weights", allowed="initialized weights")
    require_values(model, "model")
    check_autograd(model)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype != torch.float32:
        message = f"`model` has weights in {dtype}; attacks compute in float32: call float() on it"
        raise UsageError(message, parameter="model", given=dtype, allowed=torch.float32)
    if device is None:
        return model, device_of(model)
    place = require_device(device)
    if place == device_of(model):
        return model, place
    try:
        return copied(model).to(place), place
    except Exception as error:  # a module can refuse a copy in any way
        message = f"`device` {device}: the model cannot be copied to it ({reason(error)}); move it there yourself"
        raise UsageError(message, parameter="device", given=str(device), allowed=str(device_of(model))) from error


def collect(images: Any, labels: Any, *, labeled: bool = True) -> tuple[Tensor, Tensor]:
    """Return test images (N, C, H, W) float32 in [0, 1] and labels (N,) int64, on the CPU.

    Args:
        images: a tensor, a Dataset of (image, label), or a DataLoader of (images, labels).
        labels: (N,) integers with a tensor; None with a Dataset or DataLoader.
        labeled: whether labels are used. If not, they are 0, and items of a Dataset may be images alone.

    Raises:
        UsageError: for images that are not floats in [0, 1], or only up to 1/255, labels that are not integers, or no
            images at all.
    """
    if isinstance(images, Dataset | DataLoader):
        if labels is not None:
            message = f"`labels` are given with a {type(images).__name__}, whose items have labels; leave them out"
            raise UsageError(message, parameter="labels", given=type(labels).__name__, allowed=None)
        images, labels = _gathered(images, labeled)
    elif not isinstance(images, Tensor):
        given = f"{type(images).__module__}.{type(images).__name__}"
        message = f"`images` is {given}; allowed is {SOURCES}"
        raise UsageError(message, parameter="images", given=given, allowed=SOURCES)
    check_images(images, "images")
    if not labeled:
        labels = torch.zeros(len(images), dtype=torch.long)
    elif labels is None:
        message = "`labels` are missing; a tensor of images needs (N,) whole numbers"
        raise UsageError(message, parameter="labels", given=None, allowed="(N,) whole numbers")
    if not images.numel():
        raise UsageError("`images` is empty; allowed is one image or more", parameter="images", given=0, allowed="1")
    labels = _whole_numbers(labels, len(images))
    check_values(images, "images")
    require_bright(images)
    plain = constant(images).to("cpu", torch.float32).contiguous()  # pyautoattack calls view on it
    return plain, constant(labels).to("cpu", torch.int64)


def _whole_numbers(labels: Any, count: int) -> Tensor:
    if isinstance(labels, list | tuple | range) and all(map(_is_whole, labels)):
        labels = np.asarray(labels)
    if isinstance(labels, np.ndarray) and labels.dtype.kind in "iu":
        labels = torch.from_numpy(labels.astype(np.int64))
    whole = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    if not isinstance(labels, Tensor) or labels.dtype not in whole or labels.shape != (count,):
        given = f"{tuple(labels.shape)} of {labels.dtype}" if isinstance(labels, Tensor) else type(labels).__name__
        allowed = f"({count},) whole numbers, one for each image"
        raise UsageError(f"`labels`: {given}; allowed are {allowed}", parameter="labels", given=given, allowed=allowed)
    return labels


def _is_whole(label: Any) -> bool:
    return isinstance(label, Integral) and not isinstance(label, bool)


def _gathered(source: "Dataset[Any] | DataLoader[Any]", labeled: bool) -> tuple[Tensor, Tensor]:
    """Return all images and labels of a Dataset or DataLoader, read once; restore its random generators."""
    name, images, labels = type(source).__name__, [], []
    for item in _items(source):
        if not labeled:
            item = (item[0] if isinstance(item, list | tuple) and item else item, None)
        if not isinstance(item, list | tuple) or len(item) != 2:
            given = type(item).__name__ + (f" of {len(item)}" if isinstance(item, list | tuple) else "")
            message = f"`images`: an item of the {name} is a {given}; allowed is a pair (image, label)"
            raise UsageError(message, parameter="images", given=given, allowed="(image, label)")
        image, label = item
        single = not isinstance(source, DataLoader)
        if not isinstance(image, Tensor) or (single and image.dim() != 3):
            given = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            hint = "" if isinstance(image, Tensor) else "; add torchvision.transforms.ToTensor() to it"
            message = f"`images`: an image of the {name} has {given}; allowed is a tensor (C, H, W){hint}"
            raise UsageError(message, parameter="images", given=given, allowed="a tensor (C, H, W)")
        images.append(image[None] if single else image)
        count = 1 if single else len(image)
        labels.append(_numbers(label, name, count) if labeled else torch.zeros(count, dtype=torch.long))
    if not images:
        raise UsageError(f"`images`: the {name} is empty", parameter="images", given=0, allowed="one image or more")
    try:
        return torch.cat(images), torch.cat(labels)
    except (RuntimeError, TypeError) as error:
        message = f"`images`: the images of the {name} are of several sizes or types ({reason(error)})"
        raise UsageError(message, parameter="images", given=name, allowed="images of one size") from error


def _numbers(label: Any, name: str, count: int) -> Tensor:
    """Return the labels of one image, or of a batch."""
    try:
        numbers = torch.as_tensor(label)
        if numbers.numel() == count:
            return numbers.reshape(-1)
        given = f"shape {tuple(numbers.shape)}"
    except (TypeError, ValueError, RuntimeError):
        given = repr(label)[:40]
    allowed = "a whole number for each image"
    message = f"`labels`: a label of the {name} is {given}; allowed is {allowed}"
    raise UsageError(message, parameter="labels", given=given, allowed=allowed)


def _items(source: "Dataset[Any] | DataLoader[Any]") -> Iterator[Any]:
    """Yield the items of a user's Dataset or DataLoader, which can fail in any way."""
    try:
        yield from _raw_items(source)
    except Exception as error:
        message = f"`images`: the {type(source).__name__} fails: {reason(error)}"
        raise UsageError(message, parameter="images", given=reason(error), allowed=SOURCES) from error


def _raw_items(source: "Dataset[Any] | DataLoader[Any]") -> Iterator[Any]:
    if isinstance(source, IterableDataset):
        yield from source
    elif isinstance(source, Dataset):
        for position in range(len(source)):  # type: ignore[arg-type]
            yield source[position]
    else:
        samplers = (source, source.sampler, source.batch_sampler)
        found = [g for each in samplers if (g := getattr(each, "generator", None)) is not None]
        states = [(generator, generator.get_state()) for generator in found]
        try:
            yield from source
        finally:
            for generator, state in states:
                generator.set_state(state)


def check_user_model(model: nn.Module, images: Tensor, labels: Tensor, names: Sequence[str] | None) -> tuple[str, ...]:
    """Check a model in eval mode against images and labels, and return the names of its classes.

    Args:
        model: classifier to evaluate.
        images: (N, C, H, W) in [0, 1].
        labels: (N,) int64.
        names: names of the classes; None for their numbers.

    Raises:
        UsageError: for a model that fails on the images, logits that make attacks or results wrong, labels outside the
            range of classes, or a wrong number of names.
    """
    classes = check_classifier(model, images[:CHECKED].to(device_of(model))).shape[1]
    if names is not None and (isinstance(names, str | set | frozenset) or not isinstance(names, Sized)):
        message = f"`classes` {names!r}: allowed is a list of {classes} names"
        raise UsageError(message, parameter="classes", given=names, allowed=f"{classes} names")
    if names is not None and len(names) != classes:
        message = f"the model has logits of {classes} classes; {len(names)} names of classes are given"
        raise UsageError(message, parameter="classes", given=len(names), allowed=classes)
    check_labels(labels, classes)
    return tuple(map(str, range(classes))) if names is None else tuple(map(str, names))


def check_labels(labels: Tensor, classes: int) -> None:
    """Refuse labels outside the range of a model's classes.

    Raises:
        UsageError: with both ranges.
    """
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        message = f"`labels` from {low} to {high}: the model has {classes} classes, from 0 to {classes - 1}"
        raise UsageError(message, parameter="labels", given=(low, high), allowed=(0, classes - 1))


def check_finite(logits: Tensor) -> None:
    """Refuse a model with logits that are not finite.

    Raises:
        UsageError: naming the image.
    """
    finite = logits.isfinite().all(1)
    if not finite.all():
        position = int((~finite).nonzero()[0])
        message = f"`model` gives logits that are not finite for image {position}"
        raise UsageError(message, parameter="model", given=position, allowed="finite logits")
