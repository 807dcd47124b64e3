"""Compare all arms on real data, cell by cell, and tabulate: the tables of docs/results.md.

    python benchmarks/quality.py DATA_FOLDER                          # the core table
    python benchmarks/quality.py DATA_FOLDER --cells fpb-50 --draws 1 --arms sft,sft_matched,semievol
    python benchmarks/quality.py DATA_FOLDER --cells arc pubmedqa usmle mmlu --draws 1
    python benchmarks/quality.py DATA_FOLDER --model HUB_ID --cells fpb-452
    python benchmarks/quality.py DATA_FOLDER --cells fpb-100 --sweep theta=0.1,0.3,0.5,0.8,1 --arms sft_matched,semievol

DATA_FOLDER holds `semievol/{fpb,arc,pubmedqa,usmle,mmlu}/{labeled,unlabeled,test}.csv` (the data that the authors of
SemiEvol released) and `banking77/{train,test}.csv`. The docstrings need no files. A cell is a task with a number of
labelled rows; a draw is a seed for which labelled and unlabelled rows are drawn anew (the test rows stay the same,
save for the docstrings). Finished runs are not run again, so an interrupted call goes on; more arms or draws are added
to what is there. Each cell is a comparison under `runs/quality/<cell>/` (or `runs/quality-<model>/`)
with its own report and tables; those over all cells are in `tables.md` beside them (quality_tables.py). With `--sweep`
each cell is swept instead, one key at a time, under `<cell>-<keys>/`.
"""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("GOMP_SPINCOUNT", "20000")

import prepare_banking77
from quality_tables import read_cells, tables

from semievol.compare_report import write_compare_report
from semievol.comparing import compare
from semievol.config import RunConfig, apply_overrides, parse_config
from semievol.demo.running import prepare_demo
from semievol.progress import ConsoleReporter
from semievol.sweeping import plan_points, point_settings, split_arguments

OUTPUT_DIR = Path("runs/quality")

POCKET: dict[str, Any] = {
    "model": {"path": "pocket", "dtype": "bfloat16"},  # propagation takes 0.65 times as long as in float32
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
        "save_steps": 500,  # a training of the core table takes less than a minute
    },
    "warmup": {"max_steps": 120},  # steps, not epochs: 20 labelled rows need as many as 200
    "evolve": {"max_steps": 150},  # for every arm that goes on training; two epochs over L and the kept half of U
    "adapt": {"num_train_epochs": 1},
    "distill": {"max_steps": 150},
}
"""Settings for the embedded Pocket LM, one set for all cells, chosen on the synthetic demo."""

LARGE: dict[str, Any] = {"trainer": {"type": "trl", "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1}}
"""For `--model`: the paper's settings (LoRA, learning rate 1e-4, 2 epochs, 8 rows a step)."""


Raw = dict[str, Any]
"""A config as YAML gives it."""


class Cell(NamedTuple):
    """A task with a number of labelled rows."""

    data: Callable[[Path], Raw] | None
    """Sections that the task sets, given the data folder. None: the docstrings, which are made on the spot."""
    is_core: bool = True
    is_drawn: bool = True
    """Whether each draw has other labelled rows; else it has another seed of training and sampling."""


def main() -> None:
    """Run what is missing of the chosen cells, then draw their tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--cells", nargs="+", choices=CELLS, default=[name for name, c in CELLS.items() if c.is_core])
    parser.add_argument("--arms", default="all", help="names with commas between, or all")
    parser.add_argument("--draws", type=int, default=3)
    parser.add_argument("--model", default="pocket")
    parser.add_argument("--jobs", type=int, default=2, help="draws worked on at a time, one core or more each")
    parser.add_argument("--output-dir", type=Path, help="default runs/quality, with --model runs/quality-<its name>")
    parser.add_argument("--sweep", nargs="+", metavar="KEY=V1,V2,...", help="as `semievol sweep` takes them")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    arguments = parser.parse_intermixed_args()
    folder_name = f"{OUTPUT_DIR}-{Path(arguments.model).name}" if arguments.model != "pocket" else OUTPUT_DIR
    output_dir = arguments.output_dir or Path(folder_name)
    fixed, axes = split_arguments(arguments.sweep or [])
    if arguments.sweep:
        swept: dict[str, Any] = {"settings": point_settings(plan_points(axes, cartesian=False)), "sweep": axes}
    else:
        swept = {}
    overrides = [*fixed, *arguments.overrides]
    settings = POCKET if arguments.model == "pocket" else {**LARGE, "model": {"path": arguments.model}}
    for name in arguments.cells:
        cell, folder, draws = CELLS[name], output_dir / "-".join([name, *axes]), range(arguments.draws)
        if cell.data is None:
            ours = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
            configs: RunConfig | dict[int, RunConfig] = {
                draw: prepare_demo(
                    "docstrings", seed=draw, output_dir=folder / f"tasks/{draw}", overrides=[*ours, *overrides]
                )
                for draw in draws
            }
        else:
            raw = {**settings, **cell.data(arguments.data), "output_dir": str(folder)}
            configs = parse_config(apply_overrides(raw, overrides))
        compare(
            configs,
            arguments.arms.split(","),
            seeds=[0] if cell.is_drawn else draws,
            splits=draws if cell.is_drawn else [0],
            use_gold=True,
            output_dir=folder,
            jobs=arguments.jobs,
            reporter=ConsoleReporter(),
            **swept,
        )
        print(f"{name}: {write_compare_report(folder)}", flush=True)
    (output_dir / "tables.md").write_text(tables(read_cells(output_dir)) + "\n", encoding="utf-8")
    print(f"tables of all cells: {output_dir / 'tables.md'}")


def authors_csv(task: str, *, unlabeled: str = "unlabeled", **limits: float) -> Callable[[Path], Raw]:
    """The authors' split of a task. `limits` are further keys of the section `data`."""

    def sections(data: Path) -> Raw:
        names = {"labeled": "labeled", "unlabeled": unlabeled, "test": "test"}
        files = {split: str(data / "semievol" / task / f"{name}.csv") for split, name in names.items()}
        return {"data": {**files, **limits}}

    return sections


def banking(n_labeled: int) -> Callable[[Path], Raw]:
    """Ten intents of banking77 as lettered options; labelled rows are drawn from 300, the test rows are all 400."""

    def sections(data: Path) -> Raw:
        folder = OUTPUT_DIR / "banking77-input"
        prepare_banking77.prepare(data / "banking77", folder, labeled=300, unlabeled=1000)
        files = {split: str(folder / f"{split}.csv") for split in ("labeled", "unlabeled", "test")}
        return {"data": {**files, "max_labeled": n_labeled, "max_unlabeled": 1000}}

    return sections


def banking_labels(n_labeled: int) -> Callable[[Path], Raw]:
    """All 77 intents as one label set; labelled and unlabelled rows are parts of the training file."""

    def sections(data: Path) -> Raw:
        folder = OUTPUT_DIR / "banking77-labels"
        prepare_banking77.prepare_labels(data / "banking77", folder, labeled=4000)
        files = {split: str(folder / f"{split}.csv") for split in ("labeled", "unlabeled", "test")}
        return {"task": {"type": "label"}, "data": {**files, "max_labeled": n_labeled, "max_unlabeled": 3000}}

    return sections


LONG_ROWS = 0.2
"""Share of rows that may be too long for the Pocket LM's 512 tokens; the report counts them."""

CELLS: dict[str, Cell] = {
    "fpb-50": Cell(authors_csv("fpb", max_labeled=50, max_unlabeled=1000)),
    "fpb-100": Cell(authors_csv("fpb", max_labeled=100, max_unlabeled=1000)),
    "banking-20": Cell(banking(20)),
    "banking-50": Cell(banking(50)),
    "docstrings-200": Cell(None),
    "fpb-452": Cell(authors_csv("fpb"), is_core=False, is_drawn=False),
    "banking77-500": Cell(banking_labels(500), is_core=False),
    "banking77-2000": Cell(banking_labels(2000), is_core=False),
    **{
        task: Cell(
            authors_csv(
                task,
                unlabeled="unlabeled_partial" if task == "usmle" else "unlabeled",
                max_labeled=100 if task == "pubmedqa" else 200,
                max_unlabeled=300,
                max_test=300,
                max_bad_fraction=LONG_ROWS,
            ),
            is_core=False,
        )
        for task in ("arc", "pubmedqa", "usmle", "mmlu")
    },
}


if __name__ == "__main__":
    main()
