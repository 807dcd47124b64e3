"""Cuts rows into parts and draws subsets, seeded, stratified by class, with groups kept whole.

Units (a group, or a row without one) are put in an order that keeps classes together and is random within a class;
walking it, each unit goes to the part that lags most behind its share. So every class, and every run of rows, is cut
in the same proportions up to one unit, without rounding that adds up over many small classes.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from semievol.config import SplitConfig
from semievol.errors import ConfigError, DataError


class Units(NamedTuple):
    """Rows that stay together, in the order in which they are dealt out. Arrays, so that millions fit."""

    rows: NDArray[np.int64]
    """Positions of the rows, unit after unit in their first order."""
    bounds: NDArray[np.int64]
    """Unit u holds `rows[bounds[u] : bounds[u + 1]]`."""
    strata: NDArray[np.int64]
    """Number of the most frequent class of each unit's rows."""
    order: NDArray[np.int64]
    """The units as they are dealt out."""

    def size(self, unit: int) -> int:
        """Number of its rows."""
        return int(self.bounds[unit + 1] - self.bounds[unit])


def make_generator(seed: int, name: str) -> np.random.Generator:
    """A generator that depends on the run's seed and on what it is for, and on nothing else."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def assign_parts(
    classes: Sequence[str | None],
    groups: Sequence[str | None],
    *,
    counts: Sequence[int],
    generator: np.random.Generator,
    cover: int | None = None,
) -> list[int | None]:
    """Assign each row the number of its part, or None where the parts together ask for fewer rows than there are.

    Without groups the parts get exactly `counts` rows; with groups, up to a part of the last group more or less.

    Args:
        classes: Class of each row; None counts as a class of its own.
        groups: Rows of equal group go to the same part; None: the row stands alone.
        counts: Rows of each part; their sum is at most the number of rows.
        generator: Decides the order.
        cover: Number of a part that is to get at least one unit of each class, where its count allows that.
    """
    n = len(classes)
    wanted = [*counts, n - sum(counts)]
    units = _make_units(classes, groups, generator)
    parts: list[int | None] = [None] * n
    filled = [0] * len(wanted)

    def put(unit: int, part: int) -> None:
        filled[part] += units.size(unit)
        for row in units.rows[units.bounds[unit] : units.bounds[unit + 1]]:
            parts[row] = part if part < len(counts) else None

    first = set() if cover is None else _cover_units(units, wanted[cover], wanted[cover] / max(1, n))
    for unit in first:
        put(unit, cover or 0)
    left = [max(0, want - have) for want, have in zip(wanted, filled, strict=True)]
    shares = [part_left / max(1, sum(left)) for part_left in left]
    deficits = [0.0] * len(wanted)
    for unit in units.order.tolist():
        if unit in first:
            continue
        size = units.size(unit)
        deficits = [deficit + share * size for deficit, share in zip(deficits, shares, strict=True)]
        open_parts = [p for p in range(len(wanted)) if filled[p] < wanted[p]] or [int(np.argmax(wanted))]
        part = max(open_parts, key=lambda p: (deficits[p], -p))
        deficits[part] -= size
        put(unit, part)
    return parts


def draw_rows(classes: Sequence[str | None], n: int, generator: np.random.Generator) -> list[int]:
    """Draw `n` positions, stratified by class, in their old order; all positions where there are no more than `n`.

    Each class keeps at least one row where `n` allows it.
    """
    if len(classes) <= n:
        return list(range(len(classes)))
    parts = assign_parts(classes, [None] * len(classes), counts=[n], generator=generator, cover=0)
    return [i for i, part in enumerate(parts) if part == 0]


def _make_units(classes: Sequence[str | None], groups: Sequence[str | None], generator: np.random.Generator) -> Units:
    """Units in an order that keeps classes together, classes and the units of a class in random order."""
    numbers: dict[str, int] = {}
    # Units are numbered by their first row, groups and single rows alike.
    unit_of = np.empty(len(groups), dtype=np.int64)
    n_units = 0
    for i, group in enumerate(groups):
        unit_of[i] = n_units if group is None else numbers.setdefault(group, n_units)
        n_units += int(unit_of[i]) == n_units
    rows = np.argsort(unit_of, kind="stable")
    bounds = np.searchsorted(unit_of[rows], np.arange(n_units + 1))
    names = sorted({name or "" for name in classes})
    number = {name: i for i, name in enumerate(names)}
    class_of = np.fromiter((number[name or ""] for name in classes), dtype=np.int64, count=len(classes))
    strata = class_of[rows[bounds[:-1]]] if n_units else np.zeros(0, dtype=np.int64)
    for unit in np.flatnonzero(np.diff(bounds) > 1):  # names are sorted, so the lowest number wins a tie
        strata[unit] = int(np.argmax(np.bincount(class_of[rows[bounds[unit] : bounds[unit + 1]]])))
    order = generator.permutation(n_units)
    used = np.unique(strata)
    rank = np.empty(len(names), dtype=np.int64)
    rank[used[generator.permutation(len(used))]] = np.arange(len(used))
    return Units(rows, bounds, strata, order[np.argsort(rank[strata[order]], kind="stable")])


def _cover_units(units: Units, n_wanted: int, share: float) -> set[int]:
    """The first unit of each class that might otherwise go without: fewer than two rows expected."""
    sizes: Counter[int] = Counter()
    first: dict[int, int] = {}
    for unit in units.order.tolist():
        stratum = int(units.strata[unit])
        sizes[stratum] += units.size(unit)
        first.setdefault(stratum, unit)
    chosen = [unit for stratum, unit in first.items() if sizes[stratum] * share < 2]
    return set(chosen) if sum(map(units.size, chosen)) <= n_wanted and len(sizes) <= n_wanted else set()


def split_counts(split: SplitConfig, *, n_with_target: int, n_without: int) -> tuple[int, int, int]:
    """Rows with a target that go to labelled, unlabelled and test.

    Values up to 1 are fractions, larger ones are counts. Rows without a target are always unlabelled and go there
    first. Of three fractions of all rows, those with a target fill up what is missing of the unlabelled ones; where
    nothing is missing, labelled and test rows share all rows with a target. Beside counts, fractions are of the rows
    with a target.

    Raises:
        ConfigError: If the fractions sum to more than 1.
        DataError: If the counts ask for more rows than there are.
    """
    asked = {"labeled": split.labeled, "unlabeled": split.unlabeled, "test": split.test}
    fractions = {name: value for name, value in asked.items() if value <= 1}
    if sum(fractions.values()) > 1 + 1e-6:
        raise ConfigError(f"data.split: the fractions {fractions} sum to more than 1; lower one of them")
    n_rows = n_with_target + n_without if len(fractions) == 3 else n_with_target
    bounds = np.cumsum([fractions.get(name, 0.0) for name in asked]) * n_rows
    edges = [0, *(round(float(bound)) for bound in bounds)]
    counts = {name: edges[i + 1] - edges[i] for i, name in enumerate(asked)}
    if n_without and len(fractions) == 3:
        if n_without >= counts["unlabeled"]:
            n_labeled = round(n_with_target * split.labeled / (split.labeled + split.test))
            return n_labeled, 0, n_with_target - n_labeled
        counts["unlabeled"] -= n_without
    for name, value in asked.items():
        if value > 1:
            counts[name] = int(value)
    if split.unlabeled > 1:
        counts["unlabeled"] = max(0, counts["unlabeled"] - n_without)
    if sum(counts.values()) > n_with_target:
        raise DataError(
            f"data.split asks for {sum(counts.values())} rows with a target ({counts}), but the file has "
            f"{n_with_target} that are usable and no duplicates; lower the counts or give more rows"
        )
    return counts["labeled"], counts["unlabeled"], counts["test"]
