"""Overhead of a whole run and of the command line, for benchmarks/speed.py."""

import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

from speed_timing import Figure, Setting

from semievol.artifacts import RunDir
from semievol.demo.running import prepare_demo

DEMO = "demo run: share of wall time in model compute"


def measure_demo(setting: Setting) -> list[Figure]:
    """Seconds of forward passes and training loops over all seconds, as the run's manifest has them.

    Without a finished run the demo is run, and the wall time is that of the process, its start included.
    """
    if setting.run is not None:
        stages = recorded_seconds(setting.run)
        wall, note = sum(seconds for seconds, _ in stages.values()), "a finished run; seconds of its stages"
    else:
        folder = setting.folder / "demo"
        started = time.perf_counter()
        run_cli("demo", "--seed", "0", "--output-dir", str(folder))
        wall, note = time.perf_counter() - started, "from the start of the process to its end"
        stages = recorded_seconds(folder)
    model = sum(seconds for _, seconds in stages.values())
    details = {
        "wall_seconds": round(wall, 1),
        "model_seconds": round(model, 1),
        "stages": {name: {"seconds": s, "model_seconds": m} for name, (s, m) in stages.items()},
    }
    return [Figure(DEMO, model / wall, "", 0.7, False, f"{model:.0f} of {wall:.0f} s, {note}", details)]


def recorded_seconds(run: Path) -> dict[str, tuple[float, float]]:
    """(seconds, of which in the model) of each stage of a finished run; the retriever's encoder is left out."""
    entries = RunDir(run).manifest()
    if not entries:
        raise SystemExit(f"--demo-run {run}: there is no finished stage")
    return {name: (entry["cost"]["seconds"], entry["cost"]["model_seconds"]) for name, entry in entries.items()}


def measure_cli(setting: Setting) -> list[Figure]:
    """CPU seconds, of the user and the system, of two commands from start to end."""
    folder = setting.folder / "check"
    prepare_demo("tickets", seed=0, output_dir=folder, overrides=())
    shown = [cpu_seconds("--help") for _ in range(max(3, setting.repeats))]
    checked = [cpu_seconds("check", str(folder / "config.yaml")) for _ in range(setting.repeats)]
    return [
        Figure("semievol --help, CPU", statistics.median(shown), "s", 0.4, True),
        Figure("semievol check of the demo, CPU", statistics.median(checked), "s", 3, True),
    ]


def cpu_seconds(*arguments: str) -> float:
    """CPU seconds of one command."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    run_cli(*arguments)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def run_cli(*arguments: str) -> None:
    """Run `semievol` in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-m", "semievol", *arguments], capture_output=True, text=True, env={**os.environ}, check=False
    )
    if done.returncode:
        raise SystemExit(f"semievol {' '.join(arguments)} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
