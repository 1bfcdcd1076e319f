"""Record what a base objective encodes and attacks, for an objective that adds terms to it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.contrastive import nt_xent_rows, similarity_logits
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.branches import together


class Encoded:
    """A batch of views and its encoding.

    Attributes:
        views: (B, C, H, W) each, encoded together.
        norm_bank: norm bank.
        features: (V B, D).
    """

    def __init__(self, encoder: EncoderProtocol, views: tuple[Tensor, ...], norm_bank: str) -> None:
        self.encoder, self.views, self.norm_bank = encoder, views, norm_bank
        self.training, self.graph = cast(nn.Module, encoder).training, torch.is_grad_enabled()
        self.features = encoder.features(torch.cat(views) if len(views) > 1 else views[0], norm_bank)
        self._embeddings: Tensor | None = None

    @property
    def embeddings(self) -> Tensor:
        """Return z, (V B, P), computed once."""
        if self._embeddings is None:
            self._embeddings = self.encoder.project(self.features, self.norm_bank)
        return self._embeddings

    def of(self, view: Tensor, values: Tensor) -> Tensor:
        """Return the samples of one view from values of all."""
        index = [each is view for each in self.views].index(True)
        return values.split([len(each) for each in self.views])[index]


class RecordingEncoder(nn.Module):
    """An encoder that also records what it encodes. It computes the same values as ``encoder``.

    Args:
        encoder: the encoder; its modes are followed.
    """

    def __init__(self, encoder: EncoderProtocol) -> None:
        super().__init__()
        self.encoder = cast(nn.Module, encoder)
        self.size, self.norm_banks = encoder.size, encoder.norm_banks
        self.backbone, self.projector = encoder.backbone, encoder.projector
        self.training = self.mode = self.encoder.training
        self.records: list[Encoded] = []

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("encoder"), name)

    def encode(self, views: Sequence[Tensor], norm_bank: str | None = None) -> Encoded:
        """Encode views as one batch, and record it."""
        self.records.append(
            Encoded(self._inner(), tuple(views), self.norm_banks[0] if norm_bank is None else norm_bank)
        )
        return self.records[-1]

    def _inner(self) -> EncoderProtocol:
        return cast(EncoderProtocol, self.encoder)

    def features(self, x: Tensor, norm_bank: str | None = None) -> Tensor:
        """Return f(x), as ``encoder``."""
        return self.encode([x], norm_bank).features

    def project(self, features: Tensor, norm_bank: str | None = None) -> Tensor:
        """Return g of features, as ``encoder``."""
        known = next((r for r in self.records if r.features is features and norm_bank in (None, r.norm_bank)), None)
        return self._inner().project(features, norm_bank) if known is None else known.embeddings

    def forward(self, x: Tensor, norm_bank: str | None = None) -> Tensor:
        """Return z = g(f(x)), as ``encoder``."""
        return self.encode([x], norm_bank).embeddings

    def views(self, a: Tensor, b: Tensor, norm_bank: str | None = None) -> tuple[Tensor, Tensor]:
        """Return the embeddings of two views, encoded as one batch."""
        record = self.encode([a, b], norm_bank)
        return record.of(a, record.embeddings), record.of(b, record.embeddings)

    def found(self, view: Tensor, norm_bank: str) -> Encoded | None:
        """Return the first recorded training pass of this very tensor through a norm bank."""
        passes = (r for r in self.records if r.graph and r.training == self.mode and r.norm_bank == norm_bank)
        return next((r for r in passes if any(each is view for each in r.views)), None)

    @contextmanager
    def apart(self) -> Iterator[list[Encoded]]:
        """Record into a list of its own inside the context."""
        before, self.records = self.records, []
        try:
            yield self.records
        finally:
            self.records = before


@dataclass
class Attacked:
    """The views of one inner attack and their adversarial examples."""

    benign: tuple[Tensor, ...]
    adversarial: tuple[Tensor, ...]


RowLosses = Callable[[Tensor], Tensor]


@dataclass
class Steering:
    """How the first attack of a base is changed.

    Attributes:
        rows: (row losses of the base, images) -> row losses with a further term, which an attack maximizes.
        modules: modules that ``rows`` uses beside the base's.
        steer: (views, attack) -> adversarial views; attack(True) maximizes ``rows``, attack(False) the base's own loss.
    """

    rows: Callable[[RowLosses, Tensor], Tensor]
    modules: nn.Module
    steer: Callable[[tuple[Tensor, ...], Callable[[bool], tuple[Tensor, ...]]], tuple[Tensor, ...]]


class RecordingAttack:
    """An inner attack that records its examples, and whose first call is steered.

    Args:
        attack: the attack.
        steering: change of the first call.
    """

    def __init__(self, attack: InnerAttack, steering: Steering) -> None:
        self.attack, self.steering = attack, steering
        self.calls: list[Attacked] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attack, name)

    def pairwise(
        self,
        model: Any,
        a: Tensor,
        b: Tensor,
        *,
        norm_bank: str | None = None,
        temperature: float = 0.5,
        **options: Any,
    ) -> tuple[Tensor, ...]:
        """Perturb both views, as ``InnerAttack.pairwise``."""

        def rows(x: Tensor) -> Tensor:
            za, zb = model(x, norm_bank).chunk(2)
            return nt_xent_rows(za, zb, temperature).flatten()

        def own() -> tuple[Tensor, ...]:
            return self.attack.pairwise(model, a, b, norm_bank=norm_bank, temperature=temperature, **options)

        return self._call((a, b), model, own, rows, options)

    def bank(
        self,
        model: Any,
        x: Tensor,
        keys: Tensor,
        *,
        norm_bank: str | None = None,
        temperature: float = 0.5,
        **options: Any,
    ) -> Tensor:
        """Perturb each image away from its own key, as ``InnerAttack.bank``."""

        def rows(images: Tensor) -> Tensor:
            logits = similarity_logits(model(images, norm_bank), keys.detach(), temperature)
            return F.cross_entropy(logits, torch.arange(len(images), device=images.device), reduction="none")

        def own() -> tuple[Tensor, ...]:
            return (self.attack.bank(model, x, keys, norm_bank=norm_bank, temperature=temperature, **options),)

        return self._call((x,), model, own, rows, options)[0]

    def scalar(self, model: Any, x: Tensor, row_losses: RowLosses, **options: Any) -> Tensor:
        """Perturb images to maximize a loss, as ``InnerAttack.scalar``."""

        def own() -> tuple[Tensor, ...]:
            return (self.attack.scalar(model, x, row_losses, **options),)

        return self._call((x,), model, own, row_losses, options)[0]

    def _call(
        self,
        views: tuple[Tensor, ...],
        model: Any,
        own: Callable[[], tuple[Tensor, ...]],
        rows: RowLosses,
        options: dict[str, Any],
    ) -> tuple[Tensor, ...]:
        def attacked(steered: bool) -> tuple[Tensor, ...]:
            if not steered:
                return own()
            x = torch.cat(views) if len(views) > 1 else views[0]
            used = together(model, self.steering.modules)
            moved = self.attack.scalar(used, x, lambda images: self.steering.rows(rows, images), **options)
            return moved.chunk(len(views))

        moved = own() if self.calls else self.steering.steer(views, attacked)
        self.calls.append(Attacked(views, moved))
        return moved


class RepeatedAttack:
    """Return the adversarial views of recorded attacks, in their order.

    Args:
        calls: recorded attacks.
    """

    def __init__(self, calls: Sequence[Attacked]) -> None:
        self.left = list(calls)

    def pairwise(self, *_: Any, **options: Any) -> tuple[Tensor, ...]:
        """Return both adversarial views of the next recorded attack."""
        return self.left.pop(0).adversarial

    def scalar(self, *_: Any, **options: Any) -> Tensor:
        """Return the adversarial view of the next recorded attack."""
        return self.left.pop(0).adversarial[0]

    bank = scalar
