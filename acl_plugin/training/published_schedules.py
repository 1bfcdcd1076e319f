"""Learning rates as the published codes set them, in closed form.

Each function returns the rate of a step from the peak rate, the number of epochs, those of the warm-up, the completed
epochs before the step (its fraction is the completed share of the current epoch), and the share of an epoch that a step
is. The codes warm up for 10 of their 1000 epochs.
"""

import math
from collections.abc import Callable

from acl_plugin.objectives.schedules import half_cosine

Rate = Callable[[float, int, float, float, float], float]
SLACK = 1e-9
"""Against the rounding of positions that are whole epochs."""


def _epoch(at: float) -> int:
    """Return the number of completed epochs."""
    return math.floor(at + SLACK)


def _decay(since: float, over: float, peak: float, floor: float) -> float:
    return half_cosine(since, max(SLACK, over), peak, floor)


def acl(peak: float, epochs: int, warmup: float, at: float, step: float) -> float:
    """Return the rate of ACL, AIR and RCS: set by step, before it, from 1 step of the warm-up to 1e-6."""
    at += step
    return peak * at / warmup if at < warmup - SLACK else _decay(at - warmup, epochs - warmup, peak, 1e-6)


def dynacl(peak: float, epochs: int, warmup: float, at: float, step: float) -> float:
    """Return the rate of DynACL: set by epoch, from 1 / warmup of the peak in the first, to 1e-6."""
    epoch = _epoch(at)
    if epoch < warmup:
        return peak * min(1.0, (epoch + 1) / warmup)
    return _decay(epoch - warmup, epochs - warmup, peak, 1e-6)


def rocl(peak: float, epochs: int, warmup: float, at: float, step: float) -> float:
    """Return the rate of RoCL: set by epoch; the warm-up begins at 1/15 of the peak, the cosine is over all epochs."""
    epoch = _epoch(at) + 1
    if epoch <= warmup:
        return peak * (14 * epoch / warmup + 1) / 15
    return _decay(epoch - warmup - 1, epochs, peak, 0.0)


def advcl(peak: float, epochs: int, warmup: float, at: float, step: float) -> float:
    """Return the rate of AdvCL, A-InfoNCE and ProFeAT: a warm-up by step from 0.01 to the cosine, which is by epoch."""
    epoch, floor = _epoch(at) + 1, peak / 1000
    if epoch <= warmup:
        return 0.01 + at / warmup * (_decay(warmup, epochs, peak, floor) - 0.01)
    return _decay(epoch, epochs, peak, floor)


def deacl(peak: float, epochs: int, warmup: float, at: float, step: float) -> float:
    """Return the rate of DeACL: set by epoch, from 0.003 in the first to the peak in the last of the warm-up."""
    epoch = _epoch(at)
    if epoch < warmup:
        return 0.003 + epoch * (peak - 0.003) / max(1, warmup - 1)
    return _decay(epoch - warmup, epochs - warmup, peak, 0.0)


def gsa_rsl(peak: float, epochs: int, warmup: float, at: float, step: float) -> float:
    """Return the rate of GSA-RSL: the cosine by epoch also in the first step of each epoch of the warm-up.

    The code sets the warm-up's rate after each step, for the next one, and the cosine's after each epoch.
    """
    epoch = _epoch(at)
    if at - epoch < step / 2 or epoch >= warmup - 1:
        return _decay(epoch, epochs, peak, 1e-8)
    return 1e-8 + (at - step) / warmup * (_decay(warmup, epochs, peak, 1e-8) - 1e-8)


PUBLISHED: dict[str, Rate] = {
    "acl": acl, "dynacl": dynacl, "rocl": rocl, "advcl": advcl, "deacl": deacl, "gsa_rsl": gsa_rsl,
}  # fmt: skip
"""Schedules by the method whose code has them."""
