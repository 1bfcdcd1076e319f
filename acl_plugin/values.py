"""Values of options: plain YAML types, checked against the option's annotation and its range."""

import math
import numbers
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin, get_type_hints

from acl_plugin.errors import UsageError, unknown
from acl_plugin.threat_model import ThreatModel

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path", NoneType: "null"}


class Range(NamedTuple):
    """Numbers that an option may have: ``low`` to ``high``, without ``low`` itself if it is ``open``."""

    low: float
    high: float = math.inf
    open: bool = False

    def __contains__(self, value: object) -> bool:
        within = isinstance(value, int | float) and self.low <= value <= self.high and value < math.inf
        return within and not (self.open and value == self.low)

    def __str__(self) -> str:
        if (self.low, self.high) == (0, 1):
            return f"a share {'above' if self.open else 'from'} 0 {'up ' if self.open else ''}to 1"
        top = f" to {self.high}" if self.high < math.inf else ""
        return f"a number {'above' if self.open else 'from'} {self.low}{top}"


RANGES = {
    **dict.fromkeys(
        "epochs attack_steps checkpoint_every devices num_nodes accumulate_grad_batches probe_epochs probe_batch_size "
        "eval_batch_size coreset_every aft_epochs limit_test".split(),
        Range(1),
    ),
    **dict.fromkeys("keep_every knn_every lr aft_lr probe_lr weight_decay probe_weight_decay".split(), Range(0)),
    **dict.fromkeys(
        "eps_ramp warmup coreset_warmup coreset_fraction probe_holdout label_fraction".split(), Range(0, 1)
    ),
    **{"batch_size": Range(2), "limit_train": Range(2), "image_size": Range(8), "seed": Range(0, 2**63 - 1)},
}
"""Of the options that are numbers."""


def plain(value: Any) -> Any:
    """Return ``value`` in the types that a YAML file gives back: sequences as lists, paths as text, numpy's numbers."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value


def check(config: Any) -> None:
    """Refuse values of another type than annotated, out of range, or that do not go together.

    Args:
        config: a ``config.RunConfig``.

    Raises:
        UsageError: naming the option, what was given and what is allowed.
    """
    options: type = type(config)
    for name, kind in _annotations(options).items():
        check_value(name, getattr(config, name), kind, RANGES.get(name))
    ThreatModel(config.norm, config.eps)
    falls = config.probe_milestones
    if falls != sorted(falls) or any(share not in Range(0, 1, open=True) for share in falls):
        allowed = f"a rising list, each {Range(0, 1, open=True)}"
        message = f"`probe_milestones` {falls}: allowed is {allowed}"
        raise UsageError(message, parameter="probe_milestones", given=falls, allowed=allowed)
    if config.probe_protocol == "slf_exact" and config.probe_weight_decay == 0:
        message = "`probe_weight_decay` 0: allowed is a number above 0 with `probe_protocol` slf_exact"
        raise UsageError(message, parameter="probe_weight_decay", given=0, allowed="a number above 0")


def check_value(name: str, value: Any, kind: Any, allowed: Range | None = None) -> None:
    """Refuse a value that is not of an annotated type, or out of range.

    Args:
        name: of the option.
        value: to check.
        kind: annotation of the option.
        allowed: of a number, which may be of a union with other types.

    Raises:
        UsageError: naming the option, what was given and what is allowed.
    """
    if get_origin(kind) is Literal:
        if not _fits(value, kind):
            error = unknown(f"`{name}`", str(value), get_args(kind), parameter=name)
            error.given = value
            raise error
    elif not _fits(value, kind) or (allowed is not None and type(value) in (int, float) and value not in allowed):
        text = str(allowed) if allowed is not None else described(kind)
        raise UsageError(f"`{name}` {value!r}: allowed is {text}", parameter=name, given=value, allowed=text)


def described(kind: Any) -> str:
    """Return an annotation in words."""
    inside = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(described(each) for each in inside)
    if get_origin(kind) is list:
        return f"a list, each {described(inside[0])}"
    if get_origin(kind) is dict:
        return "a mapping of names to " + ("plain values" if inside[1] is Any else described(inside[1]))
    return WORDS.get(kind, str(kind))


def _fits(value: Any, kind: Any) -> bool:
    """Whether ``value`` is of the annotated type to the letter: true is no number, and 3.0 is not whole."""
    inside = get_args(kind)
    if kind is Any:
        kinds = (NoneType, bool, int, float, str, list[Any], dict[str, Any])
        return any(_fits(value, each) for each in kinds)
    if get_origin(kind) is Literal:
        return any(type(value) is type(each) and value == each for each in inside)
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, each) for each in inside)
    if get_origin(kind) is list:
        return isinstance(value, list) and all(_fits(each, inside[0]) for each in value)
    if get_origin(kind) is dict:
        return isinstance(value, dict) and all(_fits(k, inside[0]) and _fits(v, inside[1]) for k, v in value.items())
    if kind is float:
        return type(value) in (int, float) and abs(value) <= sys.float_info.max
    return isinstance(value, Path) if kind is Path else type(value) is kind


@cache
def _annotations(options: type) -> dict[str, Any]:
    return get_type_hints(options)
