"""Check that a classifier or an encoder can be attacked reliably, and choose the batch size."""

import torch
from torch import Tensor, nn

from acl_plugin.attacks.inputs import require_unit_range
from acl_plugin.errors import UsageError
from acl_plugin.runtime.autograd import gradients
from acl_plugin.runtime.device import memory

MOST = 500
"""Largest number of images to attack together."""


@torch.no_grad()
def check_classifier(model: nn.Module, images: Tensor) -> None:
    """Refuse a classifier or images that would make attacks or results wrong.

    Args:
        model: classifier that returns (B, K) logits.
        images: some (B, C, H, W) test images.

    Raises:
        UsageError: for a module in training mode (such as active dropout) or images outside [0, 1] (normalization is
            part of the model); for logits that are not finite, are probabilities, change from call to call, or depend
            on the other images of a batch.
    """
    _check_inputs(model, images)
    logits = model(images)
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images) or logits.shape[1] < 2:
        given = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise _unsound(f"the model gives {given} for {len(images)} images: allowed are (B, classes) logits", given)
    if not logits.isfinite().all():
        raise _unsound("the model gives logits that are not finite")
    if logits.min() >= 0 and (logits.sum(1) - 1).abs().max() < 1e-4:
        raise _unsound("the model gives probabilities; AutoAttack needs logits, so leave the softmax out")
    _check_function(model, images, logits, "logits")


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
    features = model(images)
    if not isinstance(features, Tensor) or features.dim() != 2 or len(features) != len(images):
        given = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise _unsound(f"the model gives {given} for {len(images)} images: allowed are (B, D) features", given)
    if not features.isfinite().all():
        raise _unsound("the model gives features that are not finite")
    _check_function(model, images, features, "features")


def _check_inputs(model: nn.Module, images: Tensor) -> None:
    trains = [name or type(m).__name__ for name, m in model.named_modules() if m.training]
    if trains:
        message = f"the model is in training mode ({', '.join(trains[:3])}); call eval() on all of it"
        raise UsageError(message, parameter="model", given=trains, allowed="eval mode")
    require_unit_range(images, "test images")
    if not len(images):
        raise UsageError("no test images to attack", parameter="images", given=0, allowed="one or more")


def _check_function(model: nn.Module, images: Tensor, outputs: Tensor, what: str) -> None:
    """Refuse a model whose outputs are random or depend on the batch."""
    allowed = 1e-3 * max(1.0, outputs.abs().max().item())
    if (model(images) - outputs).abs().max() > allowed:
        raise _unsound(f"the model gives other {what} for the same images: randomized models are not evaluated here")
    alone = torch.cat([model(image[None]) for image in images[:8]])
    difference = (alone - outputs[: len(alone)]).abs().max().item()
    if difference > allowed:
        raise _unsound(
            f"the {what} of an image depend on the other images of its batch (by {difference:.3g}); is a norm layer "
            f"using batch statistics?",
            difference,
        )


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
