"""CLAE: contrastive learning with adversarial examples (Ho and Vasconcelos, NeurIPS 2020, arXiv 2010.12050)."""

import torch

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.contrastive import collapsed_nce, nt_xent, nt_xent_rows
from acl_plugin.models import norm_banks
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.registry import register
from acl_plugin.validation import require_not_negative


class OneSided(Objective):
    """One adversarial view: NT-Xent(p, q'), with q' the adversarial example of q that maximizes it.

    p and q are one batch in norm bank ``clean``, q' uses ``adv``.

    Attributes:
        pair: names of p and q.
        key: name of the view that q' is contrasted with.
    """

    norm_banks = ("clean", "adv")
    projector = "two_layer"
    normalized = True
    needs: tuple[str, ...] = ("a", "weak")
    attack_mode = "scalar"
    cost = Cost(attacked=1, forwards=4, backwards=3)
    pair: tuple[str, str] = ("a", "weak")
    key = "a"
    attacked_views: tuple[str, ...] = ("weak",)
    encoded_views: tuple[str, ...] = ("a", "weak", "weak'")
    benign = 0.0

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        p, q = (getattr(views, name) for name in self.pair)
        with torch.no_grad(), norm_banks.inference(model):
            key = model(getattr(views, self.key), "clean")
        moved = attack.scalar(model, q, lambda x: nt_xent_rows(model(x, "adv"), key, self.temperature).mean(0))
        z = dict(zip(self.pair, model.views(p, q, "clean"), strict=True))
        level = collapsed_nce(len(p))
        adversarial = (1.0, nt_xent(z[self.key], model(moved, "adv"), self.temperature), level)
        if not self.benign:
            return Terms.weighted(nce_adv=adversarial)
        zp, zq = z.values()
        return Terms.weighted(nce_clean=(self.benign, nt_xent(zp, zq, self.temperature), level), nce_adv=adversarial)


@register("clae")
class CLAE(OneSided):
    """CLAE: benign contrastive loss, and one of a view with its own adversarial example.

    L = benign NT-Xent(a, b) + NT-Xent(b, b')

    b' maximizes the second term. a and b are one batch in norm bank ``clean``, b' uses ``adv``.

    Args:
        temperature: tau, above 0.
        benign: weight of the benign term, at least 0.

    Published in GSA-RSL's code: SGD lr 0.5, batch 512, 500 epochs, 7 attack steps of 2/255.

    Source: arXiv 2010.12050, in the form of the code of GSA-RSL (arXiv 2311.09671), which has its projector and
    normalized features.
    """

    needs = ("a", "b")
    pair, key = ("a", "b"), "b"
    attacked_views, encoded_views = ("b",), ("a", "b", "b'")
    paper = "CLAE, NeurIPS 2020, arXiv 2010.12050"

    def __init__(self, *, temperature: float = 0.5, benign: float = 1.0) -> None:
        super().__init__(temperature=temperature)
        require_not_negative(benign=benign)
        self.benign = benign
