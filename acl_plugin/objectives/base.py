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

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from acl_plugin.attacks.catalogue import ALL_VIEWS
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.data.images import Images
from acl_plugin.errors import UsageError
from acl_plugin.models.projectors import PROJECTORS
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.validation import refused_value, require_positive, require_share

RANDOM_VIEWS = ("a", "b", "weak")
"""Fields of ``Views`` that are drawn for each batch."""


class Views:
    """What an objective sees of a batch.

    Args:
        a, b: (B, C, H, W) random strong views in [0, 1].
        images: (B, C, H, W) the images themselves.
        rows: (B,) each image's row in the dataset.
        weak: (B, C, H, W) a random weak view.

    Raises:
        UsageError: when a view is used that was not given.
    """

    a: Tensor
    b: Tensor
    images: Tensor
    rows: Tensor
    weak: Tensor

    def __init__(
        self,
        a: Tensor | None = None,
        b: Tensor | None = None,
        images: Tensor | None = None,
        rows: Tensor | None = None,
        weak: Tensor | None = None,
    ) -> None:
        given = {"a": a, "b": b, "images": images, "rows": rows, "weak": weak}
        vars(self).update({name: value for name, value in given.items() if value is not None})

    def __getattr__(self, name: str) -> Tensor:  # only reached for what was not given
        if name not in Views.__annotations__:
            raise AttributeError(name)
        raise UsageError(
            f"the objective uses {name!r} of Views, which was not given: pass Views({name}=...); the trainer gives "
            f"images and rows, and those of a, b and weak that the objective's attribute needs names",
            parameter=name, given=None, allowed="a tensor of the batch",
        )  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Passes through the encoder per training image.

    Attributes:
        attacked: views that the inner attack moves; each takes a forward and an input gradient per step.
        forwards: all other forwards, with or without gradient.
        backwards: backwards that give gradients of the weights.
        repeated: views that the inner attack encodes in each step as well, without gradient.
    """

    attacked: int
    forwards: int
    backwards: int
    repeated: int = 0

    def encoder_forwards(self, attack_steps: int) -> int:
        """Return F = (2 attacked + repeated) steps + forwards + 2 backwards.

        An input gradient counts as one forward, and a gradient of input and weights as two.
        """
        return (2 * self.attacked + self.repeated) * attack_steps + self.forwards + 2 * self.backwards


@dataclass(frozen=True)
class Terms:
    """A loss and what it is made of.

    Attributes:
        total: () loss to minimize.
        parts: () each, by name, without gradient.
        collapsed: by name of a part, its value when all embeddings are the same. The trainer stops a run in which one
            of these parts stays there; parts without such a value are not watched.
    """

    total: Tensor
    parts: dict[str, Tensor]
    collapsed: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def weighted(cls, **parts: tuple[float, Tensor] | tuple[float, Tensor, float]) -> "Terms":
        """Return the sum of weight times part.

        Args:
            parts: ``name=(weight, part)``; or ``name=(weight, part, collapsed)`` with the value that the part has when
                all embeddings are the same, such as ``losses.contrastive.collapsed_nce(B)``.

        Example:
            >>> terms = acl_plugin.Terms.weighted(nce=(1.0, torch.tensor(2.5), 2.7), penalty=(0.5, torch.tensor(1.0)))
            >>> terms.total, terms.collapsed
            (tensor(3.), {'nce': 2.7})
        """
        total = sum(weight * part for weight, part, *_ in parts.values())
        assert isinstance(total, Tensor)
        collapsed = {name: part[2] for name, part in parts.items() if len(part) == 3}
        return cls(total, {name: part[1].detach() for name, part in parts.items()}, collapsed)


class Objective(nn.Module):
    """Base of all objectives: an author writes ``terms``, and sets the class attributes.

    The objective owns all that its method needs apart from the encoder (discriminator, queue, teacher, momentum
    encoder, schedule), so that its state dict completes a checkpoint.

    Attributes:
        routes: the encoder's norm banks; the first is for benign images, and the last one is probed.
        projector: the encoder's projector, one of ``projectors.PROJECTORS``.
        needs: the random views that it uses, of ``a``, ``b`` and ``weak``.
        strength: of the strong views, in [0, 1]; ``on_epoch`` may change it.
        attack_view: how it aims its inner attack (``joint``, ``bank``, ``scalar``); None if it has none.
        cost: its passes through the encoder.
        paper: where it is from.
        from_files: settings that are objects, ``encoder`` (a trained encoder) or ``pseudo_labels`` (a
            ``PseudoLabels``), and in a configuration the path of one: of a run folder, or of a file.
    """

    routes: tuple[str, ...] = ("clean",)
    projector: str = "three_layer"
    needs: tuple[str, ...] = ("a", "b")
    strength: float = 1.0
    attack_view: Literal["joint", "bank", "scalar"] | None = None
    cost: Cost | None = None
    paper: ClassVar[str] = ""
    from_files: ClassVar[Mapping[str, Literal["encoder", "pseudo_labels"]]] = {}

    def __init__(self, *, temperature: float = 0.5) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        self.temperature = temperature

    def check_contract(self) -> None:
        """Refuse attributes that no trainer could use; called on what ``create_objective`` made.

        Raises:
            UsageError: naming the attribute, its value and the values allowed.
        """
        names = isinstance(self.routes, tuple) and all(isinstance(route, str) and route for route in self.routes)
        if not names or not self.routes or len(set(self.routes)) < len(self.routes):
            raise refused_value("routes", self.routes, "a tuple of one name or more, each once")
        if not isinstance(self.needs, tuple) or not set(self.needs) <= set(RANDOM_VIEWS):
            raise refused_value("needs", self.needs, f"a tuple of views among {', '.join(RANDOM_VIEWS)}")
        if self.attack_view not in (None, *ALL_VIEWS):
            raise refused_value("attack_view", self.attack_view, f"None, {', '.join(ALL_VIEWS)}")
        if self.projector not in PROJECTORS:
            raise refused_value("projector", self.projector, ", ".join(PROJECTORS))
        if not isinstance(self.cost, Cost | None):
            raise refused_value("cost", self.cost, "None or an acl_plugin.Cost")
        require_share(strength=self.strength)
        require_positive(temperature=getattr(self, "temperature", None))

    def setup(self, model: EncoderProtocol) -> None:
        """Build what depends on the encoder; called once, before the optimizer is."""

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        """The loss of one batch."""
        raise NotImplementedError

    def backward(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        """Add the gradients of the loss of one batch to the parameters' ``grad``."""
        terms = self.terms(model, views, attack)
        terms.total.backward()
        return terms

    def param_groups(self, model: EncoderProtocol) -> list[dict[str, Any]]:
        """What the trainer's optimizer updates, as torch.optim takes it."""
        return [{"params": [p for p in model.parameters() if p.requires_grad]}]

    def check_images(self, images: Images) -> None:
        """Refuse training images that the objective cannot be trained on.

        Raises:
            UsageError: naming what is missing.
        """

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Called before each of ``epochs`` epochs, counted from 0."""

    def downstream(self, model: EncoderProtocol) -> EncoderProtocol:
        """The encoder to keep after training: ``model``, unless the method keeps another."""
        return model
