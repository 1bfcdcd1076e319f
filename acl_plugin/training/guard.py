"""Stop a pretraining that cannot succeed, and say what to change."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from acl_plugin.config import RunConfig
from acl_plugin.errors import TrainingStopped
from acl_plugin.objectives.base import Terms
from acl_plugin.runtime.distributed import average


class Step(NamedTuple):
    """Hold the terms of a step until they are looked at.

    Attributes:
        number: of the step, from 0.
        progress: in [0, 1) of the run.
        values: () loss and parts by name.
        collapsed: by name of a part, its value for equal embeddings.
    """

    number: int
    progress: float
    values: dict[str, Tensor]
    collapsed: Mapping[str, float]


class Guard:
    """Stop a run that cannot succeed: a loss that is not finite, or a collapsed encoder, on any rank.

    Collapsed means that a part of the loss is within 0.5 % of its value for equal embeddings, which the objective
    gives as ``Terms.collapsed``, in 20 steps in a row after warm-up.

    Args:
        config: of the run.
        temperature: of the objective, for the message.
    """

    patience = 20
    tolerance = 0.005
    seldom = 20  # steps between two looks at an accelerator, which has to wait for each

    def __init__(self, config: RunConfig, temperature: float) -> None:
        self.config, self.temperature, self.streak = config, temperature, 0
        self.warm_from = max(config.warmup, config.eps_ramp)
        self.unseen: list[Step] = []

    @property
    def healthy(self) -> bool:
        """Whether the weights are worth a checkpoint; after ``look``."""
        return self.streak == 0

    def watch(self, terms: Terms, step: int, progress: float) -> None:
        """Take the terms of one step, at ``progress`` in [0, 1) of the run: before their gradients are used, on a CPU.

        Raises:
            TrainingStopped: as ``look``.
        """
        self.unseen.append(Step(step, progress, {"loss": terms.total.detach(), **terms.parts}, terms.collapsed))
        if terms.total.device.type == "cpu" or len(self.unseen) >= self.seldom:
            self.look()

    def look(self) -> None:
        """Look at the steps that were not looked at.

        Raises:
            TrainingStopped: naming the step and what to change.
        """
        if not self.unseen:
            return
        steps, self.unseen = self.unseen, []
        values = torch.stack([value.double() for step in steps for value in step.values.values()])
        average([values])  # what is not finite on one rank is not finite on all
        left = iter(values.tolist())
        for step in steps:
            self._judge({name: next(left) for name in step.values}, step)

    def _judge(self, values: Mapping[str, float], step: Step) -> None:
        loss = values["loss"]
        if not math.isfinite(loss):
            self.streak = 1
            parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "loss")
            raise TrainingStopped(f"the loss is {loss} at step {step.number} ({parts}); lower --lr")
        part = self._collapsed(values, step.collapsed) if step.progress >= self.warm_from else None
        self.streak = self.streak + 1 if part is not None else 0
        if part is not None and self.streak >= self.patience:
            raise TrainingStopped(
                f"the encoder has collapsed: {part} is {values[part]:.3f} at step {step.number}, as for equal "
                f"embeddings ({step.collapsed[part]:.3f}); raise "
                f"--eps-ramp ({self.config.eps_ramp}), lower --lr ({self.config.lr}), or change "
                f"--objective-kwargs.temperature ({self.temperature})"
            )

    def _collapsed(self, values: Mapping[str, float], levels: Mapping[str, float]) -> str | None:
        """Return the name of a part that has its value for equal embeddings, or None."""
        for name, level in levels.items():
            if name in values and abs(values[name] - level) < self.tolerance * max(1, abs(level)):
                return name
        return None
