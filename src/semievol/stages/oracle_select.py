"""Upper bound of selection: the surest pseudo-labels that are right, as many as select keeps.

Reads   justify/pseudo_labels, select/kept, data/unlabeled, data/sealed_gold
Writes  oracle_select/kept, oracle_select/dropped, oracle_select/threshold

It looks at the sealed targets, so it is no method: it says what a selection without any error would be worth with the
same number of rows (with `select.per_answer` of each answer, where there are as many). Evolve reads what it kept with
`evolve.kept_by: oracle_select`, and never the targets.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from semievol.answers import score_answer
from semievol.artifacts import SEALED_GOLD
from semievol.config import SelectConfig, TaskConfig
from semievol.errors import DataError
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import Dropped, Example, Gold, PseudoLabel
from semievol.uncertainty import is_ranked, uncertainty


class Ranked(NamedTuple):
    """Pseudo-labels that are right, surest first, and why the others are out."""

    right: list[PseudoLabel]
    dropped: list[Dropped]


def rank_right(
    labels: Iterable[PseudoLabel],
    gold: Mapping[str, str],
    examples: Mapping[str, Example],
    *,
    task: TaskConfig,
    select: SelectConfig,
) -> Ranked:
    """Hold the labels against the targets. Ties stay in their order; what select does not rank comes first."""
    found = Ranked([], [])
    for label in labels:
        target = gold.get(label.example_id)
        if target is not None and score_answer(label.answer, target, examples[label.example_id], task) == 1.0:
            found.right.append(label)
        else:
            reason = "no sealed target" if target is None else "wrong answer"
            found.dropped.append(Dropped(label.example_id, "oracle_select", reason, round=label.round))
    found.right.sort(key=lambda x: (is_ranked(x, select), uncertainty(x, select) if is_ranked(x, select) else 0.0))
    return found


def take_surest(right: Sequence[PseudoLabel], wanted: Mapping[str, int], *, per_answer: bool) -> list[PseudoLabel]:
    """As many of the right labels, surest first, as are wanted in all; with `per_answer` first of each answer."""
    left = dict(wanted)
    chosen, others = [], []
    for label in right:
        answer = label.answer if per_answer else ""
        if left.get(answer, 0) > 0:
            left[answer] -= 1
            chosen.append(label)
        else:
            others.append(label)
    return chosen + others[: sum(left.values())]


def run(ctx: StageContext) -> StageStats:
    """Rank, cut at the number that select kept, write.

    Raises:
        DataError: If no unlabelled row has a sealed target.
    """
    gold = {g.example_id: g.target for g in ctx.read(SEALED_GOLD, Gold)}
    if not gold:
        raise DataError("oracle_select: no unlabelled row has a target; leave the oracle arms out")
    config = ctx.config
    examples = {e.id: e for e in ctx.read("data/unlabeled", Example)}
    labels = ctx.read("justify/pseudo_labels", PseudoLabel)
    right, dropped = rank_right(labels, gold, examples, task=config.task, select=config.select)
    selected = Counter(x.answer if config.select.per_answer else "" for x in ctx.read("select/kept", PseudoLabel))
    n_wanted = selected.total()
    chosen = take_surest(right, selected, per_answer=config.select.per_answer)
    kept = {x.example_id: x for x in chosen}
    dropped += [
        Dropped(x.example_id, "oracle_select", "not needed", round=x.round) for x in right if x.example_id not in kept
    ]
    if len(kept) < n_wanted:
        ctx.reporter.note(f"oracle_select: select kept {n_wanted} rows, but only {len(kept)} pseudo-labels are right")
    out = {x.example_id: x for x in dropped}
    ctx.write("oracle_select/kept", [kept[i] for i in examples if i in kept], PseudoLabel)
    ctx.write("oracle_select/dropped", [out[i] for i in examples if i in out], Dropped)
    ranked = [u for x in chosen if is_ranked(x, config.select) and (u := uncertainty(x, config.select)) < math.inf]
    stats = {
        "n_kept": len(kept),
        "n_dropped": len(dropped),
        "signal": config.select.signal,
        "uncertainty": max(ranked, default=None),
        "n_ranked": sum(is_ranked(x, config.select) for x in right),
        "n_wanted": n_wanted,
        "n_right": len(right),
    }
    ctx.write_json("oracle_select/threshold", stats)
    return stats


STAGE = Stage(
    "oracle_select",
    reads=("justify/pseudo_labels", "select/kept", "data/unlabeled", SEALED_GOLD),
    writes=("oracle_select/kept", "oracle_select/dropped", "oracle_select/threshold"),
    sections=("task", "select"),
    run=run,
)
