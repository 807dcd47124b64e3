"""Opens the sealed targets and holds the pseudo-labels of a run against them, for every stage that may do so."""

from array import array
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from semievol.answers import score_answer
from semievol.artifacts import SEALED_GOLD
from semievol.audit import Fate, Fates, RoundAudit
from semievol.config import RunConfig
from semievol.errors import DataError
from semievol.pools import InOrder, other_selections
from semievol.stage import StageContext
from semievol.types import AuditedRow, Dropped, Example, Gold, PseudoLabel

KEPT = "kept"
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
    fates: Fates
    """The end of every unlabelled row."""
    is_right: "array[int]"
    """Of each sealed target in order: 1 if the pseudo-label is right, 0 if it is wrong, -1 if there is none."""


class _Round:
    """The streams of one round, and what is noted of them."""

    def __init__(self, ctx: StageContext, number: int) -> None:
        self.number, self.audit = number, RoundAudit()
        selection = ctx.config.evolve.kept_by

        def labels(name: str) -> InOrder[PseudoLabel]:
            return InOrder(name, ctx.read(name, PseudoLabel, round=number))

        def drops(name: str) -> InOrder[Dropped]:
            return InOrder(name, ctx.read(name, Dropped, round=number))

        self.labels, self.kept = labels("justify/pseudo_labels"), labels(f"{selection}/kept")
        self.dropped = [drops(name) for name in ("propagate/failed", "justify/dropped", f"{selection}/dropped")]

    def check_all_taken(self) -> None:
        self.labels.check_all_taken()
        self.kept.check_all_taken()
        for stream in self.dropped:
            stream.check_all_taken()


def audit_rounds(ctx: StageContext) -> Audit:
    """Open the sealed targets and hold the pseudo-labels of all rounds against them.

    One walk along U, in whose order all artifacts stand; of each row a few numbers are kept.

    Raises:
        DataError: If a row has no end, which would be a fault of this program.
        ArtifactError: If an artifact does not stand in the order of U.
    """
    rounds = [_Round(ctx, number) for number in range(1, ctx.config.rounds + 1)]
    gold = InOrder(SEALED_GOLD, ctx.read(SEALED_GOLD, Gold))
    fates, all_right, n_lost, first_lost = Fates(), array("b"), 0, ""
    for example in ctx.read("data/unlabeled", Example):
        sealed = gold.take(example.id)
        end: tuple[str, str, int] | None = None
        is_right: bool | None = None
        for one in rounds:
            label, kept = one.labels.take(example.id), one.kept.take(example.id)
            if label is not None:
                right = None
                if sealed is not None:
                    is_right = right = score_answer(label.answer, sealed.target, example, ctx.config.task) == 1.0
                one.audit.add(label, is_kept=kept is not None, is_right=right)
            for drop in [found for stream in one.dropped if (found := stream.take(example.id)) is not None]:
                if end is None or end[0] != KEPT:
                    end = (drop.stage, drop.reason, one.number)
            if kept is not None:
                end = (KEPT, "selected as a pseudo-label", one.number)
        if end is None:
            n_lost, first_lost = n_lost + 1, first_lost or example.id
            continue
        fates.add(*end)
        if sealed is not None:
            all_right.append(-1 if is_right is None else is_right)
    if n_lost:
        raise DataError(
            f"evaluate: {n_lost} unlabelled rows were lost on the way, {first_lost} first; please report this"
        )
    gold.check_all_taken()
    entries, curves = [], []
    for one in rounds:
        one.check_all_taken()
        threshold = ctx.read_json(f"{ctx.config.evolve.kept_by}/threshold", round=one.number)
        entries.append(one.audit.summarize(one.number) | {"threshold": threshold})
        read_ids = partial(_read_ids, ctx, one.number)
        curves.append({"round": one.number, "points": one.audit.precision_curve(read_ids)})
    return Audit(entries, curves, fates, all_right)


def _read_ids(ctx: StageContext, round: int, places: NDArray[np.int64]) -> dict[int, str]:
    wanted = iter(places.tolist())
    place, found = next(wanted, None), {}
    for i, label in enumerate(ctx.read("justify/pseudo_labels", PseudoLabel, round=round)):
        if place is None:
            break
        if i == place:
            found[i] = label.example_id
            place = next(wanted, None)
    return found


def read_fates(ctx: StageContext, audit: Audit) -> Iterator[Fate]:
    """The end of every unlabelled row as a record, in the order of U."""
    return audit.fates.of(example.id for example in ctx.read("data/unlabeled", Example))


def read_audited(ctx: StageContext, audit: Audit) -> Iterator[AuditedRow]:
    """The rows whose target was there, in the order of U."""
    for gold, is_right in zip(ctx.read(SEALED_GOLD, Gold), audit.is_right, strict=True):
        yield AuditedRow(gold.example_id, gold.target, None if is_right < 0 else bool(is_right))
