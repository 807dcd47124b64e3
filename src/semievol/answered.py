"""Writes answered rows as CSV, JSONL or Parquet, window by window, whole or not at all."""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from semievol.artifacts import RunDir
from semievol.errors import ConfigError, DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet", ".pq")

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
    if path.is_dir():
        raise ConfigError(f"--output {path} is a folder; name a file in it")
    source = Path(input_path).expanduser()
    if path.exists() and source.exists() and path.samefile(source):
        raise ConfigError(f"--output {path} is the input itself; name another file")


@contextmanager
def open_writer(path: Path, columns: Mapping[str, type | None]) -> Iterator[RowWriter]:
    """A writer to `path` by its ending. The file appears, whole, when the context ends without an error.

    Args:
        path: An existing file is replaced.
        columns: Names in order; the type of each column that we add, None for those that came with the input.
    """
    with RunDir(path.parent).replacing(path) as partial:
        suffix = path.suffix.lower()
        if suffix in (".parquet", ".pq"):
            with _ParquetWriter(partial, columns) as parquet:
                yield parquet
        elif suffix in (".csv", ".tsv"):
            with partial.open("w", encoding="utf-8", errors="backslashreplace", newline="") as stream:
                yield _CsvWriter(stream, list(columns), "\t" if suffix == ".tsv" else ",")
        else:
            with partial.open("w", encoding="utf-8", errors="backslashreplace") as stream:
                yield _JsonlWriter(stream)


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
    """Types of the input's columns are those of the first block."""

    def __init__(self, path: Path, columns: Mapping[str, type | None]) -> None:
        self._path, self._columns = path, columns
        self._schema: Any = None
        self._writer: Any = None

    def __enter__(self) -> "_ParquetWriter":
        return self

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()

    def write(self, rows: Sequence[Row]) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        full = [{name: row.get(name) for name in self._columns} for row in rows]
        try:
            if self._writer is None:
                self._schema = self._find_schema(full)
                self._writer = pq.ParquetWriter(self._path, self._schema)
            self._writer.write_table(pa.Table.from_pylist(full, schema=self._schema))
        except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
            raise DataError(
                f"a column holds values of several kinds, which Parquet cannot take ({error}); write .jsonl or .csv"
            ) from error

    def _find_schema(self, rows: Sequence[dict[str, Any]]) -> Any:
        import pyarrow as pa

        kinds = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
        found = pa.Table.from_pylist([{n: r[n] for n, k in self._columns.items() if k is None} for r in rows]).schema
        fields = []
        for name, kind in self._columns.items():
            if kind is not None:
                fields.append(pa.field(name, kinds[kind]))
                continue
            at = found.get_field_index(name)
            seen = pa.string() if at < 0 or pa.types.is_null(found.field(at).type) else found.field(at).type
            fields.append(pa.field(name, seen))
        return pa.schema(fields)


def _field(value: object) -> object:
    if value is None:
        return ""
    if isinstance(value, list | tuple | dict):
        return json.dumps(value, ensure_ascii=False, default=str)
    return "true" if value is True else "false" if value is False else value
