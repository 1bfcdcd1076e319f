"""Check that a classifier or an encoder can be attacked reliably, and choose the batch size."""

import torch
from torch import Tensor, nn

from acl_plugin.attacks.inputs import require_unit_range
from acl_plugin.errors import UsageError, reason
from acl_plugin.evaluation.batches import batch
from acl_plugin.evaluation.target import Target
from acl_plugin.runtime.autograd import gradients
from acl_plugin.runtime.device import memory

CHECKED = 64
"""Number of images for the initial checks of a model."""
MOST = 500
"""Largest number of images to attack together."""


@torch.no_grad()
def check_classifier(model: nn.Module, images: Tensor) -> Tensor:
    """Refuse a classifier or images that would make attacks or results wrong.

    Args:
        model: classifier that returns (B, K) logits.
        images: some (B, C, H, W) test images.

    Returns:
        The (B, K) logits.

    Raises:
        UsageError: for a module in training mode (such as active dropout) or images outside [0, 1] (normalization is
            part of the model); for a model that fails or changes its input; for logits that are not float32 or not
            finite, are probabilities, change from call to call, or depend on the other images of a batch.
    """
    _check_inputs(model, images)
    logits = _outputs(model, images, "logits")
    if logits.shape[1] < 2:
        raise _unsound(f"the model gives {tuple(logits.shape)}: allowed are (B, classes) logits", tuple(logits.shape))
    if logits.min() >= 0 and (logits.sum(1) - 1).abs().max() < 1e-4:
        raise _unsound("the model gives probabilities; AutoAttack needs logits, so leave the softmax out")
    _check_function(model, images, logits, "logits")
    return logits


@torch.no_grad()
def check_encoder(model: nn.Module, images: Tensor) -> None:
    """Refuse an encoder or images that would make attacks or results wrong.

    Args:
        model: module that returns (B, D) features.
        images: some (B, C, H, W) test images.

    Raises:
        UsageError: as ``check_classifier``, for features in place of logits.
    """
    _check_inputs(model, images)
    _check_function(model, images, _outputs(model, images, "features"), "features")


def check_gradient(model: nn.Module, images: Tensor) -> None:
    """Refuse a model that gives attacks no gradient.

    Args:
        model: classifier or encoder.
        images: some (B, C, H, W) test images.

    Raises:
        UsageError: naming what hides the gradient.
    """
    with gradients():
        x = images.clone().requires_grad_()
        try:
            total = model(x).sum()
            gradient = torch.autograd.grad(total, x, allow_unused=True)[0] if total.requires_grad else None
        except UsageError:
            raise
        except Exception as error:  # a user's module can fail in any way
            raise _failed(images, error, " with gradients") from error
    if gradient is None:
        why = "is there a torch.no_grad, a detach() or numpy in it?"
        raise _unsound(f"the model has no gradient with respect to the images, which attacks need: {why}")


def zero_gradients(target: Target) -> list[str]:
    """Return a flag if the first images of ``target`` include some without a gradient, as rounding causes it."""
    x = batch(target.images, 0, min(CHECKED, target.batch_size), target.device)
    flat = int((input_gradient(target.model, x).flatten(1) == 0).all(1).sum())
    why = "attacks by gradient do not move them, so results of these attacks are no evidence of robustness"
    return [f"{flat} of {len(x)} images have zero gradient: {why}"] if flat else []


def input_gradient(model: nn.Module, images: Tensor) -> Tensor:
    """Return the gradient of a weighted sum of a model's outputs at images (B, C, H, W): zeros if there is none."""
    x = images.clone().requires_grad_()
    with gradients():
        outputs = model(x)
        weighted = (outputs * torch.linspace(1, 2, outputs.shape[1], device=outputs.device)).sum()
        found = torch.autograd.grad(weighted, x, allow_unused=True)[0] if weighted.requires_grad else None
    return torch.zeros_like(x) if found is None else found


def _check_inputs(model: nn.Module, images: Tensor) -> None:
    trains = [name or type(m).__name__ for name, m in model.named_modules() if getattr(m, "training", False)]
    if trains:
        message = f"the model is in training mode ({', '.join(trains[:3])}); call eval() on all of it"
        raise UsageError(message, parameter="model", given=trains, allowed="eval mode")
    require_unit_range(images, "test images")
    if not len(images):
        raise UsageError("no test images to attack", parameter="images", given=0, allowed="one or more")


def _outputs(model: nn.Module, images: Tensor, what: str) -> Tensor:
    """Return what a model gives for a copy of images; refuse outputs that attacks cannot use."""
    x = images.clone()
    try:
        outputs = model(x)
    except UsageError:
        raise
    except Exception as error:  # a user's module can fail in any way
        raise _failed(images, error) from error
    if not torch.equal(x, images):
        raise _unsound("the model changes its input in place; let it compute a new tensor, such as (x - mean) / std")
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != len(images):
        given = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        allowed = f"(B, {'classes' if what == 'logits' else 'D'}) {what}, also for one image"
        raise _unsound(f"the model gives {given} for {_number(images)}: allowed are {allowed}", given)
    if outputs.dtype != torch.float32:
        message = f"the model gives {what} in {outputs.dtype}; attacks compute in float32: let it return {what}.float()"
        raise UsageError(message, parameter="model", given=outputs.dtype, allowed=torch.float32)
    if not outputs.isfinite().all():
        raise _unsound(f"the model gives {what} that are not finite")
    return outputs


def _check_function(model: nn.Module, images: Tensor, outputs: Tensor, what: str) -> None:
    """Refuse a model whose outputs are random or depend on the batch."""
    allowed = 1e-3 * max(1.0, outputs.abs().max().item())
    if (_outputs(model, images, what) - outputs).abs().max() > allowed:
        raise _unsound(f"the model gives other {what} for the same images: randomized models are not evaluated here")
    alone = torch.cat([_outputs(model, image[None], what) for image in images[:8]])
    difference = (alone - outputs[: len(alone)]).abs().max().item()
    if difference > allowed:
        raise _unsound(
            f"the {what} of an image depend on the other images of its batch (by {difference:.3g}); is a norm layer or "
            f"a quantization using batch statistics?",
            difference,
        )


def _number(images: Tensor) -> str:
    return f"{len(images)} images" if len(images) > 1 else "one image"


def _failed(images: Tensor, error: Exception, how: str = "") -> UsageError:
    shape = " x ".join(map(str, images.shape[1:]))
    message = f"`model` fails on {_number(images)} of {shape}{how}: {reason(error)}"
    return UsageError(message, parameter="model", given=reason(error), allowed="(B, K) outputs of any number of images")


def _unsound(message: str, given: object = None) -> UsageError:
    return UsageError(message, parameter="model", given=given, allowed="finite outputs, a function of each image alone")


def largest_batch(model: nn.Module, shape: tuple[int, int, int], device: torch.device) -> int:
    """Return how many images fit into a quarter of the device's memory in a forward and a backward, at most ``MOST``.

    The memory of one image is measured as the bytes that autograd saves. The result depends on the machine, not on its
    load.

    Args:
        model: classifier.
        shape: (C, H, W) of an image.
        device: device of the model.
    """
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.numel() * tensor.element_size()
        return tensor

    with gradients(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        model(torch.zeros(2, *shape, device=device, requires_grad=True))
    return int(max(1, min(MOST, memory(device) / 4 / max(1, kept / 2))))
