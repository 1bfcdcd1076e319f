"""ProFeAT: adversarial distillation through a projector (Addepalli et al., TMLR 2024, arXiv 2406.05796)."""

import logging

from torch import Tensor

from acl_plugin.attacks.inner_attack import InnerAttack
from acl_plugin.errors import UsageError
from acl_plugin.losses.contrastive import cosine_distance_rows
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Terms, Views
from acl_plugin.objectives.branches import Teacher
from acl_plugin.objectives.distillation import Adapter, Distillation
from acl_plugin.registry import register
from acl_plugin.validation import require_share

logger = logging.getLogger(__name__)


@register("profeat")
class ProFeAT(Distillation):
    """ProFeAT: adversarial distillation of a frozen benign teacher in feature and projector space.

    L = D(S(a), T(w)) + beta D(S(a'), S(a)), with D(x, y) = 1 - (1 - p) cos(f_x, f_y) - p cos(g_x, g_y)

    S is the student, T the teacher, f are features and g embeddings. The student is initialized with the teacher's
    weights and keeps the teacher's projector, of whatever kind it is, frozen. Its input is a strong view a, the
    teacher's a weak view w; a' minimizes cos(f(a'), f(a)) + cos(g(a'), g_T(w)).

    Args:
        teacher: trained encoder, such as ``acl_plugin.load_encoder(RUN)`` of a SimCLR run. It is copied. In a
            configuration, the folder of a finished `acl-plugin pretrain --objective simclr`, or a timm model with
            pretrained weights (`timm:NAME`; see docs/how-to/objectives.md).
        beta: weight of the adversarial term, at least 0; 8 as published for CIFAR-100.
        projector_weight: p, in [0, 1]. With 0 there is no projector, in the attack neither; a teacher without one,
            such as a timm model, needs it.
        initialize, adapter: see ``DeACL``; an adapter (of f_S before D) needs p = 0.

    Published: SGD lr 0.5, batch 256, weight decay 3e-4, 100 epochs, AutoAugment as the strong view, and a teacher with
    the projector ``mlp_640_256`` (WRN-34-10; ``mlp_512_256`` for ResNet-18). Another kind is taken with a warning.
    Benign and adversarial images are two batches in one norm bank, as released.

    Source: arXiv 2406.05796 and its authors' code.
    """

    norm_banks = ("shared",)
    needs = ("a", "weak")
    attack_mode = "scalar"
    attacked_views, encoded_views = ("a",), ("a", "a'")
    cost = Cost(attacked=1, forwards=3, backwards=2)
    paper = "ProFeAT, TMLR 2024, arXiv 2406.05796"
    name = "profeat"

    def __init__(
        self,
        *,
        teacher: EncoderProtocol | None = None,
        beta: float = 8.0,
        projector_weight: float = 0.5,
        initialize: bool = True,
        adapter: Adapter = "none",
    ) -> None:
        super().__init__(teacher, initialize, adapter, beta)
        require_share(projector_weight=projector_weight)
        if adapter != "none" and projector_weight:
            message = (
                f"adapter {adapter!r} needs projector_weight 0: the projector takes features of the teacher's size"
            )
            raise UsageError(message, parameter="projector_weight", given=projector_weight, allowed=0)
        self.projector_weight = projector_weight
        kind = getattr(teacher, "projector_name", self.projector)
        self.projector = kind if kind != "identity" else self.projector

    def setup(self, model: EncoderProtocol) -> None:
        super().setup(model)
        if self.projector_weight:
            self.teacher.copy_projector_to(model)
        model.projector.requires_grad_(False)
        if self.projector_weight and not self.projector.startswith("mlp_"):
            logger.warning(
                f"profeat: the teacher's projector is {self.projector}; the published one has two layers without norm: "
                f"pretrain the teacher with --objective simclr --objective-kwargs.projector mlp_{model.size}_256"
            )

    def terms(self, model: EncoderProtocol, views: Views, attack: InnerAttack) -> Terms:
        model.projector.eval()  # freezes its norm statistics too
        teacher_f = self.teacher(views.weak)
        teacher_g = self._projected(self.teacher, teacher_f)
        f = model.features(views.a)
        g, fixed = self._projected(model, f), f.detach()

        def row_losses(x: Tensor) -> Tensor:
            found = model.features(x)
            apart = cosine_distance_rows(found, fixed)
            if self.projector_weight:
                apart = apart + cosine_distance_rows(model.project(found), teacher_g)
            return 1 + apart

        f_adv = model.features(attack.scalar(self.trained(model), views.a, row_losses))
        g_adv = self._projected(model, f_adv)
        return Terms.weighted(
            distillation=(1.0, self._distance(self.adapted(f), g, teacher_f, teacher_g)),
            robustness=(self.beta, self._distance(f_adv, g_adv, f, g)),
        )

    def _projected(self, encoder: EncoderProtocol | Teacher, features: Tensor) -> Tensor:
        """Return g of features; without a projector, the features."""
        return encoder.project(features) if self.projector_weight else features

    def _distance(self, f: Tensor, g: Tensor, other_f: Tensor, other_g: Tensor) -> Tensor:
        p = self.projector_weight
        of_features = (1 - p) * cosine_distance_rows(f, other_f)
        return (of_features + p * cosine_distance_rows(g, other_g) if p else of_features).mean()
