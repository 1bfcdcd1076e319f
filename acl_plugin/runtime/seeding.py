"""Seeds, and random states that leave the global one alone."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

(
    INITIALIZATION,
    ORDER,
    STEP,
    PROBE,
    EVALUATION,
    CORESET,
    CLUSTERS,
    FINETUNING,
    SUITE,
    HOLDOUT,
    LABELS,
    CORRUPTIONS,
    AUDIT,
    REPORT,
) = range(14)
"""What a run's seed is for: streams of randomness that do not depend on each other."""


def mixed_seed(*numbers: int) -> int:
    """One 63-bit seed out of several numbers, such as (seed, STEP, step, rank)."""
    seed = 0
    for number in numbers:  # a step of splitmix64 each
        seed = (seed + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        seed = ((seed ^ seed >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        seed = ((seed ^ seed >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        seed ^= seed >> 31
    return seed >> 1


_GENERATORS = threading.RLock()  # all threads share torch's global generators


@contextmanager
def private(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Start torch's global generators from ``seed``; afterwards they are as before.

    So are those of all CUDA devices, as torch.manual_seed seeds every one of them, also ahead of their first use. Other
    threads that call this wait until the first one is out, as all threads share these generators.
    """
    with _GENERATORS:
        begun, before = torch.cuda.is_initialized(), torch.initial_seed()
        mps = torch.mps.get_rng_state() if torch.device(device).type == "mps" else None
        try:
            with torch.random.fork_rng(devices=range(torch.cuda.device_count()) if begun else []):
                torch.manual_seed(seed)
                yield
        finally:
            if not begun:
                torch.cuda.manual_seed_all(before)
            if mps is not None:
                torch.mps.set_rng_state(mps)


def state(device: torch.device) -> list[Tensor]:
    """Of torch's global generators: CPU, and ``device``."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def restore(states: list[Tensor], device: torch.device) -> None:
    """Put the generators into a ``state`` again."""
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
