"""Seeds, and random states isolated from the global one."""

import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
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
    EMBEDDING,
) = range(15)
"""Independent random streams of a run's seed, one per purpose."""


def mixed_seed(*numbers: int) -> int:
    """Combine several numbers, such as (seed, STEP, step, rank), into one 63-bit seed."""
    seed = 0
    for number in numbers:  # one step of splitmix64 per number
        seed = (seed + number + 0x9E3779B97F4A7C15) & 0xFFFFFFFFFFFFFFFF
        seed = ((seed ^ seed >> 30) * 0xBF58476D1CE4E5B9) & 0xFFFFFFFFFFFFFFFF
        seed = ((seed ^ seed >> 27) * 0x94D049BB133111EB) & 0xFFFFFFFFFFFFFFFF
        seed ^= seed >> 31
    return seed >> 1


_GENERATORS = threading.RLock()  # all threads share torch's global generators


@contextmanager
def isolated_rng(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Seed the global generators of torch, Python and NumPy inside the context, then restore them.

    The generators of all CUDA devices are seeded and restored as well, even before their first use. Other threads wait
    for the context to end, as all threads share these generators.
    """
    with _GENERATORS:
        begun, before = torch.cuda.is_initialized(), torch.initial_seed()
        has_cuda = begun or torch.cuda.is_available()
        mps = torch.mps.get_rng_state() if torch.device(device).type == "mps" else None
        try:
            forked = torch.random.fork_rng(devices=range(torch.cuda.device_count()) if begun else [])
            with forked, _python_and_numpy(seed):
                # torch.manual_seed keeps the stack for each kind of device that is missing, which takes milliseconds
                torch.default_generator.manual_seed(seed)
                if has_cuda:
                    torch.cuda.manual_seed_all(seed)
                if mps is not None:
                    torch.mps.manual_seed(seed)
                yield
        finally:
            if has_cuda and not begun:
                torch.cuda.manual_seed_all(before)
            if mps is not None:
                torch.mps.set_rng_state(mps)


@contextmanager
def _python_and_numpy(seed: int) -> Iterator[None]:
    before = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF])
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])


def state(device: torch.device) -> list[Tensor]:
    """Return the states of torch's global generators for the CPU and a CUDA ``device``."""
    return [torch.get_rng_state(), *([torch.cuda.get_rng_state(device)] if device.type == "cuda" else [])]


def restore(states: list[Tensor], device: torch.device) -> None:
    """Restore the generators to the result of ``state``.

    A state of another kind of device has none for a GPU, which then keeps its own.
    """
    torch.set_rng_state(states[0])
    if device.type == "cuda" and len(states) > 1:
        torch.cuda.set_rng_state(states[1], device)
