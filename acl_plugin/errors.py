"""The ways a command may end early, each told in one line."""

import difflib
from collections.abc import Iterable


class UsageError(ValueError):
    """The user's mistake: what was given, what is allowed, and the name or command to use instead."""


class TrainingStopped(RuntimeError):
    """Training cannot usefully go on; the last good checkpoint is kept."""


class EvaluationStopped(RuntimeError):
    """What an attack gave, or what was kept of it, cannot be right; nothing is concluded from it."""


def unknown(what: str, given: str, allowed: Iterable[str], shown: int = 12) -> UsageError:
    """The error for a name that is not known, with the nearest valid ones.

    Args:
        what: the kind of name, such as ``"objective"``.
        given: the name that was given.
        allowed: every valid name.
        shown: how many names to list when none is near.
    """
    names = sorted(allowed)
    folded = {name.lower(): name for name in names}
    near = [folded[match] for match in difflib.get_close_matches(given.lower(), folded, n=3, cutoff=0.6)]
    if near:
        return UsageError(f"unknown {what} {given!r}; the nearest: {', '.join(near)}")
    more = f", ... ({len(names)} in all)" if len(names) > shown else ""
    return UsageError(f"unknown {what} {given!r}; allowed: {', '.join(names[:shown]) or 'none'}{more}")
