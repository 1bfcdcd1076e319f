"""Compare the rows of a table with the best one, by paired differences over seeds."""

from collections.abc import Callable, Mapping
from typing import Any

from acl_plugin.theory.paired import Difference, holm, paired_difference

Runs = list[dict[str, Any]]
EXPLAINED = (
    "To the best: paired difference over the common seeds with its 95 % interval (Student's t), and the p-value after "
    "Holm's correction for the rows of the table; *tie*: the interval holds 0."
)


def compared(by_row: Mapping[str, Runs], best: Runs, values: Callable[[Runs], list[float]]) -> dict[str, str]:
    """Return a cell for each row: ``best`` (also for the same runs), its difference, or nothing with a single seed.

    Args:
        by_row: runs by row.
        best: runs of the best row.
        values: returns a result of each run.
    """
    of_rows = {name: _by_seed(group, values) for name, group in by_row.items()}
    of_best = _by_seed(best, values)
    found = {name: paired_difference(each, of_best) if each != of_best else None for name, each in of_rows.items()}
    known = {name: difference for name, difference in found.items() if difference is not None}
    corrected = dict(zip(known, holm([each.p for each in known.values()]), strict=True))
    cells = {name: shown(difference, corrected[name]) for name, difference in known.items()}
    label = "best" if len(of_best) > 1 else ""
    return {name: label if each == of_best else cells.get(name, "") for name, each in of_rows.items()}


def shown(difference: Difference, p: float) -> str:
    """Return a difference in one cell."""
    tie = " *tie*" if difference.tie else ""
    least = "< 0.001" if p < 0.001 else f"{p:.3f}"
    return f"{difference.mean:+.1f} [{difference.low:+.1f}, {difference.high:+.1f}], p {least}{tie}"


def _by_seed(runs: Runs, values: Callable[[Runs], list[float]]) -> dict[int, float]:
    return dict(zip((run["settings"]["seed"] for run in runs), values(runs), strict=True))
