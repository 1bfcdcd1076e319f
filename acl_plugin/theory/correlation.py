"""Compute rank correlations, pooled and within strata, with bootstrap intervals over independent groups."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

FEWEST = 5
"""Smallest number of points for a correlation, and of groups for its interval."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho.

    Attributes:
        rho: in [-1, 1].
        low, high: 95 % percentile interval of a bootstrap over groups; None for fewer than ``FEWEST`` groups.
        partial: the correlation within strata; None if no stratum has two different points.
        n: number of points.
    """

    rho: float
    low: float | None
    high: float | None
    partial: float | None
    n: int


def spearman(
    x: Sequence[float],
    y: Sequence[float],
    groups: Sequence[Hashable] | None = None,
    strata: Sequence[Hashable] | None = None,
    seed: int = 0,
    draws: int = 1000,
) -> Correlation | None:
    """Return Spearman's rank correlation of x and y, in [-1, 1], with a bootstrap interval.

    The bootstrap draws whole groups with replacement, as points of a group are dependent: checkpoints of one run, or
    runs of one configuration. The partial correlation is that of ranks minus their means over each stratum: for strata
    of one configuration and epoch, only seeds are compared.

    Args:
        x, y: N values each.
        groups: N group names; None if all points are independent.
        strata: N names of strata; None for no partial correlation.
        seed: seed of the draws.
        draws: number of draws.

    Returns:
        None for fewer than ``FEWEST`` points, or if x or y is constant.

    Example:
        >>> spearman([1, 2, 3, 4, 5], [2, 4, 6, 8, 11]).rho
        1.0
    """
    import numpy as np
    from scipy.stats import rankdata

    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)

    def of(chosen: Any) -> float | None:
        return _pearson(rankdata(a[chosen]), rankdata(b[chosen]))

    if len(a) < FEWEST or (rho := of(np.arange(len(a)))) is None:
        return None
    low = high = partial = None
    members = _members(range(len(a)) if groups is None else groups)
    if len(members) >= FEWEST:
        generator = np.random.default_rng(seed)
        chosen = (generator.integers(len(members), size=len(members)) for _ in range(draws))
        drawn = [value for each in chosen if (value := of(np.concatenate([members[i] for i in each]))) is not None]
        low, high = map(float, np.percentile(drawn, [2.5, 97.5]))
    if strata is not None:
        of_x, of_y = rankdata(a), rankdata(b)
        for ranks in (of_x, of_y):
            for stratum in _members(strata):
                ranks[stratum] -= ranks[stratum].mean()
        partial = _pearson(of_x, of_y)
    return Correlation(rho, low, high, partial, len(a))


def _members(names: Sequence[Hashable]) -> list[Any]:
    import numpy as np

    places: dict[Hashable, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(name, []).append(i)
    return [np.array(each) for each in places.values()]


def _pearson(a: Any, b: Any) -> float | None:
    """Return the correlation of two arrays; None if one is constant up to rounding."""
    a, b = a - a.mean(), b - b.mean()
    size = float((a @ a) * (b @ b)) ** 0.5
    return None if min(a @ a, b @ b) < 1e-9 else float(min(1.0, max(-1.0, (a @ b) / size)))
