"""How the C library keeps the memory that torch frees on a CPU, and the most memory that a step had at a time."""

import ctypes
import platform
import resource
import sys
from functools import lru_cache
from pathlib import Path

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of glibc's mallopt(3)."""

LARGEST_KEPT = 2**30
"""Bytes: blocks up to this size, and as much free memory in all, are kept for the next one who asks."""

CLEAR, STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
RESET_PEAK = "5"
"""What to write to `CLEAR` so that `STATUS` gives the peak from now on (proc(5))."""


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


def restart_peak() -> bool:
    """Let `peak_bytes` tell of what comes from now on; free memory that is kept goes back to the system before.

    Returns:
        Whether the system can do so for its own memory; where not (not a Linux), the peak stays that of the process.
    """
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
    try:
        CLEAR.write_text(RESET_PEAK, encoding="ascii")
    except OSError:
        return False
    return True


def peak_bytes(device: str = "cpu") -> int:
    """The most memory at a time since `restart_peak`: that of torch's tensors for a GPU, else that of this process."""
    if device.startswith("cuda"):
        return int(sys.modules["torch"].cuda.max_memory_allocated(device))
    try:
        lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
