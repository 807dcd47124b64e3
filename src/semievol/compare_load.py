"""Reads the folder of a comparison: which runs there are, what each answered to the test rows, and what it cost.

Everything else about comparisons works on what this gives, so this is the one place that knows the folder.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol.arms import CONTROL_OF, MATCHED
from semievol.artifacts import RunDir
from semievol.audit import score_vector
from semievol.comparison import ArmRecord, ComparisonRecord, RunRecord, format_setting, read_comparison
from semievol.errors import ArtifactError
from semievol.types import AuditedRow, Prediction, PseudoLabel

PREDICTIONS = "measure/predictions"
AUDITED = "audit/audited"
MEASURING = ("measure", "audit", "report", "evaluate")
"""Steps that look at a model and do not make it; their cost stands apart."""

COUNTED_ONLY = ("retrieve", "propagate", "justify", "select", "evolve", "distill")
"""Steps that a control runs to learn a number of optimiser steps alone, so that they are no cost of its model; nor is
the warm-up where it starts from the base."""
FINAL = ("evolve", "control", "distill")
"""Trainings that give the model of an arm; where there is none, the warm-up does."""

ANSWER_TOKENS = ("prompt_tokens", "completion_tokens")
COST_SUMS = ("seconds", "model_seconds", "prompt_tokens", "completion_tokens", "forward_passes", "train_tokens")


@dataclass(frozen=True)
class ArmRun:
    """One run of one arm: a split, a seed and, in a sweep, the values of the keys."""

    arm: str
    split: int
    seed: int
    setting: Mapping[str, Any]
    status: str
    """done, failed or pending."""
    error: str
    folder: Path

    @property
    def key(self) -> tuple[int, int]:
        """What it is paired by."""
        return self.split, self.seed

    @cached_property
    def predictions(self) -> tuple[Prediction, ...]:
        """Answers to the test rows, in order. Raises ArtifactError if they are missing."""
        return tuple(RunDir(self.folder).read_records(PREDICTIONS, Prediction))

    @cached_property
    def scores(self) -> NDArray[np.float64]:
        """Score of each row, shape (n,)."""
        return score_vector(self.predictions)

    @cached_property
    def row_ids(self) -> tuple[str, ...]:
        """Ids of the test rows, in order."""
        return tuple(p.example_id for p in self.predictions)

    @cached_property
    def steps(self) -> dict[str, dict[str, Any]]:
        """Finished steps with their stats and cost."""
        return RunDir(self.folder).manifest()

    @cached_property
    def config(self) -> Mapping[str, Any]:
        """Its resolved config, as plain values; empty where it is not stored."""
        return _first_json([self.folder], "config.resolved")

    @cached_property
    def own_steps(self) -> dict[str, dict[str, Any]]:
        """Finished steps that its model took."""
        if self.arm.partition(CONTROL_OF)[0] != MATCHED:
            return self.steps
        starts_warm = (self.config.get("evolve") or {}).get("init") == "warm"
        foreign = COUNTED_ONLY if starts_warm else (*COUNTED_ONLY, "adapt", "warmup")
        return {name: entry for name, entry in self.steps.items() if name.rpartition("/")[2] not in foreign}

    @property
    def steps_from_base(self) -> int | None:
        """Optimiser steps from the base to the model: of a training afresh its own, of one that goes on all before it.

        Language modelling of the questions (adapt) is not among them. None where nothing was trained.
        """
        n_steps = {
            name: int((entry.get("stats") or {}).get("optimizer_steps") or 0)
            for name, entry in self.own_steps.items()
            if name.rpartition("/")[2] in ("warmup", *FINAL)
        }
        final = [name for name in n_steps if name != "warmup"]
        goes_on = (self.config.get("evolve") or {}).get("init") == "warm" and "distill" not in final
        if not n_steps:
            return None
        return sum(n_steps.values()) if goes_on or not final else n_steps[final[-1]]

    @property
    def precisions(self) -> set[str]:
        """What its model was trained in, bf16 or fp32; empty without a training on a machine of ours."""
        return {p for e in self.own_steps.values() if (p := (e.get("stats") or {}).get("precision")) is not None}

    @property
    def versions(self) -> set[str]:
        """`package version` of what computed the steps of its model, and `device cpu` (or cuda)."""
        return {f"{name} {v}" for e in self.own_steps.values() for name, v in (e.get("versions") or {}).items()}

    @cached_property
    def audited(self) -> dict[str, bool | None]:
        """Whether each unlabelled row's pseudo-label is right; empty unless gold was used."""
        run_dir = RunDir(self.folder)
        if "audit" not in self.steps or not run_dir.file(AUDITED).exists():
            return {}
        return {row.example_id: row.is_right for row in run_dir.read_records(AUDITED, AuditedRow)}

    def pseudo_labels(self) -> list[PseudoLabel]:
        """The last label of each unlabelled row, which is the one that was audited; empty where there are none."""
        run_dir = RunDir(self.folder)
        labels: dict[str, PseudoLabel] = {}
        number = 1
        while f"round-{number}/justify" in self.steps:
            artifact = f"round-{number}/justify/pseudo_labels"
            labels |= {label.example_id: label for label in run_dir.read_records(artifact, PseudoLabel)}
            number += 1
        return list(labels.values())


@dataclass(frozen=True)
class Cell:
    """The runs of one arm at one setting, in the order of the file."""

    arm: ArmRecord
    setting: Mapping[str, Any]
    runs: tuple[ArmRun, ...]

    @cached_property
    def done(self) -> tuple[ArmRun, ...]:
        """Finished runs."""
        return tuple(run for run in self.runs if run.status == "done")

    @property
    def status(self) -> str:
        """done, failed or pending; failed where no run is done and one failed; partial where some are done."""
        states = {run.status for run in self.runs}
        if states == {"done"}:
            return "done"
        if "done" in states:
            return "partial"
        return "failed" if "failed" in states else "pending"


@dataclass(frozen=True)
class ComparisonData:
    """A comparison as it stands in its folder."""

    folder: Path
    reference: str
    use_gold: bool
    seeds: tuple[int, ...]
    splits: tuple[int, ...]
    sweep: Mapping[str, Sequence[Any]]
    """Swept keys with their values, in order; empty without a sweep."""
    cells: tuple[Cell, ...]
    controls: tuple[Cell, ...] = ()
    """Of arms whose last training is not as long as that of the method: SFT for as many steps, which they are compared
    with in the place of MATCHED."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved config of a run, as plain values; empty where none is stored."""
    common_config: Mapping[str, Any] = field(default_factory=dict)
    """What all arms start from, of the keys that results depend on, without seeds; empty where it is not stored."""
    answer_set: tuple[str, ...] = ()
    """Answers that every row chooses among: labels, or shared options; empty where each row has its own."""

    @property
    def all_cells(self) -> tuple[Cell, ...]:
        """Cells of arms and controls."""
        return self.cells + self.controls

    def reference_of(self, cell: Cell) -> Cell | None:
        """The cell that a cell is compared with: its own control where MATCHED is the reference and it has one done."""
        if self.reference == MATCHED:
            control = self.find(f"{MATCHED}{CONTROL_OF}{cell.arm.name}", cell.setting)
            if control is not None and control.done:
                return control
        return self.find(self.reference, cell.setting)

    def find(self, arm: str, setting: Mapping[str, Any] | None = None) -> Cell | None:
        """The cell of an arm, or control, at a setting; where the arm ran without any, that one."""
        wanted = dict(setting or {})
        cells = [cell for cell in self.all_cells if cell.arm.name == arm]
        exact = [cell for cell in cells if dict(cell.setting) == wanted]
        return next(iter(exact or [cell for cell in cells if not cell.setting]), None)


def load_comparison(folder: Path) -> ComparisonData:
    """Read the folder of a comparison.

    Raises:
        ArtifactError: If it is none, or a record of it is broken.
    """
    record = read_comparison(folder)
    points = _sweep_points(record)
    runs = [_read_run(folder, run, points) for run in record.runs]
    cells = _group_runs(record.arms, runs)
    facts = _first_json([run.folder for run in runs], "data/task")
    return ComparisonData(
        folder=folder,
        reference=record.reference,
        use_gold=record.use_gold,
        seeds=record.seeds,
        splits=record.splits,
        sweep=record.sweep or {},
        cells=tuple(cell for cell in cells if CONTROL_OF not in cell.arm.name),
        controls=tuple(cell for cell in cells if CONTROL_OF in cell.arm.name),
        common_config=record.config or {},
        config=_first_json([folder, *(run.folder for run in runs)], "config.resolved"),
        answer_set=tuple(facts.get("labels") or ()) or tuple(facts.get("shared_choices") or ()),
    )


def answer_rates(data: ComparisonData) -> dict[str, float]:
    """Model time a token read or generated, in seconds, by kind of step, over all steps that asked a model."""
    seconds: dict[str, float] = {}
    tokens: dict[str, float] = {}
    for run in (run for cell in data.all_cells for run in cell.runs):
        for name, entry in run.steps.items():
            step, kind = entry.get("cost") or {}, name.rpartition("/")[2]
            if not entry.get("shared_from") and not step.get("train_tokens"):
                seconds[kind] = seconds.get(kind, 0.0) + (step.get("model_seconds") or 0)
                tokens[kind] = tokens.get(kind, 0.0) + sum(step.get(key) or 0 for key in ANSWER_TOKENS)
    return {kind: seconds[kind] / n for kind, n in tokens.items() if n}


def run_cost(run: ArmRun, rates: Mapping[str, float]) -> dict[str, float]:
    """What making the model of a run took: all its steps, shared ones too, but those that only measure.

    Answers taken from the row store count too (`reused_*`), as the arm alone would have had to ask for them: their
    tokens, and for their time the tokens by the `rates` of `answer_rates`. So does a training that another step did.

    Keys: seconds, model_seconds, prompt_tokens, completion_tokens, forward_passes, train_tokens, optimizer_steps,
    peak_memory_bytes (the largest of a step), shared_seconds (of steps and trainings that other arms use too),
    reused_seconds (how much of the seconds is estimated, of stored answers), and answer_seconds, answer_prompt_tokens
    and answer_completion_tokens per test row.
    """
    cost = dict.fromkeys((*COST_SUMS, "optimizer_steps", "peak_memory_bytes", "shared_seconds", "reused_seconds"), 0.0)
    answer: Mapping[str, Any] = {}
    for name, entry in run.own_steps.items():
        step = dict(entry.get("cost") or {})
        kind = name.rpartition("/")[2]
        reused = rates.get(kind, 0.0) * sum(step.get(f"reused_{key}") or 0 for key in ANSWER_TOKENS)
        trained = step.get("reused_seconds") or 0.0
        for key in ("reused_seconds", "reused_model_seconds"):
            step[key] = (step.get(key) or 0.0) + reused
        if kind in MEASURING:
            answer = step if name == "measure" else answer
            continue
        cost["reused_seconds"] += reused
        for key in COST_SUMS:
            cost[key] += (step.get(key) or 0) + (step.get(f"reused_{key}") or 0)
        cost["optimizer_steps"] += (entry.get("stats") or {}).get("optimizer_steps") or 0
        cost["peak_memory_bytes"] = max(cost["peak_memory_bytes"], step.get("peak_memory_bytes") or 0)
        cost["shared_seconds"] += trained + ((step.get("seconds") or 0) if entry.get("shared_from") else 0)
    n_rows = max(1, len(run.predictions))
    for key in ("seconds", "prompt_tokens", "completion_tokens"):
        cost[f"answer_{key}"] = ((answer.get(key) or 0) + (answer.get(f"reused_{key}") or 0)) / n_rows
    return cost


def setting_text(setting: Mapping[str, Any]) -> str:
    """`select.keep_fraction=0.3, rounds=2`; empty without a setting."""
    return ", ".join(f"{key}={value_text(value)}" for key, value in setting.items())


def value_text(value: Any) -> str:
    """A value of a key as short text."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sweep_points(record: ComparisonRecord) -> dict[str, dict[str, Any]]:
    """The values that each setting stands for: of all keys at once, or of one key at a time."""
    sweep = record.sweep or {}
    points = [dict(zip(sweep, values, strict=True)) for values in itertools.product(*sweep.values())]
    points += [{key: value} for key, values in sweep.items() for value in values]
    return {format_setting(point): point for point in points}


def _read_run(folder: Path, run: RunRecord, points: Mapping[str, dict[str, Any]]) -> ArmRun:
    setting = points.get(run.setting, {"setting": run.setting}) if run.setting else {}
    path, status, error = folder / run.folder, run.status, run.error or ""
    answers = RunDir(path).file(PREDICTIONS)
    found = ArmRun(run.arm, run.split, run.seed, setting, status, error, path)
    if status != "done":
        return found
    place = f"{run.folder}/{PREDICTIONS}{answers.suffix}"
    if not answers.exists():
        return replace(found, status="failed", error=f"{place} is gone; run the comparison again")
    try:
        if found.predictions:
            return found
    except ArtifactError:
        pass
    return replace(found, status="failed", error=f"{place} is damaged; remove it and run the comparison again")


def _group_runs(arms: Sequence[ArmRecord], runs: Sequence[ArmRun]) -> tuple[Cell, ...]:
    """Cells in the order of the arms, then of the settings as they first occur."""
    cells = []
    for arm in arms:
        own = [run for run in runs if run.arm == arm.name]
        settings = {json.dumps(run.setting, sort_keys=True): run.setting for run in own}
        for key, setting in settings.items():
            cells.append(Cell(arm, setting, tuple(r for r in own if json.dumps(r.setting, sort_keys=True) == key)))
        if not own:
            cells.append(Cell(arm, {}, ()))
    return tuple(cells)


def _first_json(folders: Sequence[Path], artifact: str) -> dict[str, Any]:
    for folder in folders:
        if (folder / f"{artifact}.json").is_file():
            found: dict[str, Any] = RunDir(folder).read_json(artifact)
            return found
    return {}
