"""Remove the files of a run from its folder, in which a user may keep other files."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

SHARED = {
    "checkpoints": r"(last|before)\.ckpt|epoch-\d{5}|\..+\.\d+\.tmp",
    "tensorboard": r"events\.out\.tfevents\..+|hparams\.yaml",
    "adversarial": r"\d{6,}-[\w-]+\.npz|\..+\.\d+\.tmp",
    "evaluation_chunks": r"\d{6,}\.json|\..+\.\d+\.tmp",
}
"""Folders in which a user may keep files, too, with the names of a run's own."""


def clear(folder: Path, own: Iterable[Path]) -> None:
    """Remove files and folders of a run, in their order; in the folders of ``SHARED``, those with a run's names.

    Args:
        folder: folder of the run.
        own: its files and folders, which may be missing.
    """
    for name in SHARED:
        clear_shared(folder / name)
    for path in own:
        if path.parent != folder or path.name not in SHARED:
            _remove(path)


def clear_shared(folder: Path) -> None:
    """Remove the files with a run's names from a folder of ``SHARED``, and the folder if it is empty then."""
    for path in folder.glob("*"):
        if re.fullmatch(SHARED[folder.name], path.name):
            _remove(path)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
