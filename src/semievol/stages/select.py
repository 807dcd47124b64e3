"""Adaptive selection: keep the pseudo-labels the model is surest of.

Reads   justify/pseudo_labels
Writes  select/kept, select/dropped, select/threshold

Confidence is the mean negative log-likelihood of the final answer, in nats per token: lower is surer. The paper
calls it
entropy (arXiv:2410.14745, Eq. 6); it is a property of the one answer that was chosen. The threshold tau is the theta-th
percentile (Eq. 7) over the rows it applies to, so it adapts to the model and the task; it is not quality control.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from semievol.config import SelectConfig
from semievol.errors import DataError
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import Dropped, PseudoLabel


class Threshold(NamedTuple):
    """Where the line between kept and dropped rows lies."""

    uncertainty: float | None
    """Largest uncertainty kept, in the unit of the signal; None when no row was ranked (consensus rows are all
    kept)."""
    n_ranked: int
    """Rows that the percentile was taken over."""


def uncertainty(label: PseudoLabel, config: SelectConfig) -> float:
    """The signal of a label, turned so that lower is surer; infinite for a label that could not be measured."""
    nll = label.justify_nll if config.prompt == "justify" else label.mean_nll
    value = {
        "mean_nll": nll,
        "entropy": label.entropy,
        "max_probability": None if label.max_probability is None else -label.max_probability,
        "agreement": -label.agreement,
        "sample_entropy": label.sample_entropy,
    }[config.signal]
    return math.inf if value is None or math.isnan(value) else value


def is_ranked(label: PseudoLabel, config: SelectConfig) -> bool:
    """Whether the percentile applies to a label, or it is kept without a confidence test."""
    return config.apply_to == "all" or label.source != "consensus"


def find_threshold(values: Sequence[float], config: SelectConfig) -> Threshold:
    """The `keep_fraction` quantile of `values`; one of the values, so ties at the threshold are all kept."""
    if not values:
        return Threshold(None, 0)
    # inverted_cdf returns one of the values, never a point between two: the threshold is a real label.
    return Threshold(float(np.quantile(np.array(values), config.keep_fraction, method="inverted_cdf")), len(values))


def keeps(label: PseudoLabel, threshold: Threshold, config: SelectConfig) -> bool:
    """Whether a label becomes training data; one that was ranked and could not be measured never does."""
    if not is_ranked(label, config):
        return True
    value = uncertainty(label, config)
    return threshold.uncertainty is not None and value <= threshold.uncertainty and value < math.inf


def run(ctx: StageContext) -> StageStats:
    """Two passes: find the threshold, then write both sides."""
    config = ctx.config.select
    ranked = [uncertainty(x, config) for x in ctx.read("justify/pseudo_labels", PseudoLabel) if is_ranked(x, config)]
    threshold = find_threshold(ranked, config)
    n_unmeasured = sum(x == math.inf for x in ranked)
    if ranked and n_unmeasured == len(ranked):
        raise DataError(
            f"select: none of {len(ranked)} labels has a {config.signal} under the {config.prompt} prompt; "
            "select.signal: agreement or sample_entropy needs no log-probabilities"
        )
    if threshold.uncertainty == math.inf:  # all that could be measured is surer than what could not
        threshold = threshold._replace(uncertainty=max(x for x in ranked if x < math.inf))

    def side(kept: bool) -> Iterator[PseudoLabel]:
        return (x for x in ctx.read("justify/pseudo_labels", PseudoLabel) if keeps(x, threshold, config) == kept)

    n_kept = ctx.write("select/kept", side(True), PseudoLabel)
    n_dropped = ctx.write("select/dropped", (_reason(x, threshold, config) for x in side(False)), Dropped)
    if n_kept == 0:
        raise DataError("select: no pseudo-labels to choose from; justify/dropped and propagate/failed say why")
    stats = {"n_kept": n_kept, "n_dropped": n_dropped, "signal": config.signal, **threshold._asdict()}
    if n_unmeasured:
        stats["n_unmeasured"] = n_unmeasured
    ctx.write_json("select/threshold", stats)
    return stats


def _reason(label: PseudoLabel, threshold: Threshold, config: SelectConfig) -> Dropped:
    if uncertainty(label, config) == math.inf:
        detail = f"the model gave no {config.signal} for this answer"
        return Dropped(label.example_id, "select", "confidence not measurable", detail=detail, round=label.round)
    detail = f"{config.signal} {abs(uncertainty(label, config)):.4f}, threshold {abs(threshold.uncertainty or 0.0):.4f}"
    return Dropped(label.example_id, "select", "not confident enough", detail=detail, round=label.round)


STAGE = Stage(
    "select",
    reads=("justify/pseudo_labels",),
    writes=("select/kept", "select/dropped", "select/threshold"),
    sections=("select",),
    run=run,
)
