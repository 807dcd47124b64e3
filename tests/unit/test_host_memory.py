"""Freed blocks are handed out again: seen in the page faults of a process that fills and frees a large block."""

import platform
import subprocess
import sys

import pytest

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
