"""What the numbers of a run are made of: metrics, paired comparisons, pseudo-label quality, the fate of every row.

Pure functions over stored records, so that every table can be drawn again from the run folder. Only `evaluate` calls
the ones that take sealed targets.
"""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from semievol import metrics
from semievol.errors import DataError
from semievol.types import Comparison, EvalResult, LabelSource, Prediction, PseudoLabel

MODELS = ("base", "sft", "sft_matched", "semievol")
"""Order in which models stand in tables. sft is the warm-up model; sft_matched the control."""
SOURCES = get_args(LabelSource)
"""Where pseudo-labels come from (`PseudoLabel.source`)."""

FEWEST_GROUPS = 20
"""Units that a clustered interval needs."""
MOST_GROUPS = 30
"""Lines of a table by group."""
FEWEST_GROUP_ROWS = 5
"""Rows of a group with a line of its own, where there are more groups than lines."""

ReadIds = Callable[[NDArray[np.int64]], Mapping[int, str]]
"""The ids of rows by their places, which come in order."""


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


def group_vector(predictions: Sequence[Prediction], keys: Sequence[Hashable] | None = None) -> list[Hashable] | None:
    """Groups as units of intervals, where there are at least `FEWEST_GROUPS` and rows share them; else None.

    Few groups are taken for categories, inside of which rows are independent; many for documents. A row without a group
    is one of its own, by its key (None: its id).
    """
    groups: list[Hashable] = [
        p.group or key for p, key in zip(predictions, keys or [p.example_id for p in predictions], strict=True)
    ]
    n_groups = len(set(groups))
    return groups if FEWEST_GROUPS <= n_groups < len(groups) else None


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
    return Comparison(a, b, metric, **asdict(found))


def group_lines(groups: Iterable[str]) -> dict[str, str]:
    """The line of a table by group that each group stands in, from the group of every row; the lines in order.

    The largest groups have one each, largest first. Where there are more than `MOST_GROUPS`, the others share the last
    one, and so do those of fewer than `FEWEST_GROUP_ROWS` rows.

    Returns:
        Line by group; empty where fewer than two lines would stand there, or no group of many is large enough.
    """
    sizes = sorted(Counter(groups).items(), key=lambda item: (-item[1], item[0]))
    n_own = len(sizes)
    if n_own > MOST_GROUPS:
        n_own = min(MOST_GROUPS - 1, sum(size >= FEWEST_GROUP_ROWS for _, size in sizes))
    if n_own == 0 or len(sizes) < 2:
        return {}
    others = f"{len(sizes) - n_own} other groups"
    return {group: group if place < n_own else others for place, (group, _) in enumerate(sizes)}


def measure_groups(model: str, predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Mean score by group with 95% intervals, by the lines of `group_lines`; nothing where rows have no group.

    Intervals are those of `metrics.accuracy_interval`; a single row of graded scores shows no spread, so it has [0, 1].
    """
    by_group: dict[str, list[float]] = defaultdict(list)
    for prediction in predictions:
        if prediction.group is not None and prediction.score is not None:
            by_group[prediction.group].append(prediction.score)
    lines: dict[str, list[float]] = defaultdict(list)
    for group, line in group_lines(group for group, scores in by_group.items() for _ in scores).items():
        lines[line] += by_group[group]
    rows = []
    for group, scores in lines.items():
        interval = metrics.accuracy_interval(np.array(scores), n_bootstrap=1000, seed=0)
        low, high = (0.0, 1.0) if len(scores) == 1 and 0 < scores[0] < 1 else (interval.ci_low, interval.ci_high)
        rows.append(
            {
                "model": model,
                "group": group,
                "value": interval.value,
                "ci_low": low,
                "ci_high": high,
                "n": len(scores),
            }
        )
    return rows


def measure_calibration(model: str, predictions: Sequence[Prediction]) -> dict[str, Any] | None:
    """Expected calibration error and Brier score of the confidence in the given answer; None where there is none.

    Over the answers that could be read: of a text without one there is nothing to be sure of.
    """
    rated = [p for p in predictions if p.answer is not None and p.confidence is not None and p.score is not None]
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


class RoundAudit:
    """What is known of the pseudo-labels of one round: a few numbers each, in the order of U."""

    def __init__(self) -> None:
        self._agreement, self._mean_nll = array("d"), array("d")
        self._source, self._is_kept = array("B"), array("B")
        self._is_right = array("b")
        """1 right, 0 wrong, -1 without a sealed target."""

    def add(self, label: PseudoLabel, *, is_kept: bool, is_right: bool | None) -> None:
        """Note one label; `is_right` None: it has no sealed target."""
        self._agreement.append(label.agreement)
        self._mean_nll.append(math.nan if label.mean_nll is None else label.mean_nll)
        self._source.append(SOURCES.index(label.source))
        self._is_kept.append(is_kept)
        self._is_right.append(-1 if is_right is None else is_right)

    def summarize(self, round: int) -> dict[str, Any]:
        """Quality of the round's pseudo-labels; precisions are over those with a sealed target."""
        source, is_kept = np.asarray(self._source), np.asarray(self._is_kept, dtype=bool)
        is_right = np.asarray(self._is_right)
        rated, n_labels, n_kept = is_right >= 0, len(source), int(is_kept.sum())
        names, counts = np.unique(source, return_counts=True)
        entry: dict[str, Any] = {
            "round": round,
            "n_labels": n_labels,
            "n_kept": n_kept,
            "coverage": n_kept / n_labels if n_labels else 0.0,
            "mean_agreement": float(np.mean(self._agreement)) if n_labels else None,
            "n_by_source": dict(sorted((SOURCES[i], int(n)) for i, n in zip(names, counts, strict=True))),
            "n_with_gold": int(rated.sum()),
            "precision": {},
        }
        for name, rows in {
            "all": rated,
            "kept": rated & is_kept,
            "dropped": rated & ~is_kept,
            "consensus": rated & (source == SOURCES.index("consensus")),
            "justified": rated & (source == SOURCES.index("justified")),
            "cascade": rated & (source == SOURCES.index("cascade")),
        }.items():
            if rows.any():
                interval = metrics.accuracy_interval(is_right[rows].astype(np.float64), n_bootstrap=1000, seed=0)
                entry["precision"][name] = {
                    "value": interval.value,
                    "ci_low": interval.ci_low,
                    "ci_high": interval.ci_high,
                    "n": int(rows.sum()),
                }
        return entry

    def precision_curve(self, read_ids: ReadIds, *, n_points: int = 101) -> list[dict[str, float]]:
        """Precision of the surest share of labels by mean NLL, ties by id, at up to `n_points` coverages.

        Empty without targets. `read_ids` gives the ids of labels at some places; only those of ties are asked for.
        """
        mean_nll, is_right = np.asarray(self._mean_nll), np.asarray(self._is_right)
        rated = np.flatnonzero((is_right >= 0) & ~np.isnan(mean_nll))
        if not len(rated):
            return []
        rated = rated[np.argsort(mean_nll[rated], kind="stable")]
        values, hits = mean_nll[rated], np.cumsum(is_right[rated], dtype=np.int64)
        places = sorted({max(1, round(f * len(rated))) for f in np.linspace(0.01, 1.0, n_points)})
        # A place inside a run of equal values cuts it by id: put the rows of such runs in the order of their ids.
        lows = np.searchsorted(values, values[np.array(places) - 1], "left")
        highs = np.searchsorted(values, values[np.array(places) - 1], "right")
        cut = {(int(low), int(high)) for low, high, i in zip(lows, highs, places, strict=True) if i < high}
        names = read_ids(np.sort(np.concatenate([rated[low:high] for low, high in cut]))) if cut else {}
        for low, high in cut:
            ordered = sorted(rated[low:high].tolist(), key=names.__getitem__)
            hits[low:high] = np.cumsum(is_right[ordered], dtype=np.int64) + (hits[low - 1] if low else 0)
        return [
            {
                "coverage": i / len(rated),
                "precision": float(hits[i - 1] / i),
                "mean_nll": float(values[i - 1]) or 0.0,
            }
            for i in places
        ]


class Fates:
    """The end of every unlabelled row, in order: kept, or the last reason for which it was not. 2 bytes a row."""

    def __init__(self) -> None:
        self._codes = array("H")
        self._ends: dict[tuple[str, str, int], int] = {}

    def add(self, fate: str, reason: str, round: int) -> None:
        """Note the end of the next row."""
        self._codes.append(self._ends.setdefault((fate, reason, round), len(self._ends)))

    def count(self) -> list[dict[str, Any]]:
        """Rows by fate and reason."""
        counts: Counter[tuple[str, str]] = Counter()
        n_by_code = np.bincount(np.asarray(self._codes), minlength=len(self._ends)).tolist()
        for (fate, reason, _), n in zip(self._ends, n_by_code, strict=True):
            counts[fate, reason] += n
        return [{"fate": fate, "reason": reason, "n": n} for (fate, reason), n in sorted(counts.items())]

    def of(self, row_ids: Iterable[str]) -> Iterator[Fate]:
        """The records, given the ids in the order in which the rows were noted."""
        ends = list(self._ends)
        for row_id, code in zip(row_ids, self._codes, strict=True):
            fate, reason, round = ends[code]
            yield Fate(row_id, "unlabeled", fate, reason, round)


def _mean(values: Iterable[float | None]) -> float | None:
    present = [v for v in values if v is not None]
    return float(np.mean(present)) if present else None
