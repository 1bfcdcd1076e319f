"""Messages of this package, which are logged and never printed."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class _Stderr(logging.Handler):
    """Write messages unformatted to the current ``sys.stderr``."""

    def emit(self, record: logging.LogRecord) -> None:
        print(record.getMessage(), file=sys.stderr, flush=True)


@contextmanager
def on_stderr() -> Iterator[None]:
    """Write the messages of this package to stderr inside the context, independent of the application's logging.

    Example:
        >>> with on_stderr():
        ...     logging.getLogger("acl_plugin").warning("a message")
    """
    if any(isinstance(other, _Stderr) for other in logging.getLogger("acl_plugin").handlers):  # within another call
        yield
        return
    with handled("acl_plugin", _Stderr()):
        yield


@contextmanager
def handled(name: str, handler: logging.Handler) -> Iterator[None]:
    """Pass the messages of the logger ``name`` to ``handler`` alone inside the context."""
    logger = logging.getLogger(name)
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
