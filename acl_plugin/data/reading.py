"""Read images of a source into memory, by several threads."""

import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from acl_plugin.data.fingerprint import bytes_hash
from acl_plugin.data.form import Form
from acl_plugin.data.image_files import decode
from acl_plugin.data.sources import Source
from acl_plugin.errors import UsageError
from acl_plugin.runtime.device import memory
from acl_plugin.runtime.progress import Progress

QUIET = 1000
"""Number of images below which no progress is shown, as decoding is fast."""
MEMORY_SHARE = 1 / 4
"""Share of this machine's memory that the images of a dataset may take."""


def read_one(source: Source, position: int, form: Form) -> tuple[Tensor, bytes]:
    """Return the pixels of an image, (C, H, W) uint8, and the content of its file.

    Raises:
        UsageError: naming the image, when it cannot be read.
    """
    content = source.content(position)
    return form.pixels(decode(content, source.name(position), as_stored=form.as_stored)), content


def each_image(
    source: Source, form: Form, skip_unreadable: bool = False, what: str = "reading images"
) -> Iterator[tuple[int, Tensor, int]]:
    """Yield position, pixels and file hash of each image, in order, and show progress.

    Raises:
        UsageError: for the first image that cannot be read, unless such images are skipped.
    """

    def attempt(position: int) -> tuple[Tensor, int] | UsageError:
        try:
            pixels, content = read_one(source, position, form)
            return pixels, bytes_hash(content)
        except UsageError as error:
            return error

    progress = Progress(what, len(source), unit="image", quiet=len(source) < QUIET)
    with progress:
        for position, found in enumerate(_in_threads(attempt, range(len(source)))):
            if not isinstance(found, UsageError):
                yield position, *found
            elif not skip_unreadable:
                raise found
            progress.advance()


def _in_threads(function: Callable, positions: range) -> Iterator:
    """Yield the results in order, computed by as many threads as PyTorch has, at most 16."""
    threads = min(16, torch.get_num_threads())
    step = 64 * threads  # an interruption waits for one chunk only
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, len(positions), step):
            chunk = positions[start : start + step]
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="PIL")  # about files that raise an error, or metadata
                found = list(map(function, chunk) if threads == 1 else pool.map(function, chunk))
            yield from found


def read_positions(source: Source, positions: list[int], form: Form) -> Tensor:
    """Return the pixels of some images: (M, C, H, W) uint8.

    One thread reads them, as several processes may do so.

    Raises:
        UsageError: for the first image that cannot be read.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        images = [read_one(source, position, form)[0] for position in positions]
    return torch.stack(images) if images else torch.empty(0, *form.shape, dtype=torch.uint8)


def read_images(source: Source, form: Form, skip_unreadable: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Read all images of a source.

    Args:
        source: N images.
        form: their form.
        skip_unreadable: leave out images that cannot be read.

    Returns:
        Of the M images that can be read, in order: (M, C, H, W) uint8 pixels, (M,) hashes of the files, and (M,)
        positions in the source.

    Raises:
        UsageError: for an image that cannot be read, or when the images exceed the memory limit.
    """
    require_memory(len(source), form)
    pixels = torch.empty(len(source), *form.shape, dtype=torch.uint8)
    hashes, positions = torch.empty(2, len(source), dtype=torch.int64)
    count = 0
    for position, image, file_hash in each_image(source, form, skip_unreadable):
        pixels[count], hashes[count], positions[count] = image, file_hash, position
        count += 1
    return pixels[:count], hashes[:count], positions[:count]


def fits(count: int, form: Form) -> bool:
    """Return whether images take at most a quarter of this machine's memory."""
    return count * _bytes(form) <= MEMORY_SHARE * memory(torch.device("cpu"))


def require_memory(count: int, form: Form, remedy: str = "") -> None:
    """Check that images take at most a quarter of this machine's memory.

    Args:
        count: number of images.
        form: their form.
        remedy: further advice at the end of the message.

    Raises:
        UsageError: with the largest side that fits.
    """
    if fits(count, form):
        return
    size, available = count * _bytes(form), memory(torch.device("cpu"))
    largest = int((MEMORY_SHARE * available / (count * form.channels)) ** 0.5)
    given = form.height if form.height == form.width else [form.height, form.width]
    raise UsageError(
        f"`image_size` {given}: {count} images of it take {size / 2**30:.1f} GiB, more than a quarter of this "
        f"machine's {available / 2**30:.1f} GiB. Use {largest} or less, or fewer images{remedy}.",
        parameter="image_size",
        given=given,
        allowed=f"up to {largest}",
    )


def _bytes(form: Form) -> int:
    return form.channels * form.height * form.width
