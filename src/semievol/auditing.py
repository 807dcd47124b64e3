"""Opens the sealed targets and holds the pseudo-labels of a run against them, for every stage that may do so."""

from dataclasses import replace
from typing import Any, NamedTuple

from semievol.answers import score_answer
from semievol.artifacts import SEALED_GOLD
from semievol.audit import Fate, audit_pseudo_labels, precision_curve, row_fates
from semievol.config import RunConfig
from semievol.pools import other_selections
from semievol.stage import StageContext
from semievol.types import AuditedRow, Dropped, Example, Gold, PseudoLabel

SELECTIONS = tuple(
    f"{stage}/{name}" for stage in ("select", "oracle_select") for name in ("kept", "dropped", "threshold")
)
AUDIT_READS = (
    "data/unlabeled",
    SEALED_GOLD,
    "propagate/failed",
    "justify/pseudo_labels",
    "justify/dropped",
    *SELECTIONS,
)


def unused_selections(config: RunConfig) -> tuple[str, ...]:
    """What stages other than `evolve.kept_by` selected, which is not audited."""
    return other_selections(config, SELECTIONS)


class Audit(NamedTuple):
    """What the sealed targets and the kept and dropped rows say."""

    entries: list[dict[str, Any]]
    """Quality of the pseudo-labels, one entry a round."""
    curves: list[dict[str, Any]]
    """Precision against coverage, one curve a round."""
    fates: list[Fate]
    """The end of every unlabelled row."""
    rows: list[AuditedRow]
    """Rows whose target was there, in the order of U."""


def audit_rounds(ctx: StageContext) -> Audit:
    """Open the sealed targets and hold the pseudo-labels of all rounds against them."""
    gold = {g.example_id: g.target for g in ctx.read(SEALED_GOLD, Gold)}
    selection = ctx.config.evolve.kept_by
    examples = {e.id: e for e in ctx.read("data/unlabeled", Example)}
    entries, curves = [], []
    kept: dict[str, int] = {}
    dropped: list[Dropped] = []
    is_right: dict[str, bool] = {}
    for number in range(1, ctx.config.rounds + 1):
        labels = list(ctx.read("justify/pseudo_labels", PseudoLabel, round=number))
        kept_here = {x.example_id for x in ctx.read(f"{selection}/kept", PseudoLabel, round=number)}
        correct = {
            x.example_id: score_answer(x.answer, gold[x.example_id], examples[x.example_id], ctx.config.task) == 1.0
            for x in labels
            if x.example_id in gold
        }
        is_right |= correct
        entries.append(audit_pseudo_labels(labels, kept_here, correct, round=number))
        entries[-1]["threshold"] = ctx.read_json(f"{selection}/threshold", round=number)
        curves.append({"round": number, "points": precision_curve(labels, correct)})
        kept |= dict.fromkeys(kept_here, number)
        for artifact in ("propagate/failed", "justify/dropped", f"{selection}/dropped"):
            dropped += [replace(d, round=number) for d in ctx.read(artifact, Dropped, round=number)]
    rows = [AuditedRow(i, gold[i], is_right.get(i)) for i in examples if i in gold]
    return Audit(entries, curves, row_fates(examples, kept, dropped), rows)
