"""Adapters that present a contrastive loss to torchattacks as a model with logits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from acl_plugin.attacks.inputs import check_output
from acl_plugin.errors import UsageError
from acl_plugin.models import norm_banks
from acl_plugin.models.protocol import Network
from acl_plugin.runtime.defaults import usual_tensors

ROUNDING = 1e-3
"""How far rounding may bring a loss below 0, such as a distance of embeddings that are equal."""


class Bridge(nn.Module):
    """Model passed to torchattacks: it has a device, and hides the encoder, so that its modes stay unchanged."""

    def __init__(self, logits: Callable[[Tensor], Tensor], like: Tensor) -> None:
        super().__init__()
        self.device_marker = nn.Parameter(like.new_empty(0))
        self.logits = logits  # a closure, so that the encoder is not a submodule

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:  # some attacks flatten the gradient by view(), which fails for channels_last
            x = x.view_as(x)
            x.register_hook(lambda gradient: gradient.contiguous())
        return self.logits(x)


def loss_logits(rows: Tensor) -> Tensor:
    """Return two logits per sample whose cross-entropy with label 0 is its loss: (B,) above 0 -> (B, 2)."""
    rows = rows.float().clamp_min(1e-6)
    # -log(expm1(l)) = -l - log(1 - exp(-l)), which does not overflow
    wrong = -rows - torch.log(-torch.expm1(-rows))
    return torch.stack([wrong, torch.zeros_like(wrong)], dim=1)


def check_rows(rows: Any, count: int, *, trusted: bool) -> Tensor:
    """Return losses per sample, after checking their shape and, unless ``trusted``, that none is clearly below 0.

    The check of values synchronizes with the device once.

    Raises:
        UsageError: with the type or shape; with the lowest loss, and the remedy.
    """
    losses: Tensor = check_output(rows, (count,), "row_losses")
    lowest = 0.0 if trusted else losses.detach().amin().item()
    if lowest < -ROUNDING:
        message = f"row_losses down to {lowest:.3g}: allowed are losses above 0, as others give the attack no gradient"
        remedy = "add a constant so that all are above 0, such as 1 to a negative cosine"
        raise UsageError(f"{message}; {remedy}", parameter="row_losses", given=lowest, allowed="losses above 0")
    return losses


def count_classes(model: Network, image: Tensor) -> int:
    """Return the number of logits of a classifier in eval mode for an image (1, C, H, W).

    Raises:
        UsageError: for an output that is not (1, classes), or fewer than two classes.
    """
    with torch.no_grad(), norm_banks.inference(model):
        classes: int = check_output(model(image), (1, None)).shape[1]
    if classes < 2:
        message = f"the model has {classes} output; allowed are logits of two classes or more"
        raise UsageError(message, parameter="model", given=classes, allowed="two classes or more")
    return classes


def noise_seed(generator: torch.Generator | None) -> int:
    """Draw a seed from ``generator``; None for torch's global CPU generator.

    Raises:
        UsageError: for another object.
    """
    if not isinstance(generator, torch.Generator | None):
        message = f"generator is {type(generator).__name__}; allowed is a torch.Generator"
        raise UsageError(message, parameter="generator", given=generator, allowed="a torch.Generator")
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def perturbed(
    kind: Any,
    arguments: dict[str, Any],
    logits: Callable[[Tensor], Tensor],
    batch: tuple[Tensor, Tensor],
    *,
    aims: bool,
) -> Tensor:
    """Run a class of torchattacks; samples that it makes infinite stay as they were.

    Args:
        kind: the class.
        arguments: its arguments.
        logits: (B, C, H, W) -> (B, K).
        batch: (B, C, H, W) images and (B,) labels.
        aims: lead to the labels instead of away from them.

    Returns:
        (B, C, H, W), within no ball: some attacks leave it (CW, DeepFool).

    Raises:
        UsageError: for a class that cannot aim at labels, or whose result has another shape; for logits that have no
            gradient with respect to the images.
    """
    x, labels = batch
    with usual_tensors(x.device):
        attack = kind(Bridge(logits, x), **arguments)
        if aims:
            if "targeted" not in attack.supported_mode:
                message = f"attack {kind.__name__!r} cannot aim at a class; PGD, PGDL2, CW and others can"
                raise UsageError(message, parameter="targets", given=kind.__name__, allowed="an attack that can")
            attack.set_mode_targeted_by_label(quiet=True)
        try:
            found = attack(x.clone(), labels.clone())  # classes of other authors may work in place
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            why = "is there a torch.no_grad, a detach() or numpy in the model or the loss?"
            message = f"attack {kind.__name__!r} has no gradient with respect to the images: {why}"
            raise UsageError(message, parameter="model", given="no gradient", allowed="logits with one") from error
        x_adv = check_output(found, tuple(x.shape), f"attack {kind.__name__!r}").detach()
    return torch.where(x_adv.isfinite(), x_adv, x)  # some divide by a gradient that can be zero
