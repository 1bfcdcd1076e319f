"""Deferred SIGINT and SIGTERM: a training step can finish, so that its checkpoint is saved."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

PATIENCE = 5.0
"""Seconds that a step has to finish."""


def interrupt(number: int, frame: Any) -> None:
    """Raise ``KeyboardInterrupt``, as Python's default handler of SIGINT."""
    raise KeyboardInterrupt


@contextlib.contextmanager
def deferred(patience: float = PATIENCE) -> Iterator[Callable[[], bool]]:
    """Defer interruptions inside the context; yield a function that returns whether SIGINT or SIGTERM arrived.

    A signal raises ``KeyboardInterrupt`` when the context ends, after ``patience`` seconds, or when a signal arrives
    again. Outside the main thread, which alone receives signals, nothing changes.

    Args:
        patience: seconds until a signal interrupts the context.
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
