"""Cuts the rows of one file into splits and draws the rows that a run uses; what is left out is noted with a reason."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from semievol.config import RunConfig
from semievol.drafts import Log, check_bad_fraction
from semievol.read_rows import SPLITS, ReadRows
from semievol.splitting import assign_parts, draw_rows, make_generator, split_counts
from semievol.spool import Positions
from semievol.types import SplitName, TaskFacts

LeftOut = dict[str, Positions]
"""Rows that are neither used nor bad nor duplicates, by the reason."""


def draw_max_rows(rows: ReadRows, config: RunConfig, left_out: LeftOut) -> Positions:
    """Draw `data.max_rows` of each file, before anything else is done with the rows."""
    limit, left = config.data.max_rows, np.arange(len(rows.read))
    if limit is None:
        return left
    codes = np.asarray(rows.split_codes)[left]
    drawn = [
        _draw(rows, left[codes == code], limit, config, name=f"{split}:rows", stratified=split == "labeled")
        for code, split in ((-1, None), *enumerate(SPLITS))
    ]
    chosen = np.concatenate(drawn)
    left_out["data.max_rows"] = np.setdiff1d(left, chosen)
    return chosen


def _draw(rows: ReadRows, left: Positions, n: int, config: RunConfig, *, name: str, stratified: bool) -> Positions:
    closed = config.task.type in ("choice", "label")
    classes = [row.target for row in rows.at(left)] if stratified and closed else [None] * len(left)
    drawn: Positions = left[draw_rows(classes, n, make_generator(config.data_seed, name))]
    return drawn


def cut_rows(rows: ReadRows, left: Positions, log: Log, left_out: LeftOut) -> dict[SplitName, Positions]:
    """Cut the rows of one file; those without a target are unlabelled."""
    config = log.config
    generator = make_generator(config.data_seed, "split")
    has_none = rows.lacks_target(left)
    with_target, without = np.flatnonzero(~has_none), np.flatnonzero(has_none)
    counts = split_counts(config.data.split, n_with_target=len(with_target), n_without=len(without))
    closed = config.task.type in ("choice", "label")
    groups: list[str | None] = []
    classes: list[str | None] = []
    known: dict[str | None, str | None] = {}
    for row in rows.at(left):
        groups.append(known.setdefault(row.example.group, row.example.group))
        if row.target is not None:
            classes.append(known.setdefault(row.target, row.target) if closed else None)
    parts = assign_parts(classes, [groups[i] for i in with_target], counts=counts, generator=generator, cover=0)
    codes = np.full(len(left), -1, dtype=np.int8)
    for i, part in zip(with_target, parts, strict=True):
        codes[i] = -1 if part is None else part
    if config.data.split.unlabeled > 1:
        n_free = int(config.data.split.unlabeled) - counts[1]
        without = without[draw_rows([None] * len(without), n_free, generator)]
    codes[without] = SPLITS.index("unlabeled")
    is_tested = _check_groups(groups, codes)
    left_out["rows of its group are in test"] = left[is_tested]
    left_out["data.split"] = left[(codes < 0) & ~is_tested]
    if len(with_target) < len(left):
        log.notes.append(_note_missing_targets(codes, has_none, int(is_tested.sum()), log))
    return {name: left[codes == code] for code, name in enumerate(SPLITS)}


def _check_groups(groups: Sequence[str | None], codes: NDArray[np.int8]) -> NDArray[np.bool_]:
    """Rows without a target follow no group, so they leave if theirs stands in test; returns which do."""
    unlabeled, test = SPLITS.index("unlabeled"), SPLITS.index("test")
    tested = {group for group, code in zip(groups, codes, strict=True) if code == test} - {None}
    leaves = (code == unlabeled and group in tested for group, code in zip(groups, codes, strict=True))
    is_tested = np.fromiter(leaves, dtype=bool, count=len(codes))
    codes[is_tested] = -1
    return is_tested


def _note_missing_targets(codes: NDArray[np.int8], has_none: NDArray[np.bool_], n_left_out: int, log: Log) -> str:
    unlabeled = codes == SPLITS.index("unlabeled")
    n_none, n_used, n_filled = (int(mask.sum()) for mask in (has_none, unlabeled & has_none, unlabeled & ~has_none))
    parts = [f"{n_used:,} are among the unlabelled rows"]
    if n_filled:
        parts[0] += f", with {n_filled:,} whose target is sealed"
    if n_left_out:
        parts.append(
            f"{n_left_out:,} were left out, as rows of their group are in test (data.columns.group '' ignores groups)"
        )
    if n_used + n_left_out < n_none:
        parts.append(f"{n_none - n_used - n_left_out:,} were not drawn")
    return f"{log.config.data.path}: {n_none:,} rows have no target: {', '.join(parts)}"


def settle_labels(
    facts: TaskFacts, rows: ReadRows, splits: dict[SplitName, Positions], log: Log
) -> tuple[TaskFacts, dict[SplitName, Positions], frozenset[str | None]]:
    """After the cut of one file, take the labels from its labelled part alone, as for separate files.

    Also returns the labels that no labelled row has: a target that is one of them is no gold.
    """
    config = log.config
    if config.data.path is None or config.task.type != "label" or config.task.labels is not None:
        return facts, splits, frozenset()
    labels = {row.target for row in rows.at(splits["labeled"])}
    settled = TaskFacts(labels=tuple(label for label in facts.labels if label in labels))
    is_known = np.ones(len(splits["test"]), dtype=bool)
    for i, row in enumerate(rows.at(splits["test"])):
        if row.target not in labels:
            is_known[i] = False
            reason = "no labelled row has this label"
            remedy = "list all labels in task.labels, or enlarge data.split.labeled"
            log.reject(row.place, row.place.target_field, row.target, reason, remedy)
    check_bad_fraction(log)
    unknown = Counter(
        row.target for row in rows.at(splits["unlabeled"]) if row.target is not None and row.target not in labels
    )
    if unknown:
        log.notes.append(f"{unknown.total()} unlabelled rows carry a label that no labelled row has; they have no gold")
    return settled, splits | {"test": splits["test"][is_known]}, frozenset(unknown)


def draw_splits(
    rows: ReadRows, splits: dict[SplitName, Positions], log: Log, left_out: LeftOut
) -> dict[SplitName, Positions]:
    """Draw `data.max_labeled`, `data.max_unlabeled` and `data.max_test` of the rows of each split, or note a lack."""
    config, data = log.config, log.config.data
    limits = {"labeled": data.max_labeled, "unlabeled": data.max_unlabeled, "test": data.max_test}
    drawn = dict(splits)
    for name, left in splits.items():
        n = limits[name]
        if n is not None and 0 < len(left) < n:
            named = {"labeled": "labelled", "unlabeled": "unlabelled"}.get(name, name)
            log.notes.append(f"data.max_{name} asks for {n:,} {named} rows, but there are {len(left):,}: all are used")
        if n is not None:
            drawn[name] = _draw(rows, left, n, config, name=name, stratified=name == "labeled")
            left_out[f"data.max_{name}"] = np.setdiff1d(left, drawn[name])
    return drawn
