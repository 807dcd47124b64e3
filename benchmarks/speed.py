"""How close to the hardware the package runs: one table, every figure a ratio or beside the machine's own ceiling.

    python benchmarks/speed.py --data DATA_FOLDER                     # all figures; about half an hour on two cores
    python benchmarks/speed.py --figures scoring prefill              # some of them
    python benchmarks/speed.py --data DATA_FOLDER --figures demo --demo-run runs/demo-tickets-seed-0
    python benchmarks/speed.py --scale 0.1 --repeats 1 --clock cpu --threads 1     # a quick look on a busy machine

DATA_FOLDER holds `semievol/fpb/{labeled,unlabeled,test}.csv` and `banking77/{train,test}.csv`. Both sides of a ratio
are measured in turns in this process. runs/speed.json gets values, bounds, what each figure was made of, and versions.

ceilings       matrix products in fp32 and bf16, memory copy
scoring        useful FLOP/s of exact choice scoring over the fp32 ceiling (benchmarks/speed_models.py says what counts)
pseudo_labels  the released flow's way over ours: 500 FPB rows, 3 demonstrations, n = 4
prefill        8 samples of one prompt of 400 tokens, each with its own prefill over all with one
training       LoRA tokens/s over a bare PyTorch loop on the same batches
padding        share of padding in training batches of FPB and banking77
demo           share of the demo's wall time that is model compute (runs it, or reads --demo-run)
cli            CPU seconds of `semievol --help` and of `semievol check`
gpu            1B and 8B shapes: share of the bf16 ceiling in scoring and LoRA training, sampled tokens/s, memory
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("GOMP_SPINCOUNT", "20000")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table
from speed_ceilings import copy_ceiling, matmul_ceiling
from speed_generation import measure_prefill, measure_pseudo_labels, measure_scoring
from speed_gpu import measure_gpu
from speed_run import measure_cli, measure_demo
from speed_timing import CLOCKS, Figure, Setting, Stopwatch
from speed_training import measure_padding, measure_training

OUTPUT = Path("runs/speed.json")
PACKAGES = ("semievol", "torch", "transformers", "trl", "peft")


def main() -> None:
    """Measure the chosen figures, print them and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figures", nargs="+", choices=FIGURES, default=list(FIGURES))
    parser.add_argument("--data", type=Path, help="folder of FPB and banking77; without it their figures are left out")
    parser.add_argument("--demo-run", type=Path, help="a finished demo run to read times from")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows of each figure")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int, help="of torch; default: its own choice")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.clock == "cpu" and torch.get_num_threads() > 1:
        parser.error("--clock cpu adds up the seconds of all threads; give --threads 1 with it")
    if arguments.clock == "cpu" and arguments.device != "cpu":
        parser.error("--clock cpu does not see what a GPU does")
    with tempfile.TemporaryDirectory(prefix="semievol-speed-") as folder:
        setting = Setting(
            device=arguments.device,
            watch=Stopwatch(CLOCKS[arguments.clock]),
            folder=Path(folder),
            data=arguments.data,
            run=arguments.demo_run,
            scale=arguments.scale,
            repeats=arguments.repeats,
        )
        figures: list[Figure] = []
        for name in arguments.figures:
            for figure in FIGURES[name](setting):
                print(line_of(figure), flush=True)
                figures.append(figure)
            write(arguments, figures)
    Console().print(table_of(figures))


def measure_ceilings(setting: Setting) -> list[Figure]:
    """What the machine can do at most."""
    clock = setting.watch.clock
    fp32, bf16 = (matmul_ceiling(t, setting.device, clock=clock) / 1e9 for t in (torch.float32, torch.bfloat16))
    return [
        Figure("matrix product, fp32", fp32, "GFLOP/s"),
        Figure("matrix product, bf16", bf16, "GFLOP/s"),
        Figure("memory copy, read and written", copy_ceiling(setting.device, clock=clock) / 1e9, "GB/s"),
    ]


FIGURES: dict[str, Callable[[Setting], list[Figure]]] = {
    "ceilings": measure_ceilings,
    "scoring": measure_scoring,
    "pseudo_labels": measure_pseudo_labels,
    "prefill": measure_prefill,
    "training": measure_training,
    "padding": measure_padding,
    "demo": measure_demo,
    "cli": measure_cli,
    "gpu": measure_gpu,
}


def line_of(figure: Figure) -> str:
    """A figure on one line, printed as soon as it is there."""
    return f"{figure.name}: {value_of(figure)} ({bound_of(figure) or 'no bound'}) {figure.note}"


def value_of(figure: Figure) -> str:
    """The value with its unit."""
    return "not measured" if figure.value is None else f"{figure.value:,.3g} {figure.unit}".strip()


def bound_of(figure: Figure) -> str:
    """The bound and whether it is kept."""
    if figure.bound is None:
        return ""
    verdict = {True: "reached", False: "not reached", None: "not measured"}[figure.reached]
    return f"{'at most' if figure.at_most else 'at least'} {figure.bound:g}: {verdict}"


def table_of(figures: Sequence[Figure]) -> Table:
    """All figures."""
    table = Table("figure", "value", "bound", "note")
    for figure in figures:
        table.add_row(figure.name, value_of(figure), bound_of(figure), figure.note)
    return table


def write(arguments: argparse.Namespace, figures: Sequence[Figure]) -> None:
    """Everything so far, as JSON."""
    machine: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if arguments.device.startswith("cuda") else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "packages": {name: version(name) for name in PACKAGES},
    }
    how = {"clock": arguments.clock, "scale": arguments.scale, "repeats": arguments.repeats}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"machine": machine, "how": how, "figures": [f.to_json() for f in figures]}, indent=2)
    arguments.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
