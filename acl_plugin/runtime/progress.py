"""Progress on stderr: a bar with the remaining time on a terminal, plain lines elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from tqdm import tqdm


class Progress:
    """Context manager that shows progress on stderr.

    Args:
        what: name of the task.
        total: number of units.
        done: number of units completed by an earlier run.
        unit: name of a unit.
        quiet: show nothing.
    """

    lines = 10  # approximate maximum without a terminal
    silent = False  # for all instances: --quiet

    def __init__(self, what: str, total: int, done: int = 0, unit: str = "step", quiet: bool = False) -> None:
        self.what, self.total, self.done, self.unit = what, total, done, unit
        self.first, self.started = done, time.monotonic()
        self.next_line = done + max(1, min(10, total // 20))  # early, to show the remaining time
        self.quiet = quiet = quiet or self.silent or sys.stderr is None  # closed, or of a program without a console
        self.bar = tqdm(desc=what, total=total, initial=done, unit=unit) if not quiet and sys.stderr.isatty() else None

    def advance(self, units: int = 1) -> None:
        """Add ``units`` to the completed ones."""
        self.done += units
        if self.bar is not None:
            self.bar.update(units)
        elif not self.quiet and (self.done >= self.next_line or self.done == self.total):
            self.next_line = max(self.done + 1, self.done + self.total // self.lines)
            left = (time.monotonic() - self.started) / (self.done - self.first) * (self.total - self.done)
            print(
                f"{self.what}: {self.done}/{self.total} {self.unit}s, {clock(left)} left", file=sys.stderr, flush=True
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the bar and leave it on the terminal."""
        if self.bar is not None:
            self.bar.close()


def clock(seconds: float) -> str:
    """Format seconds as h:mm:ss."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
