"""Schedules of the learning rate and eps."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from acl_plugin.config import TrainingConfig
from acl_plugin.errors import UsageError, reason, unknown
from acl_plugin.objectives.schedules import half_cosine, warmup_then_cosine
from acl_plugin.training.published_schedules import PUBLISHED


def ramp(progress: float, share: float) -> float:
    """Return min(1, progress / share), the share of eps in use at ``progress`` in (0, 1] of the training."""
    return min(1.0, progress / share) if share else 1.0


def learning_rate(progress: float, warmup: float) -> float:
    """Return the share of the peak rate: linear over the first ``warmup`` of the training, then half a cosine to 0."""
    if progress < warmup:
        return progress / warmup
    return half_cosine(progress - warmup, max(1e-12, 1 - warmup))


def rates(c: TrainingConfig, length: float) -> Callable[[float, float, float], float]:
    """Return the learning rate as a function of the peak rate, the completed epochs, and a step's share of an epoch.

    Args:
        c: configuration with the schedule, its warm-up and the planned epochs.
        length: number of epochs of the training, of which the last may be a part.

    Raises:
        UsageError: for arguments that timm's schedule does not take.
    """
    if c.schedule == "cosine":
        return lambda peak, at, step: peak * learning_rate(at / length, c.warmup)
    if c.schedule == "cosine_by_epoch":
        return lambda peak, at, step: warmup_then_cosine(at, c.epochs, peak, c.warmup * c.epochs)
    if c.schedule in PUBLISHED:
        published = PUBLISHED[c.schedule]
        return lambda peak, at, step: published(peak, c.epochs, c.warmup * c.epochs, at, step)
    share = of_timm(c)

    def rate(peak: float, at: float, step: float) -> float:
        return peak * share(at) * (min(1.0, at / length / c.warmup) if c.warmup else 1.0)

    return rate


OF_TIMM = {
    "step": ("decay_epochs", "decay_rate"),
    "multistep": ("decay_milestones", "decay_rate"),
    "poly": ("decay_rate", "k_decay", "min_lr"),
    "tanh": ("min_lr",),
}
"""Schedules of timm, and the arguments of ``timm.scheduler.create_scheduler_v2`` that change their rates in one cycle
of the planned epochs. Noise is not among them: timm draws it by the number of the epoch, and rates change by step."""


def of_timm(c: TrainingConfig) -> Callable[[float], float]:
    """Return the share of the peak rate as a function of the completed epochs, by a schedule of timm.

    Raises:
        UsageError: for arguments that the schedule does not read, or rates that are negative or not finite.
    """
    from timm.scheduler import create_scheduler_v2

    known = OF_TIMM[c.schedule]
    for name in c.schedule_kwargs:
        if name not in known:
            raise unknown(f"argument of schedule {c.schedule!r}:", str(name), known, parameter="schedule_kwargs")
    try:
        falls = [float(epoch) for epoch in c.schedule_kwargs.get("decay_milestones", ())]
        if falls != sorted(falls):  # timm searches them by bisection
            raise ValueError("decay_milestones do not rise")
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        given = {"num_epochs": max(1, c.epochs), "warmup_epochs": 0, "step_on_epochs": True} | c.schedule_kwargs
        if "min_lr" in given:
            given["min_lr"] /= c.lr
        scheduler, _ = create_scheduler_v2(optimizer, sched=c.schedule, **given)
        share = partial(_share, scheduler)
        for quarter in range(4 * c.epochs + 1):
            if not 0 <= (rate := share(quarter / 4)) < math.inf:
                raise ValueError(f"the learning rate after {quarter / 4:g} epochs is {rate * c.lr:g}")
    except (TypeError, ValueError, AssertionError, ArithmeticError) as error:
        message = f"`schedule_kwargs` {c.schedule_kwargs} of `schedule` {c.schedule}: {reason(error)}"
        allowed = f"values that timm.scheduler.create_scheduler_v2 takes for {', '.join(known)}"
        raise UsageError(message, parameter="schedule_kwargs", given=c.schedule_kwargs, allowed=allowed) from error
    return share


def _share(scheduler: Any, epochs: float) -> float:
    scheduler.step(epochs)
    return float(scheduler.optimizer.param_groups[0]["lr"])
