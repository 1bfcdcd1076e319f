"""The mean of each logged value over an epoch, which an interrupted run goes on with."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor


class EpochMeans:
    """Sums and counts of the values of one epoch; another epoch begins anew."""

    def __init__(self) -> None:
        self.epoch = -1
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def begin(self, epoch: int) -> None:
        """Forget the values of other epochs than ``epoch``."""
        if epoch != self.epoch:
            self.epoch, self.sums, self.counts = epoch, {}, {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Count () values in; on an accelerator nothing waits for them."""
        for name, value in values.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, Tensor]:
        """() of each value."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"epoch": self.epoch, "sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What ``state_dict`` gave."""
        self.epoch, self.sums, self.counts = state["epoch"], dict(state["sums"]), dict(state["counts"])
