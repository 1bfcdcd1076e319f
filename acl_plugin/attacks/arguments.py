"""Validation of an inner attack's settings, and the arguments of its torchattacks class."""

import logging
from collections.abc import Mapping, Sequence
from functools import cache
from numbers import Real
from typing import Any

from acl_plugin.attacks.catalogue import (
    FREE,
    RGB_ONLY,
    SQUARE_ONLY,
    STEPS,
    attack_names,
    check_arguments,
    check_count,
    defaults,
    fewest_classes,
    is_count,
    supports,
    training_names,
)
from acl_plugin.attacks.threat_model import ThreatModel
from acl_plugin.errors import UsageError, unknown

logger = logging.getLogger(__name__)


def check_settings(norm: str, name: str, steps: int, kwargs: Mapping[str, Any], scale: float) -> None:
    """Check the settings of an attack.

    Args:
        norm: norm of the threat model.
        name: class name in torchattacks.
        steps: number of attack steps, at least 1.
        kwargs: further arguments of the class.
        scale: fraction of eps to use, in (0, 1].

    Raises:
        UsageError: for a setting that is unknown, out of range, or for another norm.
    """
    if name == FREE:
        message = (
            f"attack {name!r} is no class: it trains several times on a batch; use FreeAttack of attacks.free_attack"
        )
        raise UsageError(message, parameter="name", given=name, allowed=tuple(attack_names(norm)))
    if not supports(name):
        raise unknown("attack", name, training_names(), parameter="name")
    if not supports(name, norm):
        valid = training_names(norm)
        message = f"attack {name!r} is not for {norm}; allowed: {', '.join(valid)}"
        raise UsageError(message, parameter="name", given=name, allowed=tuple(valid))
    check_count("steps", steps)
    check_arguments(name, kwargs)
    if not 0 < scale <= 1:
        allowed = "a number above 0, at most 1"
        message = f"attack scale {scale!r}: allowed is {allowed}"
        raise UsageError(message, parameter="scale", given=scale, allowed=allowed)


def default_step(name: str, steps: int) -> float:
    """Return the default step size as a fraction of eps: 1.25 / steps, and 1/4 from five steps on.

    A training attack of five steps moves by 1.25 eps. One that evaluates a model has more steps, and has to cross the
    ball from any start: by 2 eps, which takes eight steps of this size. For one step of RFGSM it is 1/2, as published
    (arXiv 1705.07204): its random start is as far as a step, and 1.25 would leave the ball.
    """
    return 0.5 if (name, steps) == ("RFGSM", 1) else max(1.25 / steps, 0.25)


def warn_of_short_steps(name: str, given: Mapping[str, Any], steps: int, eps: float) -> None:
    """Log a warning when the given step size is too small to cross the ball from a random start."""
    count, known = _count(given, steps), defaults(name)
    random_start = given.get("random_start", known.get("random_start", False))
    alpha = given.get("alpha")  # a class of another author may take anything
    if not isinstance(alpha, Real) or "alpha" not in known or not random_start or count * float(alpha) >= 2 * eps:
        return
    _warn_once(name, count, float(alpha), eps)


def _count(given: Mapping[str, Any], steps: int) -> int:
    """Return the number of steps among the arguments of a class, or else ``steps``."""
    return next((given[each] for each in STEPS if is_count(given.get(each))), steps)


@cache
def _warn_once(name: str, count: int, alpha: float, eps: float) -> None:
    """Log the warning once for the same settings, as the trainer copies its attack in every step."""
    far = f"{count} steps of {alpha:.4g} cannot cross the eps ball ({eps:.4g}) from a random start"
    logger.warning("attack %r: %s; for evaluation, pass alpha %.4g or more", name, far, 2 * eps / count)


def check_mode(norm: str, name: str, mode: str | None, shape: Sequence[int] | None) -> None:
    """Check that a class supports a mode and images of a shape (C, H, W); None stands for any.

    Raises:
        UsageError: listing the valid classes.
    """
    if shape is not None:
        channels, height, width = shape
        if name in RGB_ONLY and channels != 3:
            message = f"attack {name!r} takes images of 3 channels, not {channels}; use PGD or MIFGSM"
            raise UsageError(message, parameter="channels", given=channels, allowed=3)
        if name in SQUARE_ONLY and height != width:
            message = f"attack {name!r} takes square images, not {height} x {width}; use PGD or MIFGSM"
            raise UsageError(message, parameter="shape", given=tuple(shape), allowed="square images")
    if mode is not None and not supports(name, norm, mode):
        valid = training_names(norm, mode)
        raise UsageError(
            f"attack {name!r} treats samples independently and cannot be used with mode {mode!r}, where the loss "
            f"couples the whole batch; allowed: {', '.join(valid)}",
            parameter="name",
            given=name,
            allowed=tuple(valid),
        )


def check_classes(name: str, kwargs: Mapping[str, Any], classes: int | None) -> None:
    """Check that the classifier has as many classes as the attack's loss compares; None stands for any number.

    Raises:
        UsageError: with the minimum number of classes.
    """
    fewest = fewest_classes(name, kwargs)
    if classes is not None and classes < fewest:
        message = f"attack {name!r} compares the logits of {fewest} classes or more, not of {classes}"
        raise UsageError(f"{message}; use APGD or PGD", parameter="classes", given=classes, allowed=fewest)


def class_arguments(
    name: str, given: Mapping[str, Any], *, steps: int, scale: float, threat: ThreatModel, classes: int, seed: int
) -> dict[str, Any]:
    """Return the arguments of a torchattacks class.

    Args:
        name: name of the class.
        given: the user's arguments, which take precedence.
        steps: number of steps, unless ``given`` sets it.
        scale: fraction of eps, in (0, 1]; also scales a step size ``alpha`` in ``given``.
        threat: threat model with eps already scaled.
        classes: number of logits.
        seed: seed of the attack's noise.
    """
    count = 1 if name in ("FGSM", "FFGSM") else _count(given, steps)
    wanted = {
        "eps": threat.eps,
        "max_epsilon": threat.eps,
        "alpha": default_step(name, count) * threat.eps,
        **dict.fromkeys(STEPS, count),
        "norm": threat.norm,
        "n_classes": min(classes, 10),  # at most nine targets, as in AutoAttack
        "seed": seed,
    }
    accepted = defaults(name)
    arguments = {**{k: v for k, v in wanted.items() if k in accepted}, **given}
    if isinstance(given.get("alpha"), Real):
        arguments["alpha"] = given["alpha"] * scale
    return arguments
