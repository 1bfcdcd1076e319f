"""RoCL: robust contrastive learning (Kim et al., NeurIPS 2020, arXiv 2006.07589)."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.contrastive import (
    HardNegatives,
    collapsed_nce,
    multi_view_nce,
    multi_view_nce_rows,
    weighted_nce,
)
from acl_plugin.models import norm_banks
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.registry import register
from acl_plugin.validation import require_not_negative, require_one_of


@register("rocl")
class RoCL(Objective):
    """RoCL: robust contrastive learning with one adversarial and two benign views.

    L = 2 NCE(a, b, a') + lambda NCE(a', b)

    a' maximizes NCE(a', b). The factor 2 is the published sum of six pairs with weight 1/3 each.

    Args:
        temperature: tau, above 0.
        regularizer: lambda, at least 0; published as 1/256, one over the batch size per device.
        fidelity: ``released`` stops all gradients at the keys, in the attack too, and encodes (a', b) separately for
            the second term, before (a, b, a'), which decides the order of updates to the running norm statistics. The
            paper's loss is symmetric, and so is ``paper``, which reuses the embeddings.
        banks: ``shared`` encodes all three views as one batch in one bank, as published. ``dual`` has a bank for
            (a, b) and one for a', as the code of GSA-RSL; it is symmetric (``paper``).

    Published: 7 attack steps, LARS lr 1.5, batch 512, 1000 epochs, no normalization of images. The code uses torchlars,
    which multiplies by the learning rate after the momentum; `--optimizer lars` multiplies before it (see
    ``lars.LARS``). With warm-up and cosine decay the two give different weights.

    Source: arXiv 2006.07589 and its authors' code for lambda, the sum of the pairs and the projector.
    """

    norm_banks: tuple[str, ...] = ("shared",)
    projector = "wide"
    attack_mode = "scalar"
    attacked_views: tuple[str, ...] = ("a",)
    encoded_views: tuple[str, ...] = ()
    cost = Cost(attacked=1, forwards=4, backwards=3)
    paper = "RoCL, NeurIPS 2020, arXiv 2006.07589"
    weights: Tensor | None = None  # weights of the pairs of (a, b, a')
    stopped: Tensor | bool = False  # pairs whose gradient stops at the keys
    hard: HardNegatives | None = None

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        regularizer: float = 1 / 256,
        fidelity: Literal["paper", "released"] = "paper",
        banks: Literal["shared", "dual"] = "shared",
    ) -> None:
        super().__init__(temperature=temperature)
        require_not_negative(regularizer=regularizer)
        require_one_of(("paper", "released"), fidelity=fidelity)
        require_one_of(("shared", "dual"), banks=banks)
        if banks == "dual":
            require_one_of(("paper",), fidelity=fidelity)
            self.norm_banks, self.encoded_views = ("clean", "adv"), ("a", "b", "a'")
        self.regularizer, self.stopped, self.again = regularizer, fidelity == "released", fidelity == "released"
        if self.again:
            self.cost = Cost(attacked=1, forwards=6, backwards=5)

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        stopped = self.again
        with torch.no_grad(), norm_banks.inference(model):
            key = model(views.b)
        adv = self.norm_banks[-1]
        a = attack.scalar(
            model, views.a, lambda x: multi_view_nce_rows([model(x, adv), key], self.temperature, detached=stopped)
        )
        alone = model.views(a, views.b) if self.again else None
        z: Sequence[Tensor]
        if len(self.norm_banks) > 1:
            z = [*model.views(views.a, views.b, self.norm_banks[0]), model(a, adv)]
        else:
            z = model(torch.cat([views.a, views.b, a])).chunk(3)
        pair = alone or (z[2], z[1])
        options = {"detached": self.stopped, "hard": self.hard}
        scale, nce3 = weighted_nce(z, self.temperature, 2.0, self.weights, **options)
        nce_adv = multi_view_nce(pair, self.temperature, detached=stopped)
        return Terms.weighted(
            nce3=(scale, nce3, collapsed_nce(len(a), 3, self.hard)),
            nce_adv=(self.regularizer, nce_adv, collapsed_nce(len(a))),
        )
