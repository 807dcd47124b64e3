"""Raw rows to checked examples: columns, ids, targets, bad rows, duplicates, the cut of one file, sealed gold.

Order of things: read every row and collect the bad ones; draw `max_rows` of each file; count prompt tokens; stop if too
many rows are bad; drop duplicates; cut one file into splits; draw `max_labeled`, `max_unlabeled` and `max_test`.
Whatever an unlabelled row says beside question, context, options, group and id is not kept; its target, where it has
one, goes to `gold` and nowhere else, and has no say in labels, ids, draws or duplicates.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from semievol.answers import normalize_target
from semievol.columns import Fields
from semievol.config import RunConfig
from semievol.drafts import Draft, Log, Rejected, assign_ids, check_bad_fraction, read_sources
from semievol.duplicates import Duplicate, find_conflicts, find_duplicates, find_duplicates_within
from semievol.errors import DataError
from semievol.splitting import assign_parts, draw_rows, make_generator, split_counts
from semievol.types import Example, Gold, SplitName, TaskFacts, choice_letter

SPLITS: tuple[SplitName, SplitName, SplitName] = ("labeled", "unlabeled", "test")
_FILL_IN = "fill it in, or remove the row"
_TARGET_REMEDY = "correct the target, or remove the row"

CountPrompt = Callable[[Example, TaskFacts], int]
"""Tokens of the prompt of an example; facts are found at load, so they come with it."""


class RowCounts(NamedTuple):
    """Where the rows that were read have gone; `read` is the sum of the others."""

    read: int
    rejected: int
    duplicate: int
    not_drawn: int
    """Left out by `max_rows`, `max_labeled`, `max_unlabeled`, `max_test` or by split counts."""
    kept: int


@dataclass(frozen=True, slots=True)
class LoadedData:
    """Everything that loading found out."""

    labeled: tuple[Example, ...]
    unlabeled: tuple[Example, ...]
    """Every target is None."""
    test: tuple[Example, ...]
    gold: tuple[Gold, ...]
    """Targets that unlabelled rows carried, in the order of `unlabeled`; for the sealed file only."""
    rejected: tuple[Rejected, ...]
    duplicates: tuple[Duplicate, ...]
    facts: TaskFacts
    notes: tuple[str, ...]
    target_counts: Mapping[SplitName, Mapping[str, int]]
    """Rows of each target in labeled and test, for closed answer sets; empty for the others."""
    counts: RowCounts


class _Row(NamedTuple):
    """A row with its target apart from it, so that the target of an unlabelled row is not used by accident."""

    draft: Draft
    example: Example
    target: str | None

    def labeled(self) -> Example:
        return replace(self.example, target=self.target)


def load_examples(
    config: RunConfig, *, count_prompt: CountPrompt | None = None, max_prompt_tokens: int | None = None
) -> LoadedData:
    """Read, check, deduplicate and cut the rows of `config.data`; the same config and files give the same result.

    An empty `test` is allowed. With several bad rows the error lists them together.

    Args:
        config: Of the run; `data`, `task` and, without `data.seed`, `seed` count.
        count_prompt: Counts the tokens of a row's prompt; None: lengths are not checked.
        max_prompt_tokens: Longer prompts make a row bad.

    Raises:
        ConfigError: If a column is not there or cannot be found, or split fractions sum to more than 1.
        DataError: If a file cannot be read, more than `data.max_bad_fraction` of the rows are bad, or no labelled or no
            unlabelled row is left.
    """
    log = Log(config)
    drafts = read_sources(log)
    ids = assign_ids(drafts, log)
    facts = _find_facts(drafts, config)
    rows = _read_targets(drafts, ids, facts, log)
    rows = _draw_max_rows(rows, config)
    if count_prompt is not None and max_prompt_tokens is not None:
        rows = _check_lengths(rows, facts, count_prompt, max_prompt_tokens, log)
    check_bad_fraction(log)
    rows, duplicates = _drop_duplicates(rows, facts, log)
    n_duplicates = sum(duplicate.dropped for duplicate in duplicates)
    splits = _cut(rows, config) if config.data.path is not None else _by_split(rows)
    facts, splits = _settle_labels(facts, splits, log)
    splits = _draw_splits(splits, config)
    _check_left(splits, n_duplicates, log)
    counts = _count_rows(splits, log, n_duplicates)
    return LoadedData(
        labeled=tuple(row.labeled() for row in splits["labeled"]),
        unlabeled=tuple(row.example for row in splits["unlabeled"]),
        test=tuple(row.labeled() for row in splits["test"]),
        gold=tuple(Gold(row.example.id, row.target) for row in splits["unlabeled"] if row.target is not None),
        rejected=tuple(log.rejected),
        duplicates=tuple(duplicates),
        facts=facts,
        notes=tuple(log.notes),
        target_counts={name: _count_targets(splits[name], config) for name in ("labeled", "test")},
        counts=counts,
    )


def _find_facts(drafts: Iterable[Draft], config: RunConfig) -> TaskFacts:
    """Labels of the labelled file (of one file: of all, settled after the split), and options that all rows share."""
    if config.task.type == "label":
        if config.task.labels is not None:
            return TaskFacts(labels=config.task.labels)
        spellings = Counter(
            " ".join(draft.fields.target.split())
            for draft in drafts
            if draft.split in ("labeled", None) and draft.fields.target is not None
        )
        chosen: dict[str, str] = {}
        for label in sorted(spellings, key=lambda label: (-spellings[label], label)):
            chosen.setdefault(label.casefold(), label)
        return TaskFacts(labels=tuple(sorted(chosen.values())))
    if config.task.type == "choice":
        choices = {draft.fields.choices for draft in drafts}
        return TaskFacts(shared_choices=choices.pop() if len(choices) == 1 else ())
    return TaskFacts()


def _read_targets(drafts: Sequence[Draft], ids: Sequence[str | None], facts: TaskFacts, log: Log) -> list[_Row]:
    """Bring targets to their normal form. A target that does not fit makes a row bad, but not an unlabelled one."""
    from_zero = _files_that_count_from_zero(drafts, log)
    rows: list[_Row] = []
    repairs: Counter[tuple[str, str]] = Counter()
    samples: dict[tuple[str, str], str] = {}
    no_gold: Counter[str] = Counter()
    for draft, row_id in zip(drafts, ids, strict=True):
        if row_id is None:
            continue
        fields = draft.fields
        example = Example(
            row_id, fields.question, fields.context, fields.choices, group=fields.group, history=fields.history
        )
        target: str | None = None
        if fields.target is None:
            if draft.split in ("labeled", "test"):
                log.reject(draft, draft.target_field, None, "the target is missing", _FILL_IN)
                continue
        else:
            raw = _letter_of(fields, counts_from_zero=draft.file in from_zero)
            try:
                found = normalize_target(raw, example, log.config.task, facts)
            except DataError as error:
                if draft.split != "unlabeled":
                    reason, remedy = _explain(error, row_id)
                    log.reject(draft, draft.target_field, fields.target, reason, remedy)
                    continue
                no_gold[draft.file] += 1
            else:
                target = found.value
                if found.repaired:
                    kind = "digit answers read as letters" if raw.strip().isdigit() else "targets repaired"
                    repairs[draft.file, kind] += 1
                    samples.setdefault((draft.file, kind), found.repaired)
        rows.append(_Row(draft, example, target))
    log.notes += [f"{file}: {n} {kind} (first: {samples[file, kind]})" for (file, kind), n in repairs.items()]
    log.notes += [
        f"{file}: {n} rows carry an answer that cannot be read; they have no gold" for file, n in no_gold.items()
    ]
    return rows


def _letter_of(fields: Fields, *, counts_from_zero: bool) -> str:
    raw = fields.target or ""
    if raw in fields.option_names:
        return choice_letter(fields.option_names.index(raw))
    return choice_letter(int(raw)) if counts_from_zero else raw


def _files_that_count_from_zero(drafts: Iterable[Draft], log: Log) -> set[str]:
    """Files of a choice task all of whose answers are numbers from 0 to n - 1, one of them 0."""
    if log.config.task.type != "choice":
        return set()
    zero: set[str] = set()
    other: set[str] = set()
    for draft in drafts:
        target = draft.fields.target
        if target is None or draft.fields.option_names:
            continue
        if not (target.isascii() and target.isdigit() and int(target) < len(draft.fields.choices)):
            other.add(draft.file)
        elif int(target) == 0:
            zero.add(draft.file)
    log.notes += [f"{file}: answers are numbers that count from 0" for file in sorted(zero - other)]
    return zero - other


def _explain(error: DataError, row_id: str) -> tuple[str, str]:
    """Reason and remedy out of `row ID: reason: remedy`."""
    text = str(error).removeprefix(f"row {row_id}: ")
    reason, colon, remedy = text.rpartition(": ")
    return (reason, remedy) if colon else (text, _TARGET_REMEDY)


def _draw_max_rows(rows: list[_Row], config: RunConfig) -> list[_Row]:
    limit = config.data.max_rows
    if limit is None:
        return rows
    drawn: list[_Row] = []
    for split in (None, *SPLITS):
        mine = [row for row in rows if row.draft.split == split]
        drawn += _draw(mine, limit, config, name=f"{split}:rows", stratified=split == "labeled")
    return drawn


def _draw(rows: list[_Row], n: int, config: RunConfig, *, name: str, stratified: bool) -> list[_Row]:
    closed = config.task.type in ("choice", "label")
    classes = [row.target if stratified and closed else None for row in rows]
    return [rows[i] for i in draw_rows(classes, n, make_generator(config.data_seed, name))]


def _check_lengths(
    rows: list[_Row], facts: TaskFacts, count_prompt: CountPrompt, max_prompt_tokens: int, log: Log
) -> list[_Row]:
    fitting = []
    for row in rows:
        n = count_prompt(row.example, facts)
        if n <= max_prompt_tokens:
            fitting.append(row)
            continue
        reason = f"the prompt is longer than {max_prompt_tokens} tokens"
        log.reject(row.draft, "question", f"{n} tokens", reason, "shorten the row, or raise model.max_length")
    return fitting


def _drop_duplicates(rows: list[_Row], facts: TaskFacts, log: Log) -> tuple[list[_Row], list[Duplicate]]:
    data = log.config.data
    similarity, drop, shared = data.near_duplicate_similarity, data.duplicates == "drop", bool(facts.shared_choices)
    if data.path is not None:
        first = sorted(rows, key=lambda row: row.target is None)  # of two copies the one with a target stays
        examples = [row.labeled() for row in first]
        found = find_duplicates_within(examples, similarity=similarity, shared_choices=shared, drop=drop)
        conflicts = find_conflicts(found, examples)
    else:
        splits = _by_split(rows)
        labeled = [row.labeled() for row in splits["labeled"]]
        test, unlabeled = ([row.example for row in splits[name]] for name in ("test", "unlabeled"))
        found = find_duplicates(test, labeled, unlabeled, similarity=similarity, shared_choices=shared, drop=drop)
        conflicts = find_conflicts(found, [*labeled, *(row.labeled() for row in splits["test"])])
    if conflicts:
        shown = ", ".join(f"{c.id} and {c.of_id}" for c in conflicts[:5])
        log.notes.append(f"{len(conflicts)} labelled rows repeat a row that has another target: {shown}")
    if not drop:
        return rows, found
    dropped = {duplicate.id for duplicate in found}
    return [row for row in rows if row.example.id not in dropped], found


def _by_split(rows: Iterable[_Row]) -> dict[SplitName, list[_Row]]:
    splits: dict[SplitName, list[_Row]] = {name: [] for name in SPLITS}
    for row in rows:
        if row.draft.split is not None:
            splits[row.draft.split].append(row)
    return splits


def _cut(rows: list[_Row], config: RunConfig) -> dict[SplitName, list[_Row]]:
    """Cut the rows of one file; those without a target are unlabelled."""
    generator = make_generator(config.data_seed, "split")
    with_target = [i for i, row in enumerate(rows) if row.target is not None]
    without = [i for i, row in enumerate(rows) if row.target is None]
    counts = split_counts(config.data.split, n_with_target=len(with_target), n_without=len(without))
    closed = config.task.type in ("choice", "label")
    parts = assign_parts(
        [rows[i].target if closed else None for i in with_target],
        [rows[i].example.group for i in with_target],
        counts=counts,
        generator=generator,
        cover=0,
    )
    names: list[SplitName | None] = [None] * len(rows)
    for i, part in zip(with_target, parts, strict=True):
        names[i] = None if part is None else SPLITS[part]
    if config.data.split.unlabeled > 1:
        n_free = int(config.data.split.unlabeled) - counts[1]
        without = [without[i] for i in draw_rows([None] * len(without), n_free, generator)]
    for i in without:
        names[i] = "unlabeled"
    _check_groups(rows, names)
    return {name: [row for row, given in zip(rows, names, strict=True) if given == name] for name in SPLITS}


def _check_groups(rows: Sequence[_Row], names: list[SplitName | None]) -> None:
    """Rows without a target follow no group, so they leave if theirs stands in test."""
    tested = {row.example.group for row, name in zip(rows, names, strict=True) if name == "test"} - {None}
    for i, row in enumerate(rows):
        if names[i] == "unlabeled" and row.example.group in tested:
            names[i] = None


def _settle_labels(
    facts: TaskFacts, splits: dict[SplitName, list[_Row]], log: Log
) -> tuple[TaskFacts, dict[SplitName, list[_Row]]]:
    """After the cut of one file, take the labels from its labelled part alone, as for separate files."""
    config = log.config
    if config.data.path is None or config.task.type != "label" or config.task.labels is not None:
        return facts, splits
    labels = {row.target for row in splits["labeled"]}
    settled = TaskFacts(labels=tuple(label for label in facts.labels if label in labels))
    for row in splits["test"]:
        if row.target not in labels:
            reason = "no labelled row has this label"
            remedy = "list all labels in task.labels, or enlarge data.split.labeled"
            log.reject(row.draft, row.draft.target_field, row.target, reason, remedy)
    check_bad_fraction(log)
    unknown = [row for row in splits["unlabeled"] if row.target is not None and row.target not in labels]
    if unknown:
        log.notes.append(f"{len(unknown)} unlabelled rows carry a label that no labelled row has; they have no gold")
    return settled, {
        "labeled": splits["labeled"],
        "unlabeled": [row if row.target in labels else row._replace(target=None) for row in splits["unlabeled"]],
        "test": [row for row in splits["test"] if row.target in labels],
    }


def _draw_splits(splits: dict[SplitName, list[_Row]], config: RunConfig) -> dict[SplitName, list[_Row]]:
    data = config.data
    limits = {"labeled": data.max_labeled, "unlabeled": data.max_unlabeled, "test": data.max_test}
    drawn: dict[SplitName, list[_Row]] = {}
    for name, rows in splits.items():
        limit = limits[name]
        drawn[name] = rows if limit is None else _draw(rows, limit, config, name=name, stratified=name == "labeled")
    return drawn


def _check_left(splits: Mapping[SplitName, Sequence[_Row]], n_duplicates: int, log: Log) -> None:
    for name in ("labeled", "unlabeled"):
        if not splits[name]:
            source = getattr(log.config.data, name) or log.config.data.path
            raise DataError(
                f"{source}: no {name} row is left ({log.n_read} rows read from all files, {len(log.rejected)} of them "
                f"bad, {n_duplicates} dropped as duplicates); give other rows, or change data.split or data.duplicates"
            )


def _count_rows(splits: Mapping[SplitName, Sequence[_Row]], log: Log, n_duplicates: int) -> RowCounts:
    kept, rejected = sum(len(rows) for rows in splits.values()), len(log.rejected)
    return RowCounts(log.n_read, rejected, n_duplicates, log.n_read - rejected - n_duplicates - kept, kept)


def _count_targets(rows: Iterable[_Row], config: RunConfig) -> dict[str, int]:
    if config.task.type not in ("choice", "label"):
        return {}
    return dict(sorted(Counter(row.target for row in rows if row.target is not None).items()))
