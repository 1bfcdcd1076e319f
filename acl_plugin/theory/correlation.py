"""Compute rank correlations with bootstrap intervals."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

FEWEST = 5
"""Smallest number of points, or groups, for a correlation."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's rho with the 95 % percentile interval of its bootstrap.

    Attributes:
        rho: in [-1, 1].
        low, high: bounds of the interval.
        n: number of points.
    """

    rho: float
    low: float
    high: float
    n: int


def spearman(
    x: Sequence[float], y: Sequence[float], groups: Sequence[Hashable] | None = None, seed: int = 0, draws: int = 1000
) -> Correlation | None:
    """Return Spearman's rank correlation of x and y, in [-1, 1], with a bootstrap interval.

    The bootstrap draws points with replacement, or whole groups if points of a group are dependent, such as the
    checkpoints of one run.

    Args:
        x, y: N values each.
        groups: N group names; None, or fewer than ``FEWEST`` groups, draws points.
        seed: seed of the draws.
        draws: number of draws.

    Returns:
        None for fewer than ``FEWEST`` points, or if x or y is constant.
    """
    import numpy as np
    from scipy.stats import rankdata

    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    names = list(dict.fromkeys(groups)) if groups is not None else []
    if groups is not None and len(names) >= FEWEST:
        members = [np.flatnonzero([g == name for g in groups]) for name in names]
    else:
        members = [np.array([i]) for i in range(len(a))]

    def of(chosen: "np.ndarray") -> float:
        ranks_a, ranks_b = rankdata(a[chosen]), rankdata(b[chosen])
        if ranks_a.std() == 0 or ranks_b.std() == 0:
            return float("nan")
        return float(np.corrcoef(ranks_a, ranks_b)[0, 1])

    if len(a) < FEWEST or np.isnan(rho := of(np.arange(len(a)))):
        return None
    generator = np.random.default_rng(seed)
    drawn = [
        of(np.concatenate([members[i] for i in generator.integers(len(members), size=len(members))]))
        for _ in range(draws)
    ]
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return Correlation(rho, float(low), float(high), len(a))
