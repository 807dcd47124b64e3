"""Adaptive selection: keep the pseudo-labels the model is surest of.

Reads   justify/pseudo_labels
Writes  select/kept, select/dropped, select/threshold

Confidence is the mean negative log-likelihood of the final answer, in nats per token: lower is surer. The paper calls
it entropy (arXiv:2410.14745, Eq. 6); it is a property of the one answer chosen. The threshold tau is the theta-th
percentile (Eq. 7) over the rows it applies to, so it adapts to the model and the task; it is not quality control.
Absolute minima (`select.min_confidence`, `select.min_agreement`) come first and hold for every row; the percentile is
then taken over those that are left. They may leave nothing.

One threshold for all answers keeps those that the model finds easy: where it is surer of a frequent class than of a
rare one, the rare one may be gone from what is kept, however right its labels were. The stage says so. With
`select.per_answer` each predicted answer has a threshold of its own, over the rows that have this answer.
"""

import math
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from semievol.config import SelectConfig
from semievol.errors import DataError
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import Dropped, PseudoLabel
from semievol.uncertainty import is_ranked, uncertainty

FEWEST_ROWS = 10
"""Pseudo-labels that an answer needs before its absence among the kept ones says anything."""
UNSURE = "not confident enough"
UNMEASURED = "confidence not measurable"
UNLIKELY = "probability below the minimum"
NO_PROBABILITY = "probability not measurable"
DISPUTED = "agreement below the minimum"
SCARCE = 0.2
"""Share among the kept labels, as a part of the share among all, below which an answer counts as lost."""


class Threshold(NamedTuple):
    """Where the line between kept and dropped rows lies."""

    uncertainty: float | None
    """Largest uncertainty kept, in the unit of the signal; None when no row was ranked (consensus rows are all
    kept)."""
    n_ranked: int
    """Rows that the percentile was taken over."""


NO_THRESHOLD = Threshold(None, 0)


def find_threshold(values: Sequence[float], config: SelectConfig) -> Threshold:
    """The `keep_fraction` quantile of `values`; one of the values, so ties at the threshold are all kept.

    Where it falls among the infinite ones, which could not be measured, it is the largest finite one.
    """
    finite = [x for x in values if x < math.inf]
    if not finite:
        return Threshold(None, len(values))
    # inverted_cdf returns one of the values, never a point between two: the threshold is a real label.
    cut = float(np.quantile(np.array(values), config.keep_fraction, method="inverted_cdf"))
    return Threshold(min(cut, max(finite)), len(values))


def reason_to_drop(label: PseudoLabel, threshold: Threshold, config: SelectConfig) -> Dropped | None:
    """Why a label does not become training data, or None where it does."""
    under = below_minimum(label, config)
    if under is not None:
        return under
    if not is_ranked(label, config) or config.keep_fraction == 1:  # all of them, measurable or not
        return None
    value = uncertainty(label, config)
    if value == math.inf:
        detail = f"the model gave no {config.signal} for this answer"
        return Dropped(label.example_id, "select", UNMEASURED, detail=detail, round=label.round)
    if threshold.uncertainty is not None and value <= threshold.uncertainty:
        return None
    detail = f"{config.signal} {abs(value):.4f}, threshold {abs(threshold.uncertainty or 0.0):.4f}"
    return Dropped(label.example_id, "select", UNSURE, detail=detail, round=label.round)


def below_minimum(label: PseudoLabel, config: SelectConfig) -> Dropped | None:
    """The absolute minimum that a label misses, or None where it misses none."""
    if config.min_confidence is not None:
        if label.max_probability is None:
            detail = "the model gave no probability of this answer, which select.min_confidence asks for"
            return Dropped(label.example_id, "select", NO_PROBABILITY, detail, label.round)
        if label.max_probability < config.min_confidence:
            detail = f"max_probability {label.max_probability:.4f}, select.min_confidence {config.min_confidence:g}"
            return Dropped(label.example_id, "select", UNLIKELY, detail, label.round)
    # Stored shares are rounded to six digits: two of three must reach a minimum of 2/3.
    if config.min_agreement is not None and label.agreement < config.min_agreement - 1e-6:
        detail = f"agreement {label.agreement:.4f}, select.min_agreement {config.min_agreement:g}"
        return Dropped(label.example_id, "select", DISPUTED, detail, label.round)
    return None


def find_scarce(n_all: Mapping[str, int], n_kept: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Answers that the selection all but took out, with how many labels they have in all and among the kept ones."""
    total, kept = sum(n_all.values()), sum(n_kept.values())
    return {
        answer: (n, n_kept.get(answer, 0))
        for answer, n in sorted(n_all.items())
        if n >= FEWEST_ROWS and n_kept.get(answer, 0) * total < SCARCE * n * kept
    }


def remedy_for(reasons: Mapping[str, int], config: SelectConfig) -> str:
    """What brings back an answer whose labels were dropped for `reasons`: the setting behind the most frequent one."""
    most = max(reasons, key=lambda reason: reasons[reason])
    if most == UNMEASURED:
        return f"the model gave no {config.signal} for these; choose another select.signal"
    if most == NO_PROBABILITY:
        return "the model gave no probability for these; leave out select.min_confidence"
    if most == UNLIKELY:
        return "lower select.min_confidence"
    if most == DISPUTED:
        return "lower select.min_agreement"
    if config.per_answer:
        return "raise select.keep_fraction"
    return "set select.per_answer, or raise select.keep_fraction (1 keeps all)"


def run(ctx: StageContext) -> StageStats:
    """Two passes: find the threshold, then write both sides."""
    config = ctx.config.select

    def labels() -> Iterator[PseudoLabel]:
        return ctx.read("justify/pseudo_labels", PseudoLabel)

    def whose(label: PseudoLabel) -> str:
        return label.answer if config.per_answer else ""

    is_closed = ctx.config.task.type in ("choice", "label")
    n_of_answer: Counter[str] = Counter()
    n_of_kept: Counter[str] = Counter()
    ranked: dict[str, array[float]] = defaultdict(lambda: array("d"))
    n_labels = n_without = 0
    for label in labels():
        n_labels, n_without = n_labels + 1, n_without + (label.max_probability is None)
        if is_closed:
            n_of_answer[label.answer] += 1
        if is_ranked(label, config) and below_minimum(label, config) is None:
            ranked[whose(label)].append(uncertainty(label, config))
    if config.min_confidence is not None and ctx.round == 1 and 0 < n_labels == n_without:
        raise DataError(
            f"select: none of {n_labels} labels has a probability, which select.min_confidence asks for; leave it out, "
            "or use select.min_agreement"
        )
    thresholds = {answer: find_threshold(values, config) for answer, values in sorted(ranked.items())}
    n_ranked = sum(map(len, ranked.values()))
    n_unmeasured = sum(x == math.inf for values in ranked.values() for x in values)
    if n_ranked and n_unmeasured == n_ranked and config.keep_fraction < 1:
        raise DataError(
            f"select: none of {n_ranked} labels has a {config.signal} under the {config.prompt} prompt; "
            "select.signal: agreement or sample_entropy needs no log-probabilities"
        )

    def fate(label: PseudoLabel) -> Dropped | None:
        return reason_to_drop(label, thresholds.get(whose(label), NO_THRESHOLD), config)

    def kept() -> Iterator[PseudoLabel]:
        for label in labels():
            if fate(label) is None:
                if is_closed:
                    n_of_kept[label.answer] += 1
                yield label

    n_kept = ctx.write("select/kept", kept(), PseudoLabel)
    why: dict[str, Counter[str]] = defaultdict(Counter)

    def dropped() -> Iterator[Dropped]:
        for label in labels():
            if reason := fate(label):
                why[label.answer][reason.reason] += 1
                yield reason

    n_dropped = ctx.write("select/dropped", dropped(), Dropped)
    if n_kept + n_dropped == 0 and ctx.round > 1:
        ctx.reporter.note(f"select: round {ctx.round} has no rows left to choose from; the rounds before kept them all")
    elif n_kept + n_dropped == 0:
        raise DataError("select: no pseudo-labels to choose from; justify/dropped and propagate/failed say why")
    elif n_kept == 0:
        ctx.reporter.note("select: no pseudo-label reaches select.min_confidence and select.min_agreement")
    scarce = find_scarce(n_of_answer, n_of_kept)
    remedies = {answer: remedy_for(why[answer], config) for answer in scarce}
    for answer, (n, n_left) in scarce.items():
        ctx.reporter.note(
            f"select: {answer!r} is the answer of {n} of {n_kept + n_dropped} pseudo-labels and of {n_left} of the "
            f"{n_kept} kept ones: training on these may unlearn it; {remedies[answer]}"
        )
    largest = max((t.uncertainty for t in thresholds.values() if t.uncertainty is not None), default=None)
    stats = {"n_kept": n_kept, "n_dropped": n_dropped, "signal": config.signal}
    stats |= Threshold(largest, n_ranked)._asdict()
    if n_unmeasured:
        stats["n_unmeasured"] = n_unmeasured
    by_answer = {answer: one._asdict() for answer, one in thresholds.items()}
    found = {"scarce": scarce, "remedies": remedies} | ({"by_answer": by_answer} if config.per_answer else {})
    if is_closed:
        found["answers"] = {answer: (n, n_of_kept[answer]) for answer, n in sorted(n_of_answer.items())}
    ctx.write_json("select/threshold", stats | found)
    return stats


STAGE = Stage(
    "select",
    reads=("justify/pseudo_labels",),
    writes=("select/kept", "select/dropped", "select/threshold"),
    sections=("select",),
    run=run,
)
