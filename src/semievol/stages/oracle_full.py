"""Upper bound of everything: the sealed target of every unlabelled row, as if all of U had been labelled.

Reads   data/unlabeled, data/sealed_gold
Writes  oracle_full/kept, oracle_full/dropped

It looks at the sealed targets, so it is no method. Evolve reads what it kept with `evolve.kept_by: oracle_full`, and
never the targets themselves.
"""

from semievol.artifacts import SEALED_GOLD
from semievol.errors import DataError
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import Dropped, Example, Gold, PseudoLabel


def run(ctx: StageContext) -> StageStats:
    """Take the target of every row that has one.

    Raises:
        DataError: If none has.
    """
    gold = {g.example_id: g.target for g in ctx.read(SEALED_GOLD, Gold)}
    if not gold:
        raise DataError("oracle_full: no unlabelled row has a target; leave the oracle arms out")
    prompts, examples = ctx.prompts(), list(ctx.read("data/unlabeled", Example))
    kept = [
        PseudoLabel(e.id, gold[e.id], prompts.completion(gold[e.id], e), "gold", agreement=1.0, round=ctx.round)
        for e in examples
        if e.id in gold
    ]
    dropped = [Dropped(e.id, "oracle_full", "no sealed target", round=ctx.round) for e in examples if e.id not in gold]
    ctx.write("oracle_full/kept", kept, PseudoLabel)
    ctx.write("oracle_full/dropped", dropped, Dropped)
    return {"n_kept": len(kept), "n_dropped": len(dropped)}


STAGE = Stage(
    "oracle_full",
    reads=("data/unlabeled", "data/task", SEALED_GOLD),
    writes=("oracle_full/kept", "oracle_full/dropped"),
    sections=("task",),
    run=run,
)
