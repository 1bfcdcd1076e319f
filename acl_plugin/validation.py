"""Validation of option values by annotation and range."""

import math
import numbers
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NamedTuple, Union, get_args, get_origin

from acl_plugin.errors import UsageError, unknown

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path", NoneType: "null"}


class Range(NamedTuple):
    """Interval of allowed numbers from ``low`` to ``high``; ``open`` excludes ``low`` itself."""

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


def plain(value: Any) -> Any:
    """Convert ``value`` to YAML types: sequences to lists, paths to strings, NumPy numbers to Python numbers."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, os.PathLike):
        return os.fsdecode(value)
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):
        return int(value)
    return float(value) if isinstance(value, numbers.Real) and not isinstance(value, bool) else value


def check_value(name: str, value: Any, kind: Any, allowed: Range | None = None) -> None:
    """Check type and range of the value of an option.

    Args:
        name: name of the option.
        value: value to check.
        kind: annotation of the option.
        allowed: range of numbers; values of other types in a union are not compared with it.

    Raises:
        UsageError: naming the option, the given value and the allowed ones.
    """
    if get_origin(kind) is Literal:
        if not _fits(value, kind):
            error = unknown(f"`{name}`", str(value), get_args(kind), parameter=name)
            error.given = value
            raise error
    elif not _fits(value, kind) or (allowed is not None and type(value) in (int, float) and value not in allowed):
        text = str(allowed) if allowed is not None else described(kind)
        shown = " ".join(repr(value).split())  # of an object, such as a module, it may have many lines
        shown = shown if len(shown) <= 200 else f"{shown[:200]}..."
        raise UsageError(f"`{name}` {shown}: allowed is {text}", parameter=name, given=value, allowed=text)


def described(kind: Any) -> str:
    """Return a description of an annotation for messages."""
    inside = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(described(each) for each in inside)
    if get_origin(kind) is list:
        return f"a list, each {described(inside[0])}"
    if get_origin(kind) is dict:
        return "a mapping of names to " + ("plain values" if inside[1] is Any else described(inside[1]))
    return WORDS.get(kind) or f"a {kind.__name__}"


def _fits(value: Any, kind: Any) -> bool:
    """Return whether ``value`` has exactly the annotated type: true is not a number, 3.0 not an integer."""
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
    return type(value) is kind if kind in (NoneType, bool, int, str) else isinstance(value, kind)


def require_one_of(allowed: tuple[str, ...], **settings: Any) -> None:
    """Check that all settings are among ``allowed``.

    Raises:
        UsageError: naming the setting, with the closest allowed value.
    """
    for name, value in settings.items():
        if value not in allowed:
            error = unknown(name, str(value), allowed)
            error.given = value
            raise error


def require_positive(**settings: Any) -> None:
    """Check that all settings are above 0.

    Raises:
        UsageError: naming the setting.
    """
    _require("a number above 0", lambda value: 0 < value < math.inf, settings)


def require_not_negative(**settings: Any) -> None:
    """Check that all settings are at least 0.

    Raises:
        UsageError: naming the setting.
    """
    _require("a number from 0", lambda value: 0 <= value < math.inf, settings)


def require_share(**settings: Any) -> None:
    """Check that all settings are in [0, 1].

    Raises:
        UsageError: naming the setting.
    """
    _require("a share from 0 to 1", lambda value: 0 <= value <= 1, settings)


def _require(allowed: str, right: Callable[[float], bool], settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        if not isinstance(value, int | float) or isinstance(value, bool) or not right(value):
            raise refused_value(name, value, allowed)


def require_list(parameter: str, given: Any) -> None:
    """Refuse one name in place of a list of names, whose letters would be taken for names.

    Raises:
        UsageError: for a string.
    """
    if isinstance(given, str):
        message = f"`{parameter}` {given!r}: allowed is a list of names, such as [{given!r}]"
        raise UsageError(message, parameter=parameter, given=given, allowed="a list of names")


def refused_value(name: str, value: Any, allowed: str) -> UsageError:
    """Return the error for a value that is not allowed."""
    return UsageError(f"{name} {value!r}: allowed is {allowed}", parameter=name, given=value, allowed=allowed)


NORMS = ("Linf", "L2")
"""Norms of perturbations."""


def require_eps(norm: str, eps: float | str) -> float:
    """Return the radius of a threat model as a number.

    Args:
        norm: one of ``NORMS``.
        eps: above 0, and at most 1 for Linf; a number, or text such as ``"8/255"``.

    Raises:
        UsageError: for an unknown norm, or an eps out of range.
    """
    if norm not in NORMS:
        raise unknown("norm", norm, NORMS)
    allowed = "a number or a fraction such as 8/255, above 0" + (" and at most 1" if norm == "Linf" else "")
    try:
        value = _number(eps)
        fits = 0 < value <= (1 if norm == "Linf" else math.inf) and math.isfinite(value)
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        fits = False
    if not fits:
        shown = f"{eps:g}" if isinstance(eps, float) else repr(eps)
        message = f"`eps` {shown}: allowed is {allowed} for {norm}, as images lie in [0, 1]"
        raise UsageError(message, parameter="eps", given=eps, allowed=allowed)
    return value


def _number(given: float | str) -> float:
    if isinstance(given, str):
        above, *below = (float(part) for part in given.split("/"))
        if len(below) > 1:
            raise ValueError(given)
        return above / below[0] if below else above
    if isinstance(given, bool) or not isinstance(given, numbers.Real):
        raise TypeError(given)
    return float(given)
