"""DeACL: adversarial distillation of a benign teacher (Zhang et al., ECCV 2022, arXiv 2207.10899)."""

from collections.abc import Mapping
from typing import Literal

import torch

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.losses.contrastive import cosine_distance_rows
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective, Terms, Views
from acl_plugin.objectives.branches import Teacher
from acl_plugin.registry import register
from acl_plugin.validation import require_not_negative


@register("deacl")
class DeACL(Objective):
    """DeACL: adversarial distillation of a frozen SimCLR teacher in feature space.

    L = D(f(w), T(w)) + beta D(f(w'), f(w)), with D(x, y) = 1 - cos(x, y)

    T is the teacher, w a weak view, and w' minimizes cos(f(w'), T(w)). The student is initialized with the teacher's
    weights. Benign and adversarial images are encoded as one batch in one norm bank.

    Args:
        teacher: trained encoder of the same architecture, such as ``acl_plugin.load_encoder(RUN)`` of a SimCLR run. It
            is copied. In a configuration, the folder of a finished `acl-plugin pretrain --objective simclr`.
        beta: weight of the adversarial term, at least 0.

    Published: SGD lr 0.5 for batches of 256, weight decay 5e-4, 100 epochs, after 1000 epochs of the teacher.

    Source: arXiv 2207.10899 and its authors' code.
    """

    norm_banks = ("shared",)
    projector = "identity"
    needs = ("weak",)
    attack_mode = "scalar"
    attacked_views = ("weak",)
    cost = Cost(attacked=1, forwards=3, backwards=2)
    paper = "DeACL, ECCV 2022, arXiv 2207.10899"
    from_files: Mapping[str, Literal["encoder", "pseudo_labels"]] = {"teacher": "encoder"}
    given: EncoderProtocol | None

    def __init__(self, *, teacher: EncoderProtocol | None = None, beta: float = 2.0) -> None:
        super().__init__()
        require_not_negative(beta=beta)
        self.beta = beta
        vars(self)["given"] = teacher  # not a submodule, as its copy is one

    def setup(self, model: EncoderProtocol) -> None:
        self.teacher = Teacher.of_student(self.given, model, "deacl")

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        target = self.teacher(views.weak)
        x_adv = attack.scalar(model, views.weak, lambda x: 1 + cosine_distance_rows(model.features(x), target))
        benign, adversarial = model.features(torch.cat([views.weak, x_adv])).chunk(2)
        return Terms.weighted(
            distillation=(1.0, cosine_distance_rows(benign, target).mean()),
            robustness=(self.beta, cosine_distance_rows(adversarial, benign).mean()),
        )
