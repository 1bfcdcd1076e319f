"""Locks that allow one process at a time in a run folder, and one thread at a time in a process."""

import contextlib
import functools
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Concatenate, ParamSpec, TypeVar

from acl_plugin.errors import UsageError
from acl_plugin.runs.folder import RunDir
from acl_plugin.runtime import file_locks
from acl_plugin.runtime.defaults import usual_defaults
from acl_plugin.runtime.distributed import launched
from acl_plugin.runtime.files import writable

logger = logging.getLogger(__name__)


P = ParamSpec("P")
T = TypeVar("T")

_HELD: set[Path] = set()  # by the active thread, whose stages may be nested
_AT_WORK = threading.RLock()


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Exclude other threads of this process: they share torch's random numbers, and only one receives signals.

    Inside the context, torch has its usual defaults, see ``runtime.defaults``.

    Raises:
        UsageError: when another thread is active.
    """
    if not _AT_WORK.acquire(blocking=False):
        raise UsageError(
            "another thread of this process is training or evaluating, and both would draw the same random numbers: "
            "wait for it, or start another process",
            parameter="run", given=threading.current_thread().name, allowed="one thread at a time",
        )  # fmt: skip
    try:
        with usual_defaults():
            yield
    finally:
        _AT_WORK.release()


@contextlib.contextmanager
def locked(folder: Path, *, create: bool = False, first: bool = True) -> Iterator[None]:
    """Exclude other processes from ``folder``, and other threads as ``alone``.

    The kernel holds the lock and releases it when the process ends for any reason. The file ``.lock`` contains the
    process id.

    Args:
        folder: folder to lock; a missing one is not locked.
        create: create a missing folder, so that two processes do not begin in it.
        first: False for processes beside the first one of a training, which holds the lock for all of them.

    Raises:
        UsageError: when another process (with its id) uses the folder, or when another thread is active.
    """
    if create:
        with writable(folder):
            folder.mkdir(parents=True, exist_ok=True)
    with alone(), _locked(folder) if first else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    path = folder.resolve() / ".lock"
    if path in _HELD or not folder.is_dir():
        yield
        return
    with path.open("a+", encoding="utf-8") as file:
        file.seek(0)
        owner = file.read().strip()
        try:
            file_locks.lock(file, wait=False)
        except BlockingIOError as error:
            others = launched()
            several = f", or set `devices` for the {others} processes that were launched together" if others > 1 else ""
            raise UsageError(
                f"process {owner} works in {folder}; wait for it, or choose another folder{several}",
                parameter="run", given=str(folder), allowed="a folder in which no other process works",
            ) from error  # fmt: skip
        if owner:
            logger.warning(f"{folder}: the lock of process {owner}, which has ended, is taken over")
        _write(file, str(os.getpid()))
        _sweep(folder)
        _HELD.add(path)
        try:
            yield
        finally:
            _HELD.discard(path)
            _write(file, "")


def exclusive(stage: Callable[Concatenate[RunDir, P], T]) -> Callable[Concatenate[RunDir | Path | str, P], T]:
    """Wrap a stage to lock the folder of its run, its first argument, which may be a path."""

    @functools.wraps(stage)
    def alone(run: RunDir | Path | str, /, *arguments: P.args, **options: P.kwargs) -> T:
        folder = RunDir(run)
        with locked(folder.path):
            return stage(folder, *arguments, **options)

    return alone


def _sweep(folder: Path) -> None:
    """Remove unfinished files of killed processes, see ``runtime.files.write_atomic``."""
    if os.name == "nt":  # where signal 0, which tests whether a process lives, interrupts it
        return
    for path in folder.rglob(".*.tmp"):
        owner = re.fullmatch(r"\..+\.(\d{1,10})\.tmp", path.name)
        if owner is None or not path.is_file():  # not ours
            continue
        try:
            os.kill(int(owner[1]), 0)
        except (OverflowError, ProcessLookupError):
            path.unlink(missing_ok=True)
        except PermissionError:  # alive, and another user's
            continue


def _write(file: IO[str], text: str) -> None:
    file.seek(0)
    file.truncate()
    file.write(text)
    file.flush()
