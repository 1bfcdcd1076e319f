"""Exceptions, each with a one-line message."""

import difflib
import re
import traceback
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any


class UsageError(ValueError):
    """Raised for an invalid argument, setting or file.

    Args:
        message: failure and given value, allowed values, and remedy, in one line. Parameters are in backticks, as in
            `` `limit_test` 20: digits has 10 test images ``; the command line shows them as flags.
        parameter: name of the invalid parameter.
        given: its value.
        allowed: allowed values or range.

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
    """Raised when pretraining cannot continue with useful results; the last good checkpoint is kept."""


class TrainingUnfinished(TrainingStopped):
    """Raised when pretraining is interrupted before its last step; the same call resumes it.

    Args:
        message: cause and position of the interruption.
        done: number of completed optimizer steps.
        total: number of optimizer steps of the whole pretraining.
    """

    def __init__(self, message: str, done: int, total: int) -> None:
        super().__init__(message)
        self.done, self.total = done, total


class EvaluationStopped(RuntimeError):
    """Raised when the results of an attack, new or saved, are invalid; no accuracy is derived from them."""


def unknown(what: str, given: str, allowed: Iterable[str], shown: int = 12, parameter: str | None = None) -> UsageError:
    """Return the error for an unknown name, with the closest valid names.

    Args:
        what: kind of name, such as ``"objective"``.
        given: the unknown name.
        allowed: all valid names.
        shown: number of names to list when none is close.
        parameter: name of the parameter; None for ``what``.
    """
    names = sorted(allowed)
    folded = {name.lower(): name for name in names}
    near = [folded[match] for match in difflib.get_close_matches(str(given).lower(), folded, n=3, cutoff=0.6)]
    more = f", ... ({len(names)} in all)" if len(names) > shown else ""
    hint = f"the nearest: {', '.join(near)}" if near else f"allowed: {', '.join(names[:shown]) or 'none'}{more}"
    return UsageError(
        f"unknown {what} {given!r}; {hint}", parameter=parameter or what.strip("-"), given=given, allowed=tuple(names)
    )


def missing_extra(what: str, extra: str, error: ImportError, parameter: str) -> UsageError:
    """Return the error for a package that an extra of this one installs; an error with its own remedy keeps its text.

    Args:
        what: what needs the package.
        extra: name of the extra.
        error: failure of the import.
        parameter: name of the parameter that needs it.
    """
    details = " ".join(str(error).split())
    remedy = "" if " Run: " in details else "; run: " + pip_install(f"'acl-plugin[{extra}]'")
    return UsageError(f"{what}: {details}{remedy}", parameter=parameter, given=None, allowed=f"the extra {extra}")


def pip_install(what: str) -> str:
    """Return the command that installs ``what`` here: by uv in an environment without pip, as uv makes them.

    Example:
        >>> pip_install("'acl-plugin[hf]'")
        "...pip install 'acl-plugin[hf]'"
    """
    return f"pip install {what}" if find_spec("pip") else f"uv pip install {what}"


def reason(error: BaseException) -> str:
    """Return type and text of an exception in one line; without a text, the line of code outside torch."""
    text = " ".join(str(error).split())[:200]
    frames = traceback.extract_tb(error.__traceback__)
    if not text and frames:
        last = next((frame for frame in reversed(frames) if "torch" not in Path(frame.filename).parts), frames[-1])
        text = f"{Path(last.filename).name}, line {last.lineno}: {last.line}"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def as_flags(message: str) -> str:
    """Replace parameters in a message by command-line flags: `` `limit_test` `` becomes ``--limit-test``."""
    return re.sub(r"`([a-z]\w*)((?:\.\w+)*)`", lambda name: f"--{name[1].replace('_', '-')}{name[2]}", message)
