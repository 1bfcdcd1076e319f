"""Compare two settings by the differences of their results over the same seeds."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """Paired difference of two settings.

    Attributes:
        mean: mean difference.
        low, high: 95 % interval of the mean (Student's t).
        p: two-sided p-value of a mean of 0.
        n: number of pairs.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def tie(self) -> bool:
        """Return whether the interval contains 0."""
        return self.low <= 0 <= self.high


def paired_difference(values: Mapping[int, float], others: Mapping[int, float]) -> Difference | None:
    """Return the difference values - others over the seeds that both have; None for fewer than two.

    Args:
        values, others: results by seed.

    Example:
        >>> found = paired_difference({0: 80.0, 1: 82.0, 2: 81.0}, {0: 82.0, 1: 84.0, 2: 84.0})
        >>> round(found.mean, 3), found.tie
        (-2.333, False)
    """
    from scipy.stats import t

    pairs = [values[seed] - others[seed] for seed in sorted(values.keys() & others.keys())]
    n = len(pairs)
    if n < 2:
        return None
    mean, error = statistics.mean(pairs), statistics.stdev(pairs) / math.sqrt(n)
    if error == 0:
        return Difference(mean, mean, mean, 1.0 if mean == 0 else 0.0, n)
    half = float(t.ppf(0.975, n - 1)) * error
    return Difference(mean, mean - half, mean + half, float(2 * t.sf(abs(mean) / error, n - 1)), n)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for the number of comparisons, in the given order.

    Source: Holm (Scandinavian Journal of Statistics, 1979).

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
