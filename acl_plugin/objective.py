"""The contract between a pretraining objective and whatever trains it.

A bare loop is enough::

    objective.setup(model)
    optimizer = torch.optim.AdamW(objective.param_groups(model), lr=2e-3)
    for epoch in range(epochs):
        objective.on_epoch(epoch, epochs)
        for views in batches:
            optimizer.zero_grad()
            terms = objective.backward(model, views, attack)
            optimizer.step()
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from acl_plugin.backbones import Encoder
from acl_plugin.errors import UsageError
from acl_plugin.inner_attack import InnerAttack


@dataclass(frozen=True)
class Views:
    """What an objective sees of a batch.

    Attributes:
        a, b: (B, C, H, W) random views in [0, 1].
        images: (B, C, H, W) the images themselves.
        rows: (B,) each image's row in the data set.
    """

    a: Tensor
    b: Tensor
    images: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Terms:
    """A loss and what it is made of.

    Attributes:
        total: () loss to minimise.
        parts: () each, by name, without gradient. A part whose name starts with ``nce`` is an NT-Xent over 2B rows,
            and is watched for collapse: log(2B - 1) is its value when all embeddings are the same.
    """

    total: Tensor
    parts: dict[str, Tensor]

    @classmethod
    def weighted(cls, **parts: tuple[float, Tensor]) -> "Terms":
        """The sum of weight times part, over ``name=(weight, part)``."""
        total = sum(weight * part for weight, part in parts.values())
        assert isinstance(total, Tensor)
        return cls(total, {name: part.detach() for name, (_, part) in parts.items()})


class Objective(nn.Module):
    """Base of all objectives: an author writes :meth:`terms`, and sets the class attributes.

    The objective owns all that its method needs besides the encoder (discriminator, queue, teacher, momentum
    encoder, schedule), so that its state dict completes a checkpoint.

    Attributes:
        routes: the encoder's norm banks; the last one is probed.
        attack_view: how it aims its inner attack (``joint``, ``bank``, ``scalar``); None if it has none.
        paper: where it is from.
    """

    routes: tuple[str, ...] = ("clean",)
    attack_view: Literal["joint", "bank", "scalar"] | None = None
    paper: ClassVar[str] = ""

    def __init__(self, *, temperature: float = 0.5) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        self.temperature = temperature

    def setup(self, model: Encoder) -> None:
        """Build what depends on the encoder; called once, before the optimiser is."""

    def terms(self, model: Encoder, views: Views, attack: InnerAttack) -> Terms:
        """The loss of one batch."""
        raise NotImplementedError

    def backward(self, model: Encoder, views: Views, attack: InnerAttack) -> Terms:
        """Add the gradients of the loss of one batch to the parameters' ``grad``."""
        terms = self.terms(model, views, attack)
        terms.total.backward()
        return terms

    def param_groups(self, model: Encoder) -> list[dict[str, Any]]:
        """What the trainer's optimiser updates, as torch.optim takes it."""
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each of ``epochs`` epochs, counted from 0."""


def require_positive(**settings: float) -> None:
    """Refuse settings that are not above 0.

    Raises:
        UsageError: naming the setting.
    """
    for name, value in settings.items():
        if not isinstance(value, int | float) or not 0 < value < float("inf"):
            raise UsageError(f"{name} {value!r}: allowed is a number above 0")


def require_not_negative(**settings: float) -> None:
    """Refuse settings below 0.

    Raises:
        UsageError: naming the setting.
    """
    for name, value in settings.items():
        if not isinstance(value, int | float) or not 0 <= value < float("inf"):
            raise UsageError(f"{name} {value!r}: allowed is a number from 0")
