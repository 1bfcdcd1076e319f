"""Detect the old copy of robustbench that the wheels of torchattacks carry, and name the command that mends it."""

import csv
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

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


def _recorded() -> dict[Path, int] | None:
    """Return the sizes of robustbench's modules as they were installed; None if it is not installed."""
    try:
        installed = distribution("robustbench")
    except PackageNotFoundError:
        return None
    rows = csv.reader((installed.read_text("RECORD") or "").splitlines())  # ``files()`` of 3.12 leaves out missing ones
    sizes = {path: size for path, _, size in rows if path.endswith(".py") and size}
    return {Path(str(installed.locate_file(path))): int(size) for path, size in sizes.items()}
