"""Intervals of means over images by the bootstrap."""

import torch
from torch import Tensor

DRAWS = 1000


def bootstrap(rows: Tensor, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean of (N,) values, by drawing images with replacement.

    The images are drawn, not the training of an encoder or a critic: the interval is about other images of the same
    kind for this encoder.

    Args:
        rows: (N,) contributions of the images.
        seed: seed of the draws.
    """
    n, generator = len(rows), torch.Generator().manual_seed(seed)
    drawn = rows.double().cpu()[torch.randint(n, (DRAWS, n), generator=generator)].mean(1)
    low, high = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
