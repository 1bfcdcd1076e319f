"""3SAT: BYOL on strong views, and adversarial prediction on images without augmentation (Fang et al., AAAI 2025)."""

from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.contrastive import cosine_distance_rows
from acl_plugin.losses.regression import spread
from acl_plugin.models import norm_banks
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Terms, Views
from acl_plugin.objectives.branches import together
from acl_plugin.objectives.byol import Prediction, regression_rows
from acl_plugin.registry import register
from acl_plugin.validation import require_one_of, require_share


@register("3sat")
class ThreeSAT(Prediction):
    """3SAT: BYOL on two strong views, and adversarial prediction on the image without augmentation.

    L = R(p(q(a)), k(b)) + R(p(q(b)), k(a)) + w R(p(q(o')), k(o)), with R(x, y) = 2 - 2 cos(x, y)

    o is the image without augmentation, and o' maximizes R(p(q(o')), k(o)). In epoch e of E, counted from 0, w is 0 up
    to e = start E and then (e / E - start) / (1 - start). Before start E there is no attack. All views use one norm
    bank, each in a batch of its own.

    Args:
        momentum: momentum of k in the first epoch, in [0, 1]; it grows to 1 along half a cosine, by epoch (published:
            by step).
        start: share of the epochs without the adversarial term, in [0, 1); published as 0.3 for CIFAR-10, 0.2 for
            CIFAR-100 and 0.001 for STL-10.
        fidelity: ``released`` adds R(p(q(o)), k(a)) + R(p(q(o)), k(b)), attacks in training mode (which moves the
            running norm statistics), and attacks from the first epoch on.

    Published: 5 attack steps of 2/255, LARS lr 1, weight decay 1e-5, batch 256, 1000 epochs.

    Source: AAAI 2025 and its authors' code (commit 06e3516).
    """

    norm_banks = ("shared",)
    attack_mode: Literal["scalar"] | None = "scalar"
    attacked_views = ("images",)
    encoded_views: tuple[str, ...] = ("a", "b", "images'")
    cost = Cost(attacked=1, forwards=6, backwards=3)
    paper = "3SAT, AAAI 2025, github.com/MengNanFang/3SAT"
    weight = 1.0

    def __init__(
        self, *, momentum: float = 0.99, start: float = 0.3, fidelity: Literal["paper", "released"] = "paper"
    ) -> None:
        super().__init__(momentum)
        require_share(start=start)
        require_one_of(("paper", "released"), fidelity=fidelity)
        self.start, self.released = start, fidelity == "released"
        if self.released:
            self.encoded_views = ("a", "b", "images", "images'")
            self.cost = Cost(attacked=1, forwards=7, backwards=4)

    def on_epoch(self, epoch: int, epochs: int) -> None:
        super().on_epoch(epoch, epochs)
        left = 1 - self.start
        self.weight = max(0.0, (epoch / epochs - self.start) / left) if left else 0.0
        self.attack_mode = "scalar" if self.released or epoch >= self.start * epochs else None

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        self.follow(model)
        names = ("a", "b", "images") if self.released else ("a", "b")
        attacked = self.attack_mode is not None
        z = {name: model(getattr(views, name)) for name in names}
        p = {name: self.predictor(each) for name, each in z.items()}
        with torch.no_grad():
            k = {name: self.target(getattr(views, name)) for name in ("a", "b", *["images"] * attacked)}
        pairs = [(p[name], k[aim]) for aim in ("a", "b") for name in names if name != aim]
        loss = torch.stack([regression_rows(*pair).mean() for pair in pairs]).sum()
        watched = (0.0, spread(z["a"]), 0.0)
        if not attacked:
            return Terms.weighted(regression=(1.0, loss), spread=watched)
        moved = self._attacked(model, views.images, k["images"], attack)
        adversarial = regression_rows(self.predictor(model(moved)), k["images"]).mean()
        return Terms.weighted(regression=(1.0, loss), adversarial=(self.weight, adversarial), spread=watched)

    def _attacked(self, model: EncoderProtocol, x: Tensor, target: Tensor, attack: InnerAttack) -> Tensor:
        both = together(model, self.predictor)

        def row_losses(images: Tensor) -> Tensor:
            with norm_banks.training(both) if self.released else nullcontext():
                return 1 + cosine_distance_rows(self.predictor(model(images)), target)

        return attack.scalar(both, x, row_losses)
