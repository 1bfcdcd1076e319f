"""File locks of the operating system, which are released when the process ends for any reason."""

import os
from typing import IO, Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def lock(file: IO[Any], wait: bool) -> None:
    """Lock an open file for this process.

    Args:
        file: file that is open for writing.
        wait: wait while another process holds the lock.

    Raises:
        BlockingIOError: when another process holds the lock and ``wait`` is false.
    """
    if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        return
    import msvcrt

    windows: Any = msvcrt
    position = file.tell()
    file.seek(LOCKED_BYTE)  # beyond the text, so that other processes can read it
    try:
        windows.locking(file.fileno(), windows.LK_LOCK if wait else windows.LK_NBLCK, 1)
    except OSError as error:
        raise BlockingIOError(error.errno, os.strerror(error.errno or 0)) from error
    finally:
        file.seek(position)


LOCKED_BYTE = 1 << 30
"""Offset of the byte that is locked on Windows."""
