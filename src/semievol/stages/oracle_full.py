"""Upper bound of everything: the sealed target of every unlabelled row, as if all of U had been labelled.

Reads   data/unlabeled, data/sealed_gold
Writes  oracle_full/kept, oracle_full/dropped

It looks at the sealed targets, so it is no method. Evolve reads what it kept with `evolve.kept_by: oracle_full`, and
never the targets themselves.
"""

from collections.abc import Iterator

from semievol.artifacts import SEALED_GOLD
from semievol.errors import DataError
from semievol.pools import InOrder
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import Dropped, Example, Gold, PseudoLabel


def run(ctx: StageContext) -> StageStats:
    """Take the target of every row that has one.

    Raises:
        DataError: If none has.
    """
    if ctx.count(SEALED_GOLD) == 0:
        raise DataError("oracle_full: no unlabelled row has a target; leave the oracle arms out")
    n_kept = ctx.write("oracle_full/kept", _kept(ctx), PseudoLabel)
    return {"n_kept": n_kept, "n_dropped": ctx.write("oracle_full/dropped", _dropped(ctx), Dropped)}


def _sealed(ctx: StageContext) -> Iterator[tuple[Example, Gold | None]]:
    gold = InOrder(SEALED_GOLD, ctx.read(SEALED_GOLD, Gold))
    yield from ((example, gold.take(example.id)) for example in ctx.read("data/unlabeled", Example))
    gold.check_all_taken()


def _kept(ctx: StageContext) -> Iterator[PseudoLabel]:
    prompts = ctx.prompts()
    for example, gold in _sealed(ctx):
        if gold is not None:
            text = prompts.completion(gold.target, example)
            yield PseudoLabel(example.id, gold.target, text, "gold", agreement=1.0, round=ctx.round)


def _dropped(ctx: StageContext) -> Iterator[Dropped]:
    for example, gold in _sealed(ctx):
        if gold is None:
            yield Dropped(example.id, "oracle_full", "no sealed target", round=ctx.round)


STAGE = Stage(
    "oracle_full",
    reads=("data/unlabeled", "data/task", SEALED_GOLD),
    writes=("oracle_full/kept", "oracle_full/dropped"),
    sections=("task",),
    run=run,
)
