"""Checks of the images, labels and model outputs of an attack: types, shapes and values."""

import math
from typing import Any

import torch
from torch import Tensor

from acl_plugin.errors import UsageError

IMAGES = "(B, C, H, W) floats in [0, 1]"


def check_images(x: Any, parameter: str = "x") -> None:
    """Check type and shape of a batch of images (B, C, H, W), not its values.

    Raises:
        UsageError: with the given type or shape.
    """
    dense = isinstance(x, Tensor) and x.layout == torch.strided and not x.is_meta
    if not dense or x.dim() != 4 or not x.is_floating_point():
        hint = "; divide 8-bit images by 255" if isinstance(x, Tensor) and x.dtype == torch.uint8 else ""
        raise _refusal(parameter, x, IMAGES, hint)


def check_pair(a: Any, b: Any) -> None:
    """Check two views as ``check_images`` does, and that their shapes agree.

    Raises:
        UsageError: with the given types or shapes.
    """
    check_images(a, "a")
    check_images(b, "b")
    if a.shape != b.shape:
        given, allowed = tuple(b.shape), tuple(a.shape)
        message = f"views of different shapes: {allowed} and {given}"
        raise UsageError(message, parameter="b", given=given, allowed=allowed)


def check_labels(y: Any, rows: int) -> None:
    """Check that labels are (B,) integers with B = ``rows``, not their values.

    Raises:
        UsageError: with the given type or shape.
    """
    whole = (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8)
    if not isinstance(y, Tensor) or y.shape != (rows,) or y.dtype not in whole:
        raise _refusal("y", y, f"({rows},) whole numbers, a label for each image")


def check_output(output: Any, shape: tuple[int | None, ...], parameter: str = "model") -> Any:
    """Return a model's output if it has the given shape; None allows any size.

    Raises:
        UsageError: with the type or shape of the output.
    """
    fits = isinstance(output, Tensor) and output.dim() == len(shape)
    if not fits or any(size not in (None, given) for size, given in zip(shape, output.shape, strict=True)):
        words = ", ".join("any" if size is None else str(size) for size in shape)
        raise _refusal(parameter, output, f"an output of shape ({words}{',' * (len(shape) == 1)})")
    return output


def check_values(
    x: Tensor, parameter: str = "x", y: Tensor | None = None, classes: int = 0, *, trusted: bool = False
) -> None:
    """Check that images lie in [0, 1] and labels in [0, classes).

    It synchronizes with the device once. ``trusted`` images on an accelerator are not checked, nor are empty batches.

    Raises:
        UsageError: with the range of the given values.
    """
    if not x.numel() or (trusted and x.device.type != "cpu"):
        return
    bounds = [x.amin(), x.amax(), *([] if y is None else [y.min().to(x.device), y.max().to(x.device)])]
    low, high, *of_labels = torch.stack([bound.float() for bound in bounds]).tolist()
    if not (low >= 0 and high <= 1):
        message = f"{parameter} {_out_of_range(low, high)}"
        raise UsageError(message, parameter=parameter, given=(low, high), allowed=(0, 1))
    if of_labels and not (of_labels[0] >= 0 and of_labels[1] < classes):
        given = tuple(int(bound) for bound in of_labels)
        message = f"labels y from {given[0]} to {given[1]}: the model has {classes} classes, from 0 to {classes - 1}"
        raise UsageError(message, parameter="y", given=given, allowed=(0, classes - 1))


def _out_of_range(low: float, high: float) -> str:
    """Return the range of values that are not all in [0, 1], and the remedy."""
    if math.isnan(low):
        return "with NaN: allowed is [0, 1]"
    if low > -0.05 and high < 1.05:  # by rounding or interpolation, as after a resize
        return f"in [{low:.8g}, {high:.8g}]: allowed is [0, 1]; call clamp(0, 1) on them"
    return f"in [{low:.3g}, {high:.3g}]: allowed is [0, 1]; normalize inside the model"


def require_bright(images: Tensor, what: str = "images") -> None:
    """Refuse a whole test set that was divided by 255 twice: its largest value is above 0, and 1/255 at most.

    Raises:
        UsageError: with the largest value.
    """
    high = float(images.max()) if images.numel() else 0.0
    if 0 < high <= (1 + 1e-6) / 255:
        message = f"{what} in [0, {high:.3g}]: allowed is [0, 1], with a larger value; divide 8-bit images by 255 once"
        raise UsageError(message, parameter=what, given=high, allowed=(0, 1))


def require_unit_range(images: Tensor, what: str = "images") -> None:
    """Check that images lie in [0, 1]; torchattacks would clip them silently.

    Raises:
        UsageError: with the range of the given values.
    """
    if images.numel():
        check_values(images, what)


def _refusal(parameter: str, given: Any, allowed: str, hint: str = "") -> UsageError:
    if not isinstance(given, Tensor):
        shown = type(given).__name__
    elif given.layout != torch.strided or given.is_meta:
        shown = f"a tensor of {given.layout} on {given.device}"
    else:
        shown = f"{tuple(given.shape)} of {given.dtype}"
    return UsageError(
        f"{parameter}: {shown}; allowed are {allowed}{hint}", parameter=parameter, given=shown, allowed=allowed
    )
