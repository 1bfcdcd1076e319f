"""Objectives that distil a frozen teacher into a student."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from acl_plugin.errors import UsageError
from acl_plugin.models.protocol import EncoderProtocol, Network
from acl_plugin.objectives.base import Objective
from acl_plugin.objectives.branches import Teacher, together
from acl_plugin.validation import require_not_negative, require_one_of

Adapter = Literal["none", "linear", "mlp"]
ADAPTERS = ("none", "linear", "mlp")


class Distillation(Objective):
    """Student and frozen teacher, with an adapter h from the student's features to those of the teacher.

    Args:
        teacher: trained encoder. It is copied.
        initialize: start the student from the teacher's weights, for which both must be the same network.
        adapter: h: ``none``, the identity; ``linear``, Linear D-D'; ``mlp``, Linear D-D', ReLU, Linear D'-D'. It is
            trained with the student and not kept. Only for a student that is not initialized.
        beta: weight of the adversarial term, at least 0.

    Attributes:
        name: name of the objective, for messages.
    """

    name: ClassVar[str]

    from_files: Mapping[str, Literal["encoder", "pseudo_labels"]] = {"teacher": "encoder"}
    finetunes = True
    given: EncoderProtocol | None

    def __init__(self, teacher: EncoderProtocol | None, initialize: bool, adapter: Adapter, beta: float) -> None:
        super().__init__()
        require_not_negative(beta=beta)
        require_one_of(ADAPTERS, adapter=adapter)
        if initialize and adapter != "none":
            message = f"adapter {adapter!r} is for a student of another network than the teacher: give initialize false"
            raise UsageError(message, parameter="adapter", given=adapter, allowed=("none",))
        self.initialize, self.adapter_kind, self.beta = initialize, adapter, beta
        vars(self)["given"] = teacher  # not a submodule, as its copy is one

    def setup(self, model: EncoderProtocol) -> None:
        self.teacher = Teacher.of_student(self.given, model, self.name, initialize=self.initialize)
        weight = next(model.parameters())
        self.adapter = _adapter(self.adapter_kind, model.size, self.teacher.encoder.size)
        self.adapter.to(weight.device, weight.dtype)

    def has_adversarial_loss(self) -> bool:
        return self.beta > 0

    def param_groups(self, model: EncoderProtocol) -> list[dict[str, Any]]:
        own = list(self.adapter.parameters())
        return super().param_groups(model) + ([{"params": own}] if own else [])

    def adapted(self, features: Tensor) -> Tensor:
        """Return h of the student's features: (B, D) -> (B, D')."""
        adapted: Tensor = self.adapter(features)
        return adapted

    def trained(self, model: EncoderProtocol) -> Network:
        """Return the modules that an attack's loss uses."""
        return together(model, self.adapter)


def _adapter(kind: str, student: int, teacher: int) -> nn.Module:
    if kind == "none" and student != teacher:
        message = (
            f"the features of the teacher have size {teacher}, those of the student {student}: give adapter linear or "
            f"mlp (--objective-kwargs.adapter linear), or a student with features of size {teacher}"
        )
        raise UsageError(message, parameter="adapter", given=kind, allowed=("linear", "mlp"))
    if kind == "none":
        return nn.Identity()
    first = nn.Linear(student, teacher)
    return first if kind == "linear" else nn.Sequential(first, nn.ReLU(), nn.Linear(teacher, teacher))
