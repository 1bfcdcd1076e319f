"""Losses that regress embeddings on fixed ones, as pure functions, in float32 (or float64) even under autocast."""

import torch
from torch import Tensor


def squared_distance_rows(x: Tensor, y: Tensor) -> Tensor:
    """Return the squared L2 distance of each pair of samples, summed over the dimensions: (B, D), (B, D) -> (B,).

    Embeddings are not normalized.

    Source: FARE (arXiv 2402.12336), equation 3.

    Example:
        >>> from acl_plugin.losses.regression import squared_distance_rows
        >>> squared_distance_rows(torch.zeros(1, 4), torch.full((1, 4), 2.0))
        tensor([16.])
    """
    with torch.autocast(x.device.type, enabled=False):
        x, y = (t.to(torch.promote_types(t.dtype, torch.float32)) for t in (x, y))
        return (x - y).square().sum(1)
