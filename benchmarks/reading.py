"""Measure how fast images are read from disk, and in how much memory.

    python -m benchmarks reading --data-dir data      100,000 JPEGs of 96 pixels, from RAM and from disk

The images are enlarged from CIFAR-10 and digits, each shifted by another offset, in a temporary folder that is removed.
Every measurement is a process of its own that draws shuffled batches. Ours and torchvision's ImageFolder with the same
number of workers take turns.
"""

import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from acl_plugin.cli.parser import Parser
from acl_plugin.config import preset
from acl_plugin.data import datasets
from acl_plugin.data.batches import ShuffledBatches
from acl_plugin.runs.environment import environment
from acl_plugin.runtime.progress import Progress

SIDE, BATCH, QUALITY = 96, 256, 90


def run(*arguments: str) -> dict[str, Any]:
    """Run what the command line describes; return the result."""
    parser = Parser(prog="benchmarks reading", exit_on_error=False)
    parser.add_argument("--data-dir", type=Path, help="Folder that holds CIFAR-10.")
    parser.add_argument("--images", type=int, default=100_000, help="Number of images.")
    parser.add_argument("--measured", type=int, default=20_000, help="Number of images drawn in a measurement.")
    parser.add_argument("--workers", type=list[int], default=[0, 1, 2], help="Numbers of reading processes.")
    parser.add_argument("--repeats", type=int, default=3, help="Measurements of each kind.")
    given = parser.parse(arguments)
    rows: dict[tuple[str, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ACL_PLUGIN_HOME"] = f"{folder}/home"
        write_images(Path(folder) / "images", given.data_dir, given.images)
        index = measured("disk", 0, folder, BATCH)  # makes the index
        for _ in range(given.repeats):
            for workers in given.workers:
                for kind in ("disk", "ImageFolder"):
                    rows.setdefault((kind, workers), []).append(measured(kind, workers, folder, given.measured))
            rows.setdefault(("ram", 0), []).append(measured("ram", 0, folder, given.measured))
    found = [{"kind": kind, "workers": workers} | summary(runs) for (kind, workers), runs in rows.items()]
    settings = {"images": given.images, "side": SIDE, "batch": BATCH, "measured": given.measured}
    about = {"settings": settings | {"repeats": given.repeats}, "index_seconds": index["seconds_to_load"]}
    return about | {"rows": found, "environment": environment()}


def write_images(root: Path, data_dir: Path, count: int) -> None:
    """Write images in folders by class."""
    from PIL import Image

    cifar = datasets.load(preset("cifar10", data_dir=data_dir).data).train
    digits = datasets.load(preset("digits", image_size=32).data).train
    shades = (digits.pixels.float() * 255 / digits.levels).byte().expand(-1, 3, -1, -1)

    def write(number: int) -> None:
        source, labels = (shades, digits.labels) if number % 5 == 4 else (cifar.pixels, cifar.labels)
        turn, row = divmod(number, len(source))
        pixels = source[row].roll(turn + number % 3, 2).permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        folder = root / str(int(labels[row]))
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{number:06}.jpg", quality=QUALITY)

    with ThreadPoolExecutor() as pool, Progress("writing images", count, unit="image") as progress:
        for _ in pool.map(write, range(count)):
            progress.advance()


def measured(kind: str, workers: int, folder: str, images: int) -> dict[str, float]:
    """Return rate and memory of drawing images, measured in a process of its own."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(False)
    process = spawn.Process(target=_measure, args=(theirs, kind, workers, Path(folder) / "images", images))
    process.start()
    theirs.close()
    found = ours.recv()
    process.join()
    print(f"{kind}, {workers} workers: {found['images_per_second']:.0f} images/s, {found['mib']:.0f} MiB", flush=True)
    return found


def _measure(result: Any, kind: str, workers: int, root: Path, images: int) -> None:
    import torchvision  # noqa: F401 (part of the memory before)

    multiprocessing.set_start_method("fork", force=True)  # as in a process that was not spawned, on Linux
    torch.zeros(8).sum()
    memory = Memory()
    with memory:
        start = time.perf_counter()
        batches = _image_folder(root, workers) if kind == "ImageFolder" else _ours(root, kind, workers)
        loaded = time.perf_counter()
        steps = max(1, images // BATCH)
        count = sum(len(batch[0]) for batch in islice(batches, steps))
        seconds = time.perf_counter() - loaded
    result.send({"images_per_second": count / seconds, "mib": memory.most, "seconds_to_load": loaded - start})


def _ours(root: Path, kind: str, workers: int) -> ShuffledBatches:
    config = preset("image_folder", data_dir=root, image_size=SIDE, data_memory=kind, workers=workers)
    return ShuffledBatches(datasets.load(config.data).train, BATCH, seed=0, epoch=0)


def _image_folder(root: Path, workers: int) -> Any:
    from torch.utils.data import DataLoader
    from torchvision.datasets import ImageFolder
    from torchvision.transforms.v2 import Compose, PILToTensor, Resize

    data = ImageFolder(str(root), Compose([Resize((SIDE, SIDE)), PILToTensor()]))
    return DataLoader(data, BATCH, shuffle=True, num_workers=workers, drop_last=True)


class Memory:
    """Largest memory of this process and its children beyond that at the beginning, in MiB; shared pages count once."""

    def __enter__(self) -> "Memory":
        self.before, self.most, self.ended = self._now(), 0.0, threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()

    def _watch(self) -> None:
        while not self.ended.wait(0.2):
            self.most = max(self.most, self._now() - self.before)

    def _now(self) -> float:
        own = os.getpid()
        found = [own]
        for task in Path(f"/proc/{own}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
        return sum(map(_share, found)) / 1024


def _share(process: int) -> int:
    """Return the proportional share of a process in the memory in use, in KiB; 0 if it ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def summary(runs: list[dict[str, float]]) -> dict[str, Any]:
    """Return the median rate with its range, the largest memory, and the median time before the first batch."""
    rates = [run["images_per_second"] for run in runs]
    return {
        "images_per_second": statistics.median(rates),
        "range": [min(rates), max(rates)],
        "mib": max(run["mib"] for run in runs),
        "seconds_to_load": statistics.median(run["seconds_to_load"] for run in runs),
    }
