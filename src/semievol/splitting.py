"""Cuts rows into parts and draws subsets, seeded, stratified by class, with groups kept whole.

Units (a group, or a row without one) are put in an order that keeps classes together and is random within a class;
walking it, each unit goes to the part that lags most behind its share. So every class, and every run of rows, is cut
in the same proportions up to one unit, without rounding that adds up over many small classes.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from semievol.config import SplitConfig
from semievol.errors import ConfigError, DataError


class Unit(NamedTuple):
    """Rows that stay together."""

    rows: tuple[int, ...]
    stratum: str
    """The most frequent class of its rows."""


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

    def put(unit: Unit, part: int) -> None:
        filled[part] += len(unit.rows)
        for row in unit.rows:
            parts[row] = part if part < len(counts) else None

    if cover is not None:
        first = _cover_units(units, wanted[cover], wanted[cover] / max(1, n))
        for i in first:
            put(units[i], cover)
        units = [unit for i, unit in enumerate(units) if i not in first]
    left = [max(0, want - have) for want, have in zip(wanted, filled, strict=True)]
    shares = [part_left / max(1, sum(left)) for part_left in left]
    deficits = [0.0] * len(wanted)
    for unit in units:
        size = len(unit.rows)
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


def _make_units(
    classes: Sequence[str | None], groups: Sequence[str | None], generator: np.random.Generator
) -> list[Unit]:
    members: defaultdict[tuple[int, str], list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[(i, "") if group is None else (-1, group)].append(i)
    units = []
    for rows in members.values():
        counted = Counter(classes[i] or "" for i in rows)
        stratum = min(counted, key=lambda name: (-counted[name], name))
        units.append(Unit(tuple(rows), stratum))
    order = generator.permutation(len(units))
    strata = sorted({unit.stratum for unit in units})
    rank = {strata[int(p)]: i for i, p in enumerate(generator.permutation(len(strata)))}
    return sorted((units[int(i)] for i in order), key=lambda unit: rank[unit.stratum])


def _cover_units(units: Sequence[Unit], n_wanted: int, share: float) -> set[int]:
    """The first unit of each class that might otherwise go without: fewer than two rows expected."""
    sizes: Counter[str] = Counter()
    first: dict[str, int] = {}
    for i, unit in enumerate(units):
        sizes[unit.stratum] += len(unit.rows)
        first.setdefault(unit.stratum, i)
    chosen = [i for stratum, i in first.items() if sizes[stratum] * share < 2]
    return set(chosen) if sum(len(units[i].rows) for i in chosen) <= n_wanted and len(sizes) <= n_wanted else set()


def split_counts(split: SplitConfig, *, n_with_target: int, n_without: int) -> tuple[int, int, int]:
    """Rows with a target that go to labelled, unlabelled and test.

    Values up to 1 are fractions of the rows with a target, larger ones are counts. Rows without a target are always
    unlabelled, so where there are some, fractions of labelled and test are scaled up to share all rows with a target,
    and a count of unlabelled rows is filled with rows without a target first.

    Raises:
        ConfigError: If the fractions sum to more than 1.
        DataError: If the counts ask for more rows than there are.
    """
    asked = {"labeled": split.labeled, "unlabeled": split.unlabeled, "test": split.test}
    fractions = {name: value for name, value in asked.items() if value <= 1}
    if sum(fractions.values()) > 1 + 1e-6:
        raise ConfigError(f"data.split: the fractions {fractions} sum to more than 1; lower one of them")
    if n_without and len(fractions) == 3:
        n_labeled = round(n_with_target * split.labeled / (split.labeled + split.test))
        return n_labeled, 0, n_with_target - n_labeled
    bounds = np.cumsum([fractions.get(name, 0.0) for name in asked]) * n_with_target
    edges = [0, *(round(float(bound)) for bound in bounds)]
    counts = {name: edges[i + 1] - edges[i] for i, name in enumerate(asked)}
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
