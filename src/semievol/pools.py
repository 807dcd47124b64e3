"""Which rows count as labelled and which as unlabelled in a round (arXiv:2410.14745, "Iteration").

Round 1 works on L and U. Each further round takes L and everything kept so far as labelled, and looks at the rows that
the rounds before filtered out. What was kept is never held: every artifact has its rows in the order of U, so they are
walked side by side.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Generic, Protocol, TypeVar

from semievol.config import RunConfig
from semievol.errors import ArtifactError
from semievol.spool import DiskSequence, RecordFile
from semievol.stage import StageContext
from semievol.types import Example, PseudoLabel

LABELED_READS = ("data/labeled", "data/unlabeled", "select/kept")
UNLABELED_READS = ("data/unlabeled", "select/kept")
SELECTING = ("select", "oracle_select", "oracle_full")
"""Stages that say which rows become training data; `evolve.kept_by` names the one that counts."""


class _AboutRow(Protocol):
    @property
    def example_id(self) -> str: ...


Record = TypeVar("Record", bound=_AboutRow)


def other_selections(config: RunConfig, artifacts: Iterable[str]) -> tuple[str, ...]:
    """Those of `artifacts` that come from selecting stages other than the one that counts."""
    others = {name for name in SELECTING if name != config.evolve.kept_by}
    return tuple(a for a in artifacts if a.partition("/")[0] in others)


class InOrder(Generic[Record]):
    """Records about some of the rows of U, in its order; asked for row by row."""

    def __init__(self, name: str, records: Iterable[Record]) -> None:
        self._name, self._records = name, iter(records)
        self._next = next(self._records, None)

    def take(self, row_id: str) -> Record | None:
        """The record of the row that comes next in U; None if there is none."""
        if self._next is None or self._next.example_id != row_id:
            return None
        found, self._next = self._next, next(self._records, None)
        return found

    def check_all_taken(self) -> None:
        """Raises ArtifactError if a record is left, after the last row of U: then it did not stand in its order."""
        if self._next is not None:
            raise ArtifactError(
                f"{self._name}: row {self._next.example_id} is not in data/unlabeled, or not in its order; "
                "run the stages again from data"
            )


def kept_before(ctx: StageContext, before_round: int) -> list[InOrder[PseudoLabel]]:
    """Pseudo-labels kept in the rounds before `before_round`, one stream a round."""
    name = f"{ctx.config.evolve.kept_by}/kept"
    return [InOrder(name, ctx.read(name, PseudoLabel, round=r)) for r in range(1, before_round)]


class LabeledPool(DiskSequence[Example]):
    """L and the rows kept before a round, with their pseudo-label as target, in the order of U: read on demand.

    25 bytes of memory a row that was kept, and 8 a row of the files.
    """

    def __init__(self, ctx: StageContext, *, before_round: int, with_labeled: bool = True) -> None:
        """Look through what the rounds before `before_round` kept; `with_labeled` False leaves L out."""
        self._labeled: Sequence[Example] = RecordFile(ctx.path("data/labeled"), Example) if with_labeled else []
        name = f"{ctx.config.evolve.kept_by}/kept"
        self._kept = [RecordFile(ctx.path(name, round=r), PseudoLabel) for r in range(1, before_round)]
        self._unlabeled = RecordFile(ctx.path("data/unlabeled"), Example)
        self._rows, self._labels, self._rounds = array("Q"), array("Q"), array("B")
        if any(map(len, self._kept)):
            self._find_kept(kept_before(ctx, before_round))

    def _find_kept(self, kept: "list[InOrder[PseudoLabel]]") -> None:
        counts = [0] * len(kept)
        for place, example in enumerate(self._unlabeled):
            for i, stream in enumerate(kept):
                if stream.take(example.id) is not None:
                    self._rows.append(place)
                    self._labels.append(counts[i])
                    self._rounds.append(i)
                    counts[i] += 1
        for stream in kept:
            stream.check_all_taken()

    def __len__(self) -> int:
        return len(self._labeled) + len(self._rows)

    def _get(self, position: int) -> Example:
        at = position - len(self._labeled)
        if at < 0:
            return self._labeled[position]
        label = self._kept[self._rounds[at]][self._labels[at]]
        return replace(self._unlabeled[self._rows[at]], target=label.answer)


def labeled_pool(ctx: StageContext) -> LabeledPool:
    """What counts as labelled in this round: the demonstrations come from here."""
    return LabeledPool(ctx, before_round=ctx.round)


def unlabeled_pool(ctx: StageContext) -> Iterator[Example]:
    """What this round answers: U without what earlier rounds kept."""
    kept = kept_before(ctx, ctx.round)
    for example in ctx.read("data/unlabeled", Example):
        if not any(stream.take(example.id) for stream in kept):
            yield example
    for stream in kept:
        stream.check_all_taken()


def count_unlabeled(ctx: StageContext) -> int:
    """Number of rows in `unlabeled_pool`."""
    name = f"{ctx.config.evolve.kept_by}/kept"
    return ctx.count("data/unlabeled") - sum(ctx.count(name, round=r) for r in range(1, ctx.round))
