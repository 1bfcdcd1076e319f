"""Write the cells and lines of the tables."""

import statistics
from collections.abc import Iterable, Mapping
from typing import Any

Runs = list[dict[str, Any]]


def head(*names: str) -> list[str]:
    """Return the first two lines of a table."""
    return [*row(*names), "|" + "---|" * len(names)]


def row(*cells: object) -> list[str]:
    """Return a line of a table."""
    return ["| " + " | ".join(str(cell) for cell in cells) + " |"]


def grouped(runs: Runs, by: str = "row") -> dict[str, Runs]:
    """Group runs by row, or by another entry."""
    by_row: dict[str, Runs] = {}
    for run in runs:
        by_row.setdefault(run[by], []).append(run)
    return by_row


def finished(runs: Runs) -> Runs:
    """Return the runs that have a result; the others collapsed."""
    return [run for run in runs if "evaluation" in run]


def collapsed(runs: Runs) -> str:
    """Return how many of the runs collapsed, as the end of a cell; nothing if all have a result."""
    count = len(runs) - len(finished(runs))
    return f" ({count} of {len(runs)} collapsed)" if count else ""


def clean(runs: Runs) -> list[float]:
    """Return clean accuracies in percent."""
    return [100 * run["evaluation"]["clean_accuracy"] for run in runs]


def robust(runs: Runs) -> list[float]:
    """Return AutoAttack accuracies in percent."""
    return [100 * run["evaluation"]["robust_accuracy"] for run in runs]


def seeds(runs: Runs) -> str:
    """Return the seeds of the runs."""
    return ", ".join(str(run["settings"]["seed"]) for run in runs)


def radius(settings: Mapping[str, Any]) -> str:
    """Return eps as it is usually written: with 255 below where it is a number of levels of a pixel."""
    eps = settings["eps"]
    levels = 255 * eps if isinstance(eps, float) and eps < 1 else 0.5  # older files have text
    return f"{round(levels)}/255" if abs(levels - round(levels)) < 1e-6 else str(eps)


def device(result: Mapping[str, Any]) -> str:
    """Return the device of a stored result."""
    environment = result["environment"]
    return f"{environment['device']}, {environment['threads']} threads"


def devices(runs: Iterable[Mapping[str, Any]]) -> str:
    """Return every device of stored runs, in order."""
    return "; ".join(dict.fromkeys(device(run) for run in runs))


def mean(values: Iterable[float]) -> float:
    """Return the mean of one value or more."""
    return statistics.mean(values)


def spread(values: Iterable[float]) -> str:
    """Return the mean, with the standard deviation if there are several values."""
    all_values = list(values)
    deviation = f" ± {statistics.stdev(all_values):.1f}" if len(all_values) > 1 else ""
    return f"{mean(all_values):.1f}{deviation}"
