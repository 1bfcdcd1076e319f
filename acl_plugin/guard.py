"""Stop a pretraining that cannot succeed, and say what to change."""

import math

from acl_plugin import losses
from acl_plugin.config import RunConfig
from acl_plugin.errors import TrainingStopped
from acl_plugin.objective import Terms


class Guard:
    """Stops a run that cannot succeed: a loss that is not finite, or a collapsed encoder.

    Collapsed means that a part named ``nce...`` is within 0.5 % of log(2B - 1), the value for equal embeddings, in
    20 steps in a row after warm-up.

    Args:
        config: of the run.
        steps: T, all steps of the run.
        temperature: of the objective, for the message.
    """

    patience = 20
    tolerance = 0.005

    def __init__(self, config: RunConfig, steps: int, temperature: float) -> None:
        self.config, self.temperature, self.streak = config, temperature, 0
        self.level = losses.collapsed_nt_xent(config.batch_size)
        self.warm_from = steps * max(config.warmup, config.eps_ramp)

    @property
    def healthy(self) -> bool:
        """Whether the weights are worth a checkpoint."""
        return self.streak == 0

    def watch(self, terms: Terms, step: int) -> None:
        """Look at the terms of one step, before the optimiser uses their gradients.

        Raises:
            TrainingStopped: naming the step and what to change.
        """
        if not math.isfinite(terms.total.item()):
            self.streak = 1
            parts = ", ".join(f"{name} {value.item():.4g}" for name, value in terms.parts.items())
            raise TrainingStopped(f"the loss is {terms.total.item()} at step {step} ({parts}); lower --lr")
        nce = [value.item() for name, value in terms.parts.items() if name.startswith("nce")]
        collapsed = step >= self.warm_from and any(abs(v - self.level) < self.tolerance * self.level for v in nce)
        self.streak = self.streak + 1 if collapsed else 0
        if self.streak >= self.patience:
            raise TrainingStopped(
                f"the encoder has collapsed: the loss sits at log(2B - 1) = {self.level:.3f} at step {step}; raise "
                f"--eps-ramp ({self.config.eps_ramp}), lower --lr ({self.config.lr}), or change "
                f"--objective-kwargs.temperature ({self.temperature})"
            )
