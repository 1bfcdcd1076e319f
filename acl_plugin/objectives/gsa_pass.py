"""One forward pass of GSA-RSL: the terms of its base, the benign contrast and the global divergence."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.errors import UsageError
from acl_plugin.losses.contrastive import collapsed_nce, nt_xent
from acl_plugin.models import norm_banks
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.addon import shown
from acl_plugin.objectives.base import Terms, Views, require_terms
from acl_plugin.objectives.contract import require_pair
from acl_plugin.objectives.recording import (
    Attacked,
    Encoded,
    RecordingAttack,
    RecordingEncoder,
    RepeatedAttack,
    RowLosses,
    Steering,
)
from acl_plugin.runtime.distributed import gathered

if TYPE_CHECKING:
    from acl_plugin.objectives.gsa_rsl import GlobalSharpnessAware


class Pass:
    """Run the base's attack and terms on one batch, and compare benign with adversarial examples.

    Args:
        method: objective with its settings, base and divergence.
        model, views, attack: of the step.
        calls: attacks of an earlier pass to use again; empty to attack.

    Attributes:
        others: all terms but the benign contrast.
        calls: views of the attacks and their adversarial examples.
    """

    def __init__(
        self,
        method: "GlobalSharpnessAware",
        model: EncoderProtocol,
        views: Views,
        attack: InnerAttack,
        calls: Sequence[Attacked] = (),
    ) -> None:
        self.method, self.model, self.views, self.attack = method, model, views, attack
        self.encoder = RecordingEncoder(model)
        self.calls = list(calls)
        self.others = Terms(next(model.parameters()).new_zeros(()), {})
        if not method.in_eval:  # these estimators compare with benign views of the training pass, in the attack too
            self._encode_missing()
        if method.base is not None:
            recording = RecordingAttack(attack, Steering(self._rows, method, self._steer))
            used = RepeatedAttack(calls) if calls else recording
            found = method.base.terms(cast(EncoderProtocol, self.encoder), views, cast(InnerAttack, used))
            base = require_terms(found)
            self.calls = self.calls or recording.calls
            self.others = _weighted(base, method.adversarial, bool(method.benign))
        self._encode_missing()
        if method.global_:
            self._compare(fit=not (calls or method.in_eval))

    def again(self) -> Self:
        """Return the same pass at the current weights, with the same adversarial examples."""
        return type(self)(self.method, self.model, self.views, self.attack, self.calls)

    def contrast(self) -> Tensor:
        """Return the benign contrast NCE(p, q), ()."""
        return self._contrast([self._found(view) for view in self._pair()])

    def contrast_again(self) -> Tensor:
        """Return the benign contrast at the current weights; the views are encoded in the same batches."""
        encoder = RecordingEncoder(self.model)
        records = [self._found(view) for view in self._pair()]
        fresh = {id(r): encoder.encode(r.views, r.norm_bank) for r in dict.fromkeys(records)}
        return self._contrast([fresh[id(r)] for r in records])

    def terms(self, nce: Tensor | None = None, **parts: Tensor) -> Terms:
        """Return all terms.

        Args:
            nce: loss in place of the benign contrast; None for that of this pass.
            parts: further parts to report.
        """
        if not self.method.benign:
            return replace(self.others, parts={**parts, **self.others.parts})
        plain = self.contrast()
        total = self.others.total + self.method.benign * (plain if nce is None else nce)
        level = {"nce_clean": collapsed_nce(len(self._pair()[0])), **self.others.collapsed}
        return Terms(total, {"nce_clean": plain.detach(), **parts, **self.others.parts}, level)

    def _pair(self) -> list[Tensor]:
        return [getattr(self.views, name) for name in self.method.pair]

    def _contrast(self, records: Sequence[Encoded]) -> Tensor:
        p, q = (r.of(view, r.embeddings) for r, view in zip(records, self._pair(), strict=True))
        return nt_xent(p, q, self.method.temperature)

    def _found(self, view: Tensor) -> Encoded:
        norm_bank = self.method.norm_banks[0]
        return self.encoder.found(view, norm_bank) or self.encoder.encode([view], norm_bank)

    def _encode_missing(self) -> None:
        norm_bank = self.method.norm_banks[0]
        views = [getattr(self.views, name) for name in self.method.missing]
        left = [view for view in views if self.encoder.found(view, norm_bank) is None]
        if left:
            _ = self.encoder.encode(left, norm_bank).embeddings  # now, for the order of the norm statistics

    def _steer(self, views: tuple[Tensor, ...], attack: Callable[[bool], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        """Attack, train a discriminator on the result, and attack again if there are four steps."""
        method = self.method
        self.compared = self._benign_of_attack(views)
        moved = attack(method.attack_divergence and not method.attacks_twice)
        if method.global_ and method.in_eval:
            self._fit_in_eval(views, moved)
        if method.attacks_twice:
            moved = attack(True)
        self._encode_missing()
        return moved

    def _rows(self, row_losses: RowLosses, x: Tensor) -> Tensor:
        """Return the losses of the base, and those of the divergence on what it encodes first."""
        with self.encoder.apart() as records:
            rows = self.method.adversarial * row_losses(x)
            record = records[0] if records else self.encoder.encode([x], self.method.norm_banks[-1])
            adversarial = self._layer(record)
        benign = adversarial if self.compared is None else self.compared
        more = self.method.global_ * self.method.divergence.adversarial_rows(benign, adversarial) / 2
        return rows + (more if len(more) == len(rows) else more.mean())

    @torch.no_grad()
    def _benign_of_attack(self, views: tuple[Tensor, ...]) -> Tensor | None:
        """Return the benign values that the attack compares with; None if it needs none."""
        if not self.method.attack_divergence or self.method.in_eval:
            return None
        names = shown(cast(Any, self.method.base))
        chosen = [getattr(self.views, name) for name in names] or list(views)
        if names and set(names) <= set(self.method.missing):
            known = [(self._found(view), view) for view in chosen]
            return torch.cat([record.of(view, self._layer(record)) for record, view in known])
        with norm_banks.inference(self.encoder), self.encoder.apart():
            return self._layer(self.encoder.encode(chosen))

    @torch.no_grad()
    def _fit_in_eval(self, benign: tuple[Tensor, ...], adversarial: tuple[Tensor, ...]) -> None:
        with norm_banks.inference(self.encoder), self.encoder.apart():
            both = [
                self._layer(self.encoder.encode(views, norm_bank))
                for views, norm_bank in ((benign, self.method.norm_banks[0]), (adversarial, self.method.norm_banks[-1]))
            ]
        self.method.divergence.fit(*(gathered(values) for values in both))

    def _compare(self, fit: bool) -> None:
        """Add the divergence of the base's benign and adversarial examples to the other terms."""
        if not self.calls and self.method.base is not None and self.method.base.attack_mode is None:
            return  # an epoch without attack
        if not self.calls:
            message = f"base {self.method.base_name!r} made no adversarial examples with its attack"
            raise UsageError(message, parameter="base", given=self.method.base_name, allowed="a base that attacks")
        method, norm_bank = self.method, self.method.norm_banks[-1]
        pairs = list(zip(self.calls[0].benign, self.calls[0].adversarial, strict=True))
        encoded = [pair for pair in pairs if self.encoder.found(pair[1], norm_bank) is not None]
        if not encoded:
            self.encoder.encode([moved for _, moved in pairs], norm_bank)
        distributions = []
        for views, bank in zip(zip(*(encoded or pairs), strict=True), (method.norm_banks[0], norm_bank), strict=True):
            records = [self.encoder.found(view, bank) or self.encoder.encode([view], bank) for view in views]
            values = [r.of(view, self._layer(r)) for r, view in zip(records, views, strict=True)]
            distributions.append(gathered(torch.cat(values)))
        if fit:
            method.divergence.fit(*distributions)
        loss, estimate = require_pair(method.estimator, method.divergence(*distributions))
        parts = {**self.others.parts, f"global_{method.estimator}": estimate}
        self.others = replace(self.others, total=self.others.total + method.global_ * loss, parts=parts)

    def _layer(self, record: Encoded) -> Tensor:
        return F.normalize(record.embeddings, dim=1) if self.method.layer == "projections" else record.features


def _weighted(terms: Terms, weight: float, renamed: bool) -> Terms:
    """Return the weighted terms of a base; its benign part gets another name than that of the benign term."""

    def named(values: Any) -> dict[str, Any]:
        return {"base_nce_clean" if renamed and k == "nce_clean" else k: v for k, v in values.items() if weight}

    return Terms(weight * terms.total, named(terms.parts), named(terms.collapsed))
