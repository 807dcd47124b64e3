"""Memory of a process that fills and frees large blocks: they are handed out again, and the peak starts anew."""

import platform
import subprocess
import sys

import pytest

from semievol.backends import host_memory

PROGRAM = """
import resource, sys
import numpy as np
from semievol.backends.host_memory import reuse_freed_memory

if sys.argv[1] == "reuse":
    assert reuse_freed_memory()
def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(48 * 2**20, dtype=np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
fill()
print(sum(fill() for _ in range(5)))
"""


def count_faults(mode: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, mode], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="settings of glibc")
def test_freed_blocks_are_used_again():
    assert count_faults("reuse") < count_faults("as it is") / 5


PEAKS = """
import sys
from semievol.backends.host_memory import peak_bytes, restart_peak, reuse_freed_memory
import numpy as np

reuse_freed_memory()
peaks = []
for mebibytes in map(int, sys.argv[1:]):
    assert restart_peak()
    start = peak_bytes()
    np.empty(mebibytes * 2**20, dtype=np.uint8).fill(1)
    peaks.append((peak_bytes() - start) // 2**20)
print(*peaks)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process starts anew on Linux alone")
def test_peak_is_that_of_what_came_last():
    sizes = [400, 50, 200]
    done = subprocess.run(
        [sys.executable, "-c", PEAKS, *map(str, sizes)], capture_output=True, text=True, check=True, timeout=60
    )
    peaks = [int(peak) for peak in done.stdout.split()]
    assert all(size <= peak < size + 20 for size, peak in zip(sizes, peaks, strict=True))


def test_peak_without_proc_is_that_of_the_process(monkeypatch, tmp_path):
    monkeypatch.setattr(host_memory, "CLEAR", tmp_path)  # a folder cannot be written
    monkeypatch.setattr(host_memory, "STATUS", tmp_path / "missing")
    assert not host_memory.restart_peak()
    assert host_memory.peak_bytes() >= 2**20
