"""SIGINT and SIGTERM that wait for the end of a training step, so that a checkpoint can be made of it."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 5.0
"""Seconds that a step may take to its end."""


def interrupt(number: int, frame: Any) -> None:
    """A signal handler that does what SIGINT's own does."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def deferred(patience: float = PATIENCE) -> Iterator[Callable[[], bool]]:
    """Defer interruptions inside: yield a function that returns whether SIGINT or SIGTERM came.

    If nobody leaves within ``patience`` seconds, or the signal comes again, or the work ends, it becomes a
    ``KeyboardInterrupt``. Outside of the main thread, which alone receives signals, nothing changes.

    Args:
        patience: seconds.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    requested = False

    def note(number: int, frame: Any) -> None:
        nonlocal requested
        if requested:
            interrupt(number, frame)
        requested = True
        signal.setitimer(signal.ITIMER_REAL, patience)

    handlers = {signal.SIGINT: note, signal.SIGTERM: note, signal.SIGALRM: interrupt}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        yield lambda: requested
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    if requested:
        raise KeyboardInterrupt
