"""Files that appear whole or not at all."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from acl_plugin.errors import UsageError


def damaged(path: Path, what: str) -> UsageError:
    """Return the error about a file that is not as it was written."""
    return UsageError(f"{path} {what}", parameter="run", given=str(path), allowed="a file as it was written")


def intact(path: Path) -> bool:
    """Whether every part of a file that ``torch.save`` wrote has the checksum that was written with it."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is None
    except (OSError, zipfile.BadZipFile, NotImplementedError, ValueError):
        return False


def read_intact(path: Path) -> Any:
    """What ``torch.save`` wrote; nothing in the file is executed.

    Raises:
        ValueError: when a byte has changed since.
    """
    if not intact(path):
        raise ValueError("a checksum is not right")
    return torch.load(path, map_location="cpu", weights_only=True)


def torch_bytes(value: Any) -> bytes:
    """What ``torch.save`` writes of ``value``."""
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def write_atomic(path: Path, content: bytes) -> None:
    """Write a file that is seen whole or not at all, whenever the process dies."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, values: Any) -> None:
    """Write ``values`` as indented JSON, atomically."""
    write_atomic(path, (json.dumps(values, indent=2) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        UsageError: when it is damaged.
    """
    try:
        return json.loads(path.read_text())
    except (ValueError, OSError) as error:
        raise damaged(path, f"is damaged: {error}") from error
