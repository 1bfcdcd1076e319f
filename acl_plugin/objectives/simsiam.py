"""SimSiam: prediction of the other view's embedding, without negatives or momentum (Chen and He, CVPR 2021)."""

from typing import Any

from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.contrastive import cosine_distance_rows
from acl_plugin.losses.regression import spread
from acl_plugin.models.projectors import hidden_layer
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.objectives.branches import embedding_size
from acl_plugin.registry import register


@register("simsiam")
class SimSiam(Objective):
    """SimSiam: benign prediction of the other view's embedding, whose gradient is stopped.

    L = -(cos(p(z_a), sg z_b) + cos(p(z_b), sg z_a)) / 2, from -1 to 1

    p is a predictor with a hidden layer of a quarter of the embedding's size (BN and ReLU), which is not kept. Each
    view is a batch of its own.

    Published: SGD lr 0.05 for batches of 256, weight decay 1e-4, 100 epochs on ImageNet, the predictor's rate without
    decay; on CIFAR-10 lr 0.03, batch 512, weight decay 5e-4, 800 epochs. Here the rate decays for all weights.

    Source: arXiv 2011.10566, equations 2 to 4.
    """

    projector = "simsiam"
    encoded_views = ("a", "b")
    cost = Cost(attacked=0, forwards=2, backwards=2)
    paper = "SimSiam, CVPR 2021, arXiv 2011.10566"

    def __init__(self) -> None:
        super().__init__()

    def setup(self, model: EncoderProtocol) -> None:
        weight, size = next(model.parameters()), embedding_size(model)
        self.predictor = hidden_layer(size, max(1, size // 4), size).to(weight.device, weight.dtype)

    def param_groups(self, model: EncoderProtocol) -> list[dict[str, Any]]:
        return [*super().param_groups(model), {"params": list(self.predictor.parameters())}]

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        za, zb = model(views.a), model(views.b)

        def similarity(z: Tensor, other: Tensor) -> Tensor:
            return 1 - cosine_distance_rows(self.predictor(z), other.detach()).mean()

        loss = -(similarity(za, zb) + similarity(zb, za)) / 2
        return Terms.weighted(prediction=(1.0, loss), spread=(0.0, spread(za), 0.0))
