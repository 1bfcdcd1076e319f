"""Schedules as pure functions of the epoch."""


def staircase(epoch: int, epochs: int, stairs: int = 20) -> float:
    """How much of the training is done, in steps: k floor(epoch / k) / epochs with k = epochs / stairs, at least 1.

    Of 1000 epochs in 20 stairs it changes every 50: staircase(49, 1000) = 0, staircase(50, 1000) = 0.05.

    Args:
        epoch: epochs that are done, from 0 to ``epochs``.
        epochs: of the whole training.
        stairs: how often it changes.

    Returns:
        A share in [0, 1].

    Source: DynACL (arXiv 2303.01289), whose strength is 1 - staircase(epoch, epochs).
    """
    width = max(1, round(epochs / stairs))
    return width * (epoch // width) / epochs
