"""Recognize files that are given in place of a file of weights."""

import zipfile
from pathlib import Path

BEGINNINGS = {
    b"version https://git-lfs": "a pointer of Git LFS; git lfs pull fetches the file itself",
    **dict.fromkeys((b"<!doctype", b"<html", b"<?xml"), "a page of HTML or XML; download the file itself"),
    b"\x89hdf": "an HDF5 file, as Keras writes it; allowed are weights of PyTorch",
    b"\x93numpy": "an array of NumPy; allowed are weights by name, as torch.save writes them",
}
"""What a file is that begins so, after blanks and in lower case."""
STORED = "allowed are its weights, as torch.save writes them:"
PROGRAMS = {
    "constants.pkl": f"a program of TorchScript; {STORED} torch.jit.load(FILE).state_dict()",
    **dict.fromkeys(
        ("archive_format", "serialized_exported_program.json"),  # as newer versions of torch write them, and older
        f"a program of torch.export; {STORED} torch.export.load(FILE).state_dict",
    ),
}
"""What a zip file is that has a file of this name."""


def mistaken(path: Path) -> str | None:
    """Return what an existing path is, and the remedy, if it is no file of weights; None if it may be one."""
    if path.is_dir():
        return "a folder; allowed is a file of weights"
    with path.open("rb") as file:
        first = file.read(64).lstrip().lower()
    for beginning, kind in BEGINNINGS.items():
        if first.startswith(beginning):
            return kind
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).name for name in archive.namelist()}
    except zipfile.BadZipFile:  # another file, or a damaged one
        return None
    return next((kind for name, kind in PROGRAMS.items() if name in names), None)


def holds_more(path: Path, error: Exception) -> bool:
    """Return whether torch refused a file of ``torch.save``, a zip file or a pickle, as one with more than weights."""
    with path.open("rb") as file:
        by_torch = file.read(2) in (b"PK", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
    return by_torch and "Weights only load failed" in str(error)
