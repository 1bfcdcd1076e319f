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
from acl_plugin.validation import require_not_negative, require_one_of

PAPER = "ACL, NeurIPS 2020, arXiv 2010.13337"


@register("acl_a2a")
class AdversarialToAdversarial(Objective):
    """ACL(A2A): adversarial contrastive learning with both views adversarial.

    L = NT-Xent(a', b')

    Args:
        temperature: tau, above 0.

    Source: arXiv 2010.13337, section 3.2.
    """

    norm_banks = ("adv",)
    attack_mode = "pairwise"
    attacked_views, encoded_views = ("a", "b"), ("a'", "b'")
    cost = Cost(attacked=2, forwards=2, backwards=2)
    paper = PAPER

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        a, b = attack.pairwise(model, views.a, views.b, norm_bank="adv", temperature=self.temperature)
        nce = nt_xent(*model.views(a, b, "adv"), self.temperature)
        return Terms.weighted(nce_adv=(1.0, nce, collapsed_nce(len(a))))


@register("acl_a2s")
class AdversarialToStandard(Objective):
    """ACL(A2S): adversarial contrastive learning with one adversarial view.

    L = NT-Xent(a', b), with a' through bank ``adv`` and b through bank ``clean``

    Args:
        temperature: tau, above 0.
        attack_mode: ``scalar`` attacks L itself. ``bank`` attacks the classification of a' among the fixed embeddings
            of b, which is independent for each sample, so that every torchattacks class is valid.

    Source: arXiv 2010.13337, section 3.2.
    """

    norm_banks = ("clean", "adv")
    attacked_views, encoded_views = ("a",), ("b", "a'")
    cost = Cost(attacked=1, forwards=3, backwards=2)
    paper = PAPER

    def __init__(self, *, temperature: float = 0.5, attack_mode: Literal["scalar", "bank"] = "scalar") -> None:
        super().__init__(temperature=temperature)
        require_one_of(("scalar", "bank"), attack_mode=attack_mode)
        self.attack_mode = attack_mode

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        with torch.no_grad(), norm_banks.inference(model):
            keys = model(views.b, "clean")
        if self.attack_mode == "bank":
            a = attack.bank(model, views.a, keys, norm_bank="adv", temperature=self.temperature)
        else:
            a = attack.scalar(model, views.a, lambda x: nt_xent_rows(model(x, "adv"), keys, self.temperature).mean(0))
        nce = nt_xent(model(a, "adv"), model(views.b, "clean"), self.temperature)
        return Terms.weighted(nce_adv=(1.0, nce, collapsed_nce(len(a))))


@register("acl_ds")
class DualStream(Objective):
    """ACL(DS): dual-stream adversarial contrastive learning, each stream through its own norm bank.

    L = benign NT-Xent(a, b) + adversarial NT-Xent(a', b')

    Args:
        temperature: tau, above 0.
        benign, adversarial: weights of the two streams, at least 0; published as 1/2. Without a weight, the benign
            views are not encoded.

    Source: arXiv 2010.13337, section 3.2, in the form that the published code trains.
    """

    norm_banks = ("clean", "adv")
    attack_mode = "pairwise"
    attacked_views = ("a", "b")
    encoded_views: tuple[str, ...] = ("a", "b", "a'", "b'")
    cost = Cost(attacked=2, forwards=4, backwards=4)
    paper = PAPER

    def __init__(self, *, temperature: float = 0.5, benign: float = 0.5, adversarial: float = 0.5) -> None:
        super().__init__(temperature=temperature)
        require_not_negative(benign=benign, adversarial=adversarial)
        self.benign, self.adversarial = benign, adversarial
        if not benign:
            self.encoded_views, self.cost = ("a'", "b'"), Cost(attacked=2, forwards=2, backwards=2)

    def has_adversarial_loss(self) -> bool:
        return self.adversarial > 0

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        a, b = attack.pairwise(model, views.a, views.b, norm_bank="adv", temperature=self.temperature)
        level, parts = collapsed_nce(len(a)), {}
        if self.benign:
            nce = nt_xent(*model.views(views.a, views.b, "clean"), self.temperature)
            parts["nce_clean"] = (self.benign, nce, level)
        parts["nce_adv"] = (self.adversarial, nt_xent(*model.views(a, b, "adv"), self.temperature), level)
        return Terms.weighted(**parts)
