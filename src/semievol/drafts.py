"""Reads the files of a run to drafts, rows whose targets are still raw, and keeps the list of the bad ones."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import NamedTuple

from semievol.columns import Columns, FieldError, Fields, read_fields, read_target, resolve_columns
from semievol.config import RunConfig
from semievol.errors import ConfigError, DataError
from semievol.tables import BadRow, RawRow, read_table
from semievol.types import SplitName

MAX_SHOWN = 20
"""Bad rows that the error lists."""

_VALUE_WIDTH = 60
_PEEKED_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that cannot be used: where it stands and what to do about it."""

    file: str
    line: int
    field: str
    value: str
    """At most 60 characters, control characters escaped."""
    reason: str
    remedy: str
    split: SplitName | None
    """None: of the one file, before it was split."""


class Draft(NamedTuple):
    """A row that was read and whose target is still raw."""

    file: str
    line: int
    split: SplitName | None
    fields: Fields
    target_field: str


@dataclass(slots=True)
class Log:
    """What is collected while rows are read and checked."""

    config: RunConfig
    notes: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    n_read: int = 0

    def reject(self, draft: Draft, name: str, value: object, reason: str, remedy: str) -> None:
        """Add a row that was read, with the field that is at fault."""
        shown = shorten(value)
        self.rejected.append(Rejected(draft.file, draft.line, name, shown, reason, remedy, draft.split))


def read_sources(log: Log) -> list[Draft]:
    """Read all files of the config: labeled, unlabeled, test. Bad rows go to the log."""
    data = log.config.data
    if data.path is not None:
        drafts, _ = _read_source(data.path, None, None, log)
        return drafts
    drafts, columns = _read_source(data.labeled or "", "labeled", None, log)
    for split, source in (("unlabeled", data.unlabeled), ("test", data.test)):
        if source is not None:
            drafts += _read_source(source, split, columns, log)[0]  # type: ignore[arg-type]
    return drafts


def _read_source(
    source: str, split: SplitName | None, model: Columns | None, log: Log
) -> tuple[list[Draft], Columns | None]:
    """Read one file. The columns are those of its first rows together: JSON rows may leave fields out."""
    task_type = log.config.task.type
    stream = read_table(source, hub_split=log.config.data.hub_split)
    first = list(islice(stream, _PEEKED_ROWS))
    names = list(dict.fromkeys(name for row in first if isinstance(row, RawRow) for name in row.values))
    columns: Columns | None = None
    if names:
        configured = log.config.data.columns
        columns, notes = resolve_columns(names, configured, file=source, task_type=task_type, model=model)
        log.notes += notes
        _check_target_column(columns, names, source, split)
    drafts: list[Draft] = []
    shared: dict[tuple[str, ...], tuple[str, ...]] = {}
    for row in chain(first, stream):
        log.n_read += 1
        if isinstance(row, BadRow) or columns is None:
            fault = (
                row if isinstance(row, BadRow) else BadRow(row.line, "row", "{}", "the row names no field", "remove it")
            )
        else:
            try:
                fields = _read_draft_fields(row, columns, split, log)
            except FieldError as error:
                fault = BadRow(row.line, error.field, shorten(error.value), error.reason, error.remedy)
            else:
                fields = fields._replace(choices=shared.setdefault(fields.choices, fields.choices))
                target_field = columns.target or columns.messages or "target"
                drafts.append(Draft(source, row.line, split, fields, target_field))
                continue
        log.rejected.append(
            Rejected(source, fault.line, fault.field, shorten(fault.value), fault.reason, fault.remedy, split)
        )
    n_nan = sum(draft.fields.n_nan_options for draft in drafts)
    if n_nan:
        log.notes.append(
            f"{source}: {n_nan} options that are NaN (a 'None' that pandas lost) are read as the text None"
        )
    return drafts, columns


def _read_draft_fields(row: RawRow, columns: Columns, split: SplitName | None, log: Log) -> Fields:
    fields = read_fields(row.values, columns, task_type=log.config.task.type)
    if columns.target is None:
        return fields
    try:
        target = read_target(row.values.get(columns.target), columns.target)
    except FieldError:
        if split != "unlabeled":
            raise
        target = None  # the row is as good without
    return fields._replace(target=target)


def _check_target_column(columns: Columns, names: Sequence[str], file: str, split: SplitName | None) -> None:
    if columns.target is None and columns.messages is None and split != "unlabeled":
        raise ConfigError(
            f"{file}: no column with a usual name holds the target (columns: {', '.join(names)}); "
            "set data.columns.target"
        )


def shorten(value: object) -> str:
    """The value on one line of at most 60 characters, control characters escaped."""
    text = value if isinstance(value, str) else "" if value is None else repr(value)
    text = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text[:200])
    return text if len(text) <= _VALUE_WIDTH else text[: _VALUE_WIDTH - 3] + "..."


def assign_ids(drafts: Sequence[Draft], log: Log) -> list[str | None]:
    """An id for every draft, unique over all files; None for a draft that was rejected for its id.

    Rows without an id get a hash of their content. Ids of a column that was found by its name, not configured, give way
    to hashes altogether if two different rows share one: then it was no id.
    """
    contents = [_hash_content(draft.fields) for draft in drafts]
    configured = bool(log.config.data.columns.id)
    owners: dict[str, int] = {}
    clashes: dict[int, int] = {}
    for i, draft in enumerate(drafts):
        if draft.fields.id is not None:
            first = owners.setdefault(draft.fields.id, i)
            if contents[first] != contents[i]:
                clashes[i] = first
    if clashes and not configured:
        i, first = next(iter(clashes.items()))
        log.notes.append(
            f"{place(drafts[i])} and {place(drafts[first])} share the id {drafts[i].fields.id!r} but differ: the id "
            "column was left out and ids are hashes of the rows"
        )
    own = configured or not clashes
    used: set[str] = set()
    ids: list[str | None] = []
    for i, draft in enumerate(drafts):
        if configured and i in clashes:
            reason = f"{place(drafts[clashes[i]])} has the same id"
            remedy = "make ids unique over all files, or set data.columns.id to ''"
            log.reject(draft, log.config.data.columns.id or "id", draft.fields.id, reason, remedy)
            ids.append(None)
            continue
        base = (draft.fields.id if own else None) or contents[i]
        name, n = base, 1
        while name in used:
            n += 1
            name = f"{base}-{n}"
        used.add(name)
        ids.append(name)
    return ids


def _hash_content(fields: Fields) -> str:
    turns = [[turn.role, turn.content] for turn in fields.history]
    content = json.dumps([fields.question, fields.context, fields.choices, turns])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def place(draft: Draft) -> str:
    """Where the row stands, for messages."""
    return f"{draft.file}, line {draft.line}"


def check_bad_fraction(log: Log) -> None:
    """Raises DataError with a table of the bad rows if there are more than the config allows."""
    n_bad, allowed = len(log.rejected), log.config.data.max_bad_fraction
    if n_bad <= allowed * log.n_read:
        return
    head = ("file", "line", "field", "value", "reason", "remedy")
    table = [head, *((r.file, str(r.line), r.field, r.value, r.reason, r.remedy) for r in log.rejected[:MAX_SHOWN])]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    lines = ["  " + "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in table]
    more = [f"  ... and {n_bad - MAX_SHOWN:,} more"] if n_bad > MAX_SHOWN else []
    needed = -(-n_bad * 10_000 // log.n_read) / 10_000
    raise DataError(
        "\n".join(
            [
                f"{n_bad:,} of {log.n_read:,} rows cannot be used (data.max_bad_fraction allows {allowed:g}):",
                *lines,
                *more,
                f"Correct these rows, or set data.max_bad_fraction={needed:g} to go on without them; they are then "
                "listed in data/rejected.jsonl.",
            ]
        )
    )
