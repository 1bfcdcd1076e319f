"""GSA-RSL: the three terms of a bound on the robust loss of a linear probe (arXiv 2311.09671)."""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.errors import UsageError
from acl_plugin.losses.contrastive import collapsed_nce, nt_xent, nt_xent_rows
from acl_plugin.losses.divergences import DIVERGENCES, create_divergence
from acl_plugin.losses.sharpness import ascend
from acl_plugin.models.norm_banks import frozen_statistics
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.objectives.branches import together
from acl_plugin.registry import register
from acl_plugin.runtime.distributed import average, gathered
from acl_plugin.validation import require_not_negative, require_one_of


@register("gsa_rsl")
class GlobalSharpnessAware(Objective):
    """GSA-RSL: adversarial NCE, sharpness-aware benign NCE, and the divergence of benign and adversarial features.

    L = adversarial NCE(a', b') + benign max_{||d|| <= rho} NCE(a, b; theta + d) + global_ D(f(a, b), f(a', b'))

    A weight of 0 disables its term, and rho = 0 the sharpness. The divergence D of backbone features is JS, estimated
    by a discriminator trained alongside, or another of ``DIVERGENCES``. The paper's bounds hold for one encoder, so
    benign and adversarial views share one BatchNorm bank.

    Args:
        temperature: tau, above 0.
        adversarial, benign, global_: weights of the three terms, at least 0.
        rho: radius of the sharpness in weight space, at least 0.
        divergence: D, one of ``DIVERGENCES``.
        gradient: gradient of JS, ``reversed`` or ``non_saturating`` (see ``JensenShannon``).
        attack_divergence: let the attack also maximize the divergence.

    Source: arXiv 2311.09671. Its method is adversarial NCE, SAM on the benign NCE, and a discriminator. The defaults
    (weights 1, rho 0.05, two hidden layers of 256 with spectral norm, Adam 1e-4, one step) are ours.
    """

    routes = ("shared",)
    paper = "GSA-RSL, 2023, arXiv 2311.09671"

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        adversarial: float = 1.0,
        benign: float = 1.0,
        global_: float = 1.0,
        rho: float = 0.05,
        divergence: str = "js",
        gradient: Literal["reversed", "non_saturating"] = "reversed",
        attack_divergence: bool = False,
    ) -> None:
        super().__init__(temperature=temperature)
        require_not_negative(adversarial=adversarial, benign=benign, global_=global_, rho=rho)
        if adversarial == benign == global_ == 0:
            message = "adversarial 0, benign 0 and global_ 0: one of them must be above 0"
            raise UsageError(message, parameter="adversarial", given=0, allowed="above 0, or another of the three")
        require_one_of(("reversed", "non_saturating"), gradient=gradient)
        require_one_of(tuple(DIVERGENCES), divergence=divergence)
        if divergence != "js" and gradient != "reversed":
            message = f"gradient {gradient!r} is of divergence 'js', not of {divergence!r}"
            raise UsageError(message, parameter="gradient", given=gradient, allowed=("reversed",))
        self.adversarial, self.benign, self.global_, self.rho = adversarial, benign, global_, rho
        self.estimator, self.options = divergence, {"gradient": gradient} if divergence == "js" else {}
        self.attack_divergence = attack_divergence and global_ > 0
        if adversarial or global_:
            self.attack_view = "scalar" if self.attack_divergence else "joint"
        sharp, looks = bool(benign and rho), bool(benign or global_)  # looks: encodes benign views
        attacked = 2 if self.attack_view else 0
        backwards = attacked + (2 if looks else 0) + (2 + 2 * (global_ > 0) if sharp else 0)
        self.cost = Cost(attacked, attacked + 2 * looks + 2 * sharp, backwards)

    def setup(self, model: EncoderProtocol) -> None:
        if self.global_:
            device = next(model.parameters()).device
            self.divergence = create_divergence(self.estimator, model.size, **self.options).to(device)

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        """Return the loss without sharpness, which needs a second gradient (see ``backward``)."""
        if not (self.benign or self.global_):  # keep benign views out of the norm statistics too
            return self._others(model, views, attack, None)
        f, nce = self._benign(model, views)
        others = self._others(model, views, attack, f)
        if not self.benign:
            return others
        return Terms(others.total + self.benign * nce, {"nce_clean": nce.detach(), **others.parts}, _levels(views))

    def backward(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        """Add the gradients of all terms, that of the benign one at theta + rho g / ||g||_2.

        g is the gradient of the benign term at theta, where all other terms are taken.
        """
        if not (self.benign and self.rho):
            return super().backward(model, views, attack)
        parameters = [p for p in model.parameters() if p.requires_grad]
        f, nce = self._benign(model, views)
        others = self._others(model, views, attack, f)
        gradients = torch.autograd.grad(nce, parameters, retain_graph=True, allow_unused=True)
        average(g for g in gradients if g is not None)
        if others.total.requires_grad:
            others.total.backward()
        with frozen_statistics(model), ascend(parameters, gradients, self.rho):
            _, sharp = self._benign(model, views)
            (self.benign * sharp).backward()
        parts = {"nce_clean": nce.detach(), "sharpness": (sharp - nce).detach(), **others.parts}
        return Terms(others.total.detach() + self.benign * sharp.detach(), parts, _levels(views))

    def _benign(self, model: EncoderProtocol, views: Views) -> tuple[Tensor, Tensor]:
        f = model.features(torch.cat([views.a, views.b]))
        za, zb = model.project(f).chunk(2)
        return f, nt_xent(za, zb, self.temperature)

    def _others(self, model: EncoderProtocol, views: Views, attack: InnerAttack, f: Tensor | None) -> Terms:
        terms = Terms(views.a.new_zeros(()), {}, _levels(views))
        if self.attack_view is None:
            return terms
        f_adv = model.features(torch.cat(self._adversarial_views(model, views, attack, f)))
        if self.adversarial:
            za, zb = model.project(f_adv).chunk(2)
            nce = nt_xent(za, zb, self.temperature)
            terms = replace(terms, total=self.adversarial * nce, parts={"nce_adv": nce.detach()})
        if self.global_:
            assert f is not None
            laws = gathered(f), gathered(f_adv)
            self.divergence.fit(*laws)
            loss, estimate = self.divergence(*laws)
            parts = {**terms.parts, f"global_{self.estimator}": estimate}
            terms = replace(terms, total=terms.total + self.global_ * loss, parts=parts)
        return terms

    def _adversarial_views(
        self, model: EncoderProtocol, views: Views, attack: InnerAttack, f: Tensor | None
    ) -> tuple[Tensor, ...]:
        if not self.attack_divergence:
            return attack.joint(model, views.a, views.b, temperature=self.temperature)
        assert f is not None
        benign = f.detach()

        def row_losses(x: Tensor) -> Tensor:
            f_adv = model.features(x)
            za, zb = model.project(f_adv).chunk(2)
            nce = nt_xent_rows(za, zb, self.temperature).flatten()
            return self.adversarial * nce + self.global_ * self.divergence.adversarial_rows(benign, f_adv) / 2

        used = together(model, self.divergence)
        return attack.scalar(used, torch.cat([views.a, views.b]), row_losses).chunk(2)


def _levels(views: Views) -> dict[str, float]:
    """Return the values of the contrastive parts when all embeddings are equal."""
    return dict.fromkeys(("nce_clean", "nce_adv"), collapsed_nce(len(views.a)))
