"""Intervals of means over images by the bootstrap, and of shares by Wilson's formula."""

import math

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


def wilson(share: float, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share of n images, in percent.

    Source: Wilson, Probable Inference, JASA 1927.
    """
    z = 1.959964
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return 100 * max(0.0, middle - half), 100 * min(1.0, middle + half)
