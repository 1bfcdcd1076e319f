"""ACL: adversarial contrastive learning in its three forms (Jiang et al., NeurIPS 2020, arXiv 2010.13337).

Encoder and projector have two BatchNorm banks: ``clean`` for benign views and ``adv`` for adversarial ones.
The attack maximizes the NT-Xent loss that is trained, through bank ``adv``.
"""

from typing import Literal

import torch

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.contrastive import collapsed_nce, nt_xent, nt_xent_rows
from acl_plugin.models import norm_banks
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.registry import register
from acl_plugin.validation import require_one_of

PAPER = "ACL, NeurIPS 2020, arXiv 2010.13337"


@register("acl_a2a")
class AdversarialToAdversarial(Objective):
    """ACL(A2A): adversarial contrastive learning with both views adversarial.

    L = NT-Xent(a', b')

    Args:
        temperature: tau, above 0.

    Source: arXiv 2010.13337, section 3.2.
    """

    routes = ("adv",)
    attack_view = "joint"
    cost = Cost(attacked=2, forwards=2, backwards=2)
    paper = PAPER

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        a, b = attack.joint(model, views.a, views.b, route="adv", temperature=self.temperature)
        nce = nt_xent(*model.views(a, b, "adv"), self.temperature)
        return Terms.weighted(nce_adv=(1.0, nce, collapsed_nce(len(a))))


@register("acl_a2s")
class AdversarialToStandard(Objective):
    """ACL(A2S): adversarial contrastive learning with one adversarial view.

    L = NT-Xent(a', b), with a' through bank ``adv`` and b through bank ``clean``

    Args:
        temperature: tau, above 0.
        attack_view: ``scalar`` attacks L itself. ``bank`` attacks the classification of a' among the fixed embeddings
            of b, which is independent for each sample, so that every torchattacks class is valid.

    Source: arXiv 2010.13337, section 3.2.
    """

    routes = ("clean", "adv")
    cost = Cost(attacked=1, forwards=3, backwards=2)
    paper = PAPER

    def __init__(self, *, temperature: float = 0.5, attack_view: Literal["scalar", "bank"] = "scalar") -> None:
        super().__init__(temperature=temperature)
        require_one_of(("scalar", "bank"), attack_view=attack_view)
        self.attack_view = attack_view

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        with torch.no_grad(), norm_banks.inference(model):
            keys = model(views.b, "clean")
        if self.attack_view == "bank":
            a = attack.bank(model, views.a, keys, route="adv", temperature=self.temperature)
        else:
            a = attack.scalar(model, views.a, lambda x: nt_xent_rows(model(x, "adv"), keys, self.temperature).mean(0))
        nce = nt_xent(model(a, "adv"), model(views.b, "clean"), self.temperature)
        return Terms.weighted(nce_adv=(1.0, nce, collapsed_nce(len(a))))


@register("acl_ds")
class DualStream(Objective):
    """ACL(DS): dual-stream adversarial contrastive learning, each stream through its own norm bank.

    L = (NT-Xent(a, b) + NT-Xent(a', b')) / 2

    Args:
        temperature: tau, above 0.

    Source: arXiv 2010.13337, section 3.2, in the form that the published code trains.
    """

    routes = ("clean", "adv")
    attack_view = "joint"
    cost = Cost(attacked=2, forwards=4, backwards=4)
    paper = PAPER

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        a, b = attack.joint(model, views.a, views.b, route="adv", temperature=self.temperature)
        level = collapsed_nce(len(a))
        return Terms.weighted(
            nce_clean=(0.5, nt_xent(*model.views(views.a, views.b, "clean"), self.temperature), level),
            nce_adv=(0.5, nt_xent(*model.views(a, b, "adv"), self.temperature), level),
        )
