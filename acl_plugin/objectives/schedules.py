"""Schedules as pure functions of the epoch."""

import math


def staircase(epoch: int, epochs: int, stairs: int = 20) -> float:
    """Return the completed share of training, in stairs: k floor(epoch / k) / epochs with k = max(1, epochs / stairs).

    For 1000 epochs and 20 stairs it changes every 50 epochs: staircase(49, 1000) = 0, staircase(50, 1000) = 0.05.

    Args:
        epoch: number of completed epochs, from 0 to ``epochs``.
        epochs: total number of epochs.
        stairs: number of stairs.

    Returns:
        A share in [0, 1].

    Source: DynACL (arXiv 2303.01289), whose strength is 1 - staircase(epoch, epochs).
    """
    width = max(1, round(epochs / stairs))
    return width * (epoch // width) / epochs


def half_cosine(position: float, length: float, peak: float = 1.0, floor: float = 0.0) -> float:
    """Return half a cosine, from ``peak`` at position 0 to ``floor`` at ``length``.

    Example:
        >>> from acl_plugin.objectives.schedules import half_cosine
        >>> [round(half_cosine(position, 10), 3) for position in (0, 5, 10)]
        [1.0, 0.5, 0.0]
    """
    return floor + (peak - floor) * (1 + math.cos(math.pi * position / length)) / 2


def warmup_then_cosine(position: float, epochs: int, peak: float, warmup: float = 10, floor: float = 1e-8) -> float:
    """Return GSA-RSL's learning rate: linear per step during the warm-up, then a cosine that changes per epoch.

    The warm-up goes from ``floor`` to the value of the cosine at its end; the cosine ends at ``floor``.

    Args:
        position: completed epochs, from 0 to ``epochs``; the fraction is the completed share of the current one.
        epochs: total number of epochs, at least 1.
        peak: rate of the cosine at epoch 0, above ``floor``.
        warmup: epochs of the warm-up, at least 0. If ``epochs`` is no larger, all of them warm up, to ``peak``.
        floor: smallest rate.

    Source: arXiv 2311.09671, the authors' code.

    Example:
        >>> from acl_plugin.objectives.schedules import warmup_then_cosine
        >>> [round(warmup_then_cosine(position, 100, 0.5), 4) for position in (0, 5.5, 10, 50.9, 100)]
        [0.0, 0.2683, 0.4878, 0.25, 0.0]
    """
    length = min(warmup, epochs)

    def cosine(epoch: float) -> float:
        return half_cosine(epoch, epochs, peak, floor)

    if position < length:
        return floor + position / length * (cosine(length if warmup < epochs else 0) - floor)
    return cosine(math.floor(position))
