"""AdvCL: contrastive loss with high frequencies and pseudo-labels (Fan et al., NeurIPS 2021, arXiv 2111.01124)."""

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.data.augment import high_pass
from acl_plugin.data.images import Images
from acl_plugin.errors import UsageError
from acl_plugin.losses.contrastive import HardNegatives, collapsed_nce, multi_view_nce_rows, weighted_nce
from acl_plugin.models import norm_banks
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.objectives.branches import together
from acl_plugin.objectives.pseudo_labels import ClusterHeads, PseudoLabels
from acl_plugin.registry import register
from acl_plugin.validation import require_not_negative, require_one_of


@register("advcl")
class AdvCL(Objective):
    """AdvCL: contrastive learning with four views and pseudo-label clusters.

    L = (0.5 / 0.07) NCE(w', a, b, h) + 0.2 mean_K CE(W_K f(w''), cluster_K)

    w is a weak view and h its high frequencies. w' maximizes the contrastive loss, and w'' the cross-entropy of the
    linear heads W_K, summed over the clusterings. a, b and h use norm bank ``clean``, w'' uses ``ce`` and w' uses
    ``adv``. The projector has a single bank.

    Args:
        temperature: tau, above 0.
        pseudo_labels: clusterings of the training images. A tensor stands for ``PseudoLabels.by_row(tensor)``; in a
            configuration, the path of a file written by `acl-plugin pseudo-labels`. The published ones have 2, 10, 50,
            100 and 500 clusters, on features of an encoder pretrained on ImageNet.
        cluster_weight: weight of the cross-entropy; 0 disables the pseudo-labels.
        fidelity: ``paper`` attacks in eval mode, as all objectives here do: w', w'' and the keys a, b and h use the
            running norm statistics without updating them. ``released`` attacks in training mode, as the code does: all
            of them use batch statistics, and each attack step updates the running statistics of the three banks, for
            which a, b and h are encoded again in each step. (In the code, w'' also updates the projector's running
            statistics, which no training step uses.) Attacks start inside [0, 1] here, as in torchattacks.

    Published: SGD lr 0.5, batch 512, 1000 epochs, no normalization of images.

    Source: arXiv 2111.01124 and its authors' code, which has the factor 0.5 / 0.07.
    """

    norm_banks: tuple[str, ...] = ("clean", "ce", "adv")
    projector = "bottleneck"
    needs = ("a", "b", "weak")
    attack_mode = "scalar"
    attacked_views, encoded_views = ("weak",), ("a", "b", "weak'")
    cost = Cost(attacked=2, forwards=8, backwards=5)
    paper = "AdvCL, NeurIPS 2021, arXiv 2111.01124"
    from_files: Mapping[str, Literal["encoder", "pseudo_labels"]] = {"pseudo_labels": "pseudo_labels"}
    given: PseudoLabels | Tensor | None
    scale = 0.5 / 0.07
    weights: Tensor | None = None  # weights of the pairs of (w', a, b, h)
    attack_weights: Tensor | None = None  # weights of these pairs in the attack on w
    stopped: Tensor | bool = False  # pairs whose gradient stops at the keys
    hard: HardNegatives | None = None

    def __init__(
        self,
        *,
        temperature: float = 0.5,
        pseudo_labels: PseudoLabels | Tensor | None = None,
        cluster_weight: float = 0.2,
        fidelity: Literal["paper", "released"] = "paper",
    ) -> None:
        super().__init__(temperature=temperature)
        require_not_negative(cluster_weight=cluster_weight)
        require_one_of(("paper", "released"), fidelity=fidelity)
        self.cluster_weight, self.released = cluster_weight, fidelity == "released"
        vars(self)["given"] = pseudo_labels  # not a submodule, as the heads own it
        attacked = 2 if cluster_weight else 1
        keys = {"forwards": 3 + attacked, "repeated": 3} if self.released else {"forwards": 6 + attacked}
        self.cost = Cost(attacked=attacked, backwards=3 + attacked, **keys)
        if not cluster_weight:
            self.norm_banks = ("clean", "adv")

    def setup(self, model: EncoderProtocol) -> None:
        if not self.cluster_weight:
            return
        if self.given is None:
            raise UsageError(
                "objective 'advcl' needs pseudo-labels: make them with acl-plugin pseudo-labels RUN --out FILE of a "
                "pretrained run, then give --objective-kwargs.pseudo_labels FILE "
                "(or --objective-kwargs.cluster_weight 0 to go without; in Python give pseudo_labels=PseudoLabels(...) "
                "or a tensor)",
                parameter="pseudo_labels",
                given=None,
                allowed="pseudo-labels of the training images",
            )
        labels = PseudoLabels.by_row(self.given) if isinstance(self.given, Tensor) else self.given
        weight = next(model.parameters())
        self.clusters = ClusterHeads(labels, model.size).to(weight.device, weight.dtype)

    def check_images(self, images: Images) -> None:
        if self.cluster_weight:
            self.clusters.labels.check_images(images)

    def param_groups(self, model: EncoderProtocol) -> list[dict[str, Any]]:
        heads = [{"params": list(self.clusters.parameters())}] if self.cluster_weight else []
        return super().param_groups(model) + heads

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        benign = (views.a, views.b, high_pass(views.weak))
        mode = norm_banks.training if self.released else nullcontext

        @torch.no_grad()
        def encoded() -> list[Tensor]:
            return [model(x, "clean") for x in benign]

        with norm_banks.inference(model):
            fixed = [] if self.released else encoded()

        def contrast(x: Tensor) -> Tensor:
            with mode(model):
                z = [model(x, "adv"), *(fixed or encoded())]
            return self.scale * multi_view_nce_rows(z, self.temperature, weights=self.attack_weights)

        def clusters(x: Tensor) -> Tensor:
            return self.clusters(model.features(x, "ce"), views.rows)

        def attacked_clusters(x: Tensor) -> Tensor:
            with mode(model):
                return clusters(x)

        x_adv = attack.scalar(model, views.weak, contrast)
        z = [model(x_adv, "adv"), *(model(x, "clean") for x in benign)]
        self.adapt(model, views.weak, x_adv)
        options = {"detached": self.stopped, "hard": self.hard}
        scale, nce4 = weighted_nce(z, self.temperature, self.scale, self.weights, **options)
        contrast_part = (scale, nce4, collapsed_nce(len(x_adv), 4, self.hard))
        if not self.cluster_weight:
            return Terms.weighted(nce4=contrast_part)
        misled = attack.scalar(together(model, self.clusters), views.weak, attacked_clusters)
        cluster_ce = clusters(misled).mean() / len(self.clusters)
        return Terms.weighted(nce4=contrast_part, cluster_ce=(self.cluster_weight, cluster_ce))

    def adapt(self, model: EncoderProtocol, weak: Tensor, x_adv: Tensor) -> None:
        """Adapt to the size of the perturbation; a hook for subclasses."""
