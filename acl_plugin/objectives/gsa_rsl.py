"""GSA-RSL: the three terms of a bound on the robust loss of a linear probe (arXiv 2311.09671)."""

import copy
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, cast

import torch
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.data.images import Images
from acl_plugin.errors import UsageError
from acl_plugin.losses.discriminator import Discriminator
from acl_plugin.losses.divergences import DIVERGENCES, create_divergence
from acl_plugin.losses.sharpness import ascend
from acl_plugin.models import norm_banks
from acl_plugin.models.projectors import check_projector
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.addon import Added, added_cost, create_base, missing, set_up
from acl_plugin.objectives.base import Objective, Terms, Views
from acl_plugin.objectives.branches import held
from acl_plugin.objectives.clae import OneSided
from acl_plugin.objectives.gsa_pass import Pass
from acl_plugin.objectives.schedules import warmup_then_cosine
from acl_plugin.registry import register
from acl_plugin.runtime.distributed import average
from acl_plugin.validation import refused_value, require_not_negative, require_one_of, require_positive

DISCRIMINATORS = ("linear", "deep")


@register("gsa_rsl")
class GlobalSharpnessAware(Objective):
    """GSA-RSL: adversarial NCE, sharpness-aware benign NCE, and the divergence of benign and adversarial examples.

    L = adversarial L_base + benign max_{d} NCE(p, q; theta + d) + global_ D(q, q')

    Without ``base``, this is the released method: L_base = NCE(p, q') with a strong view p, a weak view q and q' its
    adversarial example, which maximizes NCE(p, q') - global_ BCE(h(q'), 0). D is the Jensen-Shannon divergence of
    normalized embeddings, estimated by a linear discriminator h. h takes one step of SGD per batch, on embeddings in
    eval mode. d is the step of ASAM for the benign term alone. p and q use norm bank ``clean``, q' uses ``adv``.

    With ``base``, the benign term and D are added to another objective: its loss is L_base, its attack maximizes its
    own loss and that of h, D compares the views that it attacks with their adversarial examples, and (p, q) are its
    two strong views, or its strong and its weak one.

    Args:
        temperature: tau, above 0; also of the base.
        base: name of an objective with an inner attack; None for the released NCE(p, q').
        base_kwargs: settings of the base.
        adversarial, benign, global_: weights of the three terms, at least 0; 0 disables a term.
        rho: radius of the sharpness, at least 0; 0 disables it.
        adaptive: ASAM; otherwise SAM.
        sharpen: the term that is sharpness-aware: ``benign``, or ``all`` for the whole loss.
        freeze_statistics: keep the running norm statistics fixed in the second pass.
        divergence: ``linear`` or ``deep`` discriminator, or another estimator of ``DIVERGENCES`` (js, mmd, ...), which
            is fitted to the embeddings of the training pass.
        layer: ``projections`` (normalized) or ``features``; None for projections if the encoder has a projector.
        attack_divergence: let the attack also maximize the divergence.
        steps: 3: attack, h, encoder. 4: attack without h, h, attack with h, encoder.
        discriminator_lr: peak learning rate of h, with GSA-RSL's schedule by epoch.
        gradient: gradient of divergence js, ``reversed`` or ``non_saturating`` (see ``JensenShannon``).
        projector, normalized: network; None for the base's own, or the released ``two_layer`` and True.

    Raises:
        UsageError: for a base without adversarial examples or with a backward pass of its own, a discriminator on a
            layer that the encoder lacks, and settings out of range.

    Published: SGD lr 0.5, batch 512, weight decay 1e-4, 500 epochs, 7 attack steps of 2/255.

    Source: arXiv 2311.09671 and its authors' code; docs/decisions.md lists the differences.
    """

    paper = "GSA-RSL, 2023, arXiv 2311.09671"

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        base: str | None = None,
        base_kwargs: dict[str, Any] | None = None,
        adversarial: float = 1.0,
        benign: float = 2.0,
        global_: float = 0.1,
        rho: float = 1.0,
        adaptive: bool = True,
        sharpen: Literal["benign", "all"] = "benign",
        freeze_statistics: bool = True,
        divergence: str = "linear",
        layer: Literal["projections", "features"] | None = None,
        attack_divergence: bool = True,
        steps: int = 3,
        discriminator_lr: float = 0.2,
        gradient: Literal["reversed", "non_saturating"] = "reversed",
        projector: str | None = None,
        normalized: bool | None = None,
    ) -> None:
        super().__init__(temperature=temperature)
        require_not_negative(adversarial=adversarial, benign=benign, global_=global_, rho=rho)
        if adversarial == benign == global_ == 0:
            message = "adversarial 0, benign 0 and global_ 0: one of them must be above 0"
            raise UsageError(message, parameter="adversarial", given=0, allowed="above 0, or another of the three")
        require_one_of(("benign", "all"), sharpen=sharpen)
        self.adversarial, self.benign, self.global_, self.rho = adversarial, benign, global_, rho
        self.adaptive, self.freeze_statistics = adaptive, freeze_statistics
        self.sharpened = "" if not rho or (sharpen == "benign" and not benign) else sharpen
        self._choose_divergence(divergence, gradient, discriminator_lr)
        self._choose_steps(steps, attack_divergence)
        if projector is not None:
            check_projector(projector)
        self._choose_base(base, dict(base_kwargs or {}), projector, normalized)
        self._choose_layer(layer)
        self._plan()

    def has_adversarial_loss(self) -> bool:
        return self.adversarial > 0 and self.base is not None and self.base.has_adversarial_loss()

    def _choose_divergence(self, divergence: str, gradient: str, lr: float) -> None:
        require_one_of(("reversed", "non_saturating"), gradient=gradient)
        require_one_of((*DISCRIMINATORS, *DIVERGENCES), divergence=divergence)
        require_positive(discriminator_lr=lr)
        if divergence != "js" and gradient != "reversed":
            message = f"gradient {gradient!r} is of divergence 'js', not of {divergence!r}"
            raise UsageError(message, parameter="gradient", given=gradient, allowed=("reversed",))
        self.estimator, self.peak = divergence, lr
        self.gradient = {"gradient": gradient} if divergence == "js" else {}
        self.in_eval = divergence in DISCRIMINATORS

    def _choose_steps(self, steps: int, attack_divergence: bool) -> None:
        if steps not in (3, 4):
            raise refused_value("steps", steps, "3 or 4")
        if steps == 4 and not (self.in_eval and attack_divergence):
            allowed = "3, or a discriminator (divergence linear or deep) that the attack sees (attack_divergence)"
            raise refused_value("steps", steps, allowed)
        self.attack_divergence = attack_divergence and self.global_ > 0
        self.attacks_twice = steps == 4 and self.attack_divergence

    def _choose_base(self, name: str | None, settings: dict, projector: str | None, normalized: bool | None) -> None:
        if name is None and settings:
            raise refused_value("base_kwargs", settings, "settings of a base; give base as well")
        if name is None:
            base: Objective = OneSided(temperature=self.temperature)
        else:
            base = create_base(name, settings, temperature=self.temperature)
        self.norm_banks, self.strength = base.norm_banks, base.strength
        self.projector = base.projector if projector is None else projector
        self.normalized = base.normalized if normalized is None else normalized
        self.pair = ("a", "b") if "b" in base.needs else ("a", "weak")
        self.base_name = name or "one-sided"
        self.base = base if self.adversarial or self.global_ else None

    def _choose_layer(self, layer: str | None) -> None:
        if layer is not None:
            require_one_of(("projections", "features"), layer=layer)
        lacks = self.projector == "identity"
        if layer == "projections" and lacks and self.global_:
            message = "layer 'projections': projector 'identity' has none; the nearest: features"
            raise UsageError(message, parameter="layer", given=layer, allowed=("features",))
        self.layer = layer or ("features" if lacks else "projections")

    def _plan(self) -> None:
        """Set the attributes that depend on the base and the added terms."""
        base, pair = self.base, self.pair if self.benign else ()
        self.added = Added(
            pair,
            compared=self.global_ > 0,
            in_eval=self.in_eval and self.global_ > 0,
            attack_repeated=self.attacks_twice,
            attack_compares=self.attack_divergence and not self.in_eval,
            sharpened=self.sharpened,
        )
        self.missing = missing(base, self.added)
        self.cost = added_cost(base, self.added)
        self.needs = tuple(dict.fromkeys((*(base.needs if base is not None else ()), *pair)))
        if base is not None:
            self._follow(base)
            self.needs_start = base.needs_start
            self.from_files = {f"base_kwargs.{name}": kind for name, kind in base.from_files.items()}

    def _follow(self, base: Objective) -> None:
        """Take over what may change from epoch to epoch; in one without attack, there is nothing to compare either."""
        self.strength = base.strength
        self.attack_mode = "scalar" if base.attack_mode and self.attack_divergence else base.attack_mode

    def setup(self, model: EncoderProtocol) -> None:
        if self.base is not None:
            set_up(self.base, self.base_name, model)
        if self.global_:
            weight = next(model.parameters())
            size = model.size
            if self.layer == "projections":
                with torch.no_grad(), norm_banks.inference(model):
                    size = model.project(weight.new_zeros(1, size)).shape[1]
            if self.in_eval:
                divergence: Any = Discriminator(size, cast(Any, self.estimator), self.peak)
            else:
                divergence = create_divergence(self.estimator, size, **self.gradient)
            self.divergence = divergence.to(weight.device, weight.dtype if self.in_eval else None)

    def check_images(self, images: Images) -> None:
        if self.base is not None:
            self.base.check_images(images)

    def param_groups(self, model: EncoderProtocol) -> list[dict[str, Any]]:
        return super().param_groups(model) if self.base is None else self.base.param_groups(model)

    def downstream(self, model: EncoderProtocol) -> EncoderProtocol:
        return model if self.base is None else self.base.downstream(model)

    def discriminator(self) -> tuple[str, Discriminator] | None:
        return (self.layer, self.divergence) if self.global_ and self.in_eval else None

    def on_epoch(self, epoch: int, epochs: int) -> None:
        if self.base is not None:
            self.base.on_epoch(epoch, epochs)
            self._follow(self.base)
        if self.global_ and self.in_eval:  # a step does not know the number of steps: the rate of the middle
            self.divergence.lr = warmup_then_cosine(epoch + 0.5, epochs, self.peak)

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        """Return the loss without sharpness, which needs a second gradient (see ``backward``)."""
        return Pass(self, model, views, attack).terms()

    def backward(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        """Add the gradients of all terms, those of the sharpened ones at theta + d.

        d comes from the gradient of the sharpened terms at theta, where all other terms are taken.
        """
        if not self.sharpened:
            return super().backward(model, views, attack)
        parameters = [p for p in model.parameters() if p.requires_grad]
        before = {} if self.base is None or self.sharpened != "all" else copy.deepcopy(self.base.state_dict())
        first = Pass(self, model, views, attack)
        terms = first.terms()
        loss = terms.total if self.sharpened == "all" else first.contrast()
        gradients = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
        average(g for g in gradients if g is not None)
        if self.sharpened == "benign" and first.others.total.requires_grad:
            first.others.total.backward()
        statistics = norm_banks.frozen_statistics if self.freeze_statistics else nullcontext
        with statistics(model), ascend(parameters, gradients, self.rho, self.adaptive):
            if self.sharpened == "all":
                sharp = self._backward_again(first, before)
                return replace(terms, total=sharp, parts={**terms.parts, "sharpness": sharp - loss.detach()})
            sharp = first.contrast_again()
            (self.benign * sharp).backward()
        done = first.terms(sharp, sharpness=(sharp - loss).detach())
        return replace(done, total=done.total.detach())

    def _backward_again(self, first: Pass, before: dict[str, Any]) -> Tensor:
        """Add the gradients of the whole loss at the current weights, and return it.

        The base begins in its state ``before`` the first pass, and ends in that after it.
        """
        if self.base is None:
            total = first.again().terms().total
            total.backward()
            return total.detach()
        after = copy.deepcopy(self.base.state_dict())
        with held(self.base):
            self.base.load_state_dict(before)
            total = first.again().terms().total
        total.backward()
        self.base.load_state_dict(after)
        return total.detach()
