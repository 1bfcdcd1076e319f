"""Compute rank correlations, pooled and within strata, with bootstrap intervals over independent groups."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from acl_plugin.validation import refused_value

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
        None for fewer than ``FEWEST`` points, if x or y is constant, or if a value is not finite.

    Raises:
        UsageError: for sequences of different lengths.

    Example:
        >>> spearman([1, 2, 3, 4, 5], [2, 4, 6, 8, 11]).rho
        1.0
    """
    import numpy as np

    for name, given in {"y": y, "groups": groups, "strata": strata}.items():
        if given is not None and len(given) != len(x):
            raise refused_value(name, f"of length {len(given)}", f"of the length of x, {len(x)}")
    a, b = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    once = np.ones((1, len(a)))
    if len(a) < FEWEST or not np.isfinite([a, b]).all() or not np.isfinite(rho := _rhos(a, b, once)[0]):
        return None
    low = high = partial = None
    members = _members(range(len(a)) if groups is None else groups)
    if len(members) >= FEWEST:
        chosen = np.random.default_rng(seed).integers(len(members), size=(draws, len(members)))
        times = np.stack([np.bincount(each, minlength=len(members)) for each in chosen])
        weights = np.empty((draws, len(a)))
        for number, points in enumerate(members):
            weights[:, points] = times[:, [number]]
        low, high = map(float, np.nanpercentile(_rhos(a, b, weights), [2.5, 97.5]))
    if strata is not None:
        of_x, of_y = (_ranks(each, once)[0] for each in (a, b))
        for ranks in (of_x, of_y):
            for stratum in _members(strata):
                ranks[stratum] -= ranks[stratum].mean()
        within = _pearson(of_x, of_y, once)[0]
        partial = float(within) if np.isfinite(within) else None
    return Correlation(float(rho), low, high, partial, len(a))


def _rhos(a: Any, b: Any, weights: Any) -> Any:
    """Return Spearman's rho of each sample in which point i occurs ``weights[s, i]`` times; nan for a constant one."""
    return _pearson(_ranks(a, weights), _ranks(b, weights), weights)


def _ranks(values: Any, weights: Any) -> Any:
    """Return the average ranks (samples, N) of values (N,), of which value i occurs ``weights[s, i]`` times."""
    import numpy as np

    different, place = np.unique(values, return_inverse=True)
    counts = np.zeros((len(weights), len(different)))
    np.add.at(counts.T, place, weights.T)
    return (counts.cumsum(1) - counts + (counts + 1) / 2)[:, place]


def _pearson(a: Any, b: Any, weights: Any) -> Any:
    """Return the weighted correlation of each row of two arrays; nan if one is constant up to rounding."""
    import numpy as np

    count = weights.sum(1, keepdims=True)
    a, b = (each - (weights * each).sum(1, keepdims=True) / count for each in (np.atleast_2d(a), np.atleast_2d(b)))
    aa, bb, ab = (np.einsum("si,si,si->s", weights, *pair) for pair in ((a, a), (b, b), (a, b)))
    size = np.sqrt(np.maximum(aa * bb, 1e-18))
    return np.where(np.minimum(aa, bb) < 1e-9, np.nan, np.clip(ab / size, -1.0, 1.0))


def _members(names: Sequence[Hashable]) -> list[Any]:
    import numpy as np

    places: dict[Hashable, list[int]] = {}
    for i, name in enumerate(names):
        places.setdefault(name, []).append(i)
    return [np.array(each) for each in places.values()]
