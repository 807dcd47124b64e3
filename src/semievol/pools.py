"""Which rows count as labelled and which as unlabelled in a round (arXiv:2410.14745, "Iteration").

Round 1 works on L and U. Each further round takes L and everything kept so far as labelled, and looks at the rows that
the rounds before filtered out.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace

from semievol.config import RunConfig
from semievol.stage import StageContext
from semievol.types import Example, PseudoLabel

LABELED_READS = ("data/labeled", "data/unlabeled", "select/kept")
UNLABELED_READS = ("data/unlabeled", "select/kept")
SELECTING = ("select", "oracle_select", "oracle_full")
"""Stages that say which rows become training data; `evolve.kept_by` names the one that counts."""


def other_selections(config: RunConfig, artifacts: Iterable[str]) -> tuple[str, ...]:
    """Those of `artifacts` that come from selecting stages other than the one that counts."""
    others = {name for name in SELECTING if name != config.evolve.kept_by}
    return tuple(a for a in artifacts if a.partition("/")[0] in others)


def kept_labels(ctx: StageContext, *, before_round: int) -> dict[str, PseudoLabel]:
    """Pseudo-labels kept in the rounds before `before_round`, by row id."""
    artifact, rounds = f"{ctx.config.evolve.kept_by}/kept", range(1, before_round)
    return {label.example_id: label for r in rounds for label in ctx.read(artifact, PseudoLabel, round=r)}


def pseudo_labeled(ctx: StageContext, kept: dict[str, PseudoLabel]) -> Iterator[Example]:
    """The unlabelled rows that were kept, with their pseudo-label as target, in the order of U."""
    if not kept:
        return
    for example in ctx.read("data/unlabeled", Example):
        if example.id in kept:
            yield replace(example, target=kept[example.id].answer)


def labeled_pool(ctx: StageContext) -> list[Example]:
    """What counts as labelled in this round: the demonstrations come from here."""
    return [*ctx.read("data/labeled", Example), *pseudo_labeled(ctx, kept_labels(ctx, before_round=ctx.round))]


def unlabeled_pool(ctx: StageContext) -> Iterator[Example]:
    """What this round answers: U without what earlier rounds kept."""
    kept = kept_labels(ctx, before_round=ctx.round)
    return (example for example in ctx.read("data/unlabeled", Example) if example.id not in kept)


def count_unlabeled(ctx: StageContext) -> int:
    """Number of rows in `unlabeled_pool`."""
    return sum(1 for _ in unlabeled_pool(ctx))
