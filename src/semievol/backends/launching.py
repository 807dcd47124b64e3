"""Starts torchrun for a training in several processes, follows it, and lets none of it outlive its parent.

    fit  --launch.json-->  torchrun (one a machine)  -->  sft_worker (one a device)  --final/-->  fit

The workers' standard input is a pipe that only the parent writes to: `stop` asks for the step at hand to be saved, and
its end, which comes with the parent's however that ended, ends the workers. Their output comes back through one pipe:
lines that begin with `STEP` count optimiser steps, all others go to the log file beside the job. A worker that fails
leaves its own words in `failure-<rank>.json`.
"""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from semievol.artifacts import disk_full, is_disk_full
from semievol.backends.base import Progress
from semievol.config import LaunchConfig, ModelConfig, TrlTrainerConfig
from semievol.errors import (
    ArtifactError,
    ConfigError,
    DataError,
    DiskFullError,
    GenerationError,
    SemiEvolError,
    TrainingError,
)

WORKER = "semievol.backends.sft_worker"
STEP = "semievol-step "
STOP = "stop\n"
LOG_FILE = "launch.log"
FAILURES = "failure-*.json"
SECONDS_TO_END = 15.0
"""torchrun gets so long to end its workers before it is killed."""

_ERRORS: dict[str, type[SemiEvolError]] = {
    error.__name__: error
    for error in (ConfigError, DataError, GenerationError, TrainingError, ArtifactError, DiskFullError)
}


def launch_faults(config: TrlTrainerConfig, model: ModelConfig, device: str) -> list[str]:
    """Why the processes that `trainer.launch` asks for cannot be started on devices of this type; empty if they can."""
    launch = config.launch
    if launch is None or launch.num_processes == 1:
        return []
    faults = []
    if device == "cpu" and config.is_sharded:
        faults.append("trainer.launch.strategy: fsdp needs CUDA GPUs, but the device is cpu; use ddp")
    if device == "cuda" and ":" in model.device:
        faults.append(
            f"model.device: {model.device} is one GPU, but trainer.launch has a process for each; set model.device: "
            "cuda, and choose GPUs with CUDA_VISIBLE_DEVICES"
        )
    import torch

    n_local, n_gpus = launch.num_processes_per_machine, torch.cuda.device_count()
    if device == "cuda" and n_local > n_gpus:
        faults.append(
            f"trainer.launch.num_processes: {n_local} processes on a machine need a GPU each, but torch sees {n_gpus}; "
            f"set {n_gpus * launch.num_machines}, or raise num_machines"
        )
    starter = _launcher(launch)[:1]
    if starter and shutil.which(starter[0]) is None:
        faults.append(
            f"trainer.launch.num_machines: {starter[0]} is not on this machine; run inside a SLURM allocation, or set "
            "trainer.launch.launcher to a command that starts another one once on every machine"
        )
    return faults


def run_workers(job_file: Path, launch: LaunchConfig, *, rendezvous_id: str, progress: Progress | None = None) -> None:
    """Run the job in as many processes as asked for, and wait for their end.

    The first Ctrl-C lets them save the step at hand, a second one ends them at once.

    Raises:
        SemiEvolError: What a worker raised, of the same kind; TrainingError for anything else that ended one.
        KeyboardInterrupt: After a Ctrl-C.
    """
    folder = job_file.parent
    for path in folder.glob(FAILURES):
        path.unlink()
    process = subprocess.Popen(
        command(job_file, launch, rendezvous_id=rendezvous_id),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment(launch),
        start_new_session=True,  # a Ctrl-C is the parent's to pass on
    )
    try:
        with (folder / LOG_FILE).open("w", encoding="utf-8") as log:
            was_interrupted = _follow(process, log, progress)
        code = process.wait()
    finally:
        _end(process)
    if was_interrupted:
        raise KeyboardInterrupt
    if code != 0:
        raise _failure(folder, code, launch.num_processes)


def command(job_file: Path, launch: LaunchConfig, *, rendezvous_id: str) -> list[str]:
    """The command that starts all workers."""
    if launch.num_machines == 1:
        meeting = ["--standalone"]
    else:
        address = f"{launch.main_process_ip or socket.gethostname()}:{launch.main_process_port or _free_port()}"
        meeting = ["--rdzv-backend=c10d", f"--rdzv-endpoint={address}", f"--rdzv-id={rendezvous_id}"]
    return [
        *_launcher(launch),
        *(sys.executable, "-m", "torch.distributed.run"),
        *meeting,
        f"--nnodes={launch.num_machines}",
        f"--nproc-per-node={launch.num_processes_per_machine}",
        *("--module", WORKER, str(job_file)),
    ]


def environment(launch: LaunchConfig) -> dict[str, str]:
    """The parent's environment, with its CPU threads shared out over the processes of a machine."""
    import torch

    share = max(1, torch.get_num_threads() // launch.num_processes_per_machine)
    return os.environ | {"OMP_NUM_THREADS": str(launch.num_cpu_threads_per_process or share)}


def write_failure(folder: Path, rank: int, error: BaseException, *, seconds: float) -> None:
    """Leave the words of a worker that failed `seconds` (Unix time) for the parent."""
    record = {"kind": type(error).__name__, "message": str(error), "rank": rank, "seconds": seconds}
    path = folder / FAILURES.replace("*", str(rank))
    partial = path.with_suffix(".tmp")
    partial.write_text(json.dumps(record), encoding="utf-8")
    partial.replace(path)


def _launcher(launch: LaunchConfig) -> Sequence[str]:
    if launch.num_machines == 1:
        return ()
    n = launch.num_machines
    return launch.launcher or ("srun", f"--nodes={n}", f"--ntasks={n}", "--ntasks-per-node=1")


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("", 0))
        return int(found.getsockname()[1])


def _follow(process: "subprocess.Popen[str]", log: IO[str], progress: Progress | None) -> bool:
    """Read the output to its end; whether there was a Ctrl-C meanwhile."""
    assert process.stdout is not None
    was_interrupted = False
    while True:
        try:
            line = process.stdout.readline()
            if not line:
                return was_interrupted
            if not line.startswith(STEP):
                log.write(line)
                log.flush()
            elif progress is not None:
                progress(int(line.removeprefix(STEP)))
        except KeyboardInterrupt:
            if was_interrupted:
                raise
            was_interrupted = True
            _ask_to_stop(process)


def _ask_to_stop(process: "subprocess.Popen[str]") -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):
        process.stdin.write(STOP)
        process.stdin.flush()


def _end(process: "subprocess.Popen[str]") -> None:
    """Close the workers' input, which ends them, and make sure that torchrun is gone too."""
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with suppress(BrokenPipeError):
                stream.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _failure(folder: Path, code: int, n_processes: int) -> SemiEvolError:
    """The first deliberate error of a worker; else what killed one; else the first other error."""
    log_file = folder / LOG_FILE
    output = log_file.read_text(encoding="utf-8")
    records: list[dict[str, Any]] = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob(FAILURES)]
    records.sort(key=lambda record: (record["kind"] not in _ERRORS, record["seconds"]))
    if records and records[0]["kind"] in _ERRORS:
        return _ERRORS[records[0]["kind"]](records[0]["message"])
    if is_disk_full(folder):  # it may have left no room for their words
        return disk_full(folder)
    goes_on = f"The next run goes on from the last checkpoint; the processes' output: {log_file}"
    killed = [int(n) for n in re.findall(r"exitcode\s*:\s*-(\d+)", output) if int(n) != signal.SIGTERM]
    if killed:
        name = signal.Signals(killed[0]).name
        hint = ", as the system does when memory runs out" if killed[0] == signal.SIGKILL else ""
        return TrainingError(f"one of {n_processes} training processes was killed by {name}{hint}. {goes_on}")
    if records:
        first = records[0]
        words = f"{first['kind']}: {first['message']}"
        return TrainingError(f"training process {first['rank']} of {n_processes} failed: {words}. {goes_on}")
    last = next((line for line in reversed(output.splitlines()) if line.strip()), "it said nothing")
    return TrainingError(f"{n_processes} training processes could not be started (exit {code}): {last}. {goes_on}")
