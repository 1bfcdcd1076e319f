"""Fit critics that separate benign from adversarial samples: the logit of "benign" as a function of the features.

A critic is a function of training rows that returns a function of rows. Rows come in pairs: row i of both samples is
the same image. Any critic gives a lower bound of the Jensen-Shannon divergence on images that it was not fitted on, so
that more critics can only raise the largest. ``scored`` reads one number a row, such as the output of a discriminator
that was trained with the encoder; the others read features.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acl_plugin.runtime.seeding import isolated_rng
from acl_plugin.runtime.threads import one_thread

PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
"""Ridge penalties to choose from, relative to the mean variance of a feature."""
INNER = 3
"""Folds of the choice of a penalty."""
HIDDEN = 64
"""Width of the network."""
STEPS = 150
"""Largest number of steps of Adam for the network, each on 256 pairs."""
PATIENCE = 15
"""Steps without an improvement of its held-out loss before the network's training ends."""
CHECKED = 5
"""Steps of the network between two looks at its held-out loss."""
BINS = 8
"""Bins of a score."""


@dataclass(frozen=True)
class Rows:
    """M pairs of rows.

    Attributes:
        benign, adversarial: (M, D) features or (M, 1) scores.
        group: (M,) known groups, such as labels; None for unknown ones.
    """

    benign: Tensor
    adversarial: Tensor
    group: Tensor | None = None

    def __len__(self) -> int:
        return len(self.benign)

    def take(self, chosen: Tensor) -> "Rows":
        """Return the pairs at the indices ``chosen``."""
        group = None if self.group is None else self.group[chosen]
        return Rows(self.benign[chosen], self.adversarial[chosen], group)


Values = tuple[Tensor, Tensor]
"""Logits (M,) of the benign and of the adversarial rows."""
Critic = Callable[[Rows, int], Callable[[Rows], Values]]
"""Takes training rows and a seed; returns a function of other rows."""


def log_loss(values: Values) -> Tensor:
    """Return the mean cross-entropy of each pair, in nats: (M,)."""
    return (F.softplus(-values[0]) + F.softplus(values[1])) / 2


def discriminant(
    grouped: Callable[[Rows, int], Callable[[Rows], Values]] | None = None, quadratic: bool = False
) -> Critic:
    """Return a linear discriminant critic, within each group of rows, with one covariance for all groups.

    The score of a row in group g is (m_g - m'_g)' (S + penalty)^-1 (x - (m_g + m'_g) / 2), with m_g and m'_g the benign
    and adversarial means of the group and S the covariance around them. The penalty is chosen by cross-validation, and
    a logistic regression of the held-out scores turns a score into a logit.

    Args:
        grouped: returns a function that assigns groups to rows; None for one group.
        quadratic: append the squares of the features, which see differences of scale.

    Source: regularized discriminant analysis (Friedman, JASA 1989).
    """

    def fit(rows: Rows, seed: int) -> Callable[[Rows], Values]:
        to_group = (grouped or _one_group)(rows, seed)
        both = torch.cat([rows.benign, rows.adversarial])
        mean, unit = both.mean(0), both.std(0).clamp_min(1e-6)

        def prepared(of: Rows) -> Rows:
            x, y = ((part - mean) / unit for part in (of.benign, of.adversarial))
            if quadratic:
                x, y = (torch.cat([part, (part.square() - 1) / 2**0.5], 1) for part in (x, y))
            return Rows(x, y)

        all_rows, groups = prepared(rows), to_group(rows)
        held_out = torch.zeros(2, len(PENALTIES), len(rows), dtype=both.dtype)
        for other, fold in split_indices(len(rows), INNER, seed):
            rule = _Discriminant(all_rows.take(other), (groups[0][other], groups[1][other]), PENALTIES)
            for side, scores in enumerate(rule.scores(all_rows.take(fold), (groups[0][fold], groups[1][fold]))):
                held_out[side][:, fold] = scores
        lines = [logistic_line(p, q) for p, q in zip(*held_out, strict=True)]
        losses = [log_loss((a * p + b, a * q + b)).mean().item() for (a, b), p, q in zip(lines, *held_out, strict=True)]
        best = min(range(len(PENALTIES)), key=losses.__getitem__)
        rule, (slope, offset) = _Discriminant(all_rows, groups, PENALTIES[best : best + 1]), lines[best]

        def values(of: Rows) -> Values:
            p, q = rule.scores(prepared(of), to_group(of))
            return slope * p[0] + offset, slope * q[0] + offset

        return values

    return fit


class _Discriminant:
    """Directions and midpoints of each group, for each penalty."""

    def __init__(self, rows: Rows, groups: Values, penalties: Sequence[float]) -> None:
        count = 1 + int(max(group.max() for group in groups))
        sums = rows.benign.new_zeros(2, count, rows.benign.shape[1])
        for side, (x, group) in enumerate(zip((rows.benign, rows.adversarial), groups, strict=True)):
            sums[side].index_add_(0, group, x)
        sizes = torch.stack([torch.bincount(group, minlength=count) for group in groups]).unsqueeze(2)
        means = sums / sizes.clamp_min(1)
        around = torch.cat([x - m[g] for x, m, g in zip((rows.benign, rows.adversarial), means, groups, strict=True)])
        covariance = around.T @ around / len(around)
        known = (sizes > 0).all(0)
        gaps = torch.where(known, means[0] - means[1], 0.0).T
        unit = covariance.diagonal().mean().clamp_min(1e-12).item()
        identity = torch.eye(len(covariance), dtype=covariance.dtype)
        # one Cholesky decomposition for each penalty takes less time than one eigenvalue decomposition
        factors = (torch.linalg.cholesky(covariance + unit * penalty * identity) for penalty in penalties)
        directions = torch.stack([torch.cholesky_solve(gaps, factor).T for factor in factors])
        self.directions = F.pad(directions, (0, 0, 0, 1))  # (penalties, groups + 1, D): the last is of new groups
        self.middles = F.pad(means.mean(0), (0, 0, 0, 1))

    def scores(self, rows: Rows, groups: Values) -> Values:
        """Return the scores of both sides, (penalties, M) each."""
        last, found = len(self.middles) - 1, []
        for x, group in zip((rows.benign, rows.adversarial), groups, strict=True):
            g = group.clamp_max(last)
            found.append(torch.stack([((x - self.middles[g]) * each[g]).sum(1) for each in self.directions]))
        return found[0], found[1]


def _one_group(rows: Rows, seed: int) -> Callable[[Rows], Values]:
    def assigned(of: Rows) -> Values:
        zeros = torch.zeros(len(of), dtype=torch.long)
        return zeros, zeros

    return assigned


def clusters(count: int) -> Callable[[Rows, int], Callable[[Rows], Values]]:
    """Return a grouping by k-means, of the features of both samples, in ``count`` clusters."""

    def fit(rows: Rows, seed: int) -> Callable[[Rows], Values]:
        from sklearn.cluster import KMeans

        both = torch.cat([rows.benign, rows.adversarial])
        with one_thread():
            means = KMeans(min(count, len(both)), n_init=2, random_state=seed % 2**32).fit(both.numpy())
        centers = torch.from_numpy(means.cluster_centers_)

        def assigned(of: Rows) -> Values:
            p, q = (torch.cdist(x, centers).argmin(1) for x in (of.benign, of.adversarial))
            return p, q

        return assigned

    return fit


def known_groups(rows: Rows, seed: int) -> Callable[[Rows], Values]:
    """Group rows by ``Rows.group``, such as the labels."""

    def assigned(of: Rows) -> Values:
        assert of.group is not None
        return of.group, of.group

    return assigned


def scored(rows: Rows, seed: int) -> Callable[[Rows], Values]:
    """Fit a histogram of a score (M, 1) in quantile bins, or with a bin for each of a few values."""
    both = torch.cat([rows.benign, rows.adversarial]).squeeze(1)
    known, shares = both.unique(), torch.linspace(0, 1, BINS + 1, dtype=both.dtype)[1:-1]
    edges = torch.quantile(both, shares).unique() if len(known) > BINS else (known[1:] + known[:-1]) / 2
    counts = torch.stack(
        [torch.bincount(_bins(x, edges), minlength=len(edges) + 1) for x in (rows.benign, rows.adversarial)]
    )
    logits = (counts + 1.0).log()  # one more of each, as a bin may be empty
    table = (logits[0] - logits[1]).to(both.dtype)

    def values(of: Rows) -> Values:
        return table[_bins(of.benign, edges)], table[_bins(of.adversarial, edges)]

    return values


def _bins(scores: Tensor, edges: Tensor) -> Tensor:
    return torch.bucketize(scores.squeeze(1).contiguous(), edges, right=True)


def network(rows: Rows, seed: int) -> Callable[[Rows], Values]:
    """Train a network with two hidden layers, without a Lipschitz constraint, until its held-out loss rises.

    A quarter of the rows is held out. ``Rows.group`` is appended as a one-hot vector.

    Args:
        rows: training rows.
        seed: seed of the network and the split.
    """
    both = torch.cat([rows.benign, rows.adversarial]).float()
    mean, unit = both.mean(0), both.std(0).clamp_min(1e-6)
    groups = 0 if rows.group is None else 1 + int(rows.group.max())

    def prepared(of: Rows) -> Values:
        shown = [] if of.group is None else [F.one_hot(of.group.clamp_max(groups - 1), groups).float()]
        p, q = (torch.cat([(x.float() - mean) / unit, *shown], 1) for x in (of.benign, of.adversarial))
        return p, q

    held_out, *others = folds(len(rows), 4, seed)
    held, train = prepared(rows.take(held_out)), prepared(rows.take(torch.cat(others)))
    with isolated_rng(seed), torch.enable_grad():
        width = both.shape[1] + groups
        layers = nn.Linear(width, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)
        h = nn.Sequential(*layers)
        _descend(h, train, held)
    with torch.no_grad():
        slope, offset = logistic_line(h(held[0]).squeeze(1), h(held[1]).squeeze(1))

    @torch.no_grad()
    def values(of: Rows) -> Values:
        p, q = (slope * h(x).squeeze(1) + offset for x in prepared(of))
        return p, q

    return values


def _descend(h: nn.Module, train: Values, held: Values) -> None:
    """Minimize the log loss of h by Adam on random pairs, and keep the weights with the lowest held-out loss."""
    adam = torch.optim.AdamW(h.parameters(), 3e-3, weight_decay=1e-2)
    best, at, since = float("inf"), [x.detach().clone() for x in h.parameters()], 0
    for step in range(STEPS):
        chosen = torch.randint(len(train[0]), (min(256, len(train[0])),))
        loss = log_loss((h(train[0][chosen]).squeeze(1), h(train[1][chosen]).squeeze(1))).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step % CHECKED:
            continue
        with torch.no_grad():
            now = log_loss((h(held[0]).squeeze(1), h(held[1]).squeeze(1))).mean().item()
        since += CHECKED
        if now < best:
            best, at, since = now, [x.detach().clone() for x in h.parameters()], 0
        if since > PATIENCE:
            break
    with torch.no_grad():
        for weight, value in zip(h.parameters(), at, strict=True):
            weight.copy_(value)


def logistic_line(benign: Tensor, adversarial: Tensor, steps: int = 30) -> tuple[float, float]:
    """Return slope, at least 0, and offset of the logistic regression of "benign" on a score, by Newton's method."""
    x, n = torch.cat([benign, adversarial]).double(), len(benign)
    unit = x.std().clamp_min(1e-12)
    design = torch.stack([(x - x.mean()) / unit, torch.ones_like(x)], 1)
    is_benign = (torch.arange(2 * n) < n).double()
    penalty = torch.tensor([1.0 / (2 * n), 1e-9]).double()
    line = torch.zeros(2, dtype=torch.float64)
    for _ in range(steps):
        chance = (design @ line).sigmoid()
        gradient = design.T @ (chance - is_benign) / (2 * n) + penalty * line
        curvature = design.T @ (design * (chance * (1 - chance)).unsqueeze(1)) / (2 * n) + penalty.diag()
        step = torch.linalg.solve(curvature, gradient).clamp(-5, 5)
        line = line - step
        if step.abs().max() < 1e-9:
            break
    slope = max(0.0, (line[0] / unit).item())
    return slope, 0.0 if slope == 0 else (line[1] - line[0] * x.mean() / unit).item()


def folds(n: int, count: int, seed: int) -> list[Tensor]:
    """Return a random partition of n indices."""
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    return [order[i::count] for i in range(min(count, n))]


def split_indices(n: int, count: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return for each fold the indices of the others, and its own."""
    parts = folds(n, count, seed)
    return [(torch.cat([*parts[:i], *parts[i + 1 :]]), part) for i, part in enumerate(parts)]


def splits(rows: Rows, count: int, seed: int) -> Iterator[tuple[Rows, Rows, Tensor]]:
    """Yield for each fold the rows to fit on, the rows to evaluate on, and the indices of the latter."""
    for other, fold in split_indices(len(rows), count, seed):
        yield rows.take(other), rows.take(fold), fold
