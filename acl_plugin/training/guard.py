"""Stop a pretraining that cannot succeed, with advice on what to change."""

import math
from collections.abc import Mapping
from inspect import signature
from typing import NamedTuple

import torch
from torch import Tensor

from acl_plugin.config import TrainingConfig
from acl_plugin.errors import TrainingStopped, UsageError
from acl_plugin.models.protocol import Network
from acl_plugin.objectives.base import Objective, Terms
from acl_plugin.runtime.distributed import average


class Step(NamedTuple):
    """Terms of one step that has not been checked yet.

    Attributes:
        number: index of the step, from 0.
        progress: share of the run, in [0, 1).
        values: () loss and parts, by name.
        collapsed: value of a part for equal embeddings, by name.
    """

    number: int
    progress: float
    values: dict[str, Tensor]
    collapsed: Mapping[str, float]


def own_temperature(objective: Objective) -> float | None:
    """Return the temperature of an objective that has it as a setting; None for others."""
    kinds = [kind for kind in type(objective).__mro__ if issubclass(kind, Objective) and kind is not Objective]
    takes = any("temperature" in signature(kind.__init__).parameters for kind in kinds)
    return objective.temperature if takes else None


def check_gradient(model: Network, name: str) -> None:
    """Check after the backward pass of objective ``name`` that a weight of the encoder has a gradient.

    Raises:
        UsageError: when none has, as nothing of the encoder would be trained.
    """
    if all(p.grad is None for p in model.parameters()):
        message = f"objective {name!r} gives no weight of the encoder a gradient, so that it would not be trained"
        remedy = "encode in terms outside of torch.no_grad, without detach(), and leave weights that require a gradient"
        raise UsageError(f"{message}; {remedy}", parameter="objective", given=name, allowed="a loss of the encoder")


class Guard:
    """Stop a run with a non-finite loss or a collapsed encoder, on any rank.

    Collapsed means that after warm-up, a part of the loss is within 0.5 % of its value for equal embeddings
    (``Terms.collapsed``) in 20 consecutive steps.

    Args:
        training: warm-up and learning rate of the run.
        eps_ramp: share of the run in which the attack's eps grows.
        temperature: temperature of the objective, for the message; None if it has none.
    """

    patience = 20
    tolerance = 0.005
    seldom = 20  # steps between two checks on an accelerator, as each check synchronizes

    def __init__(self, training: TrainingConfig, eps_ramp: float, temperature: float | None) -> None:
        self.lr, self.eps_ramp, self.temperature, self.streak = training.lr, eps_ramp, temperature, 0
        self.warm_from = max(training.warmup, eps_ramp)
        self.unseen: list[Step] = []
        self.last = -1

    @property
    def healthy(self) -> bool:
        """Return whether the weights are worth a checkpoint; call ``look`` first."""
        return self.streak == 0

    def watch(self, terms: Terms, step: int, progress: float) -> None:
        """Record the terms of one step, at ``progress`` in [0, 1) of the run; on a CPU, check them before the update.

        Raises:
            TrainingStopped: see ``look``.
        """
        self.last = step
        self.unseen.append(Step(step, progress, {"loss": terms.total.detach(), **terms.parts}, terms.collapsed))
        if terms.total.device.type == "cpu" or len(self.unseen) >= self.seldom:
            self.look()

    def look(self) -> None:
        """Check the steps recorded since the last check.

        Raises:
            TrainingStopped: with the step and what to change.
        """
        if not self.unseen:
            return
        steps, self.unseen = self.unseen, []
        values = torch.stack([value.double() for step in steps for value in step.values.values()])
        average([values])  # a value that is not finite on one rank becomes so on all
        left = iter(values.tolist())
        for step in steps:
            self._judge({name: next(left) for name in step.values}, step)

    def check_weights(self, model: Network) -> None:
        """Check the weights after the last step, whose loss was finite although its gradient may not have been.

        Raises:
            TrainingStopped: with the step.
        """
        values = [value for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()]
        if not torch.stack([value.detach().isfinite().all() for value in values]).all():
            self.streak = 1
            raise TrainingStopped(f"the weights are not finite after step {self.last}; lower --lr")

    def _judge(self, values: Mapping[str, float], step: Step) -> None:
        loss = values["loss"]
        if not math.isfinite(loss):
            self.streak = 1
            parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "loss")
            raise TrainingStopped(f"the loss is {loss} at step {step.number} ({parts}); lower --lr")
        part = self._collapsed(values, step.collapsed) if step.progress >= self.warm_from else None
        self.streak = self.streak + 1 if part is not None else 0
        if part is not None and self.streak >= self.patience:
            more = f", or change --objective-kwargs.temperature ({self.temperature})"
            raise TrainingStopped(
                f"the encoder has collapsed: {part} is {values[part]:.3f} at step {step.number}, as for equal "
                f"embeddings ({step.collapsed[part]:.3f}); raise "
                f"--eps-ramp ({self.eps_ramp}), lower --lr ({self.lr}){more if self.temperature is not None else ''}"
            )

    def _collapsed(self, values: Mapping[str, float], levels: Mapping[str, float]) -> str | None:
        """Return the name of a part at its value for equal embeddings, or None."""
        for name, level in levels.items():
            if name in values and abs(values[name] - level) < self.tolerance * max(1, abs(level)):
                return name
        return None
