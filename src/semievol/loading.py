"""Raw rows to checked examples: columns, ids, targets, bad rows, duplicates, the cut of one file, sealed gold.

Order of things: read every row and collect the bad ones; draw `max_rows` of each file; count prompt tokens; stop if too
many rows are bad; drop duplicates; cut one file into splits; draw `max_labeled`, `max_unlabeled` and `max_test`.
Whatever an unlabelled row says beside question, context, options, group and id is not kept; its target, where it has
one, goes to `gold` and nowhere else, and has no say in labels, ids, draws or duplicates.
"""

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from semievol.answers import normalize_target
from semievol.columns import Fields
from semievol.config import RunConfig
from semievol.cutting import LeftOut, cut_rows, draw_max_rows, draw_splits, settle_labels
from semievol.drafts import Drafts, Log, Rejected, RowIds, check_bad_fraction, read_sources
from semievol.duplicates import Duplicate, find_conflicts, find_duplicates, find_duplicates_within
from semievol.errors import DataError
from semievol.read_rows import ReadRow, ReadRows
from semievol.spool import Joined, Positions, Spool, View
from semievol.types import Example, Gold, SplitName, TaskFacts, choice_letter

_FILL_IN = "fill it in, or remove the row"
_TARGET_REMEDY = "correct the target, or remove the row"

CountPrompt = Callable[[Example, TaskFacts], int]
"""Tokens of the prompt of an example; facts are found at load, so they come with it."""


class Known(NamedTuple):
    """What the rows of a run said that those of another table may not say."""

    shared_choices: tuple[str, ...] = ()
    """Options of the rows of a file that has none."""
    counts_from_zero: bool = False
    """Numbers that are answers count from 0 even where none of them is 0."""


class RowCounts(NamedTuple):
    """Where the rows that were read have gone; `read` is the sum of the others."""

    read: int
    rejected: int
    duplicate: int
    not_drawn: int
    """Left out by `max_rows`, `max_labeled`, `max_unlabeled`, `max_test`, split counts, or for a group in test."""
    kept: int


@dataclass(frozen=True, slots=True)
class NotDrawn:
    """A good row that the run does not use: where it stands and the key, or the row, that leaves it out."""

    id: str
    file: str
    line: int
    reason: str


@dataclass(frozen=True, slots=True)
class LoadedData:
    """Everything that loading found out. Rows lie on disk and are read when they are asked for."""

    labeled: Sequence[Example]
    unlabeled: Sequence[Example]
    """Every target is None."""
    test: Sequence[Example]
    gold: Sequence[Gold]
    """Targets that unlabelled rows carried, in the order of `unlabeled`; for the sealed file only."""
    rejected: tuple[Rejected, ...]
    duplicates: Sequence[Duplicate]
    not_drawn: Sequence[NotDrawn]
    facts: TaskFacts
    notes: tuple[str, ...]
    target_counts: Mapping[SplitName, Mapping[str, int]]
    """Rows of each target in labeled and test, for closed answer sets; empty for the others."""
    counts: RowCounts
    counts_from_zero: tuple[str, ...] = ()
    """Files whose answers are numbers of options that count from 0."""


def load_examples(
    config: RunConfig,
    *,
    count_prompt: CountPrompt | None = None,
    max_prompt_tokens: int | None = None,
    folder: Path | None = None,
    known: Known | None = None,
) -> LoadedData:
    """Read, check, deduplicate and cut the rows of `config.data`; the same config and files give the same result.

    An empty `test` is allowed, and so is a labelled file without `data.unlabeled`: a table to measure a model on. With
    several bad rows the error lists them together. Memory holds about a hundred bytes of an unlabelled row, and the
    tokens of the rows that others may nearly repeat: labelled and test rows, and all rows of one file that is to be cut
    (`data.near_duplicate_similarity: 1` leaves them out).

    Args:
        config: Of the run; `data`, `task` and, without `data.seed`, `seed` count.
        count_prompt: Counts the tokens of a row's prompt; None: lengths are not checked.
        max_prompt_tokens: Longer prompts make a row bad.
        folder: Where rows wait on disk, in files without a name; None: where the system keeps temporary files.
        known: What another loading found out about rows of the same kind; None: nothing.

    Raises:
        ConfigError: If a column is not there or cannot be found, or split fractions sum to more than 1.
        DataError: If a file cannot be read, more than `data.max_bad_fraction` of the rows are bad, or no labelled or no
            unlabelled row is left.
    """
    known = known or Known()
    log = Log(config, folder, shared_choices=known.shared_choices, counts_from_zero=known.counts_from_zero)
    drafts = read_sources(log)
    ids = RowIds(drafts, log)
    facts = _find_facts(drafts, config)
    from_zero = _files_that_count_from_zero(drafts, log)
    rows = _read_targets(drafts, ids, facts, from_zero, log)
    del drafts, ids
    left_out: LeftOut = {}
    left = draw_max_rows(rows, config, left_out)
    if count_prompt is not None and max_prompt_tokens is not None:
        left = _check_lengths(rows, left, facts, count_prompt, max_prompt_tokens, log)
    check_bad_fraction(log)
    left, duplicates = _drop_duplicates(rows, left, facts, log)
    n_duplicates = len(duplicates) if config.data.duplicates == "drop" else 0
    splits = cut_rows(rows, left, log, left_out) if config.data.path is not None else rows.by_split(left)
    facts, splits, unread = settle_labels(facts, rows, splits, log)
    splits = draw_splits(rows, splits, log, left_out)
    _check_left(splits, n_duplicates, log)
    return LoadedData(
        labeled=rows.labeled(splits["labeled"]),
        unlabeled=rows.unlabeled(splits["unlabeled"]),
        test=rows.labeled(splits["test"]),
        gold=View(rows.read, rows.with_gold(splits["unlabeled"], unread), ReadRow.gold),
        rejected=tuple(log.rejected),
        duplicates=duplicates,
        not_drawn=Joined(*(View(rows.read, at, partial(_not_drawn, reason=why)) for why, at in left_out.items())),
        facts=facts,
        notes=tuple(log.notes),
        target_counts={name: _count_targets(rows, splits[name], config) for name in ("labeled", "test")},
        counts=_count_rows(splits, log, n_duplicates),
        counts_from_zero=tuple(sorted(from_zero)),
    )


def _find_facts(drafts: Drafts, config: RunConfig) -> TaskFacts:
    """Labels of the labelled file (of one file: of all, settled after the split), and options that all rows share."""
    if config.task.type == "label":
        if config.task.labels is not None:
            return TaskFacts(labels=config.task.labels)
        spellings = Counter(
            " ".join(draft.fields.target.split())
            for draft in drafts.rows
            if draft.place.split in ("labeled", None) and draft.fields.target is not None
        )
        chosen: dict[str, str] = {}
        for label in sorted(spellings, key=lambda label: (-spellings[label], label)):
            chosen.setdefault(label.casefold(), label)
        return TaskFacts(labels=tuple(sorted(chosen.values())))
    if config.task.type == "choice" and len(drafts.rows):
        choices = drafts.rows[0].fields.choices
        is_shared = all(draft.fields.choices == choices for draft in drafts.rows)
        return TaskFacts(shared_choices=choices if is_shared else ())
    return TaskFacts()


def _read_targets(drafts: Drafts, ids: RowIds, facts: TaskFacts, from_zero: set[str], log: Log) -> ReadRows:
    """Bring targets to their normal form. A target that does not fit makes a row bad, but not an unlabelled one."""
    rows = ReadRows(Spool(ReadRow, folder=log.folder), array("b"))
    repairs: Counter[tuple[str, str]] = Counter()
    samples: dict[tuple[str, str], str] = {}
    no_gold: Counter[str] = Counter()
    bad = Log(log.config)  # bad ids are listed before bad targets
    for draft, row_id in zip(drafts.rows, ids.assign(log), strict=True):
        if row_id is None:
            continue
        fields, place = draft.fields, draft.place
        example = Example(
            row_id, fields.question, fields.context, fields.choices, group=fields.group, history=fields.history
        )
        target: str | None = None
        if fields.target is None:
            if place.split in ("labeled", "test"):
                bad.reject(place, place.target_field, None, "the target is missing", _FILL_IN)
                continue
        else:
            raw = _letter_of(fields, counts_from_zero=place.file in from_zero)
            try:
                found = normalize_target(raw, example, log.config.task, facts)
            except DataError as error:
                if place.split != "unlabeled":
                    reason, remedy = _explain(error, row_id)
                    bad.reject(place, place.target_field, fields.target, reason, remedy)
                    continue
                no_gold[place.file] += 1
            else:
                target = found.value
                if found.repaired:
                    kind = "digit answers read as letters" if raw.strip().isdigit() else "targets repaired"
                    repairs[place.file, kind] += 1
                    if place.split in ("labeled", "test"):  # of one file it is not known yet which rows are unlabelled
                        samples.setdefault((place.file, kind), f" (first: {found.repaired})")
        rows.append(ReadRow(place, example, target))
    log.rejected += bad.rejected
    log.notes += [f"{file}: {n} {kind}{samples.get((file, kind), '')}" for (file, kind), n in repairs.items()]
    log.notes += [
        f"{file}: {n} rows carry an answer that cannot be read; they have no gold" for file, n in no_gold.items()
    ]
    return rows


def _letter_of(fields: Fields, *, counts_from_zero: bool) -> str:
    raw = fields.target or ""
    if raw in fields.option_names:
        return choice_letter(fields.option_names.index(raw))
    return choice_letter(int(raw)) if counts_from_zero else raw


def _files_that_count_from_zero(drafts: Drafts, log: Log) -> set[str]:
    """Files of a choice task all of whose answers are numbers from 0 to n - 1, one of them 0.

    A number may also be the text of an option: a file is left alone if most of its answers are, or half of them.
    """
    if log.config.task.type != "choice":
        return set()
    zero: set[str] = set()
    other: set[str] = set()
    balance: Counter[str] = Counter()
    for draft in drafts.rows:
        target, file = draft.fields.target, draft.place.file
        if target is None or draft.fields.option_names:
            continue
        if not (target.isascii() and target.isdigit() and int(target) < len(draft.fields.choices)):
            other.add(file)
            continue
        if int(target) == 0 or log.counts_from_zero:
            zero.add(file)
        balance[file] += -1 if target in draft.fields.choices else 1
    found = {file for file in zero - other if balance[file] > 0}
    log.notes += [f"{file}: answers are numbers that count from 0" for file in sorted(found)]
    return found


def _explain(error: DataError, row_id: str) -> tuple[str, str]:
    """Reason and remedy out of `row ID: reason: remedy`."""
    text = str(error).removeprefix(f"row {row_id}: ")
    reason, colon, remedy = text.rpartition(": ")
    return (reason, remedy) if colon else (text, _TARGET_REMEDY)


def _check_lengths(
    rows: ReadRows, left: Positions, facts: TaskFacts, count_prompt: CountPrompt, max_prompt_tokens: int, log: Log
) -> Positions:
    fits = np.ones(len(left), dtype=bool)
    for i, row in enumerate(rows.at(left)):
        n = count_prompt(row.example, facts)
        if n > max_prompt_tokens:
            fits[i] = False
            reason = f"the prompt is longer than {max_prompt_tokens} tokens"
            log.reject(row.place, "question", f"{n} tokens", reason, "shorten the row, or raise model.max_length")
    return left[fits]


def _drop_duplicates(
    rows: ReadRows, left: Positions, facts: TaskFacts, log: Log
) -> tuple[Positions, Sequence[Duplicate]]:
    data = log.config.data
    similarity, drop, shared = data.near_duplicate_similarity, data.duplicates == "drop", bool(facts.shared_choices)
    if data.path is not None:
        has_none = rows.lacks_target(left)
        order = np.concatenate([left[~has_none], left[has_none]])  # of two copies the one with a target stays
        examples = rows.labeled(order)
        duplicates = find_duplicates_within(examples, similarity=similarity, shared_choices=shared, drop=drop)
    else:
        splits = rows.by_split(left)
        labeled = rows.labeled(splits["labeled"])
        test, unlabeled = (rows.unlabeled(splits[name]) for name in ("test", "unlabeled"))
        duplicates = find_duplicates(test, labeled, unlabeled, similarity=similarity, shared_choices=shared, drop=drop)
        _note_repeated_test_rows(test, shared_choices=shared, log=log)
        order = np.concatenate([splits["labeled"], splits["unlabeled"]])
        examples = rows.labeled(np.concatenate([splits["labeled"], splits["test"]]))
    found = Spool(Duplicate, folder=log.folder, records=duplicates)
    conflicts = find_conflicts(found, examples)
    if conflicts and data.path is not None:  # which ones would tell targets of rows that become unlabelled
        log.notes.append(f"{len(conflicts)} rows with a target repeat a row that has another one")
    elif conflicts:
        shown = ", ".join(f"{c.id} and {c.of_id}" for c in conflicts[:5])
        log.notes.append(f"{len(conflicts)} labelled rows repeat a row that has another target: {shown}")
    return (left[~np.isin(left, _positions_of(found, rows, order))] if drop else left), found


def _note_repeated_test_rows(test: Sequence[Example], *, shared_choices: bool, log: Log) -> None:
    """Test rows never leave, but copies tell less than as many other rows would: a person should know of them."""
    again = [d.id for d in find_duplicates_within(test, similarity=1, shared_choices=shared_choices, drop=False)]
    if again:
        shown = ", ".join(again[:5])
        log.notes.append(
            f"{len(again):,} of {len(test):,} test rows repeat another test row ({shown}): all count, as if they were "
            "independent, so intervals come out a little too narrow; take the copies out, or give them one group"
        )


def _positions_of(duplicates: Iterable[Duplicate], rows: ReadRows, order: Positions) -> Positions:
    """Where duplicates stand, which come in the order of the rows."""
    found = array("q")
    waiting = iter(duplicates)
    wanted = next(waiting, None)
    for position in order:
        if wanted is None:
            break
        if rows.read[int(position)].example.id == wanted.id:
            found.append(position)
            wanted = next(waiting, None)
    return np.asarray(found, dtype=np.int64)


def _not_drawn(row: ReadRow, *, reason: str) -> NotDrawn:
    return NotDrawn(row.example.id, row.place.file, row.place.line, reason)


def _check_left(splits: Mapping[SplitName, Positions], n_duplicates: int, log: Log) -> None:
    for name in ("labeled", "unlabeled"):
        source = getattr(log.config.data, name) or log.config.data.path
        if source is not None and not len(splits[name]):
            raise DataError(
                f"{source}: no {name} row is left ({log.n_read} rows read from all files, {len(log.rejected)} of them "
                f"bad, {n_duplicates} dropped as duplicates); give other rows, or change data.split or data.duplicates"
            )


def _count_rows(splits: Mapping[SplitName, Positions], log: Log, n_duplicates: int) -> RowCounts:
    kept, rejected = sum(len(rows) for rows in splits.values()), len(log.rejected)
    return RowCounts(log.n_read, rejected, n_duplicates, log.n_read - rejected - n_duplicates - kept, kept)


def _count_targets(rows: ReadRows, positions: Positions, config: RunConfig) -> dict[str, int]:
    if config.task.type not in ("choice", "label"):
        return {}
    return dict(sorted(Counter(row.target for row in rows.at(positions) if row.target is not None).items()))
