"""Prepare an embedded task for a run: write its rows and its config into the run folder.

What follows is an ordinary run of an ordinary config; `semievol run <folder>/config.yaml` does the same again.
"""

import csv
import io
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from semievol.artifacts import RunDir, clear_disk_errors
from semievol.config import RunConfig, apply_overrides, parse_config
from semievol.errors import ConfigError
from semievol.pipeline import refuse_foreign_files
from semievol.read_rows import SPLITS

TASKS = ("tickets", "docstrings")

BATCH_SIZE = 8
"""Rows of an optimiser step."""

_HEAD = "# semievol demo"
"""What the config of a demo begins with."""


class DemoRow(NamedTuple):
    """A row as it is written to CSV; `answer` is an option's text, or empty where there is no right one."""

    id: str
    question: str
    answer: str
    group: str


class DemoData(NamedTuple):
    """The splits of a demo task and its options."""

    labeled: list[DemoRow]
    unlabeled: list[DemoRow]
    test: list[DemoRow]
    options: tuple[str, ...]
    instruction: str


def prepare_demo(task: str, *, seed: int, output_dir: Path | None, overrides: Sequence[str]) -> RunConfig:
    """Write `input/*.csv` and `config.yaml` to the run folder and return the checked config.

    Raises:
        ConfigError: If there is no such task, an override does not fit, or the folder holds files that no demo wrote.
    """
    if task not in TASKS:
        raise ConfigError(f"no demo task {task!r}; choose one of {', '.join(TASKS)}")
    data = _tickets(seed) if task == "tickets" else _docstrings(seed)
    run_dir = RunDir(output_dir or Path(f"runs/demo-{task}-seed-{seed}"))
    raw = demo_config(data, run_dir.path, seed=seed)
    config = parse_config(raw, overrides, source="demo config")
    refuse_foreign_files(config, run_dir)
    _refuse_foreign_config(run_dir)
    merged = apply_overrides(raw, overrides)
    title = f"{_HEAD} --task {task} --seed {seed}\n"
    # before the rows: where it stands they are ours
    run_dir.write_text("config.yaml", title + yaml.safe_dump(merged, sort_keys=False, allow_unicode=True))
    for split in SPLITS:
        run_dir.write_text(f"input/{split}.csv", _csv_text(getattr(data, split), data.options))
    return config


def _refuse_foreign_config(run_dir: RunDir) -> None:
    path = run_dir.path / "config.yaml"
    with clear_disk_errors(run_dir.path):
        if path.is_file():
            is_ours = path.read_bytes().startswith(_HEAD.encode())
            foreign = [] if is_ours else [path.name]
        else:
            foreign = [f"input/{split}.csv" for split in SPLITS if (run_dir.path / f"input/{split}.csv").exists()]
    if foreign:
        raise ConfigError(
            f"{run_dir.path} holds {', '.join(foreign)}, which no demo wrote and this one would write over; "
            "name another folder (--output-dir)"
        )


def demo_config(data: DemoData, path: Path, *, seed: int) -> dict[str, Any]:
    """The config of a demo run: the paper's recipe with training settings that suit a model of 22M parameters."""
    return {
        "recipe": "paper",
        "seed": seed,
        "output_dir": str(path),
        "task": {"type": "choice", "instruction": data.instruction},
        "data": {split: str(path / "input" / f"{split}.csv") for split in SPLITS},
        "model": {"path": "pocket"},
        "embedder": {"type": "sentence_transformers", "model": "minilm"},
        "retrieve": {"k": 1},  # prompt tokens are most of the demo's work
        "propagate": {
            "configurations": [
                {"model": "warm", "k": 0},
                {"model": "warm", "k": 0},
                {"model": "warm", "k": 1},
                {"model": "base", "k": 1},
            ]
        },
        "trainer": {
            "type": "trl",
            "method": "full",  # of 22M parameters: LoRA saves nothing here and learns 100 rows less well
            "learning_rate": 3e-4,
            "num_train_epochs": 8,
            "lr_scheduler_type": "linear",
            "per_device_train_batch_size": BATCH_SIZE,
            "gradient_accumulation_steps": 1,
            "max_length": 512,
        },
        # Two epochs over the labelled rows and the kept half; all arms of a comparison train that long.
        "evolve": {"max_steps": 2 * math.ceil((len(data.labeled) + len(data.unlabeled) // 2) / BATCH_SIZE)},
        "adapt": {"num_train_epochs": 1},
        "distill": {"max_steps": 150},
    }


def _tickets(seed: int) -> DemoData:
    from semievol.demo.tickets import QUEUES, generate_tickets

    splits = generate_tickets(seed)
    labeled, unlabeled, test = ([DemoRow(r.id, r.question, r.target, r.group) for r in rows] for rows in splits)
    return DemoData(labeled, unlabeled, test, QUEUES, "Route the support ticket.")


def _docstrings(seed: int) -> DemoData:
    from semievol.demo.docstrings import CHAPTERS, collect_docstrings, split_docstrings

    splits = split_docstrings(collect_docstrings(), seed)
    labeled, unlabeled, test = ([DemoRow(r.id, r.question, r.target, r.group) for r in rows] for rows in splits)
    return DemoData(
        labeled,
        unlabeled,
        test,
        CHAPTERS,
        "Choose the chapter.",
    )


def _csv_text(rows: Iterable[DemoRow], options: Sequence[str]) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(("id", "question", "options", "answer", "group"))
    listed = json.dumps(list(options))
    writer.writerows((r.id, r.question, listed, r.answer, r.group) for r in rows)
    return stream.getvalue()
