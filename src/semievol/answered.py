"""Writes answered rows as CSV, JSONL or Parquet, window by window, whole or not at all.

Parquet wants one type for each column before the first row is written, so `ColumnTypes` looks at all rows first: a
column may be empty, or of another kind, for as long as it likes.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from semievol.artifacts import RunDir
from semievol.errors import ConfigError, DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")
_PARQUET_SUFFIXES = (".parquet", ".pq")

Row = Mapping[str, Any]


class RowWriter(Protocol):
    """Takes rows in blocks."""

    def write(self, rows: Sequence[Row]) -> None:
        """Append rows; a column that a row does not name is empty."""
        ...


def check_output(path: Path, input_path: str) -> None:
    """Raises ConfigError if the format is unknown, the place is a folder, or it is the input itself."""
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"--output {path}: the ending says the format; use one of {', '.join(SUFFIXES)}")
    try:
        if path.is_dir():
            raise ConfigError(f"--output {path} is a folder; name a file in it")
        source = Path(input_path).expanduser()
        if path.exists() and source.exists() and path.samefile(source):
            raise ConfigError(f"--output {path} is the input itself; name another file")
    except OSError as error:
        raise ConfigError(
            f"--output {path}: cannot be written ({error.filename}: {error.strerror}); name another place"
        ) from error


def needs_types(path: Path) -> bool:
    """Whether the format of `path` gives each column one type."""
    return path.suffix.lower() in _PARQUET_SUFFIXES


class ColumnTypes:
    """Finds one Arrow type for each column of a table from all of its rows.

    The types of a Parquet file are its own. Elsewhere integers and floats together are floats, lists and mappings take
    in what each row holds; a column of several kinds, or of one that Parquet cannot hold, is text, see `_text`.
    """

    def __init__(self, source: str) -> None:
        self._given = _parquet_types(source)
        self._found: dict[str, Any] = {}
        self._mixed: set[str] = set()
        self._large: set[str] = set()

    def add(self, rows: Sequence[Row]) -> None:
        """Look at further rows."""
        for name in dict.fromkeys(name for row in rows for name in row):
            if name not in self._mixed:
                self._add_values(name, [row.get(name) for row in rows])

    def find(self) -> dict[str, Any]:
        """The Arrow type of each column that was seen."""
        import pyarrow as pa

        found: dict[str, Any] = dict.fromkeys(self._mixed, pa.string())
        for name, kind in self._found.items():
            inexact = pa.types.is_floating(kind) and name in self._large
            is_empty = pa.types.is_null(kind) and name not in self._given
            text = name in self._mixed or inexact or is_empty or not _fits_parquet(kind)
            found[name] = pa.string() if text else kind
        return found

    def _add_values(self, name: str, values: list[Any]) -> None:
        import pyarrow as pa

        try:
            found = pa.array(values, type=self._given.get(name)).type
            if pa.types.is_integer(found) and any(abs(value) > 2**53 for value in values if value is not None):
                self._large.add(name)  # as floats they would lose digits
            kinds = (self._found.get(name, found), found)
            schemas = [pa.schema([(name, kind)]) for kind in kinds]
            self._found[name] = pa.unify_schemas(schemas, promote_options="permissive").field(name).type
            if pa.types.is_nested(found) and _count_integers(self._found[name]) < max(map(_count_integers, kinds)):
                self._mixed.add(name)  # integers inside became floats
        except (pa.ArrowException, *_UNFIT):
            self._mixed.add(name)


def _count_integers(kind: Any) -> int:
    """Columns of integers inside a nested type."""
    import pyarrow as pa

    if not pa.types.is_nested(kind):
        return int(pa.types.is_integer(kind))
    return sum(_count_integers(kind.field(i).type) for i in range(kind.num_fields))


_UNFIT = (OverflowError, TypeError, ValueError)
"""What Arrow raises, next to its own errors, for values that a type cannot hold: huge integers, lone surrogates."""


def _parquet_types(source: str) -> dict[str, Any]:
    """Column types of a Parquet file; empty for every other source."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(source).expanduser()
    try:
        schema = pq.read_schema(path) if path.is_file() else None
    except (pa.ArrowException, OSError):
        schema = None
    return {} if schema is None else dict(zip(schema.names, schema.types, strict=True))


def _fits_parquet(kind: Any) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        pq.write_table(pa.schema([("column", kind)]).empty_table(), pa.BufferOutputStream())
    except pa.ArrowException:
        return False
    return True


@contextmanager
def open_writer(path: Path, columns: Mapping[str, Any]) -> Iterator[RowWriter]:
    """A writer to `path` by its ending. The file appears, whole, when the context ends without an error.

    Args:
        path: An existing file is replaced.
        columns: Names in order, each with its type: str, float or bool for a column that we add, for one that came with
            the input its Arrow type (`ColumnTypes`). Types count only where the format has them (`needs_types`).

    Raises:
        ConfigError: If nothing can be written there.
    """
    _check_place(path)
    with RunDir(path.parent).replacing(path) as partial:
        suffix = path.suffix.lower()
        if needs_types(path):
            with _ParquetWriter(partial, columns) as parquet:
                yield parquet
        elif suffix in (".csv", ".tsv"):
            with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
                yield _CsvWriter(stream, list(columns), "\t" if suffix == ".tsv" else ",")
        else:
            with partial.open("w", encoding="utf-8", errors="backslashreplace") as stream:
                yield _JsonlWriter(stream)


def _check_place(path: Path) -> None:
    probe = path.with_name(f"{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(
            f"--output {path}: cannot be written ({error.filename}: {error.strerror}); name another place"
        ) from error


class _CsvWriter:
    """Lists and mappings are written as JSON, None as an empty field."""

    def __init__(self, stream: Any, columns: Sequence[str], delimiter: str) -> None:
        self._writer = csv.writer(stream, delimiter=delimiter, lineterminator="\n")
        self._columns = columns
        self._writer.writerow(columns)

    def write(self, rows: Sequence[Row]) -> None:
        self._writer.writerows([_field(row.get(name)) for name in self._columns] for row in rows)


class _JsonlWriter:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, rows: Sequence[Row]) -> None:
        for row in rows:
            plain = {name: None if value != value else value for name, value in row.items()}  # NaN is no JSON
            self._stream.write(json.dumps(plain, ensure_ascii=False, default=str) + "\n")


class _ParquetWriter:
    """Whatever stands in a column of text is written as text (`_text`)."""

    def __init__(self, path: Path, columns: Mapping[str, Any]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        kinds = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
        self._schema = pa.schema([(name, kinds.get(kind, kind)) for name, kind in columns.items()])
        self._writer = pq.ParquetWriter(path, self._schema)

    def __enter__(self) -> "_ParquetWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()

    def write(self, rows: Sequence[Row]) -> None:
        import pyarrow as pa

        arrays = []
        for field in self._schema:
            values = [row.get(field.name) for row in rows]
            if pa.types.is_string(field.type):
                values = [_text(value) for value in values]
            try:
                arrays.append(pa.array(values, type=field.type))
            except (pa.ArrowException, *_UNFIT) as error:
                raise DataError(
                    f"column {field.name!r} holds a value that its type in Parquet, {field.type}, cannot take "
                    f"({error}); write .jsonl or .csv"
                ) from error
        self._writer.write_table(pa.Table.from_arrays(arrays, schema=self._schema))


def _text(value: object) -> str | None:
    """A value in a column of text: lists and mappings as JSON, a lone surrogate as its escape."""
    if value is None:
        return None
    text = value if isinstance(value, str) else str(_field(value))
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _field(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "true" if value is True else "false" if value is False else value
