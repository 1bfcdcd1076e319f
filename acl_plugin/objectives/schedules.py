"""Schedules as pure functions of the epoch."""


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
