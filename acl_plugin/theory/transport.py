"""Estimate Wasserstein-1 distances without the bias of an empirical optimal transport.

An optimal transport between two finite samples is not 0 for samples of one distribution. So a critic with Lipschitz
constant 1 is fitted on some images, and the difference of its means is taken on the others: that difference is an
unbiased estimate of a lower bound of the distance, and its mean is at most 0 for equal distributions.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from acl_plugin.theory.critics import Rows, splits

FOLDS = 2
"""Parts of the images: a critic is fitted on all but one of them."""
DIRECTIONS = 64
"""Number of random directions of the sliced distance."""


def wasserstein_rows(benign: Tensor, adversarial: Tensor, seed: int) -> Tensor:
    """Return contributions (N,) whose mean is a lower bound of W1 by a critic with Lipschitz constant 1.

    The critics are the projection on the difference of the means, the distance from the mean of both samples, and the
    potential of the optimal transport between the training images, extended to min_j ||x - y_j|| + g_j. One is chosen
    on the training images alone, as the best of three on the reported images is above the distance by chance.

    Args:
        benign, adversarial: (N, D) features; row i of both is the same image.
        seed: seed of the split.

    Source: Kantorovich-Rubinstein duality.
    """
    rows = Rows(benign.double(), adversarial.double())
    found = benign.new_zeros(len(rows), dtype=torch.float64)
    for train, held_out, fold in splits(rows, FOLDS, seed):
        gains = [_gains(other, inner) for other, inner, _ in splits(train, FOLDS, seed)]
        best = max(gains[0], key=lambda name: sum(each[name].sum().item() for each in gains))
        found[fold] = _gains(train, held_out)[best]
    return found


def _gains(train: Rows, held_out: Rows) -> dict[str, Tensor]:
    """Return the gain of each critic, fitted on ``train``, on the pairs of ``held_out``: (M,) each."""
    found = {}
    for name, critic in _critics(train).items():
        sign = 1.0 if critic(train.benign).mean() >= critic(train.adversarial).mean() else -1.0
        found[name] = sign * (critic(held_out.benign) - critic(held_out.adversarial))
    return found


def _critics(train: Rows) -> dict[str, Callable[[Tensor], Tensor]]:
    from scipy.optimize import linear_sum_assignment

    both = torch.cat([train.benign, train.adversarial])
    direction = F.normalize(train.benign.mean(0) - train.adversarial.mean(0), dim=0)
    center = both.mean(0, keepdim=True)
    y, costs = train.adversarial, torch.cdist(train.benign, train.adversarial)
    potentials = _dual(costs, torch.from_numpy(linear_sum_assignment(costs.numpy())[1]))
    return {
        "direction": lambda x: x @ direction,
        "radius": lambda x: (x - center).norm(dim=1),
        "potential": lambda x: (torch.cdist(x, y) + potentials).amin(1),
    }


def _dual(costs: Tensor, target: Tensor, most: int = 100) -> Tensor:
    """Return potentials g (M,) with f_i = min_j c_ij + g_j = c_i,t(i) + g_t(i), by Bellman-Ford on the assignment."""
    own = costs.gather(1, target.unsqueeze(1)).squeeze(1)
    reduced = torch.empty_like(costs)
    reduced[target] = costs - own.unsqueeze(1)  # of exchanging the target of row j for k
    g = costs.new_zeros(len(costs))
    for _ in range(most):
        lower = torch.minimum(g, (g.unsqueeze(0) + reduced).amin(1))
        if torch.allclose(lower, g, atol=1e-12):
            break
        g = lower
    return g


def sliced_wasserstein_rows(benign: Tensor, adversarial: Tensor, seed: int) -> Tensor:
    """Return contributions (N,) whose mean is a lower bound of the sliced Wasserstein-1 distance.

    W1 on a line is the integral of |F_Q - F_P|, so the best critic has the slope sign(F_Q - F_P). The sign is that
    of the training images. The mean is over random directions.

    Args:
        benign, adversarial: (N, D) features; row i of both is the same image.
        seed: seed of split and directions.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = F.normalize(torch.randn(DIRECTIONS, benign.shape[1], generator=generator, dtype=torch.float64), dim=1)
    rows = Rows(benign.double() @ directions.T, adversarial.double() @ directions.T)
    found = benign.new_zeros(len(rows), dtype=torch.float64)
    for train, held_out, fold in splits(rows, FOLDS, seed):
        p, q = train.benign.T, train.adversarial.T  # (directions, M)
        knots, order = torch.cat([p, q], 1).sort(1)
        ahead = torch.where(order >= p.shape[1], 1.0, -1.0).double().cumsum(1)[:, :-1]  # M (F_Q - F_P) above each knot
        heights = F.pad((ahead.sign() * knots.diff(dim=1)).cumsum(1), (1, 0))
        found[fold] = (_line(knots, heights, held_out.benign) - _line(knots, heights, held_out.adversarial)).mean(0)
    return found


def _line(knots: Tensor, heights: Tensor, x: Tensor) -> Tensor:
    """Interpolate linearly between knots (K, M), and continue with slope 0: (N, K) -> (K, N)."""
    x = x.T.contiguous().clamp(knots[:, :1], knots[:, -1:])
    right = torch.searchsorted(knots.contiguous(), x).clamp(1, knots.shape[1] - 1)
    (x0, x1), (y0, y1) = ((of.gather(1, right - 1), of.gather(1, right)) for of in (knots, heights))
    return y0 + (y1 - y0) * ((x - x0) / (x1 - x0).clamp_min(1e-300))
