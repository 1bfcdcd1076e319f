"""Stop a pretraining that cannot succeed, and say what to change."""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from acl_plugin.config import RunConfig
from acl_plugin.errors import TrainingStopped
from acl_plugin.losses.contrastive import collapsed_nce
from acl_plugin.objectives.base import Terms
from acl_plugin.runtime.distributed import average


class Guard:
    """Stops a run that cannot succeed: a loss that is not finite, or a collapsed encoder, on any rank.

    Collapsed means that a part named ``nce...`` is within 0.5 % of log(2B - 1) (``nce3...``: of log(3B - 1), ...), the
    value for equal embeddings, in 20 steps in a row after warm-up. B is the batch of all ranks.

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
        self.unseen: list[tuple[int, float, dict[str, Tensor]]] = []

    @property
    def healthy(self) -> bool:
        """Whether the weights are worth a checkpoint; after ``look``."""
        return self.streak == 0

    def watch(self, terms: Terms, step: int, progress: float) -> None:
        """Take the terms of one step, at ``progress`` in [0, 1) of the run: before their gradients are used, on a CPU.

        Raises:
            TrainingStopped: as ``look``.
        """
        self.unseen.append((step, progress, {"loss": terms.total.detach(), **terms.parts}))
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
        values = torch.stack([value.double() for _, _, of_step in steps for value in of_step.values()])
        average([values])  # what is not finite on one rank is not finite on all
        left = iter(values.tolist())
        for step, progress, of_step in steps:
            self._judge({name: next(left) for name in of_step}, step, progress)

    def _judge(self, values: Mapping[str, float], step: int, progress: float) -> None:
        loss = values["loss"]
        if not math.isfinite(loss):
            self.streak = 1
            parts = ", ".join(f"{name} {value:.4g}" for name, value in values.items() if name != "loss")
            raise TrainingStopped(f"the loss is {loss} at step {step} ({parts}); lower --lr")
        level = self._collapsed(values) if progress >= self.warm_from else None
        self.streak = self.streak + 1 if level is not None else 0
        if self.streak >= self.patience:
            raise TrainingStopped(
                f"the encoder has collapsed: the loss sits at {level} at step {step}; raise "
                f"--eps-ramp ({self.config.eps_ramp}), lower --lr ({self.config.lr}), or change "
                f"--objective-kwargs.temperature ({self.temperature})"
            )

    def _collapsed(self, values: Mapping[str, float]) -> str | None:
        """The level that a part sits at, or None."""
        for name, value in values.items():
            contrastive = re.match(r"nce(\d*)", name)
            if contrastive:
                views = contrastive[1] or "2"
                level = collapsed_nce(self.config.batch_size * self.config.ranks, int(views))
                if abs(value - level) < self.tolerance * level:
                    return f"log({views}B - 1) = {level:.3f}"
        return None
