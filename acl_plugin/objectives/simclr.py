"""SimCLR: benign contrastive learning, the baseline of all adversarial objectives (Chen et al., ICML 2020)."""

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.contrastive import collapsed_nce, nt_xent
from acl_plugin.models.projectors import check_projector
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.registry import register


@register("simclr")
class SimCLR(Objective):
    """SimCLR: benign contrastive learning.

    L = NT-Xent(a, b)

    Args:
        temperature: tau, above 0.
        projector: ``three_layer`` (ACL's), another name of ``models.projectors.PROJECTORS``, or ``mlp_HIDDEN_OUT``,
            such as ``mlp_640_256`` for a teacher of ``profeat`` as published.

    Source: arXiv 2002.05709, equation 1.
    """

    cost = Cost(attacked=0, forwards=2, backwards=2)
    paper = "SimCLR, ICML 2020, arXiv 2002.05709"

    def __init__(self, *, temperature: float = 0.5, projector: str = "three_layer") -> None:
        super().__init__(temperature=temperature)
        check_projector(projector)
        self.projector = projector

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        za, zb = model.views(views.a, views.b)
        return Terms.weighted(nce_clean=(1.0, nt_xent(za, zb, self.temperature), collapsed_nce(len(za))))
