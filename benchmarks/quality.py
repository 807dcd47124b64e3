"""Compare all arms on real data, cell by cell, and tabulate: the tables of docs/results.md.

    python benchmarks/quality.py DATA_FOLDER                          # the core table
    python benchmarks/quality.py DATA_FOLDER --cells fpb-50 --draws 1 --arms sft,sft_matched,semievol
    python benchmarks/quality.py DATA_FOLDER --cells arc pubmedqa usmle mmlu --draws 1
    python benchmarks/quality.py DATA_FOLDER --model HUB_ID --cells fpb-452

DATA_FOLDER holds `semievol/{fpb,arc,pubmedqa,usmle,mmlu}/{labeled,unlabeled,test}.csv` (the data that the authors of
SemiEvol released) and `banking77/{train,test}.csv`. The docstrings need no files. A cell is a task with a number of
labelled rows; a draw is a seed for which labelled and unlabelled rows are drawn anew (the test rows stay the same,
save for the docstrings). Finished runs are not run again, so an interrupted call goes on; more arms or draws are added
to what is there. Each cell is a comparison under `runs/quality/<cell>/`, with its own report and tables.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import prepare_banking77

from semievol.compare_report import write_compare_report
from semievol.comparing import compare
from semievol.config import RunConfig, apply_overrides, parse_config
from semievol.demo.running import prepare_demo
from semievol.progress import ConsoleReporter

OUTPUT_DIR = Path("runs/quality")

POCKET: dict[str, Any] = {
    "embedder": {"type": "sentence_transformers"},
    "retrieve": {"k": 2},
    "propagate": {
        "configurations": [
            {"model": "warm", "k": 0},
            {"model": "warm", "k": 1},
            {"model": "warm", "k": 2},
            {"model": "base", "k": 2},
        ]
    },
    "trainer": {
        "type": "trl",
        "method": "full",
        "learning_rate": 3e-4,
        "lr_scheduler_type": "linear",
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "max_length": 512,
    },
    "warmup": {"max_steps": 120},  # steps, not epochs: 20 labelled rows need as many as 200
    "evolve": {"num_train_epochs": 2},
    "adapt": {"num_train_epochs": 1},
    "distill": {"max_steps": 150},
}
"""Settings for the embedded Pocket LM, one set for all cells, chosen on the synthetic demo."""

LARGE: dict[str, Any] = {"trainer": {"type": "trl", "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}}
"""For `--model`: the paper's settings (LoRA, learning rate 1e-4, 2 epochs, 8 rows a step)."""


Configure = Callable[[Path, dict[str, Any], int], RunConfig | dict[int, RunConfig]]
"""(data folder, settings, draws) -> one config, or one for each draw."""


class Cell(NamedTuple):
    """A task with a number of labelled rows."""

    config: Configure
    is_core: bool = True


def main() -> None:
    """Run what is missing of the chosen cells, then draw their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=[name for name, c in CELLS.items() if c.is_core])
    parser.add_argument("--arms", default="all", help="names with commas between, or all")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--jobs", type=int, default=2, help="draws worked on at a time, one core or more each")
    parser.add_argument("--output-dir", type=Path, default=OUTPUT_DIR)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_intermixed_args()
    for name in arguments.cells:
        settings = {**(POCKET if arguments.model == "pocket" else LARGE), "model": {"path": arguments.model}}
        settings = apply_overrides(settings, arguments.overrides)
        folder = arguments.output_dir / name
        compare(
            CELLS[name].config(arguments.data, {**settings, "output_dir": str(folder)}, arguments.draws),
            arguments.arms.split(","),
            seeds=[0],
            splits=range(arguments.draws),
            use_gold=True,
            output_dir=folder,
            jobs=arguments.jobs,
            reporter=ConsoleReporter(),
        )
        print(f"{name}: {write_compare_report(folder)}", flush=True)


def authors_csv(task: str, **draws: int) -> Configure:
    """The authors' split of a task; `draws` bound the rows, drawn anew for each draw."""

    def config(data: Path, settings: dict[str, Any], _: int) -> RunConfig:
        files = {split: str(data / "semievol" / task / f"{split}.csv") for split in ("labeled", "unlabeled", "test")}
        return parse_config({**settings, "data": {**files, **{f"max_{k}": n for k, n in draws.items()}}})

    return config


def banking(n_labeled: int) -> Configure:
    """Ten intents of banking77 as lettered options; labelled rows are drawn from 300, the test rows are all 400."""

    def config(data: Path, settings: dict[str, Any], _: int) -> RunConfig:
        folder = prepare_banking77.prepare(
            data / "banking77", OUTPUT_DIR / "banking77-input", labeled=300, unlabeled=1000
        )
        files = {split: str(folder / f"{split}.csv") for split in ("labeled", "unlabeled", "test")}
        return parse_config({**settings, "data": {**files, "max_labeled": n_labeled, "max_unlabeled": 1000}})

    return config


def banking_labels(n_labeled: int) -> Configure:
    """All 77 intents as one label set; labelled and unlabelled rows are parts of the training file."""

    def config(data: Path, settings: dict[str, Any], _: int) -> RunConfig:
        folder = prepare_banking77.prepare_labels(data / "banking77", OUTPUT_DIR / "banking77-labels", labeled=4000)
        files = {split: str(folder / f"{split}.csv") for split in ("labeled", "unlabeled", "test")}
        task = {"task": {"type": "label"}}
        return parse_config({**settings, **task, "data": {**files, "max_labeled": n_labeled, "max_unlabeled": 3000}})

    return config


def docstrings(_: Path, settings: dict[str, Any], draws: int) -> dict[int, RunConfig]:
    """Chapters of the standard library's docstrings; every draw has other rows, test rows too."""
    folder = Path(settings["output_dir"]) / "tasks"
    overrides = [f"{key}={json.dumps(value)}" for key, value in settings.items() if key != "output_dir"]
    return {
        draw: prepare_demo("docstrings", seed=draw, output_dir=folder / str(draw), overrides=overrides)
        for draw in range(draws)
    }


CELLS: dict[str, Cell] = {
    "fpb-50": Cell(authors_csv("fpb", labeled=50, unlabeled=1000)),
    "fpb-100": Cell(authors_csv("fpb", labeled=100, unlabeled=1000)),
    "banking-20": Cell(banking(20)),
    "banking-50": Cell(banking(50)),
    "docstrings-200": Cell(docstrings),
    "fpb-452": Cell(authors_csv("fpb"), is_core=False),
    "banking77-500": Cell(banking_labels(500), is_core=False),
    "banking77-2000": Cell(banking_labels(2000), is_core=False),
    "arc": Cell(authors_csv("arc", labeled=200, unlabeled=400, test=300), is_core=False),
    "pubmedqa": Cell(authors_csv("pubmedqa", labeled=100, unlabeled=300, test=300), is_core=False),
    "usmle": Cell(authors_csv("usmle", labeled=200, unlabeled=400, test=300), is_core=False),
    "mmlu": Cell(authors_csv("mmlu", labeled=200, unlabeled=400, test=300), is_core=False),
}


if __name__ == "__main__":
    main()
