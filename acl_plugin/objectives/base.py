"""Interface between a pretraining objective and its training loop.

A plain loop is enough::

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

from acl_plugin.attacks.catalogue import MODES
from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.data.images import Images
from acl_plugin.errors import UsageError
from acl_plugin.losses.discriminator import Discriminator
from acl_plugin.models.norm_banks import check_names
from acl_plugin.models.projectors import check_projector
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.contract import check_parts, check_scalar, check_weighted, own_parameters
from acl_plugin.validation import refused_value, require_positive, require_share

RANDOM_VIEWS = ("a", "b", "weak")
"""Fields of ``Views`` that are drawn for each batch."""


class Views:
    """Views of one batch that an objective trains on.

    Args:
        a, b: (B, C, H, W) random strong views in [0, 1].
        images: (B, C, H, W) the images without augmentation, in [0, 1].
        rows: (B,) index of each image in the dataset.
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

    def __getattr__(self, name: str) -> Tensor:  # called only for fields that were not given
        if name not in Views.__annotations__:
            raise AttributeError(name)
        raise UsageError(
            f"the objective uses {name!r} of Views, which was not given: pass Views({name}=...); the trainer gives "
            f"images and rows, and those of a, b and weak that the objective's attribute needs names",
            parameter=name, given=None, allowed="a tensor of the batch",
        )  # fmt: skip


@dataclass(frozen=True)
class Cost:
    """Number of passes through the encoder per training image.

    Attributes:
        attacked: views that the inner attack perturbs; each takes a forward and an input gradient per attack step.
        forwards: all other forwards, with or without gradient.
        backwards: backwards that compute gradients of the weights.
        repeated: further views that the inner attack encodes in each step, without gradient.
    """

    attacked: int
    forwards: int
    backwards: int
    repeated: int = 0

    def encoder_forwards(self, attack_steps: int, *, free: bool = False) -> int:
        """Return the cost in forwards: F = (2 attacked + repeated) steps + forwards + 2 backwards.

        An input gradient counts as one forward, a gradient of input and weights as two. A ``free`` attack trains so
        many times instead: F = (forwards + 2 backwards) steps.
        """
        trained = self.forwards + 2 * self.backwards
        if free and self.attacked:
            return trained * attack_steps
        return (2 * self.attacked + self.repeated) * attack_steps + trained


@dataclass(frozen=True)
class Terms:
    """Total loss of a batch and its parts.

    Attributes:
        total: () loss to minimize.
        parts: () each, by name, without gradient. Columns of metrics.csv, such as ``loss``, are no names of parts.
        collapsed: value of a part when all embeddings are equal, by name. The trainer stops a run in which one of
            these parts stays at that value; parts without one are not monitored.
    """

    total: Tensor
    parts: dict[str, Tensor]
    collapsed: Mapping[str, float] = field(default_factory=dict)

    @classmethod
    def weighted(cls, **parts: tuple[float, Tensor] | tuple[float, Tensor, float]) -> "Terms":
        """Return the weighted sum of the parts.

        Args:
            parts: ``name=(weight, part)``, or ``name=(weight, part, collapsed)`` with the value of the part when all
                embeddings are equal, such as ``losses.contrastive.collapsed_nce(B)``.

        Raises:
            UsageError: for anything else, or no part.

        Example:
            >>> terms = acl_plugin.Terms.weighted(nce=(1.0, torch.tensor(2.5), 2.7), penalty=(0.5, torch.tensor(1.0)))
            >>> terms.total, terms.collapsed
            (tensor(3.), {'nce': 2.7})
        """
        check_weighted(parts)
        total = sum(weight * part for weight, part, *_ in parts.values())
        if not isinstance(total, Tensor):
            raise refused_value("parts", {}, "one part or more")
        collapsed = {name: part[2] for name, part in parts.items() if len(part) == 3}
        return cls(total, {name: part[1].detach() for name, part in parts.items()}, collapsed)


class Objective(nn.Module):
    """Base class of all objectives. Subclasses implement ``terms`` and set the class attributes.

    The objective owns all state of its method except the encoder (discriminator, queue, teacher, momentum encoder,
    schedule), so that checkpoints are complete.

    Attributes:
        norm_banks: norm banks of the encoder; the first is for benign images, and the last one is probed.
        projector: name of the encoder's projector, which ``projectors.create_projector`` takes.
        normalized: features are divided by their L2 norm, before the projector and in the probe.
        needs: random views that the objective uses, from ``a``, ``b`` and ``weak``.
        strength: augmentation strength of the strong views, in [0, 1]; ``on_epoch`` may change it.
        attack_mode: mode of the inner attack (``pairwise``, ``bank``, ``scalar``); None without an attack. ``on_epoch``
            may set None for epochs without one.
        attacked_views: views that the inner attack perturbs (the first, if there are several), from ``needs`` and
            ``images``.
        encoded_views: views that ``terms`` passes to the encoder as they are, with gradient: benign ones through the
            first norm bank, and adversarial ones, written ``a'``, through the last. An objective that adds terms to
            this one (``gsa_rsl``) uses these embeddings again. Without them it encodes the views itself.
        cost: passes through the encoder.
        paper: source of the method.
        from_files: settings that take an object, by its kind: ``encoder`` (a trained encoder) or ``pseudo_labels`` (a
            ``PseudoLabels``). In a configuration they take a path: of a run folder, or of a file. A setting of a
            setting is written ``base_kwargs.teacher``.
        needs_start: the encoder must have trained weights at the start; the trainer rejects random ones.
        finetunes: the encoder may be trained by low-rank matrices alone (`--lora-rank`): it starts from trained
            weights, and the objective has no copy of it that follows its parameters.
    """

    norm_banks: tuple[str, ...] = ("clean",)
    projector: str = "three_layer"
    normalized: bool = False
    needs: tuple[str, ...] = ("a", "b")
    strength: float = 1.0
    attack_mode: Literal["pairwise", "bank", "scalar"] | None = None
    attacked_views: tuple[str, ...] = ()
    encoded_views: tuple[str, ...] = ()
    cost: Cost | None = None
    paper: ClassVar[str] = ""
    from_files: Mapping[str, Literal["encoder", "pseudo_labels"]] = {}
    needs_start: bool = False
    finetunes: bool = False

    def __init__(self, *, temperature: float = 0.5) -> None:
        super().__init__()
        require_positive(temperature=temperature)
        self.temperature = temperature

    def check_contract(self) -> None:
        """Reject attributes that no trainer can use; called by ``create_objective``.

        Raises:
            UsageError: with the attribute, its value and the allowed values.
        """
        if "_parameters" not in vars(self):
            raise refused_value("__init__", type(self).__name__, "a constructor that calls super().__init__()")
        if not isinstance(self.norm_banks, tuple):
            raise refused_value("norm_banks", self.norm_banks, "a tuple of names")
        check_names(self.norm_banks)
        if not isinstance(self.needs, tuple) or not set(self.needs) <= set(RANDOM_VIEWS):
            raise refused_value("needs", self.needs, f"a tuple of views among {', '.join(RANDOM_VIEWS)}")
        given = (*self.needs, "images")
        if not isinstance(self.attacked_views, tuple) or not set(self.attacked_views) <= set(given):
            raise refused_value("attacked_views", self.attacked_views, f"a tuple of views among {given}")
        shown = (*given, *(f"{name}'" for name in self.attacked_views))
        if not isinstance(self.encoded_views, tuple) or not set(self.encoded_views) <= set(shown):
            raise refused_value("encoded_views", self.encoded_views, f"a tuple of views among {shown}")
        if self.attack_mode not in (None, *MODES):
            raise refused_value("attack_mode", self.attack_mode, f"None, {', '.join(MODES)}")
        check_projector(self.projector)
        if not isinstance(self.normalized, bool):
            raise refused_value("normalized", self.normalized, "True or False")
        if not isinstance(self.cost, Cost | None):
            raise refused_value("cost", self.cost, "None or an acl_plugin.Cost")
        require_share(strength=self.strength)
        require_positive(temperature=getattr(self, "temperature", None))

    def setup(self, model: EncoderProtocol) -> None:
        """Build the parts that depend on the encoder; called once, before the optimizer is created."""

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        """Return the loss of one batch."""
        raise refused_value("terms", type(self).__name__, "a method of the objective that returns acl_plugin.Terms")

    def backward(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        """Add the gradients of one batch's loss to the parameters' ``grad``."""
        terms = require_terms(self.terms(model, views, attack))
        if not terms.total.requires_grad:
            allowed = "a tensor with a gradient: is there a detach() or no_grad?"
            raise refused_value("terms.total", terms.total.item(), allowed)
        terms.total.backward()
        return terms

    def param_groups(self, model: EncoderProtocol) -> list[dict[str, Any]]:
        """Return the parameter groups to optimize, in the format of ``torch.optim``.

        Those of the encoder, and of the objective that require a gradient, except what an optimizer that the objective
        owns trains. A subclass that overrides this method gets from it those of the encoder alone, and adds its own.
        """
        groups = [{"params": [p for p in model.parameters() if p.requires_grad]}]
        own = own_parameters(self, model) if type(self).param_groups is Objective.param_groups else []
        return [*groups, {"params": own}] if own else groups

    def check_images(self, images: Images) -> None:
        """Reject training images that the objective cannot be trained on.

        Raises:
            UsageError: with what is missing.
        """

    def on_epoch(self, epoch: int, epochs: int) -> None:
        """Prepare ``epoch``, counted from 0; called before each of ``epochs`` epochs."""

    def has_adversarial_loss(self) -> bool:
        """Return whether the loss weighs a term of adversarial images, which audits compare other terms with."""
        return self.attack_mode is not None

    def discriminator(self) -> tuple[str, Discriminator] | None:
        """Return the layer (``projections`` or ``features``) and the discriminator to keep for audits, if any."""
        return None

    def downstream(self, model: EncoderProtocol) -> EncoderProtocol:
        """Return the encoder to keep after training: ``model``, unless the method keeps another."""
        return model


def require_terms(terms: Any) -> Terms:
    """Return what an objective's ``terms`` returned, after checking it before torch or a logger fails on it.

    Raises:
        UsageError: naming the field or part.
    """
    if not isinstance(terms, Terms):
        raise refused_value("terms", type(terms).__name__, "an acl_plugin.Terms")
    check_scalar("terms.total", terms.total)
    check_parts(terms.parts, terms.collapsed)
    return terms
