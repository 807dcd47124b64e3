"""Records that wait on disk while a stage works: a temporary file without a name, 8 bytes of memory a record.

Also the views that stand in for lists of rows: a choice of positions over records that are read when they are asked
for. Both are sequences, so what takes a list of rows takes them, and memory does not grow with the rows.
"""

import tempfile
import weakref
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar, overload

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from semievol.artifacts import clear_disk_errors, record_adapter
from semievol.errors import ArtifactError

Record = TypeVar("Record")
Item = TypeVar("Item")

Positions = NDArray[np.int64]


class DiskSequence(Sequence[Item]):
    """A sequence whose items are made when they are asked for; equal to any sequence of equal items."""

    def _get(self, position: int) -> Item:
        raise NotImplementedError

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return [self._get(i) for i in range(*index.indices(len(self)))]
        position = index + len(self) if index < 0 else index
        if not 0 <= position < len(self):
            raise IndexError(f"{index} is none of {len(self)} positions")
        return self._get(position)

    def __iter__(self) -> Iterator[Item]:
        return (self._get(i) for i in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)}>"


class Spool(DiskSequence[Record], Generic[Record]):
    """Records of one type, in the order in which they were appended.

    The file has no name, so nothing is left behind however the process ends; it is closed with the last reference.
    """

    def __init__(self, kind: type[Record], *, folder: Path | None = None, records: Iterable[Record] = ()) -> None:
        """Keep records of `kind` in `folder`, which has to exist; None: the system's place for temporary files."""
        self._adapter = record_adapter(kind)
        self._folder = folder or Path(tempfile.gettempdir())
        with clear_disk_errors(self._folder):
            self._file: Any = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # closed by the finalizer
        weakref.finalize(self, self._file.close)
        self._ends = array("Q", [0])
        self._is_writing = True
        for record in records:
            self.append(record)

    def append(self, record: Record) -> None:
        """Add a record at the end."""
        line: bytes = self._adapter.dump_json(record)
        with clear_disk_errors(self._folder):
            if not self._is_writing:
                self._file.seek(self._ends[-1])
                self._is_writing = True
            self._file.write(line)
        self._ends.append(self._ends[-1] + len(line))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _get(self, position: int) -> Record:
        start, end = self._ends[position], self._ends[position + 1]
        if self._is_writing or self._file.tell() != start:
            with clear_disk_errors(self._folder):
                self._file.seek(start)  # writes out what is buffered
            self._is_writing = False
        record: Record = self._adapter.validate_json(self._file.read(end - start))
        return record


class View(DiskSequence[Item], Generic[Record, Item]):
    """What `make` makes of the records at some positions, in that order."""

    def __init__(self, records: Sequence[Record], positions: Positions, make: Callable[[Record], Item]) -> None:
        self._records, self._positions, self._make = records, positions, make

    def __len__(self) -> int:
        return len(self._positions)

    def _get(self, position: int) -> Item:
        return self._make(self._records[int(self._positions[position])])


class Joined(DiskSequence[Item]):
    """Several sequences, one behind the other."""

    def __init__(self, *parts: Sequence[Item]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def _get(self, position: int) -> Item:
        for part in self._parts:
            if position < len(part):
                return part[position]
            position -= len(part)
        raise IndexError(position)


class RecordFile(DiskSequence[Record], Generic[Record]):
    """The records of a JSONL artifact by their place; 8 bytes of memory a record."""

    def __init__(self, path: Path, kind: type[Record]) -> None:
        """Find where the lines begin. Raises ArtifactError if the file is missing."""
        self._path, self._kind = path, kind
        self._adapter = record_adapter(kind)
        try:
            self._file = path.open("rb")
        except FileNotFoundError:
            raise ArtifactError(f"{path} is missing; run the stages before it again") from None
        weakref.finalize(self, self._file.close)
        self._ends = array("Q", [0])
        for line in self._file:
            self._ends.append(self._ends[-1] + len(line))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def _get(self, position: int) -> Record:
        start, end = self._ends[position], self._ends[position + 1]
        if self._file.tell() != start:
            self._file.seek(start)
        try:
            record: Record = self._adapter.validate_json(self._file.read(end - start))
        except ValidationError as error:
            raise ArtifactError(f"{self._path}, line {position + 1}: not a {self._kind.__name__}: {error}") from error
        return record
