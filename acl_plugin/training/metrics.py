"""Means of the logged values of an epoch, kept in checkpoints, and their CSV file."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from acl_plugin.runtime.files import write_atomic


class EpochMeans:
    """Sums and counts of the values of one epoch; another epoch starts from zero."""

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


class CsvLogger(Logger):
    """One CSV file with a row per epoch, which a resumed run continues. (Lightning's own logger overwrites it.)"""

    name, version = "csv", ""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """The configuration is in config.yaml."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if "loss" not in metrics:
            return  # of a step, or of another callback
        epoch = int(metrics["epoch"])
        row: dict[str, Any] = {"epoch": epoch, "step": step, **{k: v for k, v in metrics.items() if k != "epoch"}}
        rows = list(csv.DictReader(self.path.read_text().splitlines())) if self.path.is_file() else []
        rows = [old for old in rows if int(old["epoch"]) < epoch]
        text = io.StringIO()
        columns = dict.fromkeys(name for each in [*rows, row] for name in each)  # some are not of every epoch
        writer = csv.DictWriter(text, fieldnames=list(columns), restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*rows, row])
        write_atomic(self.path, text.getvalue().encode())
