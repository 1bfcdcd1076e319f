"""Folders of images, ``train/CLASS/*`` and ``test/CLASS/*``: their files and classes."""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from acl_plugin.data.image_files import SUFFIXES
from acl_plugin.data.subsets import missing_classes
from acl_plugin.errors import UsageError

logger = logging.getLogger(__name__)


LAYOUT = "train/CLASS/* and test/CLASS/* (or val/CLASS/*), with the same two or more classes in both"
"""Required layout."""

SPLITS = frozenset({"train", "test", "val"})
"""Names of folders that mark a labeled dataset, in any case."""

TRAINING_NAMES = frozenset({"train", "training"})
TEST_NAMES = frozenset("test testing val valid validation eval evaluation dev".split())
"""Names of folders that together mark a labeled dataset, in any case. Only those of ``LAYOUT`` are read."""

NO_CONTENT = frozenset("__macosx @eadir #recycle $recycle.bin lost+found thumbs.db desktop.ini".split())
"""Lower-case names of files and folders that operating systems create. They are skipped, as are hidden names."""


@dataclass(frozen=True)
class Split:
    """Files of the training or the test images.

    Attributes:
        folder: folder with one subfolder per class.
        classes: names of the class folders, sorted.
        paths: N image files, ordered by class and sorted within each class.
        labels: (N,) int64 indices into ``classes``.
        skipped: files without an image suffix or outside the class folders.
        origins: resolved paths of the folders and of the symbolic links among the images.
    """

    folder: Path
    classes: tuple[str, ...]
    paths: list[Path]
    labels: Tensor
    skipped: list[Path]
    origins: frozenset[str]


def list_splits(root: Path) -> tuple[Split, Split]:
    """List the training and test images in ``root`` without opening them.

    Symbolic links are followed. Hidden files and folders and those of operating systems are skipped. One line on stderr
    reports the number of other skipped files.

    Args:
        root: folder with ``train`` and ``test``, or ``val`` if there is no ``test``.

    Raises:
        UsageError: for another layout, a class that is missing from a split or has no image, a single class, or files
            that are in both splits.
    """
    try:
        train, test = list_split(_split_folder(root, "train")), list_split(_split_folder(root, "test", "val"))
    except OSError as error:
        raise _refused(Path(error.filename or root), f"cannot be read: {error.strerror}") from error
    for one, other in ((train, test), (test, train)):
        missing = sorted(set(one.classes) - set(other.classes))
        if missing:
            what = f"has no folder of the class {_some(missing)}, which {one.folder.name} has"
            raise _refused(other.folder, f"{what}. Add it, or remove it from both")
    if len(train.classes) < 2:
        raise _refused(root, f"has only the class {train.classes[0]}, and a classifier needs two or more")
    for split in (train, test):
        empty = missing_classes(split.labels, split.classes)
        if empty:
            what = f"has no image of the class {_some(empty)}. Images end in {' '.join(SUFFIXES)}"
            others = [path for path in split.skipped if path.relative_to(split.folder).parts[0] in empty]
            raise _refused(split.folder, what + (f", unlike {others[0].name}" if others else ""))
    shared = sorted(
        train.origins & test.origins | _led_into(train.origins, test.origins) | _led_into(test.origins, train.origins)
    )
    if shared:
        raise _refused(shared[0], f"is in {train.folder.name} and {test.folder.name}. Test on other images")
    skipped = train.skipped + test.skipped
    if skipped:
        what = f"{len(skipped)} files that are no images or in no folder of a class, such as {skipped[0]}"
        logger.warning(f"image_folder: skipped {what}")
    return train, test


def tree_of(root: Path) -> list[Path]:
    """Return the images at any depth of a folder that has no folder with the name of a split; none for other folders.

    Of the names that are not read, such as ``training`` and ``validation``, only a pair marks a labeled dataset.

    Symbolic links are followed. Hidden files and folders and those of operating systems are skipped, as are other
    files. No file is opened.

    Raises:
        UsageError: for a folder that cannot be read.
    """
    if not root.is_dir():
        return []
    try:
        names = {entry.name.lower() for entry in root.iterdir() if entry.is_dir()}
        labeled = names & SPLITS or (names & TRAINING_NAMES and names & TEST_NAMES)
        return [] if labeled else _images_in(root)
    except OSError as error:
        raise _refused(Path(error.filename or root), f"cannot be read: {error.strerror}") from error


def labeled_inside(root: Path, tree: Iterable[Path]) -> Path | None:
    """Return the first folder below ``root`` with images in folders of training and of test images, or None."""
    folders = {path.parent for path in tree}
    folders |= {above for folder in folders for above in folder.parents}
    inside = [folder for folder in folders if root in folder.parents]
    training, test = (
        {folder.parent for folder in inside if folder.name.lower() in names} for names in (TRAINING_NAMES, TEST_NAMES)
    )
    return min(training & test, default=None)


def list_unlabeled(root: Path) -> list[Path]:
    """List the images at any depth of the folder of unlabeled images, as ``tree_of`` does.

    Raises:
        UsageError: for a folder that is missing, cannot be read, or has no image.
    """
    allowed = f"a folder with images ({' '.join(SUFFIXES)}) at any depth"
    try:
        paths = _images_in(root) if root.is_dir() else []
    except OSError as error:
        message = f"`unlabeled`: {error.filename or root} cannot be read: {error.strerror}"
        raise UsageError(message, parameter="unlabeled", given=str(root), allowed=allowed) from error
    if not paths:
        what = "has no image" if root.is_dir() else "is no folder"
        message = f"`unlabeled`: {root} {what}; allowed is {allowed}"
        raise UsageError(message, parameter="unlabeled", given=str(root), allowed=allowed)
    return paths


def _images_in(root: Path) -> list[Path]:
    return [path for path in _walk(root)[0] if _is_image(path)]


def _split_folder(root: Path, *names: str) -> Path:
    """Return the first of the named folders that exists."""
    if not root.is_dir():
        raise _refused(root, "is no folder")
    for name in names:
        if (root / name).is_dir():
            return root / name
    there = [entry.name for entry in sorted(root.iterdir()) if not _is_skipped(entry.name)]
    usual = TRAINING_NAMES if "train" in names else TEST_NAMES
    remedies = [f". Rename {name} to {names[0]}" for name in there if name.lower() in usual]
    remedy = remedies[0] if remedies else ""
    raise _refused(root, f"has no folder {' or '.join(names)}. It has {_some(there) or 'nothing'}{remedy}")


def list_split(folder: Path) -> Split:
    """List the images of one folder with a subfolder for each class, without opening them.

    Raises:
        UsageError: for a folder without classes, or files that would count twice.
    """
    entries = sorted(entry for entry in folder.iterdir() if not _is_skipped(entry.name))
    folders = [entry for entry in entries if entry.is_dir()]
    paths: list[Path] = []
    labels: list[int] = []
    skipped = [entry for entry in entries if not entry.is_dir()]
    if not folders:
        what = "has images in no folder of a class" if any(map(_is_image, skipped)) else "has no folder of a class"
        raise _refused(folder, what)
    owner: dict[str, Path] = {}
    for label, class_folder in enumerate(folders):
        files, real = _walk(class_folder)
        if owner.keys() & real:
            raise _refused(class_folder, f"has {min(owner.keys() & real)}, as another class has")
        images = [path for path in files if _is_image(path)]
        paths += images
        labels += [label] * len(images)
        skipped += [path for path in files if not _is_image(path)]
        owner |= dict.fromkeys(real, class_folder)
    for origin, class_folder in owner.items():
        if owner.get(os.path.dirname(origin), class_folder) != class_folder and _is_listed(origin):
            raise _refused(class_folder, f"has {origin}, as another class has")
    return Split(
        folder,
        tuple(f.name for f in folders),
        paths,
        torch.tensor(labels, dtype=torch.int64),
        skipped,
        frozenset(owner),
    )


def _walk(top: Path) -> tuple[list[Path], set[str]]:
    """Return all files below a folder, and the resolved paths of its folders and of its links to images."""

    def fail(error: OSError) -> None:
        raise error

    files: list[Path] = []
    origins: set[str] = set()
    for base, folders, names in os.walk(top, onerror=fail, followlinks=True):
        real = os.path.realpath(base)
        if real in origins:
            raise _refused(Path(base), f"is a link to {real}, whose images would count twice")
        origins.add(real)
        folders[:] = sorted(name for name in folders if not _is_skipped(name))
        here = [Path(base, name) for name in sorted(names) if not _is_skipped(name)]
        files += here
        origins |= {os.path.realpath(path) for path in here if _is_image(path) and path.is_symlink()}
    return files, origins


def _led_into(origins: frozenset[str], others: frozenset[str]) -> set[str]:
    """Return the images that are in a folder of ``others``, which has no entry for its own files."""
    return {origin for origin in origins if os.path.dirname(origin) in others and _is_listed(origin)}


def _is_listed(path: str) -> bool:
    """Return whether the images of a folder include this path in it."""
    return _is_image(Path(path)) and not _is_skipped(os.path.basename(path))


def _is_skipped(name: str) -> bool:
    return name.startswith(".") or name.lower() in NO_CONTENT


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES


def _some(names: list[str]) -> str:
    """Join up to five names into one phrase."""
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if len(names) > 5 else "")


def _refused(path: Path | str, fault: str) -> UsageError:
    return UsageError(
        f"`data_dir`: {path} {fault}. The layout is {LAYOUT}.", parameter="data_dir", given=str(path), allowed=LAYOUT
    )
