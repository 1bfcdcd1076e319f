"""Atomic writes, and reads that detect damaged files."""

import io
import json
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from acl_plugin.errors import UsageError


def damaged(path: Path, what: str) -> UsageError:
    """Return the error for a damaged file; ``what`` describes the damage."""
    return UsageError(f"{path} {what}", parameter="run", given=str(path), allowed="a file as it was written")


def intact(path: Path) -> bool:
    """Return whether all checksums in a file written by ``torch.save`` are correct."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return False


def read_intact(path: Path) -> Any:
    """Load a file written by ``torch.save`` without executing code from it.

    Raises:
        ValueError: when a checksum is wrong.
    """
    if not intact(path):
        raise ValueError("a checksum is not right")
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def torch_bytes(value: Any) -> bytes:
    """Return the bytes that ``torch.save`` writes for ``value``."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file atomically: it is complete or absent, even if the process is killed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def writable(folder: Path, parameter: str = "out") -> Iterator[None]:
    """Raise a UsageError of ``parameter`` where something cannot be written in ``folder``."""
    try:
        yield
    except OSError as error:
        message, allowed = f"{folder} cannot be written: {error.strerror}", "a folder that can be written"
        raise UsageError(message, parameter=parameter, given=str(folder), allowed=allowed) from error


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside ``folder``, which takes its place at the end; after an error nothing changes."""
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        yield part
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)
    part.replace(folder)


def write_json(path: Path, values: Any) -> None:
    """Write ``values`` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(values, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UsageError: when it is damaged.
    """
    try:
        return json.loads(path.read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise damaged(path, f"is damaged: {error}") from error
