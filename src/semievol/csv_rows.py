"""Reads CSV and TSV files row by row, and finds the row that a stray quote stands in."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from semievol.errors import DataError
from semievol.types import BadRow, RawRow

_FIELD_LIMIT = 2**31 - 1
_NUL = "\udc00"
"""Stands for a NUL byte while CSV is parsed: csv refuses NUL on Python 3.10. surrogateescape never makes it."""
_ESCAPED = re.compile("[\udc00\udc80-\udcff]")
_QUOTE_REMEDY = (
    'close the quote, or put the field in quotes and write a quote inside it twice (""); a text whose lines look like '
    "rows of the table is read from JSONL"
)
_MAX_ALIKE = 50
"""Lines that look like rows of their own, behind which an open quote is not followed any further."""
_MIN_DELIMITERS = 4
"""Delimiters inside a text that make its lines look like rows: so many do not stand there by chance."""
_MAX_AGAIN = 1_000_000
"""Lines read again for quotes that nothing closes, beside 2 * `_MAX_ALIKE` a line, before the file is given up."""


def read_csv_rows(path: Path) -> Iterator[RawRow | BadRow]:
    """Stream the rows of a UTF-8 CSV or TSV file whose first line names the columns; lines are read one by one.

    A stray quote costs the row it stands in: reading goes on with the line behind it. It is known by what follows:
    nothing closes it, or text stands behind the quote that does, or each line up to there is a row of its own.

    Raises:
        DataError: If there is no usable header, or nothing closes many of the quotes.
    """
    csv.field_size_limit(_FIELD_LIMIT)
    with path.open("rb") as stream:
        lines = _Lines(stream)
        delimiter = "\t" if path.suffix.lower() == ".tsv" else _pick_delimiter(lines.peek())
        # strict: a stray or unclosed quote is reported where it starts; otherwise it would swallow rows silently
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        header = _read_header(reader, path)
        lines.shape = _Shape(len(header), delimiter)
        doubtful = opened = 0  # the line whose first quote may close the one that was opened in another
        n_again = 0
        while True:
            lines.start_record()
            try:
                fields = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield _csv_fault(lines, error)
                if lines.number > lines.first:
                    if not lines.is_open:
                        doubtful, opened = lines.number, lines.first
                    n_again += lines.return_to_second()
                if n_again > _MAX_AGAIN + 2 * _MAX_ALIKE * lines.number:
                    reason = "so many rows open a quote that nothing closes that this is no CSV"
                    raise DataError(f"{path}, line {lines.first}: {reason}; write it again, or as JSONL") from error
                continue
            line, last = lines.first, lines.number
            if line <= doubtful <= last and lines.n_quotes % 2:
                reason = f"an odd number of quotes behind the unclosed quote at line {opened}"
                yield BadRow(line, "row", "", reason, _QUOTE_REMEDY)
            elif lines.are_alike and (len(fields) != len(header) or lines.shape.is_sure(last - line)):
                yield _unclosed_quote(lines)
                doubtful, opened = last, line
                lines.return_to_second()
            elif fields:
                row = _make_row(line, header, fields, delimiter)
                if lines.are_alike and isinstance(row, RawRow):
                    row = row._replace(doubt=f"one quoted field goes on to line {last}, and each line looks like a row")
                yield row


class _Shape(NamedTuple):
    """What a row on one line looks like."""

    n_columns: int = 1
    delimiter: str = ","

    def fits(self, line: str, *, is_first: bool) -> bool:
        """Whether a line of a record would be a row if the quote that the first one leaves open were a plain sign."""
        if is_first:
            *fields, rest = next(csv.reader([line], delimiter=self.delimiter))
            return self._is_row([*fields, *rest.rstrip("\r\n").split(self.delimiter)])
        try:
            if self._is_row(next(csv.reader([line], delimiter=self.delimiter, strict=True))):
                return True
        except csv.Error:
            pass
        return self._is_row(line.rstrip("\r\n").split(self.delimiter))

    def _is_row(self, fields: list[str]) -> bool:
        if len(fields) != self.n_columns or self.n_columns == 1:
            return False
        # a space follows the comma in a sentence, and a comma may end a line of it
        return self.delimiter == "\t" or (fields[-1] != "" and not any(field.startswith(" ") for field in fields[1:]))

    def is_sure(self, n_behind: int) -> bool:
        """Whether a first line and `n_behind` more are rows, if all of them fit. A tab does not stand in a text."""
        return n_behind > 0 and (self.delimiter == "\t" or (self.n_columns - 1) * n_behind >= _MIN_DELIMITERS)


class _Lines:
    """Decoded lines of a file, as an iterator for `csv` that can go back behind the first line of a record."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._offset = self._second = 0
        self._first_text = ""
        self.shape = _Shape()
        """Known once the header is read."""
        self.number = 0
        """Of the last line read, from 1 on."""
        self.first = 1
        """Number of the first line of the record."""
        self.n_quotes = 0
        """In the lines of the record."""
        self.are_alike = False
        """Whether the record has several lines and each would be a row if its first open quote were a plain sign."""
        self.is_open = False
        """Whether the quote was not followed to a closing one: there is none, or too many lines look like rows."""

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line or (self.are_alike and self.number - self.first >= _MAX_ALIKE):
            self.is_open = True
            raise StopIteration
        self.number += 1
        self._offset += len(line)
        self.n_quotes += line.count(b'"')
        text = _decode_line(line)
        if self.number == 1:
            text = text.removeprefix("\ufeff")
        if self.number == self.first:
            self._second, self._first_text = self._offset, text
        else:
            if self.number == self.first + 1:
                self.are_alike = self.shape.fits(self._first_text, is_first=True)
            self.are_alike = self.are_alike and self.shape.fits(text, is_first=False)
        return text

    def start_record(self) -> None:
        """The next line is the first one of a record."""
        self.first, self.n_quotes, self.are_alike, self.is_open = self.number + 1, 0, False, False

    def return_to_second(self) -> int:
        """Go on behind the first line of the record; returns how many lines will be read again."""
        n_again = self.number - self.first
        self._stream.seek(self._second)
        self._offset, self.number = self._second, self.first
        return n_again

    def peek(self) -> str:
        """The first line of the file; reading goes on where it was."""
        self._stream.seek(0)
        text = _decode_line(self._stream.readline())
        self._stream.seek(self._offset)
        return text.removeprefix("\ufeff")


def _csv_fault(lines: _Lines, error: csv.Error) -> BadRow:
    if lines.number > lines.first or lines.is_open:
        return _unclosed_quote(lines)
    return BadRow(lines.first, "row", "", f"not valid CSV: {error}", _QUOTE_REMEDY)


def _unclosed_quote(lines: _Lines) -> BadRow:
    reason = f"not valid CSV: unclosed quote at line {lines.first}; the lines behind it are read as rows again"
    return BadRow(lines.first, "row", f"up to line {lines.number}", reason, _QUOTE_REMEDY)


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
