"""Builds the folder of a comparison with simulated answers, as an engine would leave it."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from semievol.artifacts import RunDir
from semievol.comparison import (
    ArmRecord,
    ComparisonRecord,
    RunRecord,
    format_setting,
    pending_runs,
    read_comparison,
    write_comparison,
)
from semievol.types import AuditedRow, Prediction, PseudoLabel

LABELS = ("yes", "no", "maybe")
COST = {
    "seconds": 12.0,
    "model_seconds": 10.0,
    "prompt_tokens": 1000,
    "completion_tokens": 100,
    "forward_passes": 10,
    "train_tokens": 500,
    "peak_memory_bytes": 2**30,
}


def write_folder(
    folder: Path,
    accuracies: Mapping[str, float],
    *,
    seeds: Sequence[int] = (0, 1, 2),
    splits: Sequence[int] = (0,),
    n_rows: int = 60,
    reference: str = "sft",
    gold: Sequence[str] = (),
    failed: Mapping[tuple[str, int], str] | None = None,
    sweep: dict[str, list[Any]] | None = None,
    groups: Sequence[str | None] = (None,),
    description: str = "an arm",
    use_gold: bool = False,
) -> Path:
    """Each arm answers rows right with its probability; the luck of a row is shared by all arms of a run."""
    points = [{}]
    for key, values in (sweep or {}).items():
        points = [{**point, key: value} for point in points for value in values]
    runs = pending_runs(
        list(accuracies), splits=splits, seeds=seeds, settings=[format_setting(point) for point in points]
    )
    ended = []
    for run in runs:
        error = (failed or {}).get((run.arm, run.seed))
        if error is not None:
            ended.append(replace(run, status="failed", error=error))
            continue
        place = [format_setting(point) for point in points].index(run.setting)
        write_run(
            folder, run, min(0.95, accuracies[run.arm] + 0.01 * place), n_rows=n_rows, groups=groups, audited=use_gold
        )
        ended.append(replace(run, status="done"))
    arms = tuple(ArmRecord(name, description, name in gold) for name in accuracies)
    write_comparison(
        folder, ComparisonRecord(reference, use_gold, arms, tuple(seeds), tuple(splits), sweep, tuple(ended))
    )
    return folder


def write_run(
    folder: Path, run: RunRecord, accuracy: float, *, n_rows: int, groups: Sequence[str | None], audited: bool
) -> None:
    run_dir = RunDir(folder / run.folder)
    shared = np.random.default_rng((7, run.split)).random(n_rows)
    own = np.random.default_rng((run.seed, run.split, sum(run.arm.encode()))).random(n_rows)
    right = 0.6 * shared + 0.4 * own < np.quantile(0.6 * shared + 0.4 * own, accuracy)
    confidence = np.clip(0.9 - 0.5 * own, 0.34, 1.0)
    predictions = []
    for i in range(n_rows):
        target = LABELS[i % 3]
        answer = target if right[i] else None if i % 17 == 0 else LABELS[(i + 1) % 3]
        predictions.append(
            Prediction(
                f"t{i}",
                answer,
                target,
                float(right[i]),
                float(confidence[i]),
                float(1.2 * own[i]),
                float(0.8 * own[i]),
                groups[i % len(groups)],
            )
        )
    run_dir.write_records("measure/predictions", predictions, Prediction)
    task = {"type": "label", "metric": None}
    run_dir.write_json(
        "config.resolved", {"task": task, "model": {"path": "org/model"}, "evaluate": {"n_bootstrap": 200}}
    )
    run_dir.write_json("data/task", {"labels": list(LABELS), "shared_choices": []})
    for name in ("data", "warmup", "round-1/evolve", "measure"):
        cost = COST | {"seconds": COST["seconds"] * (1 + sum(run.arm.encode()) % 40)}
        entry: dict[str, Any] = {"fingerprint": f"{name} {run.folder}", "stats": {"optimizer_steps": 4}, "cost": cost}
        if name == "data":
            entry = {"fingerprint": name, "stats": {}, "cost": COST | {"train_tokens": 0}, "shared_from": "elsewhere"}
        run_dir.record_stage(name, entry)
    if audited:
        write_audit(run_dir, run.seed)


def write_audit(run_dir: RunDir, seed: int, n: int = 40) -> None:
    """Pseudo-labels whose NLL tells right from wrong, and whose agreement says nothing."""
    labels, rows = [], []
    for i in range(n):
        is_right = (i + seed) % 4 != 0
        nll = 0.1 + 0.01 * i if is_right else 1.0 + 0.01 * i
        labels.append(
            PseudoLabel(f"u{i}", "yes", "yes", "consensus", 0.5, mean_nll=nll, entropy=nll, max_probability=0.5)
        )
        rows.append(AuditedRow(f"u{i}", "yes", is_right))
    run_dir.write_records("round-1/justify/pseudo_labels", labels, PseudoLabel)
    run_dir.write_records("audit/audited", rows, AuditedRow)
    for name in ("round-1/justify", "audit"):
        run_dir.record_stage(name, {"fingerprint": name, "stats": {}, "cost": dict.fromkeys(COST, 0)})


def change_run(folder: Path, place: int, **changes: Any) -> None:
    """Change a field of one run in comparison.json."""
    record = read_comparison(folder)
    runs = list(record.runs)
    runs[place] = replace(runs[place], **changes)
    write_comparison(folder, replace(record, runs=tuple(runs)))
