"""AdvCL: contrast with high frequencies and pseudo-labels (Fan et al., NeurIPS 2021, arXiv 2111.01124)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin.backbones import Encoder
from acl_plugin.errors import UsageError
from acl_plugin.inner_attack import InnerAttack
from acl_plugin.losses import HardNegatives, multi_view_nce, multi_view_nce_rows
from acl_plugin.objective import Cost, Objective, Terms, Views, require_not_negative
from acl_plugin.pseudo_labels import PseudoLabels
from acl_plugin.registry import register
from acl_plugin.views import high_pass


@register("advcl")
class AdvCL(Objective):
    """Four views and clusters: L = (0.5 / 0.07) NCE(w', a, b, h) + 0.2 mean_K CE(W_K f(w''), cluster_K).

    w is a weak view and h its high frequencies; w' raises the contrastive loss, and w'' the cross-entropy of the
    linear heads W_K, summed over the clusterings. a, b and h go through norm bank ``clean``, w'' through ``ce`` and
    w' through ``adv``; the projector's bank is one for all.

    Args:
        temperature: tau.
        pseudo_labels: file of `acl-plugin pseudo-labels`; the published clusterings have 2, 10, 50, 100 and 500
            clusters, on features of an encoder pretrained on ImageNet.
        cluster_weight: of the cross-entropy; 0 goes without pseudo-labels.

    Published: SGD lr 0.5, batch 512, 1000 epochs; no normalisation of images. The released attack runs in training
    mode and changes the norm statistics in each step; here, as in all objectives, it leaves them alone.

    Source: arXiv 2111.01124, equations 2 to 6; the factor 0.5 / 0.07 is the released code's.
    """

    routes: tuple[str, ...] = ("clean", "ce", "adv")
    projector = "bottleneck"
    needs = ("a", "b", "weak")
    attack_view = "scalar"
    cost = Cost(attacked=2, forwards=5, backwards=5)
    paper = "AdvCL, NeurIPS 2021, arXiv 2111.01124"
    scale = 0.5 / 0.07
    weights: Tensor | None = None  # of the pairs of (w', a, b, h)
    stopped: Tensor | bool = False  # pairs whose gradient stops at the keys
    hard: HardNegatives | None = None

    def __init__(
        self, *, temperature: float = 0.5, pseudo_labels: str | None = None, cluster_weight: float = 0.2
    ) -> None:
        super().__init__(temperature=temperature)
        require_not_negative(cluster_weight=cluster_weight)
        self.cluster_weight, self.file = cluster_weight, pseudo_labels
        if not cluster_weight:
            self.routes, self.cost = ("clean", "adv"), Cost(attacked=1, forwards=4, backwards=4)

    def setup(self, model: Encoder) -> None:
        if not self.cluster_weight:
            return
        if self.file is None:
            raise UsageError(
                "objective 'advcl' needs pseudo-labels: make them with acl-plugin pseudo-labels RUN --out FILE of a "
                "pretrained run, then give --objective-kwargs.pseudo_labels FILE "
                "(or --objective-kwargs.cluster_weight 0 to go without)"
            )
        device = next(model.parameters()).device
        self.clusters = PseudoLabels.read(self.file).to(device)
        self.heads = nn.ModuleList(nn.Linear(model.size, k) for k in self.clusters.sizes).to(device)

    def check_rows(self, rows: Tensor) -> None:
        if self.cluster_weight:
            self.clusters.check_rows(rows)

    def param_groups(self, model: Encoder) -> list[dict[str, object]]:
        heads = {"params": list(self.heads.parameters())} if self.cluster_weight else None
        return super().param_groups(model) + ([heads] if heads else [])

    def terms(self, model: Encoder, views: Views, attack: InnerAttack) -> Terms:
        benign = [model(x, "clean") for x in (views.a, views.b, high_pass(views.weak))]
        adversarial = attack.scalar(model, views.weak, self._contrast_of(model, [z.detach() for z in benign]))
        self._look_at(model, views.weak, adversarial)
        z = [model(adversarial, "adv"), *benign]
        options = {"weights": self.weights, "detached": self.stopped, "hard": self.hard}
        parts = {"nce4": (self.scale, multi_view_nce(z, self.temperature, **options))}
        if self.cluster_weight:
            moved = attack.scalar(
                nn.ModuleList([model, self.heads]), views.weak, lambda x: self._cross_entropy(model, x, views.rows)
            )
            cross_entropy = self._cross_entropy(model, moved, views.rows).mean() / len(self.heads)
            parts["cluster_ce"] = (self.cluster_weight, cross_entropy)
        return Terms.weighted(**parts)

    def _contrast_of(self, model: Encoder, keys: list[Tensor]):  # type: ignore[no-untyped-def]
        return lambda x: multi_view_nce_rows([model(x, "adv"), *keys], self.temperature)

    def _look_at(self, model: Encoder, weak: Tensor, adversarial: Tensor) -> None:
        """For methods that adapt to how far the attack went."""

    def _cross_entropy(self, model: Encoder, x: Tensor, rows: Tensor) -> Tensor:
        """Summed over the clusterings: (B, C, H, W), (B,) -> (B,)."""
        features = model.features(x, "ce")
        labels = self.clusters(rows)
        return torch.stack(
            [F.cross_entropy(head(features), y, reduction="none") for head, y in zip(self.heads, labels, strict=True)]
        ).sum(0)
