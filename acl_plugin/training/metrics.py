"""Epoch means of logged values, stored in checkpoints, and their CSV file."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from acl_plugin.runtime.device import precise
from acl_plugin.runtime.files import write_atomic


class EpochMeans:
    """Sums and counts of the values of one epoch, reset for another epoch."""

    def __init__(self) -> None:
        self.epoch = -1
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def begin(self, epoch: int) -> None:
        """Discard the values of epochs other than ``epoch``."""
        if epoch != self.epoch:
            self.epoch, self.sums, self.counts = epoch, {}, {}

    def add(self, values: Mapping[str, Tensor]) -> None:
        """Add () values, without synchronizing an accelerator; a sum in bfloat16 would stop growing."""
        for name, value in ((name, precise(value)) for name, value in values.items()):
            self.sums[name] = self.sums[name] + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, Tensor]:
        """Return the () mean of each value."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"epoch": self.epoch, "sums": self.sums, "counts": self.counts}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from ``state_dict``."""
        self.epoch, self.sums, self.counts = state["epoch"], dict(state["sums"]), dict(state["counts"])


class CsvLogger(Logger):
    """Write one CSV row per epoch, to a file that a resumed run continues. (Lightning's CSV logger overwrites it.)"""

    name, version = "csv", ""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Do nothing: the configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "loss" not in metrics:
            return  # logged by a step or another callback
        epoch = int(metrics["epoch"])
        row: dict[str, Any] = {"epoch": epoch, "step": step, **{k: v for k, v in metrics.items() if k != "epoch"}}
        rows = list(csv.DictReader(self.path.read_text("utf-8").splitlines())) if self.path.is_file() else []
        rows = [old for old in rows if int(old["epoch"]) < epoch]
        text = io.StringIO()
        columns = dict.fromkeys(name for each in [*rows, row] for name in each)  # some are not logged in every epoch
        writer = csv.DictWriter(text, fieldnames=list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, row])
        write_atomic(self.path, text.getvalue().encode())
