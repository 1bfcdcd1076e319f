"""Errors, each with a message of one line."""

import difflib
import re
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import Any


class UsageError(ValueError):
    """Raised for a mistake of the user, in one line.

    Args:
        message: what failed and what was given, what is allowed, and what to do. Parameters stand in backticks, as
            in `` `limit_test` 20: digits has 10 test images ``; the command line shows them as flags.
        parameter: name of the parameter that is wrong.
        given: its value.
        allowed: the values or the range that it may have.

    Example:
        >>> try:
        ...     acl_plugin.ThreatModel("L7", 0.1)
        ... except acl_plugin.UsageError as error:
        ...     print(error.parameter, error.given, error.allowed)
        norm L7 ('L2', 'Linf')
    """

    def __init__(self, message: str, *, parameter: str | None = None, given: Any = None, allowed: Any = None) -> None:
        super().__init__(message)
        self.parameter, self.given, self.allowed = parameter, given, allowed


class TrainingStopped(RuntimeError):
    """Raised when a pretraining cannot usefully continue; the last good checkpoint is kept."""


class TrainingUnfinished(TrainingStopped):
    """Raised when something ended a pretraining before its last step; the same call resumes it.

    Args:
        message: what ended it, and where.
        done: steps of the optimizer that are done.
        total: steps that the whole pretraining has.
    """

    def __init__(self, message: str, done: int, total: int) -> None:
        super().__init__(message)
        self.done, self.total = done, total


class EvaluationStopped(RuntimeError):
    """What an attack gave, or what was kept of it, cannot be right; nothing is concluded from it."""


def unknown(what: str, given: str, allowed: Iterable[str], shown: int = 12, parameter: str | None = None) -> UsageError:
    """Return the error for a name that is not known, with the nearest valid ones.

    Args:
        what: the kind of name, such as ``"objective"``.
        given: the name that was given.
        allowed: every valid name.
        shown: how many names to list when none is near.
        parameter: name of the parameter; ``what`` if it is the same.
    """
    names = sorted(allowed)
    folded = {name.lower(): name for name in names}
    near = [folded[match] for match in difflib.get_close_matches(str(given).lower(), folded, n=3, cutoff=0.6)]
    more = f", ... ({len(names)} in all)" if len(names) > shown else ""
    hint = f"the nearest: {', '.join(near)}" if near else f"allowed: {', '.join(names[:shown]) or 'none'}{more}"
    return UsageError(
        f"unknown {what} {given!r}; {hint}", parameter=parameter or what.strip("-"), given=given, allowed=tuple(names)
    )


def reason(error: BaseException) -> str:
    """Return an exception's type and text in one line; where it has no text, the line of code outside torch."""
    text = " ".join(str(error).split())[:200]
    frames = traceback.extract_tb(error.__traceback__)
    if not text and frames:
        last = next((frame for frame in reversed(frames) if "torch" not in Path(frame.filename).parts), frames[-1])
        text = f"{Path(last.filename).name}, line {last.lineno}: {last.line}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def as_flags(message: str) -> str:
    """Return an error's text with its parameters as command-line flags: `` `limit_test` `` becomes ``--limit-test``."""
    return re.sub(r"`([a-z]\w*)((?:\.\w+)*)`", lambda name: f"--{name[1].replace('_', '-')}{name[2]}", message)
