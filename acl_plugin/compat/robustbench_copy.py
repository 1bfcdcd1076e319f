"""Detect the old copy of robustbench that the wheels of torchattacks carry, and name the command that mends it."""

from importlib.metadata import PackageNotFoundError, files
from importlib.util import find_spec
from typing import Any

from acl_plugin.errors import pip_install

OVERWRITTEN = (
    "the installed robustbench is not whole: installing or removing torchattacks, whose wheel carries an old copy of "
    "robustbench, has overwritten or deleted its files"
)
ABSENT = "robustbench is not installed; there is an old copy of parts of it, which the wheel of torchattacks carries"


def damage() -> str:
    """Return what is wrong with a robustbench that fails or lacks parts, with the command to run."""
    if _recorded() is None:
        return f"{ABSENT}. Run: " + pip_install("'acl-plugin[robustbench]'")
    return f"{OVERWRITTEN}. Run: " + pip_install("--force-reinstall --no-deps robustbench==1.1.1")


def found_damage() -> str | None:
    """Compare the files of robustbench with its record; return what is wrong, None if it is whole or not there."""
    recorded = _recorded()
    if recorded is None:
        return None if find_spec("robustbench") is None else damage()
    for path, size in recorded.items():
        try:
            same = path.stat().st_size == size
        except OSError:
            same = False
        if not same:
            return damage()
    return None


def _recorded() -> dict[Any, int] | None:
    """Return the sizes of robustbench's modules as they were installed; None if it is not installed."""
    try:
        found = files("robustbench") or []
    except PackageNotFoundError:
        return None
    return {file.locate(): file.size for file in found if file.suffix == ".py" and file.size is not None}
