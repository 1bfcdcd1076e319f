"""Remove the files of a run from its folder, in which a user may keep other files."""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path

SHARED = {
    "checkpoints": r"(last|before)\.ckpt|epoch-\d{5}|\..+\.tmp",
    "tensorboard": r"events\.out\.tfevents\..+|hparams\.yaml",
    "adversarial": r"\d{6}-[\w-]+\.npz|\..+\.tmp",
    "evaluation_chunks": r"\d{6}\.json|\..+\.tmp",
}
"""Folders in which a user may keep files, too, with the names of a run's own."""


def clear(folder: Path, own: Iterable[Path]) -> None:
    """Remove files and folders of a run, in their order; in the folders of ``SHARED``, those with a run's names.

    Args:
        folder: folder of the run.
        own: its files and folders, which may be missing.
    """
    for name, names in SHARED.items():
        for path in (folder / name).glob("*"):
            if re.fullmatch(names, path.name):
                _remove(path)
        if (folder / name).is_dir() and not any((folder / name).iterdir()):
            (folder / name).rmdir()
    for path in own:
        if path.parent != folder or path.name not in SHARED:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
