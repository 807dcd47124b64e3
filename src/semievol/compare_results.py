"""The numbers of a comparison, worked out from the stored rows: what results.json of a comparison holds.

Shares and differences are fractions (0.02 is 2 points). A field that a comparison cannot fill is None. Everything is
computed again on each call, so a copied folder gives the same numbers.
"""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol import metrics
from semievol.audit import group_vector
from semievol.compare_load import ArmRun, Cell, ComparisonData
from semievol.compare_stats import (
    CrossedMean,
    Ratio,
    crossed_mean,
    ratio_interval,
    share_interval,
    spread,
)
from semievol.compare_text import arm_label
from semievol.errors import ArtifactError
from semievol.report_text import interval, signed
from semievol.types import Prediction

Floats = NDArray[np.float64]

FEW_ROWS = 300
"""Below, the interval of a single run is Clopper-Pearson, which covers at least 95%; above, Wilson."""
FALLBACKS = ("sft_matched", "sft", "zero_shot")
"""What an arm is compared with where its reference has no finished run, or is the arm itself."""
FEWEST_DIFFERING = 6
"""Rows, or groups, that have to differ before exact McNemar, or the sign test, can tell at 95%."""
GAP_FROM, GAP_TO = "sft", "oracle_full"
"""Arms that stand for 0 and 1 of the gap that unlabelled rows could close."""
N_BOOTSTRAP = 2000


@dataclass(frozen=True, slots=True)
class Measured:
    """How one arm did at one setting, over its finished runs."""

    value: float
    """Mean over the runs."""
    ci_low: float
    ci_high: float
    method: str
    """Of the interval: wilson, clopper_pearson, korn_graubard, crossed_t or bootstrap."""
    seed_sd: float | None
    """Standard deviation of the run means inside a split; None for one run each."""
    split_sd: float | None
    """Standard deviation of the split means; None for one split."""
    sampling_se: float
    """Standard error from the draw of the test rows alone."""
    n_rows: int
    """Different test rows."""
    n_groups: int | None
    """Groups that they come in, which are the units of the interval where `by_group`; None where they have none."""
    by_group: bool
    n_answers: int
    n_unparsed: int
    """Of the answers of all runs; they count as wrong."""
    macro_f1: float | None
    """Over the answers that are right for some test row, mean over the runs; None where rows do not share one set."""
    majority: float | None
    """Score of always giving the answer that is right most often, mean over the runs; None for open answers."""
    at_chance: bool
    """Whether the mean less 1.96 standard errors of the test set is no more than that."""
    by_run: tuple[dict[str, Any], ...]
    """split, seed, value and n_unparsed of each run."""


@dataclass(frozen=True, slots=True)
class PairedResult:
    """Difference arm - reference over the runs that both have, row by row."""

    arm: str
    reference: str
    setting: Mapping[str, Any]
    value: float
    """Mean of the arm over these runs."""
    reference_value: float
    """Mean of the reference over these runs."""
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    p_holm: float | None
    """Adjusted over all arms of the comparison (Holm 1979); None outside that family."""
    method: str
    """crossed_t; of a single run, and of several that all differ alike, mcnemar (0/1 scores, with Tango's interval) or
    sign_flip (with a percentile bootstrap interval); no_difference where no row differs, with the interval of a share
    of 0 (Clopper and Pearson) to both sides."""
    bootstrap_low: float | None
    """Percentile interval of the bootstrap over splits, seeds and rows; too narrow with few of them, for reference.
    None for a single run, or what counts as one."""
    bootstrap_high: float | None
    n_rows: int
    n_runs: int
    unpaired: tuple[str, ...]
    """Runs that only one of the two has, which are left out."""
    detectable: float | None
    """True difference that would be found four times in five; 1 where none would be, None where nothing tells."""
    same_as: Mapping[str, Any] | None = None
    """In a sweep, the setting with the same config that stands for this one in Holm's family."""


@dataclass(frozen=True, slots=True)
class GapClosed:
    """(arm - sft) / (oracle_full - sft), with Fieller's interval."""

    arm: str
    setting: Mapping[str, Any]
    value: float | None
    ci_low: float | None
    ci_high: float | None
    reason: str
    """Why it is not defined; empty where it is."""


def metric_name(data: ComparisonData) -> str:
    """accuracy, exact_match, token_f1 or rouge_l, as the task says."""
    task = data.config.get("task") or {}
    defaults = {"span": "exact_match", "text": "rouge_l"}
    return str(task.get("metric") or defaults.get(task.get("type", ""), "accuracy"))


def n_bootstrap(data: ComparisonData) -> int:
    """Draws, as the config says."""
    return int((data.config.get("evaluate") or {}).get("n_bootstrap") or N_BOOTSTRAP)


def measure_cell(data: ComparisonData, cell: Cell) -> Measured | None:
    """The mean score of a cell with its interval; None where no run is done."""
    runs = cell.done
    if not runs:
        return None
    matrix, groups = stack_scores(runs, [run.scores for run in runs])
    found = crossed_mean(matrix, units=run_units(runs), groups=groups)
    low, high, method = _interval(found, matrix, groups, data)
    seed_sd, split_sd = _spreads(runs)
    sampling_se = float(np.sqrt(found.row_variance))
    closed = (data.config.get("task") or {}).get("type") in ("choice", "label")
    majority = _majority(runs) if closed else None
    return Measured(
        value=found.mean,
        ci_low=low,
        ci_high=high,
        method=method,
        seed_sd=seed_sd,
        split_sd=split_sd,
        sampling_se=sampling_se,
        n_rows=matrix.shape[1],
        n_groups=_count_groups(runs),
        by_group=groups is not None,
        n_answers=sum(len(run.predictions) for run in runs),
        n_unparsed=sum(_count_unparsed(run) for run in runs),
        macro_f1=_macro_f1(runs) if data.answer_set else None,
        majority=majority,
        at_chance=majority is not None and found.mean - 1.96 * sampling_se <= majority,
        by_run=tuple(
            {
                "split": run.split,
                "seed": run.seed,
                "value": float(run.scores.mean()),
                "n_unparsed": _count_unparsed(run),
            }
            for run in runs
        ),
    )


def find_reference(data: ComparisonData) -> str:
    """The arm that others are compared with: the one asked for, or, where no run of it is done, the next best."""
    done = {cell.arm.name for cell in data.cells if cell.done}
    return next((name for name in (data.reference, *FALLBACKS) if name in done), data.reference)


def compare_cells(data: ComparisonData, cell: Cell, reference: Cell) -> PairedResult | None:
    """The paired difference of two cells; None where no split and seed is done in both.

    Raises:
        ArtifactError: If two runs of one split and seed answered different rows.
    """
    ours, theirs = _pair_runs(cell, reference)
    if not ours:
        return None
    rows = [a.scores - b.scores for a, b in zip(ours, theirs, strict=True)]
    matrix, groups = stack_scores(ours, rows)
    both, either = {r.key for r in ours}, {r.key for r in cell.done} ^ {r.key for r in reference.done}
    found = crossed_mean(matrix, units=run_units(ours), groups=groups)
    base = PairedResult(
        arm=cell.arm.name,
        reference=reference.arm.name,
        setting=cell.setting,
        value=float(np.mean([run.scores.mean() for run in ours])),
        reference_value=float(np.mean([run.scores.mean() for run in theirs])),
        difference=found.mean,
        ci_low=0.0,
        ci_high=0.0,
        p_value=1.0,
        p_holm=None,
        method="crossed_t",
        bootstrap_low=None,
        bootstrap_high=None,
        n_rows=matrix.shape[1],
        n_runs=len(both),
        unpaired=tuple(f"split {split}, seed {seed}" for split, seed in sorted(either)),
        detectable=None,
    )
    values = matrix[np.isfinite(matrix)]
    if not values.any():
        low, high = metrics.constant_interval(found.mean, found.n_equal_units)
        least = metrics.minimum_detectable_difference(found.n_units, 0.0)
        return replace(base, ci_low=low, ci_high=high, method="no_difference", detectable=least)
    if (matrix == matrix[0]).all():  # one run, or several of arms without chance: copies add nothing
        return _single_run(base, ours[0].scores, theirs[0].scores, groups, n_draws=n_bootstrap(data))
    binary = _is_binary(np.concatenate([run.scores for run in (*ours, *theirs)]))
    tested = _several_runs(base, found, matrix, run_units(ours), groups, binary=binary, n_draws=n_bootstrap(data))
    if np.ptp(values) < 1e-12:  # every row differs by the same
        low, high = metrics.constant_interval(found.mean, found.n_equal_units)
        return replace(tested, ci_low=low, ci_high=high)
    return tested


def compare_with_reference(data: ComparisonData) -> list[PairedResult]:
    """Every arm against the reference (at the same setting of a sweep), with Holm over all that differ in anything."""
    found: list[PairedResult] = []
    settings: dict[Hashable, Mapping[str, Any]] = {}
    for cell in data.cells:
        reference = data.reference_of(cell)
        if cell.arm.name == data.reference or reference is None:
            continue
        paired = compare_cells(data, cell, reference)
        if paired is not None:
            first = settings.setdefault((cell.arm.name, _identity(cell), _identity(reference)), cell.setting)
            found.append(paired if first is cell.setting else replace(paired, same_as=first))
    family = [f for f in found if f.same_as is None]
    adjusted = metrics.holm([f.p_value for f in family]).tolist() if family else []
    p_holm = {(f.arm, str(f.setting)): float(p) for f, p in zip(family, adjusted, strict=True)}
    return [replace(f, p_holm=p_holm[f.arm, str(f.setting if f.same_as is None else f.same_as)]) for f in found]


def close_gaps(data: ComparisonData) -> list[GapClosed]:
    """How much of the way from SFT to training on all gold each arm goes; empty where one of the two did not run."""
    found = []
    for cell in data.cells:
        low, high = data.find(GAP_FROM, cell.setting), data.find(GAP_TO, cell.setting)
        if cell.arm.name in (GAP_FROM, GAP_TO) or not cell.done or low is None or high is None:
            continue
        if not low.done or not high.done:
            continue
        ratio = _gap(cell, low, high)
        found.append(GapClosed(cell.arm.name, cell.setting, ratio.value, ratio.ci_low, ratio.ci_high, ratio.reason))
    return found


def stack_scores(runs: Sequence[ArmRun], rows: Sequence[Floats]) -> tuple[Floats, list[Hashable] | None]:
    """A matrix (n_runs, n_rows) over all rows that a run answered, NaN where it did not, and the groups of the rows.

    The rows are those of `distinct_rows`, in its order.
    """
    keys = row_keys(runs)
    found = distinct_rows(runs, keys)
    groups = group_vector(list(found.values()), list(found))
    if all(own == keys[0] for own in keys):
        return np.stack(rows), groups
    place = {key: i for i, key in enumerate(found)}
    matrix = np.full((len(runs), len(found)), np.nan)
    for line, own, row in zip(matrix, keys, rows, strict=True):
        line[[place[key] for key in own]] = row
    return matrix, groups


def row_keys(runs: Sequence[ArmRun]) -> list[tuple[Hashable, ...]]:
    """What tells the rows of all runs apart, a tuple (n_rows,) for each run.

    Ids; split and id where two runs have different rows under one id (another target or group), as splits have that
    number their rows anew.
    """
    seen: dict[str, tuple[str | None, str | None]] = {}
    for prediction in (p for run in runs for p in run.predictions):
        row = (prediction.target, prediction.group)
        if seen.setdefault(prediction.example_id, row) != row:
            return [tuple((run.split, row_id) for row_id in run.row_ids) for run in runs]
    return [run.row_ids for run in runs]


def distinct_rows(
    runs: Sequence[ArmRun], keys: Sequence[tuple[Hashable, ...]] | None = None
) -> dict[Hashable, Prediction]:
    """The rows that any of the runs answered, by `row_keys`; of each the answer of the first run that has it."""
    found: dict[Hashable, Prediction] = {}
    for run, own in zip(runs, keys or row_keys(runs), strict=True):
        for key, prediction in zip(own, run.predictions, strict=True):
            found.setdefault(key, prediction)
    return found


def run_units(runs: Sequence[ArmRun]) -> list[Hashable] | None:
    """Splits where there are several (runs of one split share its labelled rows), else None: runs."""
    splits: list[Hashable] = [run.split for run in runs]
    return splits if len(set(splits)) > 1 else None


def _interval(
    found: CrossedMean, matrix: Floats, groups: Sequence[Hashable] | None, data: ComparisonData
) -> tuple[float, float, str]:
    values = matrix[np.isfinite(matrix)]
    binary = _is_binary(values)
    if len(matrix) == 1 and binary and groups is None:
        hits, n = int(values.sum()), len(values)
        if n < FEW_ROWS:
            return (*metrics.clopper_pearson_interval(hits, n), "clopper_pearson")
        return (*metrics.wilson_interval(hits, n), "wilson")
    if binary:
        return (*share_interval(found), "korn_graubard")
    if len(matrix) == 1:
        drawn = metrics.mean_interval(values, groups, n_bootstrap=n_bootstrap(data), seed=0)
        return drawn.ci_low, drawn.ci_high, "bootstrap"
    low, high = found.interval()
    return max(0.0, low), min(1.0, high), "crossed_t"


def _identity(cell: Cell) -> Hashable:
    """Equal for two points of a sweep whose runs have one config: of every run, what its measurement depends on."""
    prints = [(run.key, run.steps.get("measure", {}).get("fingerprint")) for run in cell.done]
    return tuple(prints) if all(found for _, found in prints) else id(cell)


def _clip(low: float, high: float) -> tuple[float, float]:
    """A difference of scores in [0, 1] stays in [-1, 1]."""
    return max(-1.0, low), min(1.0, high)


def _single_run(
    base: PairedResult, a: Floats, b: Floats, groups: Sequence[Hashable] | None, *, n_draws: int
) -> PairedResult:
    found = metrics.paired_difference(a, b, groups=groups, n_bootstrap=n_draws, seed=0)
    binary = _is_binary(np.concatenate([a, b]))
    return replace(
        base,
        ci_low=found.ci_low,
        ci_high=found.ci_high,
        p_value=found.p_value,
        method="mcnemar" if binary and groups is None else "sign_flip",
        detectable=found.detectable,
    )


def _several_runs(
    base: PairedResult,
    found: CrossedMean,
    matrix: Floats,
    units: Sequence[Hashable] | None,
    groups: Sequence[Hashable] | None,
    *,
    binary: bool,
    n_draws: int,
) -> PairedResult:
    low, high = _clip(*found.interval())
    drawn = metrics.hierarchical_difference(
        matrix, matrix - matrix, units=units, groups=groups, n_bootstrap=n_draws, seed=0
    )
    detectable = found.detectable()
    differing = np.flatnonzero(np.nan_to_num(matrix).any(axis=0)).tolist()
    n_differing = len(differing if groups is None else {groups[row] for row in differing})
    if binary and n_differing < FEWEST_DIFFERING:
        detectable = max(metrics.minimum_detectable_difference(matrix.shape[1], 0.0), detectable)
    return replace(
        base,
        ci_low=low,
        ci_high=high,
        p_value=found.p_value(),
        bootstrap_low=drawn.ci_low,
        bootstrap_high=drawn.ci_high,
        detectable=min(1.0, detectable) or None,
    )


def _is_binary(scores: Floats) -> bool:
    return bool(np.isin(scores, (0.0, 1.0)).all())


def _pair_runs(cell: Cell, other: Cell) -> tuple[list[ArmRun], list[ArmRun]]:
    theirs = {run.key: run for run in other.done}
    pairs = [(run, theirs[run.key]) for run in cell.done if run.key in theirs]
    for a, b in pairs:
        if a.row_ids != b.row_ids:
            raise ArtifactError(
                f"{a.folder} and {b.folder} answered different test rows, so they cannot be paired; "
                "run the comparison again in another folder"
            )
    return [a for a, _ in pairs], [b for _, b in pairs]


def _gap(cell: Cell, low: Cell, high: Cell) -> Ratio:
    """The ratio over the runs that all three have."""
    ours, bottoms = _pair_runs(cell, low)
    tops = {run.key: run for run in high.done}
    kept = [(run, base, tops[run.key]) for run, base in zip(ours, bottoms, strict=True) if run.key in tops]
    if not kept:
        return Ratio(None, None, None, "no split and seed is done in all three arms")
    if any(run.row_ids != top.row_ids for run, _, top in kept):
        raise ArtifactError(f"{kept[0][2].folder}: the runs answered different test rows; run the comparison again")
    runs = [run for run, _, _ in kept]
    numerator, groups = stack_scores(runs, [run.scores - base.scores for run, base, _ in kept])
    denominator, _ = stack_scores(runs, [top.scores - base.scores for _, base, top in kept])
    arm, gold = arm_label(cell.arm.name), "training on all gold"
    for a, b, rows in (("SFT", gold, denominator), (arm, "SFT", numerator), (arm, gold, denominator - numerator)):
        if not np.nan_to_num(rows).any():
            return Ratio(None, None, None, f"{a} and {b} score the same on every test row")
    gain = crossed_mean(denominator, units=run_units(runs), groups=groups)
    low_gain, high_gain = gain.interval()
    if low_gain <= 0:
        added = f"{signed(gain.mean)} points {interval(*_clip(low_gain, high_gain))}"
        return Ratio(None, None, None, f"there may be no gap: all gold adds {added} to SFT")
    return ratio_interval(numerator, denominator, units=run_units(runs), groups=groups)


def _spreads(runs: Sequence[ArmRun]) -> tuple[float | None, float | None]:
    """Standard deviation of run means inside the splits (pooled), and of the split means."""
    by_split: dict[int, list[float]] = {}
    for run in runs:
        by_split.setdefault(run.split, []).append(float(run.scores.mean()))
    inside = [(len(means) - 1, spread(means)) for means in by_split.values()]
    known = [(n, sd) for n, sd in inside if sd is not None]
    pooled = float(np.sqrt(sum(n * sd**2 for n, sd in known) / sum(n for n, _ in known))) if known else None
    return pooled, spread([float(np.mean(means)) for means in by_split.values()])


def _macro_f1(runs: Sequence[ArmRun]) -> float | None:
    shares = []
    for run in runs:
        targets = [p.target for p in run.predictions if p.target is not None]
        if len(targets) < len(run.predictions):
            return None
        shares.append(metrics.macro_f1(targets, [p.answer for p in run.predictions]))
    return float(np.mean(shares))


def _majority(runs: Sequence[ArmRun]) -> float | None:
    counts = [Counter(p.target for p in run.predictions if p.target is not None) for run in runs]
    if not all(counts):
        return None
    return float(np.mean([max(c.values()) / len(run.predictions) for c, run in zip(counts, runs, strict=True)]))


def _count_groups(runs: Sequence[ArmRun]) -> int | None:
    rows = distinct_rows(runs)
    if all(row.group is None for row in rows.values()):
        return None
    return len({row.group or key for key, row in rows.items()})


def _count_unparsed(run: ArmRun) -> int:
    return sum(p.answer is None for p in run.predictions)
