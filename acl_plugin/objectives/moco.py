"""MoCo v2: contrast with a queue of a momentum encoder's embeddings (Chen et al., 2020)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.objectives.branches import Momentum, embedding_size
from acl_plugin.registry import register
from acl_plugin.runtime.distributed import gathered
from acl_plugin.validation import refused_value, require_share


@register("moco")
class MoCo(Objective):
    """MoCo v2: benign contrast of a view with the momentum encoder's embedding of the other, and with a queue.

    L = mean_i -log exp(q_i k_i / tau) / (exp(q_i k_i / tau) + sum_j exp(q_i n_j / tau)), all normalized

    q is the embedding of a, k that of b by the momentum encoder, which follows after each optimizer step. n is the
    queue of the latest embeddings k, of all ranks, which begins with random directions.

    Args:
        temperature: tau, above 0.
        momentum: momentum of the copy, in [0, 1].
        queue: size of the queue, at least 1; published as 65,536 for ImageNet.

    Published: SGD lr 0.03, batch 256, weight decay 1e-4, 200 epochs on ImageNet. Batches are not shuffled over devices
    (published: for BatchNorm).

    Source: MoCo (arXiv 1911.05722), equations 1 and 2, with head and temperature of v2 (arXiv 2003.04297).
    """

    projector = "two_layer"
    encoded_views = ("a",)
    cost = Cost(attacked=0, forwards=2, backwards=1)
    paper = "MoCo v2, 2020, arXiv 2003.04297"
    queue: Tensor

    def __init__(self, *, temperature: float = 0.2, momentum: float = 0.999, queue: int = 4096) -> None:
        super().__init__(temperature=temperature)
        require_share(momentum=momentum)
        if not isinstance(queue, int) or isinstance(queue, bool) or queue < 1:
            raise refused_value("queue", queue, "a whole number of 1 or more")
        self.momentum, self.length = momentum, queue

    def setup(self, model: EncoderProtocol) -> None:
        self.copy = Momentum(model, self.momentum)
        weight = next(model.parameters())
        directions = F.normalize(torch.randn(self.length, embedding_size(model)), dim=1)
        self.register_buffer("queue", directions.to(weight.device, weight.dtype))

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        self.copy.follow(model)
        q = model(views.a)
        with torch.no_grad():
            k = self.copy(views.b)
        with torch.autocast(q.device.type, enabled=False):
            q, k = (F.normalize(z.to(self.queue.dtype), dim=1) for z in (q, k))
            logits = torch.cat([(q * k).sum(1, keepdim=True), q @ self.queue.T], dim=1) / self.temperature
            nce = (logits.logsumexp(1) - logits[:, 0]).mean()
        self.queue = torch.cat([gathered(k), self.queue])[: self.length]
        return Terms.weighted(nce_clean=(1.0, nce, math.log(1 + self.length)))
