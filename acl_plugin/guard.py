"""Stop a pretraining that cannot succeed, and say what to change."""

import math
import re

from acl_plugin import losses
from acl_plugin.config import RunConfig
from acl_plugin.errors import TrainingStopped
from acl_plugin.objective import Terms


class Guard:
    """Stops a run that cannot succeed: a loss that is not finite, or a collapsed encoder.

    Collapsed means that a part named ``nce...`` is within 0.5 % of log(2B - 1) (``nce3...``: of log(3B - 1), ...), the
    value for equal embeddings, in 20 steps in a row after warm-up.

    Args:
        config: of the run.
        temperature: of the objective, for the message.
    """

    patience = 20
    tolerance = 0.005

    def __init__(self, config: RunConfig, temperature: float) -> None:
        self.config, self.temperature, self.streak = config, temperature, 0
        self.warm_from = max(config.warmup, config.eps_ramp)

    @property
    def healthy(self) -> bool:
        """Whether the weights are worth a checkpoint."""
        return self.streak == 0

    def watch(self, terms: Terms, step: int, progress: float) -> None:
        """Look at the terms of one step, at ``progress`` in [0, 1) of the run, before their gradients are used.

        Raises:
            TrainingStopped: naming the step and what to change.
        """
        if not math.isfinite(terms.total.item()):
            self.streak = 1
            parts = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.parts.items())
            raise TrainingStopped(f"the loss is {terms.total.item()} at step {step} ({parts}); lower --lr")
        level = self._collapsed(terms) if progress >= self.warm_from else None
        self.streak = self.streak + 1 if level is not None else 0
        if self.streak >= self.patience:
            raise TrainingStopped(
                f"the encoder has collapsed: the loss sits at {level} at step {step}; raise "
                f"--eps-ramp ({self.config.eps_ramp}), lower --lr ({self.config.lr}), or change "
                f"--objective-kwargs.temperature ({self.temperature})"
            )

    def _collapsed(self, terms: Terms) -> str | None:
        """The level that a part sits at, or None."""
        for name, value in terms.parts.items():
            contrastive = re.match(r"nce(\d*)", name)
            if contrastive:
                views = contrastive[1] or "2"
                level = losses.collapsed_nce(self.config.batch_size, int(views))
                if abs(value.item() - level) < self.tolerance * level:
                    return f"log({views}B - 1) = {level:.3f}"
        return None
