"""Learning rate that halves when the score stalls, as AutoLoRa's does; the rule is that of APGD's step size."""

from collections.abc import Sequence

CHECKS = (0, 16, 24, 28, 36, 40, 42, 44, 46, 48)
"""Epochs, of 50, after which the score is compared with those before."""
RISING = 0.75
"""Share of the epochs since the last check in which the score has to rise."""


def checks(epochs: int) -> list[int]:
    """Return the checks in a training of ``epochs`` epochs, each once."""
    return list(dict.fromkeys(-(-each * epochs // 50) for each in CHECKS))


def stalls(scores: Sequence[float], epochs: int) -> bool:
    """Return whether the rate halves after the last of the scores, and training continues from the best state.

    At a check it halves if the score rose in fewer than 75 % of the epochs since the check before, or if no score since
    then is higher than all earlier ones.

    Args:
        scores: score of each epoch so far.
        epochs: epochs of the whole training.

    Source: AutoLoRa (arXiv 2310.01818), algorithm 1, and its authors' code. There the first check has no second
    condition, as here.
    """
    at = checks(epochs)
    if len(scores) - 1 not in at[1:]:
        return False
    which = at.index(len(scores) - 1)
    first, last = at[which - 1], at[which]
    rises = sum(scores[j + 1] > scores[j] for j in range(first, last))
    no_higher = which > 1 and max(scores) == max(scores[: first + 1])
    return rises < RISING * (last - first) or no_higher
