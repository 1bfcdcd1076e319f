"""BYOL: prediction of a momentum encoder's embeddings, without negatives (Grill et al., NeurIPS 2020)."""

from typing import Any

import torch
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.contrastive import cosine_distance_rows
from acl_plugin.losses.regression import spread
from acl_plugin.models.projectors import hidden_layer
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.objectives.branches import Momentum, embedding_size
from acl_plugin.objectives.schedules import half_cosine
from acl_plugin.registry import register
from acl_plugin.validation import require_share


class Prediction(Objective):
    """An encoder with a predictor p, and a momentum encoder k whose embeddings p predicts.

    Args:
        momentum: momentum of k in the first epoch, in [0, 1]; it grows to 1 along half a cosine, by epoch.
    """

    projector = "byol"

    def __init__(self, momentum: float) -> None:
        super().__init__()
        require_share(momentum=momentum)
        self.base = self.momentum = momentum

    def setup(self, model: EncoderProtocol) -> None:
        self.target = Momentum(model, self.momentum)
        weight = next(model.parameters())
        size = embedding_size(model)
        self.predictor = hidden_layer(size, min(8 * model.size, 4096), size).to(weight.device, weight.dtype)

    def param_groups(self, model: EncoderProtocol) -> list[dict[str, Any]]:
        return [*super().param_groups(model), {"params": list(self.predictor.parameters())}]

    def on_epoch(self, epoch: int, epochs: int) -> None:
        self.momentum = 1 - (1 - self.base) * half_cosine(epoch, epochs)

    def follow(self, model: EncoderProtocol) -> None:
        """Update k by the weights that the last optimizer step made; before the first one it has no effect."""
        self.target.momentum = self.momentum
        self.target.follow(model)


def regression_rows(p: Tensor, z: Tensor) -> Tensor:
    """Return the squared distance of normalized predictions and targets: (B, P), (B, P) -> (B,) in [0, 4].

    The targets take no gradient.

    Source: BYOL (arXiv 2006.07733), equation 2.
    """
    return 2 * cosine_distance_rows(p, z.detach())


@register("byol")
class BYOL(Prediction):
    """BYOL: benign prediction of a momentum encoder's embeddings, without negatives.

    L = R(p(q(a)), k(b)) + R(p(q(b)), k(a)), with R(x, y) = 2 - 2 cos(x, y)

    q is the encoder, p the predictor (BN and ReLU in its hidden layer) and k the momentum encoder, which follows after
    each optimizer step. Each view is a batch of its own. The predictor is not kept.

    Args:
        momentum: momentum of k in the first epoch, in [0, 1]; it grows to 1 along half a cosine, by epoch (published:
            by step).

    Published: LARS lr 3.2, batch 4096, weight decay 1.5e-6, momentum 0.996, 1000 epochs on ImageNet.

    Source: arXiv 2006.07733, equations 2 and 3.
    """

    encoded_views = ("a", "b")
    cost = Cost(attacked=0, forwards=4, backwards=2)
    paper = "BYOL, NeurIPS 2020, arXiv 2006.07733"

    def __init__(self, *, momentum: float = 0.996) -> None:
        super().__init__(momentum)

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        self.follow(model)
        za, zb = model(views.a), model(views.b)
        with torch.no_grad():
            ka, kb = self.target(views.a), self.target(views.b)
        loss = regression_rows(self.predictor(za), kb).mean() + regression_rows(self.predictor(zb), ka).mean()
        return Terms.weighted(regression=(1.0, loss), spread=(0.0, spread(za), 0.0))
