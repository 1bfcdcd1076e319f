"""Schedules of the learning rate and eps."""

import math


def ramp(progress: float, share: float) -> float:
    """Return min(1, progress / share), the share of eps in use at ``progress`` in (0, 1] of the training."""
    return min(1.0, progress / share) if share else 1.0


def learning_rate(progress: float, warmup: float) -> float:
    """Return the share of the peak rate: linear over the first ``warmup`` of the training, then half a cosine to 0."""
    if progress < warmup:
        return progress / warmup
    return (1 + math.cos(math.pi * (progress - warmup) / max(1e-12, 1 - warmup))) / 2
