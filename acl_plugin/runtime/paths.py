"""Paths given by the user: on the command line, in settings files, in Python and in the environment."""

import errno
import os
from pathlib import Path
from typing import Any

from acl_plugin.errors import UsageError


def user_path(path: Any, parameter: str = "path") -> Path:
    """Return a path given by the user with ``~`` and ``~USER`` expanded, as a shell does.

    Args:
        path: string or path-like object.
        parameter: name of the parameter, for the message.

    Raises:
        UsageError: for a value that is not a path, an empty or too long one, or an unknown user.
    """
    allowed = "a path; ~ is your home, and ~USER another's"
    try:
        text = os.fspath(path)
        if text and "\0" not in text:  # Path("") would be this folder
            expanded = Path(path).expanduser()
            if not _too_long(expanded):
                return expanded
            allowed = "a path that is not too long for the file system"
    except (TypeError, RuntimeError):  # not a path, or no such user
        pass
    details = repr(str(path) if isinstance(path, Path) else path)
    raise UsageError(f"`{parameter}` {details}: allowed is {allowed}", parameter=parameter, given=path, allowed=allowed)


def _too_long(path: Path) -> bool:
    """Return whether a path, or one of its names, is too long: a name whose folder is still to be made counts too."""
    for each in (str(path), *path.parts):
        try:
            os.stat(each)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return True
    return False


def data_home() -> Path:
    """Return the folder of files that runs share: ``ACL_PLUGIN_HOME``, by default in the user's data folder."""
    home = os.environ.get("ACL_PLUGIN_HOME")
    if home:
        return user_path(home, "ACL_PLUGIN_HOME")
    return user_path(os.environ.get("XDG_DATA_HOME") or "~/.local/share", "XDG_DATA_HOME") / "acl_plugin"
