"""Parts of an objective that adds terms to another one, its base."""

import inspect
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from acl_plugin.errors import UsageError, unknown
from acl_plugin.models.protocol import EncoderProtocol
from acl_plugin.objectives.base import Cost, Objective
from acl_plugin.registry import OBJECTIVES, create_objective


def create_base(name: str, settings: dict[str, Any], **usual: Any) -> Objective:
    """Create the base of an objective.

    Args:
        name: name of a registered objective.
        settings: settings of the base.
        usual: settings that the base has unless ``settings`` names others, if it knows them.

    Raises:
        UsageError: for an unknown name or setting, a base without adversarial examples, and one with a backward pass
            of its own, whose gradients are more than those of its terms.
    """
    if name not in OBJECTIVES:
        raise unknown("base", name, OBJECTIVES.names(), parameter="base")
    known = inspect.signature(OBJECTIVES.get(name)).parameters
    base: Objective = create_objective(name, **{k: v for k, v in usual.items() if k in known} | settings)
    problem = None
    if base.attack_mode is None:
        problem = "has no adversarial examples"
    elif type(base).backward is not Objective.backward:
        problem = "has a backward pass of its own"
    if problem is None:
        return base
    allowed = tuple(other for other in OBJECTIVES.names() if other != name and _is_base(other))
    raise UsageError(
        f"base {name!r} {problem}; allowed: {', '.join(allowed)}", parameter="base", given=name, allowed=allowed
    )


def _is_base(name: str) -> bool:
    try:
        example: Objective = create_objective(name)
    except UsageError:  # broken, or without a default of a setting
        return False
    return example.attack_mode is not None and type(example).backward is Objective.backward


def set_up(base: Objective, name: str, model: EncoderProtocol) -> None:
    """Call the base's ``setup``; errors name the settings of the base as those in ``base_kwargs``.

    Raises:
        UsageError: as the base's ``setup``.
    """
    try:
        base.setup(model)
    except UsageError as error:
        message = re.sub(r"--objective-kwargs\.(\w+)", r"--objective-kwargs.base_kwargs.\1", str(error))
        message = re.sub(r"in Python(:| give) (\w+=)", r"in Python\1 base_kwargs with \2", message)
        raise UsageError(
            f"base {name!r}: {message}", parameter=f"base_kwargs.{error.parameter}", given=error.given,
            allowed=error.allowed,
        ) from error  # fmt: skip


@dataclass(frozen=True)
class Added:
    """What an objective adds to its base, in views.

    Attributes:
        pair: views of the benign term; empty without one.
        compared: whether benign and adversarial views are compared.
        in_eval: whether they are also encoded in eval mode.
        attack_repeated: whether the first attack runs twice.
        attack_compares: whether the attack compares with benign views that the training pass has not encoded yet.
        sharpened: the pass that is repeated: ``benign``, ``all`` or none.
    """

    pair: Sequence[str]
    compared: bool
    in_eval: bool = False
    attack_repeated: bool = False
    attack_compares: bool = False
    sharpened: str = ""


def shown(base: Objective) -> tuple[str, ...]:
    """Return the attacked views whose adversarial examples ``terms`` encodes as they are; all if there are none."""
    return tuple(v for v in base.attacked_views if f"{v}'" in base.encoded_views) or base.attacked_views


def missing(base: Objective | None, added: Added) -> tuple[str, ...]:
    """Return the benign views that the added terms need and the base does not encode, in a fixed order."""
    views = [*added.pair, *(shown(base) if base is not None and added.compared else ())]
    encoded = () if base is None else base.encoded_views
    return tuple(v for v in dict.fromkeys(views) if v not in encoded)


def added_cost(base: Objective | None, added: Added) -> Cost | None:
    """Return the cost of base and added terms; None if the base does not declare what this depends on."""
    own = Cost(0, 0, 0) if base is None else base.cost
    if own is None or (base is not None and not base.attacked_views):
        return None
    left, encoded = missing(base, added), () if base is None else base.encoded_views
    compared = () if base is None or not added.compared else shown(base)
    again = 0 if any(f"{v}'" in encoded for v in compared) else len(compared)
    attacked = 0 if base is None else len(base.attacked_views)
    first = own.forwards + len(left) + again
    forwards = first + 2 * attacked * added.in_eval
    if added.attack_compares and not set(compared) <= set(left):
        forwards += len(compared)
    backwards = own.backwards + len(left) + again
    if added.sharpened == "all":
        forwards, backwards = forwards + first, 2 * backwards
    elif added.sharpened:
        alone = len(left) if not set(left) & set(compared) else 0  # encoded for the benign term only
        batches = sum(v in encoded for v in added.pair) + (len(left) if set(left) & set(added.pair) else 0)
        forwards, backwards = forwards + batches, backwards - alone + 2 * batches
    repeated = own.repeated * (1 + added.attack_repeated)
    return Cost(own.attacked + attacked * added.attack_repeated, forwards, backwards, repeated)
