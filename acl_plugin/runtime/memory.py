"""Keep the memory of freed tensors in the process."""

import ctypes
import sys

SETTINGS = {"M_MMAP_MAX": (-4, 0), "M_TRIM_THRESHOLD": (-1, -1), "M_TOP_PAD": (-2, 64 * 2**20)}
"""Settings of glibc by name: number and value, see ``man mallopt``."""


def keep_freed() -> bool:
    """Let glibc keep freed memory, and return whether it does; another C library is left alone.

    By default, glibc returns each freed block of more than 32 MB to the system and takes it again, and the kernel
    clears all its pages: on a CPU, a pass of a network with large activations takes up to three times as long.
    With these settings, the process holds on to the largest amount of memory that it needed.

    Example:
        >>> keep_freed() in (True, False)
        True
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    return mallopt is not None and all(mallopt(number, value) == 1 for number, value in SETTINGS.values())
