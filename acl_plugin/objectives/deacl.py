"""DeACL: adversarial distillation of a benign teacher (Zhang et al., ECCV 2022, arXiv 2207.10899)."""

from collections.abc import Mapping
from typing import ClassVar, Literal

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
    """Distillation in feature space: L = D(f(w), T(w)) + beta D(f(w'), f(w)), T a frozen SimCLR encoder.

    D(x, y) = 1 - cos(x, y); w is a weak view, and w' lowers cos(f(w'), T(w)). The student starts as the teacher; benign
    and adversarial images are encoded as one batch in one norm bank.

    Args:
        teacher: a trained encoder of the same network, such as ``acl_plugin.load_encoder(RUN)`` of a SimCLR run; it is
            copied. In a configuration the folder of a finished `acl-plugin pretrain --objective simclr`.
        beta: weight of the adversarial term.

    Published: SGD lr 0.5 for batches of 256, weight decay 5e-4, 100 epochs, after 1000 epochs of the teacher.

    Source: arXiv 2207.10899, and its authors' code.
    """

    routes = ("shared",)
    projector = "identity"
    needs = ("weak",)
    attack_view = "scalar"
    cost = Cost(attacked=1, forwards=3, backwards=2)
    paper = "DeACL, ECCV 2022, arXiv 2207.10899"
    from_files: ClassVar[Mapping[str, Literal["encoder", "pseudo_labels"]]] = {"teacher": "encoder"}
    given: EncoderProtocol | None

    def __init__(self, *, teacher: EncoderProtocol | None = None, beta: float = 2.0) -> None:
        super().__init__()
        require_not_negative(beta=beta)
        self.beta = beta
        vars(self)["given"] = teacher  # no submodule: a copy of it is one

    def setup(self, model: EncoderProtocol) -> None:
        self.teacher = Teacher.of_student(self.given, model, "deacl")

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        target = self.teacher(views.weak)
        moved = attack.scalar(model, views.weak, lambda x: 1 + cosine_distance_rows(model.features(x), target))
        benign, adversarial = model.features(torch.cat([views.weak, moved])).chunk(2)
        return Terms.weighted(
            distillation=(1.0, cosine_distance_rows(benign, target).mean()),
            robustness=(self.beta, cosine_distance_rows(adversarial, benign).mean()),
        )
