"""Reads CSV, JSONL, JSON, Parquet, saved `datasets` folders and hub datasets as one stream of raw rows.

A row that cannot be read becomes a `BadRow` with its place and a remedy, and reading goes on behind it; only faults
of the whole source (missing, empty, wrong format) raise. CSV and JSONL are read line by line and Parquet by batches,
so memory does not grow with the file; a `.json` array is read whole.
"""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from semievol.csv_rows import read_csv_rows
from semievol.errors import DataError
from semievol.types import BadRow, RawRow

SUFFIXES = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
}
FORMATS = (
    "CSV (.csv, .tsv), JSONL (.jsonl, .ndjson), a JSON array (.json), Parquet (.parquet), a saved `datasets` folder"
)

DATASET_FILES = ("dataset_info.json", "state.json", "dataset_dict.json")
"""Files beside the tables of a folder that `save_to_disk` of the library `datasets` wrote."""

_BATCH_ROWS = 1024
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+){0,2}")


def read_table(source: str, *, hub_split: str = "train") -> Iterator[RawRow | BadRow]:
    """Stream the rows of a file, a saved `datasets` folder or a hub dataset.

    `folder:split` and `id:split` name the split to read, and `owner/name/config` the config of a hub dataset. The hub
    is asked only for what cannot be a local path: no known ending, and no folder here that the path could start from.
    Integers of a `ClassLabel` column come back as their names, -1 as None.

    Raises:
        DataError: If the source is missing, empty, in no known format, or neither a regular file nor a folder.
    """
    if source == "-":
        raise DataError("-: rows are not read from standard input; save them to a file first and give its path")
    name, path, asked = locate_source(source)
    split = asked or hub_split
    if path.is_dir():
        return _check_not_empty(_read_folder(path, split), source)
    if path.is_file():
        return _check_not_empty(_open_file(path), source)
    if path.exists():
        kind = "a pipe" if path.is_fifo() else "no regular file"
        raise DataError(f"{source}: is {kind}; save it to a file first and give that, as a table is read several times")
    if _may_be_hub_id(name):
        return _check_not_empty(_read_hub(name, split), source)
    raise DataError(f"{source}: no such file{_suggest_files(path)}")


def locate_source(source: str) -> tuple[str, Path, str | None]:
    """Name of a source without its split, where it lies if it lies here (`~` is the home folder), and its split.

    Raises:
        DataError: If it is no path that a system could have.
    """
    if "\0" in source:
        raise DataError(f"{source!r}: holds a NUL character; correct the path")
    name, colon, asked = source.partition(":")
    try:
        path, without_split = Path(source).expanduser(), Path(name).expanduser()
        is_here = path.exists()
    except RuntimeError as error:  # ~ of a user that is not there
        raise DataError(f"{source}: {error}; write the folder out") from error
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}; check the path and its permissions") from error
    if not is_here and colon and asked and "/" not in asked and "\\" not in asked:
        return name, without_split, asked
    return source, path, None


def is_saved_dataset(folder: Path) -> bool:
    """Whether `save_to_disk` of the library `datasets` wrote the folder."""
    return any((folder / name).exists() for name in DATASET_FILES)


def _check_not_empty(rows: Iterator[RawRow | BadRow], source: str) -> Iterator[RawRow | BadRow]:
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source}: has no rows; give a file with at least one row below the header")
    yield first
    yield from rows


def _may_be_hub_id(name: str) -> bool:
    if Path(name).suffix.lower() in SUFFIXES or not _HUB_ID.fullmatch(name) or name.startswith("."):
        return False
    parts = name.split("/")
    return len(parts) == 1 or not Path(parts[0]).is_dir()


def _suggest_files(path: Path) -> str:
    folder = path.parent
    if not folder.is_dir():
        return f": the folder {folder} is not there either; check the path (it is taken from the working directory)"
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5)
    if near:
        return f"; did you mean {' or '.join(str(folder / name) for name in near)}?"
    tables = [name for name in names if Path(name).suffix.lower() in SUFFIXES]
    return f"; {folder} holds {', '.join(tables[:10])}" if tables else f"; {folder} holds no table that can be read"


def _open_file(path: Path) -> Iterator[RawRow | BadRow]:
    try:
        with path.open("rb") as stream:
            head = stream.read(65536)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; check its permissions") from error
    if not head.strip():
        raise DataError(f"{path}: is empty; give a file with at least one row")
    if head.startswith(_UTF16_BOMS):
        raise DataError(f"{path}: is UTF-16 text; save it as UTF-8 (in a spreadsheet: 'CSV UTF-8')")
    kind = SUFFIXES.get(path.suffix.lower()) or _sniff(head)
    if kind is None:
        raise DataError(f"{path}: is in no known format; formats: {FORMATS}, or a hub dataset id")
    if kind == "json":
        kind = "json" if head.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[") else "jsonl"
    readers = {
        "csv": read_csv_rows,
        "tsv": read_csv_rows,
        "jsonl": _read_jsonl,
        "json": _read_json_array,
        "parquet": _read_parquet,
    }
    return readers[kind](path)


def _sniff(head: bytes) -> str | None:
    """Format of a file with an unknown ending, from its first bytes."""
    if head.startswith(b"PAR1"):
        return "parquet"
    text = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text.startswith(b"{"):
        return "jsonl"
    if text.startswith(b"["):
        return "json"
    first_line = text.split(b"\n", 1)[0]
    if b"\0" not in head and any(delimiter in first_line for delimiter in (b",", b";", b"\t")):
        return "csv"
    return None


def _read_jsonl(path: Path) -> Iterator[RawRow | BadRow]:
    with path.open("rb") as stream:
        for number, raw in enumerate(stream, start=1):
            line = raw.removeprefix(b"\xef\xbb\xbf") if number == 1 else raw
            if line.strip():
                yield _parse_json_line(number, line.rstrip(b"\r\n"))


def _parse_json_line(number: int, line: bytes) -> RawRow | BadRow:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        excerpt = line[max(0, error.start - 15) : error.start + 25].decode("utf-8", errors="backslashreplace")
        reason = f"not UTF-8 text at byte {error.start + 1}"
        return BadRow(number, "line", excerpt, reason, "save the file as UTF-8, or correct the bytes")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        excerpt = text[max(0, error.pos - 15) : error.pos + 25]
        return BadRow(
            number, "line", excerpt, f"not valid JSON at column {error.colno}: {error.msg}", "one JSON object a line"
        )
    except (ValueError, RecursionError) as error:
        return BadRow(number, "line", text[:40], f"not usable JSON: {error}", "one flat JSON object a line")
    return _check_object(number, value)


def _check_object(number: int, value: object) -> RawRow | BadRow:
    if isinstance(value, dict):
        return RawRow(number, value)
    remedy = 'one JSON object a row, such as {"question": ..., "answer": ...}'
    return BadRow(number, "line", json.dumps(value)[:60], f"a JSON {type(value).__name__}, not an object", remedy)


def _read_json_array(path: Path) -> Iterator[RawRow | BadRow]:
    try:
        values = json.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text at byte {error.start + 1}; save it as UTF-8") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise DataError(f"{path}, {place}: not valid JSON: {error.msg}; or write JSONL, one object a line") from error
    for number, value in enumerate(values, start=1):
        yield _check_object(number, value)


def _read_parquet(path: Path) -> Iterator[RawRow | BadRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not a Parquet file that can be read ({error}); write it again or give CSV or JSONL"
        ) from error
    number = 0
    with table:
        try:
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                yield from _batch_rows(batch, number)
                number += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"{path}: damaged behind row {number} ({error}); write the file again") from error


def _batch_rows(batch: Any, offset: int) -> Iterator[RawRow | BadRow]:
    try:
        for i, values in enumerate(batch.to_pylist(), start=offset + 1):
            yield RawRow(i, values)
        return
    except UnicodeDecodeError:
        pass  # to_pylist fails as a whole, before its first row: find the faulty cells one by one
    for i in range(batch.num_rows):
        values = {}
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            try:
                values[name] = column[i].as_py()
            except UnicodeDecodeError as error:
                excerpt = bytes(error.object)[:40].decode("utf-8", errors="backslashreplace")
                yield BadRow(
                    offset + i + 1, name, excerpt, "not UTF-8 text", "write the column as UTF-8, or correct the bytes"
                )
                break
        else:
            yield RawRow(offset + i + 1, values)


def _read_folder(path: Path, split: str) -> Iterator[RawRow | BadRow]:
    import datasets

    if not is_saved_dataset(path):
        tables = sorted(entry.name for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES)
        hint = f"give one of its files: {', '.join(tables[:10])}" if tables else f"formats: {FORMATS}"
        raise DataError(f"{path}: is a folder, but not one written by Dataset.save_to_disk; {hint}")
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises what its readers raise
        raise DataError(f"{path}: cannot be loaded as a saved dataset ({_first_line(error)}); save it again") from error
    if isinstance(loaded, dict):
        if split not in loaded:
            near = difflib.get_close_matches(split, list(loaded), n=1)
            hint = f"did you mean {path}:{near[0]}? " if near else ""
            raise DataError(f"{path}: has no split {split!r}; {hint}it has {', '.join(loaded)} (write {path}:SPLIT)")
        loaded = loaded[split]
    return _dataset_rows(loaded)


def _read_hub(name: str, split: str) -> Iterator[RawRow | BadRow]:
    import datasets

    parts = name.split("/")
    config = parts[2] if len(parts) == 3 else None
    try:
        loaded = datasets.load_dataset("/".join(parts[:2]), config, split=split)
    except Exception as error:  # network, hub and builder faults share no base class
        remedy = "check the id and the split (id:split, or owner/name/config:split), or give a file"
        raise DataError(
            f"{name}: no such file here, and not to be had from the hub: {_first_line(error)}; {remedy}"
        ) from error
    return _dataset_rows(loaded)


def _dataset_rows(dataset: Any) -> Iterator[RawRow]:
    names = {key: feature.names for key, feature in dataset.features.items() if type(feature).__name__ == "ClassLabel"}
    number = 0
    for batch in dataset.iter(batch_size=_BATCH_ROWS):
        for row in zip(*batch.values(), strict=True):
            number += 1
            values = dict(zip(batch, row, strict=True))
            for key, labels in names.items():
                index = values[key]
                values[key] = labels[index] if index is not None and index >= 0 else None
            yield RawRow(number, values)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
