"""VICReg: variance, invariance and covariance regularization (Bardes et al., ICLR 2022)."""

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.redundancy import vicreg_terms
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.registry import register
from acl_plugin.validation import require_not_negative

EPS = 1e-4
"""Added to variances."""


@register("vicreg")
class VICReg(Objective):
    """VICReg: benign regression between two views, with the variance of each embedding dimension kept up.

    L = invariance |z_a - z_b|^2 / P + variance V + covariance C, averaged over the batch (see ``vicreg_terms``)

    Each view is a batch of its own.

    Args:
        invariance, variance, covariance: weights, at least 0.

    Published: LARS lr 1.6, batch 2048, weight decay 1e-6, 1000 epochs on ImageNet.

    Source: arXiv 2105.04906, equation 6.
    """

    projector = "expander"
    encoded_views = ("a", "b")
    cost = Cost(attacked=0, forwards=2, backwards=2)
    paper = "VICReg, ICLR 2022, arXiv 2105.04906"

    def __init__(self, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> None:
        super().__init__()
        require_not_negative(invariance=invariance, variance=variance, covariance=covariance)
        self.invariance, self.variance, self.covariance = invariance, variance, covariance

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        invariance, variance, covariance = vicreg_terms(model(views.a), model(views.b), EPS)
        return Terms.weighted(
            invariance=(self.invariance, invariance),
            variance=(self.variance, variance, 1 - EPS**0.5),
            covariance=(self.covariance, covariance),
        )
