"""Reads the files of a run to drafts, rows whose targets are still raw, and keeps the list of the bad ones.

Drafts wait on disk. In memory stand eight bytes for the content of each and as many for its id, from which `RowIds`
finds the few rows that share one.
"""

import hashlib
import json
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semievol.columns import Columns, FieldError, Fields, read_fields, read_target, resolve_columns
from semievol.config import AnswerType, RunConfig
from semievol.errors import ConfigError, DataError
from semievol.spool import Spool
from semievol.tables import read_table
from semievol.types import BadRow, RawRow, SplitName

MAX_SHOWN = 20
"""Bad rows that the error lists."""

_VALUE_WIDTH = 60
_PEEKED_ROWS = 1000
_NO_ID = 0


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


class Doubts:
    """Collects the rows of a table that may be read wrongly."""

    def __init__(self, source: str) -> None:
        self._source, self._first, self._n = source, "", 0

    def see(self, row: RawRow | BadRow) -> None:
        """Count a row if it is doubtful."""
        if isinstance(row, RawRow) and row.doubt:
            self._n += 1
            self._first = self._first or f"line {row.line}, {row.doubt}"

    def notes(self) -> list[str]:
        """What to tell the user; empty where nothing is doubtful."""
        if not self._n:
            return []
        others = f" (so in {self._n} rows)" if self._n > 1 else ""
        return [
            f"{self._source}, {self._first}{others}: if it does not belong there, close the quote in the first line"
        ]


class Place(NamedTuple):
    """Where a row stands."""

    file: str
    line: int
    split: SplitName | None
    target_field: str

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


class Draft(NamedTuple):
    """A row that was read and whose target is still raw."""

    place: Place
    fields: Fields


class Drafts(NamedTuple):
    """The rows that were read, in their order."""

    rows: Spool[Draft]
    contents: "array[int]"
    """Of each row the 48-bit hash of what it says, which names rows without an id."""
    ids: "array[int]"
    """Of each row a 64-bit hash of its id; 0 where it has none."""

    def append(self, draft: Draft) -> None:
        """Add a row."""
        self.rows.append(draft)
        self.contents.append(int(_hash_content(draft.fields), 16))
        self.ids.append(_NO_ID if draft.fields.id is None else _hash_id(draft.fields.id))


@dataclass(slots=True)
class Log:
    """What is collected while rows are read and checked."""

    config: RunConfig
    folder: Path | None = None
    """Where rows wait on disk; None: where the system keeps temporary files."""
    notes: list[str] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    n_read: int = 0
    shared_choices: tuple[str, ...] = ()
    """Options of the rows of a file that has none."""
    counts_from_zero: bool = False
    """Numbers that are answers count from 0 even where none of them is 0."""

    def reject(self, place: Place, name: str, value: object, reason: str, remedy: str) -> None:
        """Add a row that was read, with the field that is at fault."""
        self.rejected.append(Rejected(place.file, place.line, name, shorten(value), reason, remedy, place.split))


def read_sources(log: Log) -> Drafts:
    """Read all files of the config: labeled, unlabeled, test. Bad rows go to the log."""
    data = log.config.data
    drafts = Drafts(Spool(Draft, folder=log.folder), array("Q"), array("Q"))
    if data.path is not None:
        _read_source(data.path, None, None, drafts, log)
        return drafts
    columns = _read_source(data.labeled or "", "labeled", None, drafts, log)
    for split, source in (("unlabeled", data.unlabeled), ("test", data.test)):
        if source is not None:
            _read_source(source, split, columns, drafts, log)  # type: ignore[arg-type]
    return drafts


def _read_source(
    source: str, split: SplitName | None, model: Columns | None, drafts: Drafts, log: Log
) -> Columns | None:
    """Read one file to `drafts`. The columns are those of its first rows together: JSON rows may leave fields out."""
    task_type: AnswerType = log.config.task.type
    stream = read_table(source, hub_split=log.config.data.hub_split)
    first = list(islice(stream, _PEEKED_ROWS))
    names = list(dict.fromkeys(name for row in first if isinstance(row, RawRow) for name in row.values))
    columns: Columns | None = None
    if names:
        configured = log.config.data.columns
        try:
            columns, notes = resolve_columns(names, configured, file=source, task_type=task_type, model=model)
        except ConfigError:
            if task_type != "choice" or not log.shared_choices:
                raise
            task_type = "label"
            plain = configured.model_copy(update={"choices": ""})
            columns, notes = resolve_columns(names, plain, file=source, task_type=task_type, model=model)
            notes.append(f"{source} has no options; those of the run are used: {', '.join(log.shared_choices)}")
        log.notes += notes
        _check_target_column(columns, names, source, split)
    n_nan = 0
    doubts = Doubts(source)
    for row in chain(first, stream):
        log.n_read += 1
        doubts.see(row)
        if isinstance(row, BadRow) or columns is None:
            fault = (
                row if isinstance(row, BadRow) else BadRow(row.line, "row", "{}", "the row names no field", "remove it")
            )
        else:
            try:
                fields = _read_draft_fields(row, columns, split, task_type)
                if task_type != log.config.task.type:
                    fields = fields._replace(choices=log.shared_choices)
            except FieldError as error:
                fault = BadRow(row.line, error.field, shorten(error.value), error.reason, error.remedy)
            else:
                n_nan += fields.n_nan_options
                target_field = columns.target or columns.messages or "target"
                drafts.append(Draft(Place(source, row.line, split, target_field), fields))
                continue
        value = "" if split == "unlabeled" and fault.field not in _kept_columns(columns) else shorten(fault.value)
        log.rejected.append(Rejected(source, fault.line, fault.field, value, fault.reason, fault.remedy, split))
    log.notes += doubts.notes()
    if n_nan:
        log.notes.append(
            f"{source}: {n_nan} options that are NaN (a 'None' that pandas lost) are read as the text None"
        )
    return columns


def _read_draft_fields(row: RawRow, columns: Columns, split: SplitName | None, task_type: AnswerType) -> Fields:
    fields = read_fields(row.values, columns, task_type=task_type)
    if columns.target is None:
        return fields
    try:
        target = read_target(row.values.get(columns.target), columns.target)
    except FieldError:
        if split != "unlabeled":
            raise
        target = None  # the row is as good without
    return fields._replace(target=target)


def _kept_columns(columns: Columns | None) -> set[str | None]:
    """Columns of an unlabelled row that are kept: what else stands there may be its target, and is not shown."""
    if columns is None:
        return {"row"}
    named = {columns.question, columns.context, columns.choices, columns.group, columns.id, *columns.option_columns}
    return named | {"row"}


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


class RowIds:
    """The id of every draft, unique over all files.

    Rows without an id get a hash of their content. Ids of a column that was found by its name, not configured, give way
    to hashes altogether if two different rows share one: then it was no id. Of rows with equal names all but the first
    are numbered: `name-2`, `name-3`.
    """

    def __init__(self, drafts: Drafts, log: Log) -> None:
        """Look for ids that stand twice. A clash of found ids is noted."""
        self._drafts = drafts
        self._is_configured = bool(log.config.data.columns.id)
        clashes = dict(self._clashes())
        if clashes and not self._is_configured:
            i = min(clashes)
            clashing, first = drafts.rows[i], drafts.rows[clashes[i]]
            log.notes.append(
                f"{clashing.place} and {first.place} share the id {clashing.fields.id!r} but differ: the id "
                "column was left out and ids are hashes of the rows"
            )
        self._own = self._is_configured or not clashes
        self._clash_of = clashes if self._is_configured else {}

    def _clashes(self) -> Iterator[tuple[int, int]]:
        """Rows whose id an earlier row has that says something else, each with the first row of that id."""
        rows, contents = self._drafts.rows, self._drafts.contents
        for group in _Repeats(np.asarray(self._drafts.ids)).groups():
            owners: dict[str | None, int] = {}
            for i in group:
                first = owners.setdefault(rows[i].fields.id, i)
                if self._drafts.ids[i] != _NO_ID and contents[first] != contents[i]:
                    yield i, first

    def assign(self, log: Log) -> Iterator[str | None]:
        """The ids in the order of the rows; None for a row that is rejected for its id."""
        drafts, repeats = self._drafts, _Repeats(self._names())
        numbers: dict[str, int] = {}
        numbered: set[str] = set()
        for i, draft in enumerate(drafts.rows):
            if i in self._clash_of:
                reason = f"{drafts.rows[self._clash_of[i]].place} has the same id"
                remedy = "make ids unique over all files, or set data.columns.id to ''"
                log.reject(draft.place, log.config.data.columns.id or "id", draft.fields.id, reason, remedy)
                yield None
                continue
            base = (draft.fields.id if self._own else None) or f"{drafts.contents[i]:012x}"
            if not repeats.is_repeat[i] and base not in numbered:
                yield base
                continue
            n = numbers.get(base, 1) + 1
            while f"{base}-{n}" in numbered or repeats.first(_hash_id(f"{base}-{n}"), default=i) < i:
                n += 1
            numbers[base] = n
            numbered.add(f"{base}-{n}")
            yield f"{base}-{n}"

    def _names(self) -> NDArray[np.uint64]:
        """Hash of the name of each row, before any are numbered."""
        names = np.array(self._drafts.ids, dtype=np.uint64)
        if not self._own:
            names[:] = _NO_ID
        for i in np.flatnonzero(names == _NO_ID):
            names[i] = _hash_id(f"{self._drafts.contents[i]:012x}")
        return names


class _Repeats:
    """Which of many hashes stand more than once."""

    def __init__(self, hashes: NDArray[np.uint64]) -> None:
        self._order = np.argsort(hashes, kind="stable")
        self._sorted = hashes[self._order]
        self._again = np.flatnonzero((self._sorted[1:] == self._sorted[:-1]) & (self._sorted[1:] != _NO_ID)) + 1
        self.is_repeat = np.zeros(len(hashes), dtype=bool)
        """Whether an earlier row has the same hash."""
        self.is_repeat[self._order[self._again]] = True

    def groups(self) -> Iterator[list[int]]:
        """Positions of each hash that stands more than once, in order."""
        for run in np.split(self._again, np.flatnonzero(np.diff(self._again) > 1) + 1):
            for value in np.unique(self._sorted[run]):
                low, high = np.searchsorted(self._sorted, value, "left"), np.searchsorted(self._sorted, value, "right")
                yield [int(i) for i in self._order[low:high]]

    def first(self, value: int, *, default: int) -> int:
        """The first position of a hash; `default` where it is not there."""
        at = int(np.searchsorted(self._sorted, np.uint64(value), "left"))
        return int(self._order[at]) if at < len(self._sorted) and int(self._sorted[at]) == value else default


def _hash_content(fields: Fields) -> str:
    turns = [[turn.role, turn.content] for turn in fields.history]
    content = json.dumps([fields.question, fields.context, fields.choices, turns])
    return hashlib.sha256(content.encode()).hexdigest()[:12]


def _hash_id(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1


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
    is_run = log.config.data.path is not None or log.config.data.unlabeled is not None
    goes_on = (
        f"Correct these rows, or set data.max_bad_fraction={needed:g} to go on without them; they are then "
        "listed in data/rejected.jsonl."
    )
    allows = "data.max_bad_fraction" if is_run else "data.max_bad_fraction of the run or config"
    measured_alone = "Correct these rows or take them out of the table: the model is measured on what is left."
    raise DataError(
        "\n".join(
            [
                f"{n_bad:,} of {log.n_read:,} rows cannot be used ({allows} allows {allowed:g}):",
                *lines,
                *more,
                goes_on if is_run else measured_alone,
            ]
        )
    )
