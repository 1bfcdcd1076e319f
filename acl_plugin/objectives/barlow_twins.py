"""Barlow Twins: decorrelation of embedding dimensions (Zbontar et al., ICML 2021)."""

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.redundancy import barlow_twins_terms
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.registry import register
from acl_plugin.validation import require_not_negative


@register("barlow_twins")
class BarlowTwins(Objective):
    """Barlow Twins: benign decorrelation of embedding dimensions across two views.

    L = sum_i (1 - C_ii)^2 + redundancy sum_{i != j} C_ij^2

    C is the cross-correlation of the embeddings of a and b over the batch. Each view is a batch of its own.

    Args:
        redundancy: lambda, at least 0.

    Published: LARS lr 1.6, batch 2048, weight decay 1.5e-6, 1000 epochs on ImageNet.

    Source: arXiv 2103.03230, equation 1.
    """

    projector = "expander"
    encoded_views = ("a", "b")
    cost = Cost(attacked=0, forwards=2, backwards=2)
    paper = "Barlow Twins, ICML 2021, arXiv 2103.03230"

    def __init__(self, *, redundancy: float = 5e-3) -> None:
        super().__init__()
        require_not_negative(redundancy=redundancy)
        self.redundancy = redundancy

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        za, zb = model(views.a), model(views.b)
        invariance, redundancy = barlow_twins_terms(za, zb)
        return Terms.weighted(
            invariance=(1.0, invariance, float(za.shape[1])), redundancy=(self.redundancy, redundancy)
        )
