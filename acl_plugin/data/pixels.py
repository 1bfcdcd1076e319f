"""Pixels of a dataset: a tensor in memory, or images that are read from disk when they are used."""

import multiprocessing
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, cast

import numpy as np
import torch
from torch import Tensor

from acl_plugin.data.form import Form
from acl_plugin.data.reading import read_positions
from acl_plugin.data.sources import Source
from acl_plugin.errors import UsageError


class StoredPixels(Protocol):
    """Pixels of N images, (N, C, H, W) uint8, that are not in memory."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape (N, C, H, W)."""

    def __len__(self) -> int:
        """Return N."""

    def __getitem__(self, chosen: Tensor) -> Self:
        """Return the pixels at ``chosen``, (M,), without reading them."""

    def read(self, positions: Sequence[int]) -> Tensor:
        """Return the pixels at M positions: (M, C, H, W) uint8."""

    def sums(self) -> Tensor:
        """Return ``channel_sums``, without reading the images."""

    @property
    def workers(self) -> int:
        """Number of processes that read ahead."""


Pixels = Tensor | StoredPixels


@dataclass(frozen=True)
class DiskPixels:
    """Images that are read and decoded when they are used.

    Attributes:
        source: where they are.
        form: their form.
        of_index: (N, C, 2) their ``channel_sums``, from the index.
        workers: number of processes that read ahead; 0 reads in the process itself.
    """

    source: Source
    form: Form
    of_index: Tensor
    workers: int = 0

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return len(self), *self.form.shape

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, chosen: Tensor) -> "DiskPixels":
        chosen = chosen.cpu()
        return replace(self, source=self.source.take(chosen), of_index=self.of_index[chosen])

    def read(self, positions: Sequence[int]) -> Tensor:
        return read_positions(self.source, list(positions), self.form)

    def sums(self) -> Tensor:
        return self.of_index


@dataclass(frozen=True)
class JoinedPixels:
    """Pixels of two datasets of the same form.

    Attributes:
        first, second: the datasets.
        order: (N,) positions in ``first`` and, after its last, in ``second``.
    """

    first: Pixels
    second: Pixels
    order: Tensor

    @property
    def shape(self) -> tuple[int, int, int, int]:
        channels, height, width = self.first.shape[1:]
        return len(self), channels, height, width

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, chosen: Tensor) -> "JoinedPixels":
        return replace(self, order=self.order[chosen.cpu()])

    def read(self, positions: Sequence[int]) -> Tensor:
        wanted = self.order[list(positions)]
        late = wanted >= len(self.first)
        found = torch.empty(len(wanted), *self.shape[1:], dtype=torch.uint8)
        for chosen, part, start in ((~late, self.first, 0), (late, self.second, len(self.first))):
            if chosen.any():
                found[chosen] = read(part, wanted[chosen] - start).cpu()
        return found

    def sums(self) -> Tensor:
        return torch.cat([channel_sums(self.first), channel_sums(self.second)])[self.order]

    @property
    def workers(self) -> int:
        return max(0 if isinstance(part, Tensor) else part.workers for part in (self.first, self.second))


def joined(first: Pixels, second: Pixels) -> Pixels:
    """Return the pixels of both, of the same form."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    return JoinedPixels(first, second, torch.arange(len(first) + len(second)))


def read(pixels: Pixels, positions: Tensor) -> Tensor:
    """Return the pixels at (M,) positions: (M, C, H, W) uint8."""
    return pixels[positions] if isinstance(pixels, Tensor) else pixels.read(positions.tolist())


def stream(pixels: Pixels, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the pixels of each batch of positions, read ahead by processes if they are on disk.

    Args:
        pixels: pixels of N images.
        batches: positions of each batch, (B,) each.

    Yields:
        (B, C, H, W) uint8.

    Raises:
        UsageError: when an image can no longer be read, or a process that reads cannot start or ended.
    """
    if isinstance(pixels, Tensor) or not pixels.workers:
        yield from (read(pixels, batch) for batch in batches)
        return
    from torch.utils.data import DataLoader

    _require_queues(pixels.workers)
    loader: DataLoader[Any] = DataLoader(
        cast(Any, _Batches(pixels)), batch_sampler=(batch.tolist() for batch in batches), num_workers=pixels.workers,
        collate_fn=_same, worker_init_fn=_begin_worker,
        generator=torch.Generator(),  # it would draw a seed from the global one
    )  # fmt: skip
    try:
        for found in loader:
            if isinstance(found, UsageError):
                raise found
            yield torch.from_numpy(found)
    except RuntimeError as error:
        if "worker" not in str(error):
            raise
        raise _workers_failed(pixels.workers, "a process that reads images ended, for lack of memory?") from error


def _require_queues(workers: int) -> None:
    """Check that the system has room for the queues of the reading processes, which a tiny /dev/shm has not.

    The ``DataLoader`` would leave a traceback of its destructor.
    """
    try:
        queues: list[Any] = [multiprocessing.Queue() for _ in range(workers + 2)]
        for queue in queues:
            queue.close()
    except OSError as error:
        raise _workers_failed(workers, f"the processes that read images cannot start ({error})") from error


def _workers_failed(workers: int, reason: str) -> UsageError:
    message = (
        f"`workers` {workers}: {reason}; run the same command again to resume, with fewer of them, or with 0 to read "
        "in the process itself"
    )
    return UsageError(message, parameter="workers", given=workers, allowed="0, or fewer")


class _Batches:
    """Dataset of a ``DataLoader`` that reads a whole batch at once.

    Arrays go through a pipe, so that they need no shared memory, of which containers often have little. An error comes
    as a value: the loader would rebuild its type from a traceback.
    """

    def __init__(self, pixels: StoredPixels) -> None:
        self.pixels = pixels

    def __getitems__(self, positions: list[int]) -> np.ndarray | UsageError:
        try:
            return self.pixels.read(positions).numpy()
        except UsageError as error:
            return UsageError(str(error), parameter=error.parameter, given=error.given, allowed=error.allowed)


def _same(found: Any) -> Any:
    return found


def _begin_worker(number: int) -> None:
    """Leave signals to the main process, whose end ends the worker."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def channel_sums(pixels: Pixels) -> Tensor:
    """Return sum and sum of squares of each channel of each image: (N, C, 2) int64."""
    if not isinstance(pixels, Tensor):
        return pixels.sums()
    found = torch.zeros(len(pixels), pixels.shape[1], 2, dtype=torch.int64)
    step = max(1, 2**22 // pixels[0].numel()) if len(pixels) else 1
    for start in range(0, len(pixels), step):
        values = pixels[start : start + step].flatten(2).to(torch.int32)
        found[start : start + step] = torch.stack([values.sum(2), (values * values).sum(2)], 2)
    return found


def require_varied(pixels: Pixels, hashes: Tensor, name: str) -> None:
    """Check that images are not all equal and that at most half of them have a single color.

    Otherwise the conversion of the images failed, and a model cannot learn from them. A few blank images are common.

    Args:
        pixels: pixels of N images; fewer than two always pass.
        hashes: (N,) hashes of the images; images on disk are equal if these are.
        name: dataset and split, for the message.

    Raises:
        UsageError: when the images fail the check.
    """
    if len(pixels) < 2:
        return
    if isinstance(pixels, Tensor):
        parts = pixels.flatten(2).split(4096)
        blank = sum(int((part.amin(2) == part.amax(2)).all(1).sum()) for part in parts)
        same = all(torch.equal(part, parts[0][:1].expand_as(part)) for part in parts)
    else:
        total, squares = pixels.sums().unbind(2)
        blank = int((squares * pixels.shape[2] * pixels.shape[3] == total * total).all(1).sum())  # a variance of 0
        same = bool((hashes == hashes[0]).all())
    if same:
        fault = f"all {len(pixels)} images are the same"
    elif blank > len(pixels) / 2:
        fault = f"{blank} of {len(pixels)} images have a single color"
    else:
        return
    raise UsageError(
        f"`data` {name}: {fault}. Check how the images were converted.",
        parameter="data",
        given=name,
        allowed="images that differ",
    )
