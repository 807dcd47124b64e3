"""Looks at data files and makes out what each is for, which column holds what and which type of answer is asked for."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from semievol.columns import Columns, FieldError, Fields, read_fields, read_target, resolve_columns
from semievol.config import AnswerType, ColumnsConfig
from semievol.errors import ConfigError, DataError
from semievol.quantities import read_number
from semievol.tables import read_table
from semievol.types import RawRow, SplitName

LOOKED_AT = 5000
"""Rows of a file that the proposal is based on; all rows are counted."""
MOST_LABELS = 200
SPLITS: tuple[SplitName, ...] = ("labeled", "unlabeled", "test")
_PARSED = 0.95
"""Share of the rows that has to fit an answer type."""
_ROLE_WORDS: tuple[tuple[SplitName, str], ...] = (
    ("unlabeled", r"unlabel+ed|unlabel|unsupervised|pool|raw"),
    ("test", r"test|eval|evaluation|heldout|held.out|holdout|dev|val|valid|validation"),
    ("labeled", r"label+ed|label|labels|train|training|gold|seed"),
)


@dataclass(frozen=True, slots=True)
class Table:
    """One file: its columns and first rows, and how many rows there are."""

    source: str
    names: tuple[str, ...]
    rows: tuple[dict[str, Any], ...]
    n_rows: int


class Finding(NamedTuple):
    """What was found out about the task."""

    type: AnswerType
    why: str
    columns: Columns
    guessed: dict[str, str]
    """Role -> column, where the name of the column did not tell; these stand in the config."""
    labels: tuple[str, ...]
    """Distinct targets of a label task, most frequent first."""
    targets: tuple[str, ...]
    longest_chars: int
    """Characters of the longest row: context, question and options."""


def look_at(source: str) -> Table:
    """Read the first rows of a file and count all."""
    stream = (row for row in read_table(source) if isinstance(row, RawRow))
    rows = tuple(row.values for row in islice(stream, LOOKED_AT))
    if not rows:
        raise DataError(
            f"{source}: no row of it can be read; `semievol check` on a config lists what is wrong with each"
        )
    names = tuple(dict.fromkeys(name for row in rows for name in row))
    return Table(source, names, rows, len(rows) + sum(1 for _ in stream))


def assign_roles(tables: Sequence[Table]) -> dict[SplitName, Table]:
    """Which table is labelled, unlabelled and test; empty for a single one.

    Raises:
        DataError: If two files claim a role, or none is unlabelled.
    """
    if len(tables) == 1:
        return {}
    roles: dict[SplitName, Table] = {}
    unclear = []
    for table in tables:
        role = _role_by_name(table.source)
        if role is None:
            unclear.append(table)
        elif role in roles:
            raise DataError(
                f"{roles[role].source} and {table.source} both look {role} by their names; rename one, "
                "or write data.labeled, data.unlabeled and data.test into a config yourself"
            )
        else:
            roles[role] = table
    for table in [t for t in unclear if not _has_targets(t)]:
        if "unlabeled" not in roles:
            roles["unlabeled"] = table
            unclear.remove(table)
    for open_role in [r for r in SPLITS if r not in roles]:
        if unclear:
            roles[open_role] = unclear.pop(0)
    for needed, remedy in (
        ("labeled", "name one file with targets labeled.*"),
        ("unlabeled", "name one file unlabeled.*, or give a single file, which is then split"),
    ):
        if needed not in roles:
            raise DataError(f"none of {', '.join(t.source for t in tables)} is {needed}: {remedy}")
    return roles


def _role_by_name(source: str) -> SplitName | None:
    stem = Path(source).stem.casefold()
    return next((role for role, words in _ROLE_WORDS if re.search(rf"(?<![a-z])(?:{words})(?![a-z])", stem)), None)


def _has_targets(table: Table) -> bool:
    try:
        columns, _ = _find_columns(table)
    except DataError:
        return False
    return any(True for _ in read_targets(table, columns))


def find_task(table: Table) -> Finding:
    """Propose the answer type and the columns from a table with targets.

    Raises:
        DataError: If the question or the targets cannot be made out.
    """
    columns, guessed = _find_columns(table)
    rows = _read_rows(table, columns, "label")
    targets = tuple(read_targets(table, columns))
    if not rows:
        raise DataError(f"{table.source}: no row has a text in column {columns.question or columns.messages!r}")
    if not targets:
        raise DataError(
            f"{table.source}: no row has a target (columns: {', '.join(table.names)}); "
            "give a file with labelled rows, or set data.columns.target in a config"
        )
    with_options = _find_options(table, columns)
    longest = max(len(f.question) + len(f.context or "") for f in rows)
    if with_options is not None:
        columns, n_options, chars = with_options
        where = columns.choices or f"{columns.option_columns[0]}..{columns.option_columns[-1]}"
        return Finding(
            "choice", f"options in {where} ({n_options} a row)", columns, guessed, (), targets, longest + chars
        )
    kind, why, labels = classify_targets(targets, is_chat=columns.messages is not None)
    return Finding(kind, why, columns, guessed, labels, targets, longest)


def classify_targets(targets: Sequence[str], *, is_chat: bool = False) -> tuple[AnswerType, str, tuple[str, ...]]:
    """Answer type of targets without options, why, and the labels where it is `label`."""
    counted = Counter(" ".join(target.split()) for target in targets)
    n, n_distinct = len(targets), len(counted)
    words = sorted(len(target.split()) for target in targets)
    middle, long = words[n // 2], words[min(n - 1, int(0.95 * n))]
    numbers = sum(read_number(target.rpartition("####")[2]) is not None for target in targets)
    are_numbers = numbers >= _PARSED * n
    few = n_distinct <= MOST_LABELS and 2 * n_distinct <= n and max(map(len, counted)) <= 80 and words[-1] <= 12
    if few and (not are_numbers or n_distinct <= 10):
        hint = "; set `number` if they are quantities" if are_numbers else ""
        return "label", f"{n_distinct} distinct targets over {n:,} rows{hint}", spell_labels(counted)
    if are_numbers:
        return "number", f"{numbers:,} of {n:,} targets are numbers", ()
    if not is_chat and long <= 12 and middle <= 8 and not any("\n" in target.strip() for target in targets):
        return "span", f"short texts: {middle} words at the median, {n_distinct:,} distinct", ()
    return "text", f"free texts: {middle} words at the median, {words[-1]:,} at most", ()


def spell_labels(counted: Counter[str]) -> tuple[str, ...]:
    """Labels, most frequent first; of spellings that differ in case alone the most frequent one."""
    chosen: dict[str, str] = {}
    for label, _ in sorted(counted.items(), key=lambda item: (-item[1], item[0])):
        chosen.setdefault(label.casefold(), label)
    return tuple(chosen.values())


def _find_columns(table: Table) -> tuple[Columns, dict[str, str]]:
    """Columns by their usual names; question and target by their content where names do not tell."""
    guessed: dict[str, str] = {}
    try:
        columns, _ = resolve_columns(table.names, ColumnsConfig(), file=table.source, task_type="label")
    except ConfigError as error:
        question = _guess_question(table)
        if question is None:
            raise DataError(f"{error} in a config of your own") from error
        guessed["question"] = question
        columns, _ = resolve_columns(
            table.names, ColumnsConfig(question=question), file=table.source, task_type="label"
        )
    if columns.target is None and columns.messages is None:
        target = _guess_target(table, {columns.question, columns.context, columns.id, columns.group})
        if target is not None:
            guessed["target"] = target
            columns = replace(columns, target=target)
    return columns, guessed


def _guess_question(table: Table) -> str | None:
    """The column with the longest texts."""
    lengths = {name: _mean_length(table, name) for name in table.names}
    longest = max(lengths, key=lambda name: lengths[name], default=None)
    return longest if longest is not None and lengths[longest] >= 10 else None


def _mean_length(table: Table, name: str) -> float:
    texts = [value for row in table.rows if isinstance(value := row.get(name), str) and not _is_number(value)]
    return sum(map(len, texts)) / len(table.rows)


def _is_number(text: str) -> bool:
    return read_number(text) is not None


def _guess_target(table: Table, taken: set[str | None]) -> str | None:
    """The free column with the fewest distinct short values, at least two and far fewer than rows."""
    found: dict[str, int] = {}
    for name in table.names:
        values = [str(value).strip() for row in table.rows if (value := row.get(name)) not in (None, "")]
        distinct = set(values)
        if (
            name not in taken
            and len(distinct) >= 2
            and 2 * len(distinct) <= len(values)
            and max(map(len, distinct)) <= 80
        ):
            found[name] = len(distinct)
    return min(found, key=lambda name: found[name], default=None)


def _find_options(table: Table, columns: Columns) -> tuple[Columns, str, int]:
    """Columns with options where most rows have some that can be read, how many, and the longest; else None."""
    config = ColumnsConfig(question=columns.question, messages=columns.messages, target=columns.target)
    try:
        found, _ = resolve_columns(table.names, config, file=table.source, task_type="choice")
    except ConfigError:
        return None  # type: ignore[return-value]
    rows = _read_rows(table, found, "choice")
    if len(rows) < _PARSED * len(table.rows):
        return None  # type: ignore[return-value]
    counts = sorted({len(fields.choices) for fields in rows})
    shown = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return found, shown, max(sum(map(len, fields.choices)) for fields in rows)


def _read_rows(table: Table, columns: Columns, task_type: AnswerType) -> list[Fields]:
    """Rows that can be read."""
    found = []
    for row in table.rows:
        try:
            found.append(read_fields(row, columns, task_type=task_type))
        except FieldError:
            continue
    return found


def read_targets(table: Table, columns: Columns) -> Iterator[str]:
    """Raw targets of the rows that have one that can be read."""
    for row in table.rows:
        try:
            if columns.target is not None:
                target = read_target(row.get(columns.target), columns.target)
            else:
                target = read_fields(row, columns, task_type="label").target if columns.messages else None
        except FieldError:
            continue
        if target is not None:
            yield target
