"""How the C library keeps the memory that torch frees on a CPU."""

import ctypes
import platform
from functools import lru_cache

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's mallopt(3)."""

LARGEST_KEPT = 2**30
"""Bytes: blocks up to this size, and as much free memory in all, are kept for the next one who asks."""


@lru_cache(maxsize=1)
def reuse_freed_memory() -> bool:
    """Let freed blocks be handed out again in the place of going back to the system; once a process.

    By default glibc maps every block above 32 MiB anew, and each of its pages is a fault and is filled with zeros
    before it is written. The gradient of an embedding matrix or the logits of a batch are such blocks, several in every
    step.

    Returns:
        Whether the C library took the settings; False where it is another one than glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = {M_MMAP_THRESHOLD: LARGEST_KEPT, M_TRIM_THRESHOLD: LARGEST_KEPT, M_TOP_PAD: 2**26}
    took = [mallopt(name, value) == 1 for name, value in settings.items()]
    return all(took)
