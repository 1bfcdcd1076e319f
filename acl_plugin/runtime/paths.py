"""Paths that come from outside: the command line, files of settings, Python and the environment."""

import os
from pathlib import Path
from typing import Any

from acl_plugin.errors import UsageError


def user_path(path: Any, parameter: str = "path") -> Path:
    """Return a path from outside with ``~`` and ``~USER`` expanded, as every program of the shell has it.

    Args:
        path: text, or any other path.
        parameter: name of the parameter whose value it is.

    Raises:
        UsageError: for something that is no path, or the home of nobody.
    """
    try:
        if "\0" not in os.fspath(path):
            return Path(path).expanduser()
    except (TypeError, RuntimeError):  # no path, or no such user
        pass
    allowed = "a path; ~ is your home, and ~USER another's"
    details = repr(str(path) if isinstance(path, Path) else path)
    raise UsageError(f"`{parameter}` {details}: allowed is {allowed}", parameter=parameter, given=path, allowed=allowed)
