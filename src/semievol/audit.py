"""What the numbers of a run are made of: metrics, paired comparisons, pseudo-label quality, the fate of every row.

Pure functions over stored records, so that every table can be drawn again from the run folder. Only `evaluate` calls
the ones that take sealed targets.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol import metrics
from semievol.errors import DataError
from semievol.types import Comparison, Dropped, EvalResult, Prediction, PseudoLabel

MODELS = ("base", "sft", "sft_matched", "semievol")
"""Order in which models stand in tables. sft is the warm-up model; sft_matched the control."""


@dataclass(frozen=True, slots=True)
class Fate:
    """Where one row ended, and why."""

    example_id: str
    split: str
    fate: str
    reason: str
    round: int


def score_vector(predictions: Sequence[Prediction]) -> NDArray[np.float64]:
    """Scores (n,), in [0, 1]. Raises DataError if a prediction has not been scored."""
    scores = [p.score for p in predictions]
    if any(s is None for s in scores):
        raise DataError("evaluate: a prediction has no score; its row has no target")
    return np.array(scores, dtype=np.float64)


def group_vector(predictions: Sequence[Prediction]) -> list[str] | None:
    """Groups for clustered intervals; None unless rows share documents (a group that holds under a tenth of the rows).

    Few large groups are categories, for which the rows inside are independent; many small ones are documents.
    """
    groups = [p.group or p.example_id for p in predictions]
    n_groups = len(set(groups))
    return groups if 20 <= n_groups < len(groups) else None


def measure(
    model: str, metric: str, predictions: Sequence[Prediction], *, n_bootstrap: int, seed: int, split: str = "test"
) -> EvalResult:
    """The mean score with its 95% interval: Wilson for 0/1 scores of independent rows, else a bootstrap over groups."""
    interval = metrics.accuracy_interval(
        score_vector(predictions), groups=group_vector(predictions), n_bootstrap=n_bootstrap, seed=seed
    )
    n_unparsed = sum(p.answer is None for p in predictions)
    return EvalResult(
        model, split, metric, interval.value, interval.ci_low, interval.ci_high, len(predictions), n_unparsed
    )


def compare(
    a: str, b: str, metric: str, predictions: Mapping[str, Sequence[Prediction]], *, n_bootstrap: int, seed: int
) -> Comparison:
    """The paired difference a - b over the same rows. Raises DataError if the rows differ."""
    ours, theirs = predictions[a], predictions[b]
    if [p.example_id for p in ours] != [p.example_id for p in theirs]:
        raise DataError(f"evaluate: {a} and {b} were not measured on the same rows")
    found = metrics.paired_difference(
        score_vector(ours), score_vector(theirs), groups=group_vector(ours), n_bootstrap=n_bootstrap, seed=seed
    )
    return Comparison(a, b, metric, found.difference, found.ci_low, found.ci_high, found.p_value, found.n)


def measure_groups(model: str, predictions: Sequence[Prediction], *, most: int = 30) -> list[dict[str, Any]]:
    """Accuracy by group with Wilson intervals, largest groups first; nothing where rows have no group or too many."""
    by_group: dict[str, list[float]] = defaultdict(list)
    for prediction in predictions:
        if prediction.group is not None and prediction.score is not None:
            by_group[prediction.group].append(prediction.score)
    if not 2 <= len(by_group) <= most:
        return []
    rows = []
    for group, scores in sorted(by_group.items(), key=lambda item: (-len(item[1]), item[0])):
        interval = metrics.accuracy_interval(np.array(scores), n_bootstrap=1000, seed=0)
        rows.append(
            {
                "model": model,
                "group": group,
                "value": interval.value,
                "ci_low": interval.ci_low,
                "ci_high": interval.ci_high,
                "n": len(scores),
            }
        )
    return rows


def measure_calibration(model: str, predictions: Sequence[Prediction]) -> dict[str, Any] | None:
    """Expected calibration error and Brier score of the confidence in the given answer; None where there is none."""
    rated = [p for p in predictions if p.confidence is not None and p.score is not None]
    if not rated:
        return None
    confidence = np.array([p.confidence for p in rated], dtype=np.float64)
    correct = np.array([p.score for p in rated], dtype=np.float64)
    return {
        "model": model,
        "ece": metrics.expected_calibration_error(confidence, correct),
        "brier": metrics.brier_score(confidence, correct),
        "mean_entropy": _mean([p.entropy for p in rated]),
        "mean_nll": _mean([p.mean_nll for p in rated]),
        "n": len(rated),
    }


def audit_pseudo_labels(
    labels: Sequence[PseudoLabel], kept_ids: set[str], correct: Mapping[str, bool], *, round: int
) -> dict[str, Any]:
    """Quality of one round's pseudo-labels. `correct` holds the rows whose sealed target exists; precisions need it."""
    rated = [x for x in labels if x.example_id in correct]
    kept = [x for x in labels if x.example_id in kept_ids]
    entry: dict[str, Any] = {
        "round": round,
        "n_labels": len(labels),
        "n_kept": len(kept),
        "coverage": len(kept) / len(labels) if labels else 0.0,
        "mean_agreement": _mean([x.agreement for x in labels]),
        "n_by_source": dict(sorted(Counter(x.source for x in labels).items())),
        "n_with_gold": len(rated),
        "precision": {},
    }
    for name, rows in {
        "all": rated,
        "kept": [x for x in rated if x.example_id in kept_ids],
        "dropped": [x for x in rated if x.example_id not in kept_ids],
        "consensus": [x for x in rated if x.source == "consensus"],
        "justified": [x for x in rated if x.source == "justified"],
        "cascade": [x for x in rated if x.source == "cascade"],
    }.items():
        if rows:
            hits = np.array([correct[x.example_id] for x in rows], dtype=np.float64)
            interval = metrics.accuracy_interval(hits, n_bootstrap=1000, seed=0)
            entry["precision"][name] = {
                "value": interval.value,
                "ci_low": interval.ci_low,
                "ci_high": interval.ci_high,
                "n": len(rows),
            }
    return entry


def precision_curve(
    labels: Sequence[PseudoLabel], correct: Mapping[str, bool], *, n_points: int = 101
) -> list[dict[str, float]]:
    """Precision of the surest share of labels by mean NLL, at up to `n_points` coverages; empty without targets."""
    rated = sorted(
        (x for x in labels if x.example_id in correct and x.mean_nll is not None),
        key=lambda x: (x.mean_nll, x.example_id),
    )
    if not rated:
        return []
    hits = np.cumsum([correct[x.example_id] for x in rated])
    places = sorted({max(1, round(f * len(rated))) for f in np.linspace(0.01, 1.0, n_points)})
    return [
        {
            "coverage": i / len(rated),
            "precision": float(hits[i - 1] / i),
            "mean_nll": float(rated[i - 1].mean_nll or 0.0),
        }
        for i in places
    ]


def row_fates(unlabeled_ids: Iterable[str], kept: Mapping[str, int], dropped: Iterable[Dropped]) -> list[Fate]:
    """The end of every unlabelled row: kept (with its round), or the last reason for which it was not.

    Raises:
        DataError: If a row has no end, which would be a fault of this program.
    """
    last: dict[str, Dropped] = {}
    for drop in dropped:
        if drop.example_id not in last or drop.round >= last[drop.example_id].round:
            last[drop.example_id] = drop
    fates, lost = [], []
    for row_id in unlabeled_ids:
        if row_id in kept:
            fates.append(Fate(row_id, "unlabeled", "kept", "selected as a pseudo-label", kept[row_id]))
        elif row_id in last:
            drop = last[row_id]
            fates.append(Fate(row_id, "unlabeled", drop.stage, drop.reason, drop.round))
        else:
            lost.append(row_id)
    if lost:
        raise DataError(
            f"evaluate: {len(lost)} unlabelled rows were lost on the way, {lost[0]} first; please report this"
        )
    return fates


def _mean(values: Iterable[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None
