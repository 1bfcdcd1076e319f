"""Store the states of evaluations in memory, or in a folder to resume from."""

import io
import json
import time
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acl_plugin.errors import EvaluationStopped, UsageError
from acl_plugin.evaluation.autoattack import Chunk, Step
from acl_plugin.evaluation.verdicts import Verdict
from acl_plugin.runs.clearing import clear_shared
from acl_plugin.runs.folder import RunDir
from acl_plugin.runs.records import read_record
from acl_plugin.runs.resume import earlier_record
from acl_plugin.runtime.files import write_atomic, write_json
from acl_plugin.runtime.progress import Progress


class MemoryStates:
    """Storage of AutoAttack's states and successful adversarial examples in memory."""

    lines = "the evaluation"

    def __init__(self) -> None:
        self._chunks: dict[int, Chunk] = {}
        self._images: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}

    def chunk(self, start: int) -> Chunk | None:
        """Return the state of the chunk that begins at ``start``; None if it has not been started."""
        return self._chunks.get(start)

    def store(self, step: Step) -> None:
        """Store the result of an attack on a chunk."""
        self._images[step.chunk.start, step.attack] = (step.positions, step.x_adv.cpu())
        self._chunks[step.chunk.start] = step.chunk

    def adversarial(self, start: int, name: str) -> tuple[Tensor, Tensor]:
        """Return positions (M,) and images (M, C, H, W) of attack ``name`` on the chunk that begins at ``start``."""
        return self._images[start, name]

    def described(self, start: int, name: str) -> str:
        """Return the name of these images for error messages."""
        return f"{name} on the images from position {start}"


class FolderStates:
    """Storage of AutoAttack's states and successful adversarial examples in the files of a folder."""

    def __init__(self, run: RunDir) -> None:
        self.run, self.lines = run, str(run.verdicts_file)

    def begin(self, settings: Mapping[str, Any], overwrite: bool) -> bool:
        """Prepare the folder, and return whether an earlier evaluation with the same settings is resumed.

        Raises:
            UsageError: see ``earlier_record``.
        """
        run, folders = self.run, (self.run.chunks_folder, self.run.adversarial_folder)
        resumed = earlier_record(run.evaluation_key_file, settings, overwrite) is not None
        run.path.mkdir(parents=True, exist_ok=True)
        if not resumed:
            for file in (run.evaluation_file, run.evaluation_key_file, run.verdicts_file):
                file.unlink(missing_ok=True)
            for folder in folders:
                clear_shared(folder)
            write_json(run.evaluation_key_file, dict(settings))
        for folder in folders:
            folder.mkdir(exist_ok=True)
        return resumed

    def chunk(self, start: int) -> Chunk | None:
        """Return the state of the chunk that begins at ``start``; None if it has not been started."""
        path = self.run.evaluation_chunk(start)
        if not path.is_file():
            return None
        values = read_record(path)
        values.setdefault("adversarial", [None] * len(values["predictions"]))  # a file of an earlier version
        return Chunk(**{f.name: values[f.name] for f in fields(Chunk)} | {"flags": tuple(values["flags"])})

    def store(self, step: Step) -> None:
        """Write the images first, then the state that refers to them."""
        import numpy as np

        buffer, start = io.BytesIO(), step.chunk.start
        np.savez(buffer, positions=step.positions.cpu().numpy(), images=step.x_adv.float().cpu().numpy())
        write_atomic(self._path(start, step.attack), buffer.getvalue())
        write_json(self.run.evaluation_chunk(start), asdict(step.chunk))

    def adversarial(self, start: int, name: str) -> tuple[Tensor, Tensor]:
        """Return positions (M,) and images (M, C, H, W) of attack ``name`` on the chunk that begins at ``start``.

        Raises:
            EvaluationStopped: when the file is missing or damaged.
        """
        import numpy as np

        path = self._path(start, name)
        try:
            with np.load(path, allow_pickle=False) as file:
                return torch.from_numpy(file["positions"]), torch.from_numpy(file["images"])
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise EvaluationStopped(f"{path} is missing or damaged: {type(error).__name__}") from error

    def described(self, start: int, name: str) -> str:
        """Return the name of these images for error messages."""
        return str(self._path(start, name))

    def _path(self, start: int, name: str) -> Path:
        return Path(self.run.adversarial_folder / f"{start:06}-{name}.npz")


States = MemoryStates | FolderStates


def last_state(
    states: Iterable[dict[str, Any]], settings: Mapping[str, Any], file: Path | None, total: int, *, timed: bool = True
) -> dict[str, Any]:
    """Return the last of ``total`` states with the settings, after writing each to ``file``.

    Args:
        states: states of a suite.
        settings: settings of the suite.
        file: file of the states, whose name is that of the suite; None to write none.
        total: number of the states, for the progress.
        timed: add the seconds of this call.
    """
    started, values = time.monotonic(), dict[str, Any]()
    what = "suite" if file is None else file.stem
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
    with Progress(what, total, unit="attack") as progress:
        for state in states:
            seconds = {"seconds": round(time.monotonic() - started, 1)} if timed else {}
            values = {**settings, **state, **seconds}
            if file is not None:
                write_json(file, values)
            progress.advance()
    return values


def attacks_done(states: States, starts: Sequence[int]) -> int:
    """Return the number of finished attacks over all chunks."""
    return sum(chunk.done for start in starts if (chunk := states.chunk(start)) is not None)


def write_verdicts(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write one line per verdict, and replace the file atomically."""
    write_atomic(path, "".join(json.dumps(asdict(v)) + "\n" for v in verdicts).encode())


def read_verdicts(path: Path, n: int | None = None) -> list[Verdict]:
    """Return the verdicts on n images in a file, or on any number; none when the file is missing.

    Raises:
        UsageError: when the file is damaged, or has another number of lines.
    """
    if not path.is_file():
        return []
    try:
        found = [Verdict(**json.loads(line)) for line in path.read_text("utf-8").splitlines()]
        if n not in (None, len(found)):
            raise ValueError(f"it has {len(found)} lines, for {n} images")
        return found
    except (OSError, ValueError, TypeError) as error:
        message = f"{path} is damaged ({error}); delete it to evaluate again"
        raise UsageError(message, parameter="run", given=str(path), allowed="a file as it was written") from error
