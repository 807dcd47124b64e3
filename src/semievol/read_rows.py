"""The rows of a run between reading and writing: their text on disk, and in arrays what draws and cuts need of them."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semievol.drafts import Place
from semievol.spool import Positions, Spool, View
from semievol.types import Example, Gold, SplitName

SPLITS: tuple[SplitName, SplitName, SplitName] = ("labeled", "unlabeled", "test")


class ReadRow(NamedTuple):
    """A row with its target apart from it, so that the target of an unlabelled row is not used by accident."""

    place: Place
    example: Example
    target: str | None

    def labeled(self) -> Example:
        """The example with its target."""
        return replace(self.example, target=self.target)

    def unlabeled(self) -> Example:
        """The example without its target."""
        return self.example

    def gold(self) -> Gold:
        """The target, for the sealed file."""
        return Gold(self.example.id, self.target or "")


class ReadRows(NamedTuple):
    """The good rows in the order of the files. Functions about some of them take and give positions in `read`."""

    read: Spool[ReadRow]
    split_codes: "array[int]"
    """Of each row of `read` the place of its split in SPLITS, -1 before the cut of one file."""

    def append(self, row: ReadRow) -> None:
        """Add a row."""
        self.read.append(row)
        self.split_codes.append(-1 if row.place.split is None else SPLITS.index(row.place.split))

    def at(self, positions: Positions) -> Iterator[ReadRow]:
        """Walk over some rows."""
        return (self.read[int(i)] for i in positions)

    def by_split(self, positions: Positions) -> dict[SplitName, Positions]:
        """Positions of each split, of files that came apart."""
        codes = np.asarray(self.split_codes)[positions]
        return {name: positions[codes == code] for code, name in enumerate(SPLITS)}

    def labeled(self, positions: Positions) -> Sequence[Example]:
        """Some rows with their targets."""
        return View(self.read, positions, ReadRow.labeled)

    def unlabeled(self, positions: Positions) -> Sequence[Example]:
        """Some rows without their targets."""
        return View(self.read, positions, ReadRow.unlabeled)

    def lacks_target(self, positions: Positions) -> NDArray[np.bool_]:
        """Of each of some rows, whether it has no target."""
        return np.fromiter((row.target is None for row in self.at(positions)), dtype=bool, count=len(positions))

    def with_gold(self, positions: Positions, unread: frozenset[str | None]) -> Positions:
        """Those rows whose target is there and none of `unread`."""
        has_gold = (row.target is not None and row.target not in unread for row in self.at(positions))
        found: Positions = positions[np.fromiter(has_gold, dtype=bool, count=len(positions))]
        return found
