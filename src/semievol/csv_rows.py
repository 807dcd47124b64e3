"""Reads CSV and TSV files row by row, and finds the row that a stray quote stands in."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from semievol.errors import DataError
from semievol.types import BadRow, RawRow

_FIELD_LIMIT = 2**31 - 1
_NUL = "\udc00"
"""Stands for a NUL byte while CSV is parsed: csv refuses NUL on Python 3.10. surrogateescape never makes it."""
_ESCAPED = re.compile("[\udc00\udc80-\udcff]")
_QUOTE_REMEDY = 'close the quote, or put the field in quotes and write a quote inside it twice ("")'


def read_csv_rows(path: Path) -> Iterator[RawRow | BadRow]:
    """Stream the rows of a UTF-8 CSV or TSV file whose first line names the columns; lines are read one by one.

    A stray quote costs the row it stands in: reading goes on with the line behind it.

    Raises:
        DataError: If there is no usable header.
    """
    csv.field_size_limit(_FIELD_LIMIT)
    with path.open("rb") as stream:
        lines = _Lines(stream)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _pick_delimiter(lines.peek(0))
        # strict: a stray or unclosed quote is reported where it starts; otherwise it would swallow rows silently
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _read_header(reader, path)
        doubtful = opened = 0  # the line whose first quote may close the one that was opened in another
        while True:
            lines.start_record()
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield _csv_fault(lines, error)
                if lines.number > lines.first:
                    if not lines.is_at_end:
                        doubtful, opened = lines.number, lines.first
                    lines.return_to_second()
                continue
            line = lines.first
            if lines.first <= doubtful <= lines.number and lines.n_quotes % 2:
                reason = f"an odd number of quotes behind the unclosed quote at line {opened}"
                yield BadRow(line, "row", "", reason, _QUOTE_REMEDY)
            elif lines.number > line and len(fields) != len(header) and _is_row(lines, header, delimiter):
                yield _unclosed_quote(lines)
                doubtful, opened = lines.number, line
                lines.return_to_second()
            elif fields:
                yield _make_row(line, header, fields, delimiter)


class _Lines:
    """Decoded lines of a file, as an iterator for `csv` that can go back behind the first line of a record."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._offset = self._second = 0
        self.number = 0
        """Of the last line read, from 1 on."""
        self.first = 1
        """Number of the first line of the record."""
        self.n_quotes = 0
        """In the lines of the record."""
        self.is_at_end = False
        """Whether the record asked for a line behind the last one."""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line:
            self.is_at_end = True
            raise StopIteration
        self.number += 1
        self._offset += len(line)
        if self.number == self.first:
            self._second = self._offset
        self.n_quotes += line.count(b'"')
        text = _decode_line(line)
        return text.removeprefix("\ufeff") if self.number == 1 else text

    def start_record(self) -> None:
        """The next line is the first one of a record."""
        self.first, self.n_quotes, self.is_at_end = self.number + 1, 0, False

    def return_to_second(self) -> None:
        """Go on behind the first line of the record."""
        self._stream.seek(self._second)
        self._offset, self.number = self._second, self.first

    def peek(self, offset: int | None = None) -> str:
        """The line at a place of the file, else the second one of the record; reading goes on where it was."""
        self._stream.seek(self._second if offset is None else offset)
        text = _decode_line(self._stream.readline())
        self._stream.seek(self._offset)
        return text.removeprefix("\ufeff")


def _csv_fault(lines: _Lines, error: csv.Error) -> BadRow:
    if lines.number > lines.first or lines.is_at_end:
        return _unclosed_quote(lines)
    return BadRow(lines.first, "row", "", f"not valid CSV: {error}", _QUOTE_REMEDY)


def _unclosed_quote(lines: _Lines) -> BadRow:
    reason = f"not valid CSV: unclosed quote at line {lines.first}; the lines behind it are read as rows again"
    return BadRow(lines.first, "row", f"up to line {lines.number}", reason, _QUOTE_REMEDY)


def _is_row(lines: _Lines, header: list[str], delimiter: str) -> bool:
    """Whether the second line of a record is a row of its own."""
    try:
        return len(next(csv.reader([lines.peek()], delimiter=delimiter, strict=True))) == len(header)
    except csv.Error:
        return False


def _decode_line(line: bytes) -> str:
    return line.decode("utf-8", errors="surrogateescape").replace("\0", _NUL)


def _pick_delimiter(header_line: str) -> str:
    if "," in header_line:
        return ","
    return max(",;\t", key=header_line.count)


def _read_header(reader: Iterator[list[str]], path: Path) -> list[str]:
    try:
        header = [name.strip() for name in next(fields for fields in reader if fields)]
    except (StopIteration, csv.Error) as error:
        raise DataError(
            f"{path}, line 1: no header can be read ({error}); the first line has to name the columns"
        ) from error
    if any(_ESCAPED.search(name) for name in header):
        raise DataError(f"{path}, line 1: the header is not UTF-8 text; save the file as UTF-8")
    header = [name or f"column {i}" for i, name in enumerate(header, start=1)]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path}, line 1: column {repeated[0]!r} stands twice in the header; rename one of them")
    return header


def _make_row(line: int, header: list[str], fields: list[str], delimiter: str) -> RawRow | BadRow:
    if len(fields) != len(header):
        reason = f"the header names {len(header)} columns"
        remedy = f"put fields that hold {delimiter!r} or a line break in double quotes"
        return BadRow(line, "row", f"{len(fields)} fields", reason, remedy)
    for name, value in zip(header, fields, strict=True):
        found = _ESCAPED.search(value)
        if found:
            shown = value.replace(_NUL, "\0").encode("utf-8", errors="surrogateescape")
            start = max(0, len(value[: found.start()].encode("utf-8", errors="surrogateescape")) - 15)
            excerpt = shown[start : start + 40].decode("utf-8", errors="backslashreplace")
            reason = "a NUL byte" if found.group() == _NUL else "not UTF-8 text"
            return BadRow(line, name, excerpt, reason, "save the file as UTF-8, or correct the bytes")
    return RawRow(line, dict(zip(header, fields, strict=True)))
