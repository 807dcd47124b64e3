"""Run the whole pipeline over pools of growing size and tabulate memory and time by stage: docs/results.md.

    python benchmarks/large_pool.py                                  # 10,000, 100,000 and 1,000,000 unlabelled rows
    python benchmarks/large_pool.py --rows 10000 --labeled 300 --index faiss

The rows are synthetic, the generator, trainer and embedder are the fake ones: they cost next to nothing, so what is
measured is the work around the model. Each size runs in a process of its own. Peak memory of a stage is the largest
resident set since it began (Linux sets the high-water mark back; empty elsewhere); that of the run is the largest of
all, or `ru_maxrss` of the process. It holds what earlier stages left to the allocator. Seconds of CPU are user and
system time of all threads. A run that was interrupted starts anew.
"""

import argparse
import csv
import json
import os
import platform
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

N_WORDS = 5000
"""Words that questions are made of."""
OPTIONS = ("refund", "delivery", "card lost", "card stolen")
REPEATED_EVERY, BROKEN_EVERY = 200, 1000
"""One unlabelled row in so many repeats an earlier one, or has no question."""
MIB = 1 << 20


def main() -> None:
    """Measure every size, then print the table and write the JSON."""
    arguments = parse_arguments()
    if arguments.child is not None:
        measure_run(arguments.child, arguments)
        return
    arguments.output.mkdir(parents=True, exist_ok=True)
    measured = [measure_size(n, arguments) for n in arguments.rows]
    result = {"command": " ".join(sys.argv), "machine": describe_machine(), "sizes": measured}
    path = arguments.output / "large_pool.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print("\n".join(table_lines(measured)), f"\nwritten to {path}", sep="\n")


def parse_arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--labeled", type=int, default=300)
    parser.add_argument("--test", type=int, default=500)
    parser.add_argument("--index", choices=("exact", "faiss"), default="exact")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("runs/large_pool"))
    parser.add_argument("--keep", action="store_true", help="keep the run folders")
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def measure_size(n: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Make the rows, run the pipeline in a process of its own and collect what it says."""
    folder = arguments.output / str(n)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    write_rows(folder, n, arguments)
    start = time.perf_counter()
    process = os.posix_spawn(sys.executable, [sys.executable, *sys.argv, "--child", str(n)], os.environ)
    _, status, usage = os.wait4(process, 0)
    if status != 0:
        raise SystemExit(f"the run over {n:,} rows failed (status {status})")
    found = json.loads((folder / "stages.json").read_text(encoding="utf-8"))
    found |= {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        # Setting the mark of a stage back sets ru_maxrss back as well.
        "peak_bytes": max(
            usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024),
            *(stage["peak_bytes"] or 0 for stage in found["stages"]),
        ),
        "input_bytes": sum(path.stat().st_size for path in folder.glob("*.csv")),
        "run_bytes": sum(path.stat().st_size for path in (folder / "run").rglob("*") if path.is_file()),
        "rows_store_bytes": sum(path.stat().st_size for path in (folder / "run").glob("rows.sqlite*")),
        "report_bytes": (folder / "run" / "report.html").stat().st_size,
    }
    if not arguments.keep:
        shutil.rmtree(folder)
    return found


def write_rows(folder: Path, n: int, arguments: argparse.Namespace) -> None:
    """CSV files whose answers the fake generator can read off the question (`#B`)."""
    generator = random.Random(7)
    words = [
        "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=generator.randint(3, 9))) for _ in range(N_WORDS)
    ]
    options = json.dumps(OPTIONS)
    letters = "ABCDEFGHIJ"[: len(OPTIONS)]
    for split, size in (("labeled", arguments.labeled), ("unlabeled", n), ("test", arguments.test)):
        with (folder / f"{split}.csv").open("w", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(("id", "question", "options", "answer"))
            question, answer = "", ""
            for i in range(size):
                if split != "unlabeled" or not i or i % REPEATED_EVERY:
                    answer = generator.choice(letters)
                    question = f"{' '.join(generator.choices(words, k=generator.randint(12, 36)))} #{answer}"
                is_broken = split == "unlabeled" and i % BROKEN_EVERY == BROKEN_EVERY - 1
                writer.writerow((f"{split}-{i}", "" if is_broken else question, options, answer))


def measure_run(n: int, arguments: argparse.Namespace) -> None:
    """Run the pipeline in this process and write down what each stage took."""
    from semievol.config import parse_config
    from semievol.pipeline import run
    from semievol.stage import SilentReporter

    folder = arguments.output / str(n)
    stages: list[dict[str, Any]] = []
    started: dict[str, Any] = {}

    class Meter(SilentReporter):
        """Reads the clocks where a stage begins and ends."""

        def stage(self, name: str, text: str) -> None:
            reset_peak()
            started.update(rss=resident_bytes("VmRSS"), cpu=time.process_time(), wall=time.perf_counter())

        def done(self, name: str, text: str, seconds: float) -> None:
            stages.append(
                {
                    "stage": name,
                    "seconds": round(time.perf_counter() - started["wall"], 2),
                    "cpu_seconds": round(time.process_time() - started["cpu"], 2),
                    "peak_bytes": resident_bytes("VmHWM"),
                    "start_bytes": started["rss"],
                }
            )
            print(json.dumps(stages[-1]), file=sys.stderr, flush=True)

    raw: dict[str, Any] = {
        "output_dir": str(folder / "run"),
        "rounds": arguments.rounds,
        "data": {name: str(folder / f"{name}.csv") for name in ("labeled", "unlabeled", "test")}
        | {"max_bad_fraction": 0.01},
        **{section: {"type": "fake"} for section in ("generator", "trainer", "embedder")},
    }
    if arguments.index != "exact":
        raw["retrieve"] = {"index": arguments.index}
    run_dir = run(parse_config(raw), reporter=Meter())
    results = run_dir.read_json("results")
    found = {"n_rows": n, "n_unlabeled": results["rows"]["n_unlabeled"], "index": arguments.index, "stages": stages}
    (folder / "stages.json").write_text(json.dumps(found), encoding="utf-8")


def reset_peak() -> None:
    """Set the high-water mark of this process back to what is resident now, where the system can."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return


def resident_bytes(field: str) -> int | None:
    """A field of /proc/self/status in bytes; None on systems without it."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:")), None)


def describe_machine() -> dict[str, Any]:
    """What the figures depend on, and nothing that names the machine."""
    return {"python": platform.python_version(), "system": platform.system(), "cpus": os.cpu_count()}


def table_lines(measured: list[dict[str, Any]]) -> list[str]:
    """A Markdown table: peak memory in MiB and seconds of CPU, by stage and size."""
    sizes = [f"{m['n_rows']:,}" for m in measured]
    head = ["stage", *(f"MiB, {s}" for s in sizes), *(f"CPU s, {s}" for s in sizes)]
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for i, stage in enumerate(measured[0]["stages"]):
        cells = [m["stages"][i] for m in measured]
        shown = [stage["stage"], *(_mib(c["peak_bytes"]) for c in cells), *(f"{c['cpu_seconds']:,.1f}" for c in cells)]
        lines.append("| " + " | ".join(shown) + " |")
    shown = ["whole run", *(_mib(m["peak_bytes"]) for m in measured), *(f"{m['cpu_seconds']:,.1f}" for m in measured)]
    lines.append("| " + " | ".join(shown) + " |")
    for name in ("input", "run", "rows_store", "report"):
        lines.append(f"{name} MiB: " + ", ".join(f"{m[f'{name}_bytes'] / MIB:,.1f}" for m in measured))
    first = measured[0]
    for m in measured[1:]:
        more = m["n_rows"] - first["n_rows"]
        lines.append(
            f"{first['n_rows']:,} to {m['n_rows']:,} rows: {(m['peak_bytes'] - first['peak_bytes']) / more:,.0f} bytes "
            f"and {1000 * (m['cpu_seconds'] - first['cpu_seconds']) / more:.3f} ms of CPU for each further row"
        )
    return lines


def _mib(n_bytes: int | None) -> str:
    return "" if n_bytes is None else f"{n_bytes / MIB:,.0f}"


if __name__ == "__main__":
    main()
