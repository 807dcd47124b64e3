"""Runs a server and ends it, with all that it has started, when its client is gone. Standard library alone.

`python vllm_supervisor.py CLIENT_PID COMMAND...`, started by vllm_server.py. A client that is killed cannot clean up,
and a server that outlives it keeps the memory of the GPUs: so this process stands between them. It looks for its parent
a few times a second, keeps the server in a session of its own, and leaves only when every process of it is gone, which
is when the memory is free. Should this process be killed itself, the kernel ends the server (Linux), and the client
what else is in the server's session.
"""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

LOOK_SECONDS = 0.1
GRACE_SECONDS = 10.0
"""Between being asked to end and being killed."""
REAP_SECONDS = 30.0
PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
_libc = ctypes.CDLL(None) if sys.platform == "linux" else None


def main(arguments: Sequence[str]) -> int:
    """Run the command until it ends, the client is gone or SIGTERM comes; returns its exit code.

    Prints the process id of the server, which is that of its session too; what the server writes goes to stderr.
    """
    client, *command = arguments
    asked_to_end = False

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked_to_end
        asked_to_end = True

    signal.signal(signal.SIGTERM, note)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the client, which then asks
    _prctl(PR_SET_CHILD_SUBREAPER, 1)  # what the server leaves behind becomes a child of this process
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=sys.stderr, start_new_session=True, preexec_fn=_end_with_parent
    )
    print(server.pid, flush=True)
    is_watched = True
    while server.poll() is None and not asked_to_end and is_watched:
        time.sleep(LOOK_SECONDS)
        is_watched = os.getppid() == int(client)
    if is_watched and server.poll() is None:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(GRACE_SECONDS)
    _end_all(server)
    code = server.returncode
    return 128 - code if code < 0 else code


def _end_with_parent() -> None:
    _prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _prctl(option: int, value: int) -> None:
    if _libc is not None:
        _libc.prctl(option, value, 0, 0, 0)


def _end_all(server: "subprocess.Popen[bytes]") -> None:
    """Kill what is left of the server's processes, those outside its session too, and wait until they are gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
    deadline = time.monotonic() + REAP_SECONDS
    while time.monotonic() < deadline:
        for pid in _children():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            if os.waitpid(-1, os.WNOHANG)[0] == 0:
                time.sleep(0.02)
        except ChildProcessError:
            return


def _children() -> list[int]:
    """Ids of the children of this process; only Linux tells."""
    try:
        return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]
    except OSError:
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
