"""Checkpoints of a probe in RUN/probing, removed when the probe is complete."""

import logging
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from acl_plugin.runtime.files import read_intact, torch_bytes, write_atomic

logger = logging.getLogger(__name__)


class ProbeCheckpoints:
    """Checkpoint files, one for each training of a probe, rewritten every minute.

    Args:
        folder: folder for the files, created at the first save.
        key: all settings that decide the result, in plain types; a checkpoint with another key is ignored.
    """

    often = 60.0

    def __init__(self, folder: Path, key: Mapping[str, Any]) -> None:
        self.folder, self.key = folder, dict(key)
        self.seconds_before, self.started = 0.0, time.monotonic()
        self.saved = self.started

    def seconds(self) -> float:
        """Return the duration of this start plus that of earlier ones up to the resumed checkpoint."""
        return self.seconds_before + time.monotonic() - self.started

    def load(self, what: str) -> dict[str, Any] | None:
        """Return the saved state of the training ``what``, or None to start from scratch. Log a damaged file."""
        path = self.folder / f"{what}.pt"
        if not path.is_file():
            return None
        try:
            content = read_intact(path)
            if content["key"] != self.key:
                return None
            self.seconds_before = max(self.seconds_before, content["seconds"])
            return content["state"]
        except Exception as error:  # the unpickler raises many types
            logger.warning(f"{path} is damaged ({' '.join(str(error).split())[:80]}); starting over")
            return None

    def save(self, what: str, state: Callable[[], dict[str, Any]]) -> None:
        """Save ``state()``, of tensors and plain types, if the last save is long enough ago."""
        if time.monotonic() - self.saved < self.often:
            return
        self.folder.mkdir(exist_ok=True)
        content = {"key": self.key, "seconds": self.seconds(), "state": state()}
        write_atomic(self.folder / f"{what}.pt", torch_bytes(content))
        self.saved = time.monotonic()

    def clear(self) -> None:
        """Remove all checkpoints, as the probe is complete."""
        shutil.rmtree(self.folder, ignore_errors=True)
