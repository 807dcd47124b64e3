"""What a comparison says beside accuracy: cost, calibration, groups, signals of selection, spread over a sweep."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol import metrics
from semievol.artifacts import RunDir, file_hash
from semievol.audit import group_lines, measure_calibration
from semievol.compare_load import COST_SUMS, ArmRun, Cell, ComparisonData, run_cost, setting_text, value_text
from semievol.compare_results import distinct_rows, run_units, stack_scores
from semievol.compare_stats import crossed_mean, share_interval, spread, value_effect
from semievol.types import PseudoLabel

Floats = NDArray[np.float64]

SIGNALS: Mapping[str, float] = {"mean_nll": -1.0, "entropy": -1.0, "max_probability": 1.0, "agreement": 1.0}
"""Fields of a PseudoLabel that selection can rank by, with the sign that makes larger surer."""
COVERAGES = tuple(np.round(np.linspace(0.02, 1.0, 50), 2).tolist())
N_BINS = 10
"""Of a reliability diagram."""
ROW_COUNTS = ("labeled", "unlabeled", "test", "duplicates_dropped", "rejected", "not_drawn")
"""Counts of the data stage, without their `n_`."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Confidence in the answers that could be read against hits, means over the runs; the bins are over all of them."""

    ece: float
    """Expected calibration error over 15 bins of equal mass."""
    brier: float
    mean_entropy: float | None
    mean_nll: float | None
    n: int
    bins: tuple[dict[str, float], ...]
    """confidence, accuracy and n of ten bins of equal mass."""


@dataclass(frozen=True, slots=True)
class SignalQuality:
    """How well one signal puts wrong pseudo-labels last."""

    signal: str
    aurc: float
    """Area under the risk-coverage curve, mean over the runs; lower is better."""
    aurc_sd: float | None
    error: float
    """Share of wrong labels among all: the area of a signal that knows nothing."""
    n: int
    """Labels a run, mean: those that carry all signals, so that the signals are rated on the same ones."""
    n_left_out: int
    """Audited labels a run that lack one of the signals, mean."""
    curve: tuple[tuple[float, float], ...]
    """(coverage, risk), means over the runs."""


def mean_cost(cell: Cell, rates: Mapping[str, float]) -> dict[str, float] | None:
    """Cost of one run of a cell, mean over its finished runs (see `run_cost`); None where there is none."""
    if not cell.done:
        return None
    costs = [run_cost(run, rates) for run in cell.done]
    mean = {key: float(np.mean([cost[key] for cost in costs])) for key in costs[0]}
    return mean | {"peak_memory_bytes": max(cost["peak_memory_bytes"] for cost in costs)}


def count_rows(data: ComparisonData) -> list[dict[str, Any]]:
    """How many rows each split had, and what became of the others: setting, split and `ROW_COUNTS`.

    One line a split; in a sweep that changes the numbers a line for each, with the first setting that has them.
    """
    found: dict[tuple[int, tuple[int | None, ...]], Mapping[str, Any]] = {}
    for run in (run for cell in data.cells for run in cell.runs):
        stats = (run.steps.get("data") or {}).get("stats")
        if stats:
            found.setdefault((run.split, tuple(stats.get(f"n_{name}") for name in ROW_COUNTS)), run.setting)
    by_split = Counter(split for split, _ in found)
    return [
        {
            "setting": dict(setting) if by_split[split] > 1 else {},
            "split": split,
            **dict(zip(ROW_COUNTS, counts, strict=True)),
        }
        for (split, counts), setting in found.items()
    ]


def has_same_labels(data: ComparisonData) -> bool:
    """Whether there are several splits, and all of them have the same labelled rows at each setting."""
    found: dict[str, dict[int, str]] = {}
    for run in (run for cell in data.cells for run in cell.runs):
        file = RunDir(run.folder).file("data/labeled")
        splits = found.setdefault(setting_text(run.setting), {})
        if run.split not in splits and file.exists():
            splits[run.split] = file_hash(file)
    several = [set(splits.values()) for splits in found.values() if len(splits) > 1]
    return bool(several) and all(len(hashes) == 1 for hashes in several)


def total_cost(data: ComparisonData) -> dict[str, float]:
    """What the whole comparison took: every step once, measuring, controls and failed runs too, no answer twice."""
    total = dict.fromkeys(COST_SUMS, 0.0)
    for run in (run for cell in data.all_cells for run in cell.runs):
        for entry in run.steps.values():
            if not entry.get("shared_from"):
                for key in COST_SUMS:
                    total[key] += (entry.get("cost") or {}).get(key) or 0
    return total


def oracle_labels(cell: Cell) -> dict[str, float] | None:
    """How many labels the oracle kept, and how many selection does (wanted): means over runs; None of other arms."""
    stats = [run.steps[name]["stats"] for run in cell.done for name in run.steps if name.endswith("/oracle_select")]
    if not stats:
        return None
    return {key: float(np.mean([found[f"n_{key}"] for found in stats])) for key in ("kept", "wanted")}


def calibrate(cell: Cell) -> Calibration | None:
    """Calibration of a cell; None where no answer that could be read has a confidence."""
    found = [c for run in cell.done if (c := measure_calibration(run.arm, run.predictions)) is not None]
    rated = scored_values(cell, "confidence")
    if not found or rated is None:
        return None
    return Calibration(
        ece=float(np.mean([c["ece"] for c in found])),
        brier=float(np.mean([c["brier"] for c in found])),
        mean_entropy=_mean([c["mean_entropy"] for c in found]),
        mean_nll=_mean([c["mean_nll"] for c in found]),
        n=sum(c["n"] for c in found),
        bins=tuple(_reliability(*rated)),
    )


def group_lines_of(data: ComparisonData) -> dict[str, str]:
    """The line of each group, by `audit.group_lines` over all rows that any run answered: the same of all arms."""
    by_setting: dict[str, list[ArmRun]] = {}
    for run in (run for cell in data.cells for run in cell.done):
        by_setting.setdefault(setting_text(run.setting), []).append(run)
    rows = {(key, row.group) for runs in by_setting.values() for key, row in distinct_rows(runs).items()}
    return group_lines(group for _, group in rows if group is not None)


def measure_groups(cell: Cell, line_of: Mapping[str, str]) -> list[dict[str, Any]]:
    """Mean score by group of the test rows with intervals, by the lines of `group_lines_of`.

    A single row of graded scores shows nothing of other rows, so it has the interval [0, 1].
    """
    runs = cell.done
    if not runs:
        return []
    names = [row.group for row in distinct_rows(runs).values()]
    matrix, _ = stack_scores(runs, [run.scores for run in runs])
    lines = []
    answered = {line_of.get(name) for name in names if name is not None}
    for group in (line for line in dict.fromkeys(line_of.values()) if line in answered):
        part = matrix[:, [name is not None and line_of[name] == group for name in names]]
        used = np.asarray(np.isfinite(part).any(axis=1))
        units = run_units([run for run, use in zip(runs, used.tolist(), strict=True) if use])
        found = crossed_mean(part[used], units=units)
        binary = bool(np.isin(part[np.isfinite(part)], (0.0, 1.0)).all())
        low, high = share_interval(found) if binary else found.interval()
        if part.shape[1] == 1 and not binary:
            low, high = 0.0, 1.0
        lines.append(
            {
                "arm": cell.arm.name,
                "setting": dict(cell.setting),
                "group": group,
                "value": found.mean,
                "ci_low": max(0.0, low),
                "ci_high": min(1.0, high),
                "n": part.shape[1],
            }
        )
    return lines


def rate_signals(cell: Cell) -> list[SignalQuality]:
    """Risk-coverage of each signal on the audited pseudo-labels that carry all of them; nothing without an audit."""
    audited = [labels for run in cell.done if (labels := _rated_labels(run))]
    signals = [name for name in SIGNALS if any(getattr(x, name) is not None for labels in audited for x, _ in labels)]
    whole = [[pair for pair in labels if all(getattr(pair[0], s) is not None for s in signals)] for labels in audited]
    rated = [labels for labels in whole if labels]
    if not rated:
        return []
    n = float(np.mean([len(labels) for labels in whole]))
    n_audited = float(np.mean([len(labels) for labels in audited]))
    lines = []
    for signal in signals:
        curves = [_risk_curve(labels, signal) for labels in rated]
        areas = [area for area, _ in curves]
        risks = np.mean([risk for _, risk in curves], axis=0).tolist()
        lines.append(
            SignalQuality(
                signal=signal,
                aurc=float(np.mean(areas)),
                aurc_sd=spread(areas),
                error=float(np.mean([1 - np.mean([is_right for _, is_right in labels]) for labels in rated])),
                n=round(n),
                n_left_out=round(n_audited - n),
                curve=tuple(zip(COVERAGES, risks, strict=True)),
            )
        )
    return lines


def spread_over_sweep(data: ComparisonData) -> list[dict[str, Any]]:
    """For each swept key and arm: mean, standard deviation, least and most of the metric over the key's values.

    For a key whose values should not matter (rewordings of an instruction) the deviation says how much they do. Where
    there are several splits or seeds, `chance_sd` is what chance alone would give, and `p_value` tests against it.
    """
    lines = []
    for key in data.sweep:
        for arm in dict.fromkeys(cell.arm.name for cell in data.cells):
            values = list(_runs_by_value(data, arm, key).values())
            if len(values) < 2:
                continue
            table = _by_unit(values)
            effect = value_effect(table)
            means = table.mean(axis=0).tolist() if len(table) else [float(np.mean(list(v.values()))) for v in values]
            lines.append(
                {
                    "key": key,
                    "arm": arm,
                    "n_values": len(means),
                    "mean": float(np.mean(means)),
                    "sd": spread(means),
                    "chance_sd": effect and effect.chance_sd,
                    "p_value": effect and effect.p_value,
                    "least": min(means),
                    "most": max(means),
                }
            )
    return lines


_RunScores = dict[tuple[int, int, str], float]
"""Score of each run of one value of a swept key, by split, seed and the values of the other keys."""


def _runs_by_value(data: ComparisonData, arm: str, key: str) -> dict[str, _RunScores]:
    """Scores of the finished runs of an arm by the value of a key."""
    found: dict[str, _RunScores] = {}
    for cell in data.cells:
        if cell.arm.name == arm and key in cell.setting and cell.done:
            others = setting_text({name: value for name, value in cell.setting.items() if name != key})
            scores = {(run.split, run.seed, others): float(run.scores.mean()) for run in cell.done}
            found.setdefault(value_text(cell.setting[key]), {}).update(scores)
    return found


def _by_unit(values: Sequence[_RunScores]) -> Floats:
    """Means (n_units, n_values) by split, or by seed of a single one.

    They are over the runs that every value has, so that the values differ in nothing else.
    """
    runs = set(values[0]).intersection(*values[1:])
    place = 0 if len({run[0] for run in runs}) > 1 else 1
    units = sorted({run[place] for run in runs})
    means = [[np.mean([found[run] for run in runs if run[place] == unit]) for found in values] for unit in units]
    return np.array(means, dtype=np.float64).reshape(len(units), len(values))


def scored_values(cell: Cell, field: str) -> tuple[Floats, Floats] | None:
    """Values of a field and scores of the answers of all runs that could be read; None where none of them has it."""
    rows = [
        (getattr(p, field), p.score)
        for run in cell.done
        for p in run.predictions
        if p.answer is not None and getattr(p, field) is not None and p.score is not None
    ]
    if not rows:
        return None
    values = np.array(rows, dtype=np.float64)
    return values[:, 0], values[:, 1]


def _rated_labels(run: ArmRun) -> list[tuple[PseudoLabel, bool]]:
    right = run.audited
    if not any(verdict is not None for verdict in right.values()):
        return []
    rated = ((label, right.get(label.example_id)) for label in run.pseudo_labels())
    return [(label, verdict) for label, verdict in rated if verdict is not None]


def _risk_curve(labels: Sequence[tuple[PseudoLabel, bool]], signal: str) -> tuple[float, Floats]:
    """Area and risks at COVERAGES of labels that all carry the signal."""
    sure = SIGNALS[signal] * np.array([getattr(label, signal) for label, _ in labels], dtype=np.float64)
    risk = metrics.risk_coverage(sure, np.array([is_right for _, is_right in labels], dtype=np.float64))[1]
    places = [max(1, round(c * len(risk))) - 1 for c in COVERAGES]
    return float(risk.mean()), risk[places]


def _reliability(confidence: Floats, correct: Floats) -> list[dict[str, float]]:
    """Bins of equal mass; rows of equal confidence share their mean accuracy, as in the calibration error."""
    order = np.argsort(confidence, kind="stable")
    bins = min(N_BINS, len(order))
    sure, right = np.array_split(confidence[order], bins), metrics.share_ties(confidence, correct)[order]
    return [
        {"confidence": float(x.mean()), "accuracy": float(y.mean()), "n": len(x)}
        for x, y in zip(sure, np.array_split(right, bins), strict=True)
    ]


def _mean(values: Sequence[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return math.fsum(present) / len(present) if present else None
