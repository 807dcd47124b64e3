"""What this machine can do at most, measured: matrix products and memory copies.

A figure and its ceiling are measured in turns in one process, so that whatever else the machine does slows both.
"""

from collections.abc import Callable

import torch

Clock = Callable[[], float]

SIDES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
"""Square products tried; the fastest is the ceiling."""

COPY_BYTES = {"cpu": 2**28, "cuda": 2**32}


def matmul_ceiling(dtype: torch.dtype, device: str, *, clock: Clock, seconds: float = 0.5) -> float:
    """FLOP/s of the fastest square matrix product, each size kept up for about `seconds`."""
    kind = torch.device(device).type
    return max(_matmul_flops(side, dtype, device, clock, seconds) for side in SIDES[kind])


def copy_ceiling(device: str, *, clock: Clock, seconds: float = 0.5) -> float:
    """Bytes read and written a second when memory is copied."""
    n_bytes = COPY_BYTES[torch.device(device).type]
    source = torch.zeros(n_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * n_bytes * _rate(lambda: target.copy_(source), device, clock, seconds)


def synchronize(device: str) -> None:
    """Wait for a GPU to be done; a CPU always is."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def _matmul_flops(side: int, dtype: torch.dtype, device: str, clock: Clock, seconds: float) -> float:
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    out = torch.empty_like(left)
    return 2 * side**3 * _rate(lambda: torch.mm(left, right, out=out), device, clock, seconds)


def _rate(work: Callable[[], object], device: str, clock: Clock, seconds: float) -> float:
    """Calls of `work` a second."""
    work()
    synchronize(device)
    started, calls = clock(), 0
    elapsed = 0.0
    while elapsed < seconds:
        for _ in range(10 if torch.device(device).type == "cuda" else 1):
            work()
            calls += 1
        synchronize(device)
        elapsed = clock() - started
    return calls / elapsed
