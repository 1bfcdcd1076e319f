"""DeACL: adversarial distillation of a benign teacher (Zhang et al., ECCV 2022, arXiv 2207.10899)."""

import torch
from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.contrastive import cosine_distance_rows
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Terms, Views
from acl_plugin.objectives.distillation import Adapter, Distillation
from acl_plugin.registry import register


@register("deacl")
class DeACL(Distillation):
    """DeACL: adversarial distillation of a frozen benign teacher in feature space.

    L = D(h(f(w)), T(w)) + beta D(f(w'), f(w)), with D(x, y) = 1 - cos(x, y)

    T is the teacher, w a weak view, and w' minimizes cos(h(f(w')), T(w)). h is the identity, unless the features of
    student and teacher differ in size. The student is initialized with the teacher's weights. Benign and adversarial
    images are encoded as one batch in one norm bank.

    Args:
        teacher: trained encoder, such as ``acl_plugin.load_encoder(RUN)`` of a SimCLR run. It is copied. In a
            configuration, the folder of a finished `acl-plugin pretrain --objective simclr`, or a timm model with
            pretrained weights (`timm:NAME`; see docs/how-to/objectives.md).
        beta: weight of the adversarial term, at least 0.
        initialize: start the student from the teacher's weights, for which both must be the same network. With False
            it starts from its own (random, `--pretrained` or `--init`) and may be any network.
        adapter: h of a student that is not initialized: ``none``, ``linear`` (Linear D-D') or ``mlp`` (Linear D-D',
            ReLU, Linear D'-D'). It is trained with the student and not kept.

    Published: SGD lr 0.5 for batches of 256, weight decay 5e-4, 100 epochs, after 1000 epochs of the teacher. On a
    pretrained teacher (arXiv 2407.12588): batch 128, 101 epochs. The adapter is not part of the paper.

    Source: arXiv 2207.10899 and its authors' code.
    """

    norm_banks = ("shared",)
    projector = "identity"
    needs = ("weak",)
    attack_mode = "scalar"
    attacked_views = ("weak",)
    cost = Cost(attacked=1, forwards=3, backwards=2)
    paper = "DeACL, ECCV 2022, arXiv 2207.10899"
    name = "deacl"

    def __init__(
        self,
        *,
        teacher: EncoderProtocol | None = None,
        beta: float = 2.0,
        initialize: bool = True,
        adapter: Adapter = "none",
    ) -> None:
        super().__init__(teacher, initialize, adapter, beta)

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        target = self.teacher(views.weak)

        def row_losses(x: Tensor) -> Tensor:
            return 1 + cosine_distance_rows(self.adapted(model.features(x)), target)

        x_adv = attack.scalar(self.trained(model), views.weak, row_losses)
        benign, adversarial = model.features(torch.cat([views.weak, x_adv])).chunk(2)
        return Terms.weighted(
            distillation=(1.0, cosine_distance_rows(self.adapted(benign), target).mean()),
            robustness=(self.beta, cosine_distance_rows(adversarial, benign).mean()),
        )
