"""Finds exact and near duplicates across and within splits.

Rows are exact duplicates when their normal forms are equal: NFKC, case folded, whitespace and punctuation collapsed;
signs that carry meaning (`+`, `*`, the minus of a number) stay, so "3 + 4" and "3 * 4" differ. Near duplicates have
a Jaccard similarity of their token sets of at least the threshold. The search is exact, it misses no pair: two sets
that reach the threshold t share a token among the first |x| - ceil(t |x|) + 1 in any common order, and two among one
more (prefix filtering; Bayardo et al. 2007, Xiao et al. 2008), and with rare tokens first few rows share one. Only rows
that others are compared with are held, as tuples of token numbers.
"""

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import NamedTuple

import numpy as np

from semievol.types import Example, SplitName, choice_letter

MIN_NEAR_TOKENS = 4
"""Rows of fewer different tokens are compared exactly only: one word more would mean too much."""

_PUNCTUATION = re.escape("!\"'(),.:;?[]{}`-‘’“”„‚–—―…«»‹›·•、。「」『』【】〈〉《》¿¡′″")  # noqa: RUF001
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+|[^\w\s{_PUNCTUATION}]|-(?=\d)|(?<=\s)-(?=\s)")
_ROUNDING = 1e-9
_PAIR_PREFIX = 5
"""Prefix up to which rows are found by pairs of rare tokens: short rows of few words share single ones too often."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A row that repeats another one, which is kept."""

    id: str
    split: SplitName | None
    """None, as in `of_split`: found in the one file, before it was split."""
    of_id: str
    of_split: SplitName | None
    similarity: float
    """1.0 for exact duplicates, else the Jaccard similarity of the token sets."""
    dropped: bool


def tokenize(text: str) -> list[str]:
    """Words and meaningful signs of `text` in their normal form. CJK text counts by the character."""
    return _TOKEN.findall(unicodedata.normalize("NFKC", text).casefold())


def find_duplicates(
    test: Sequence[Example],
    labeled: Sequence[Example],
    unlabeled: Sequence[Example],
    *,
    similarity: float,
    shared_choices: bool,
    drop: bool,
) -> Iterator[Duplicate]:
    """Find the labelled and unlabelled rows that repeat another row, each with the one it repeats, in their order.

    The unlabelled side loses to test and to labelled, labelled loses to test, and test rows never lose. Across splits
    exact and near duplicates count; within labelled and within unlabelled exact ones do, and the first row is kept.
    A row is compared with kept rows only: the copy of a copy that left is a duplicate only if it is one of a kept row.

    Args:
        test: Rows that are never touched.
        labeled: Rows with targets.
        unlabeled: Rows without.
        similarity: Jaccard similarity from which rows are near duplicates; at 1 only exact ones are looked for.
        shared_choices: Whether all rows have the same options, which then say nothing about a row.
        drop: Written to the records.
    """
    index = _Index(similarity, shared_choices=shared_choices)
    index.number_tokens(chain(test, labeled))
    for row in test:
        index.add(index.view(row), "test")
    kept: list[_View] = []
    for row in labeled:
        view = index.view(row)
        match = index.find(view)
        if match is None:
            index.add_exact(view, "labeled")
            kept.append(view)
        else:
            yield Duplicate(row.id, "labeled", match.id, match.split, match.similarity, drop)
    for view in kept:  # only now: near duplicates among labelled rows are no fault
        index.add_near(view, "labeled")
    yield from _find_unlabeled(index, unlabeled, drop=drop)


def _find_unlabeled(index: "_Index", unlabeled: Sequence[Example], *, drop: bool) -> Iterator[Duplicate]:
    """Two passes, so that no row but those of `index` is held: 16 bytes a row say which repeat an earlier one.

    Equal rows are near duplicates of the same others. So the first of them decides whether all repeat a row of `index`,
    or whether it stays and the others repeat it.
    """
    keys = np.zeros((len(unlabeled), 2), dtype=np.uint64)
    matches: dict[int, _Match] = {}
    for i, row in enumerate(unlabeled):
        view = index.view(row)
        match = index.find(view)
        if match is not None:
            matches[i] = match
        keys[i] = np.frombuffer(view.key, dtype=np.uint64)
    order = np.lexsort((keys[:, 1], keys[:, 0]))  # stable: the first of equal rows comes first
    ordered = keys[order]
    del keys
    is_repeat = (
        np.concatenate([[False], (ordered[1:] == ordered[:-1]).all(axis=1)]) if len(order) else np.zeros(0, bool)
    )
    del ordered
    start = np.maximum.accumulate(np.where(is_repeat, 0, np.arange(len(order))))
    repeated = np.flatnonzero(is_repeat)
    positions, firsts = order[repeated], order[start[repeated]]
    by_position = np.argsort(positions)
    first_of = zip(positions[by_position].tolist(), firsts[by_position].tolist(), strict=True)
    del order, start
    place, first = next(first_of, (-1, -1))
    for i in range(len(unlabeled)) if matches or place >= 0 else ():
        match = matches.get(i)
        if match is not None:
            yield Duplicate(unlabeled[i].id, "unlabeled", match.id, match.split, match.similarity, drop)
        elif i == place:
            yield Duplicate(unlabeled[i].id, "unlabeled", unlabeled[first].id, "unlabeled", 1.0, drop)
        if i == place:
            place, first = next(first_of, (-1, -1))


def find_duplicates_within(
    rows: Sequence[Example], *, similarity: float, shared_choices: bool, drop: bool
) -> Iterator[Duplicate]:
    """Find the rows of a file, before it is split, that repeat an earlier one, exactly or nearly; in their order.

    Put rows that should win first.
    """
    index = _Index(similarity, shared_choices=shared_choices)
    index.number_tokens(rows)
    for row in rows:
        view = index.view(row)
        match = index.find(view)
        if match is None:
            index.add(view, None)
        else:
            yield Duplicate(row.id, None, match.id, None, match.similarity, drop)


def find_conflicts(duplicates: Iterable[Duplicate], rows: Iterable[Example]) -> list[Duplicate]:
    """The exact duplicates among `rows` whose target means something else than the one of the row they repeat."""
    exact = [duplicate for duplicate in duplicates if duplicate.similarity == 1 and duplicate.split != "unlabeled"]
    named = {name for duplicate in exact for name in (duplicate.id, duplicate.of_id)}
    by_id = {row.id: row for row in rows if row.id in named} if named else {}
    conflicts = []
    for duplicate in exact:
        row, other = by_id.get(duplicate.id), by_id.get(duplicate.of_id)
        if row is None or other is None or row.target is None or other.target is None:
            continue
        if _target_text(row) != _target_text(other):
            conflicts.append(duplicate)
    return conflicts


def _target_text(row: Example) -> str | None:
    """What the target says: for a choice the option behind the letter, since options may stand in another order."""
    for i, text in enumerate(row.choices):
        if choice_letter(i) == row.target:
            return text
    return row.target


class _View(NamedTuple):
    """What is compared of a row."""

    id: str
    key: bytes
    """Digest of the normal form."""
    tokens: frozenset[str]


class _Entry(NamedTuple):
    id: str
    split: SplitName | None


class _Match(NamedTuple):
    id: str
    split: SplitName | None
    similarity: float


class _Index:
    """Kept rows, searchable by normal form and by the rare tokens of their sets."""

    def __init__(self, similarity: float, *, shared_choices: bool) -> None:
        self._similarity = similarity
        self._shared_choices = shared_choices
        self._near = similarity < 1
        self._exact: dict[bytes, _Entry] = {}
        self._entries: list[_Entry] = []
        self._tokens: list[tuple[int, ...]] = []
        self._postings: defaultdict[int, list[int]] = defaultdict(list)
        self._pair_postings: defaultdict[int, list[int]] = defaultdict(list)
        # Rows of up to `_pairs_to` tokens are found by pairs; those from `_singles_from` on by single tokens as well,
        # since a partner beyond `_pairs_to * t` looks for them there, and its partners are at most 1 / t away.
        self._pairs_to = _PAIR_PREFIX / (1 - similarity) if self._near else 0.0
        self._singles_from = similarity**2 * self._pairs_to - 4 * _ROUNDING
        self._number: dict[str, int] = {}

    def number_tokens(self, rows: Iterable[Example]) -> None:
        """Number the tokens of all rows that may be added near, rarest first."""
        if not self._near:
            return
        counts: Counter[str] = Counter()
        for row in rows:
            counts.update(self.view(row).tokens)
        order = sorted(counts, key=lambda token: (counts[token], token))
        self._number = {token: i for i, token in enumerate(order)}

    def view(self, row: Example) -> _View:
        """The row's normal form and token set, from one pass over its text."""
        parts = [row.question, row.context or "", *(turn.content for turn in row.history)]
        if not self._shared_choices:
            parts += row.choices
        tokens = [tokenize(part) for part in parts]
        text = "\x1f".join(" ".join(found) or part.strip() for found, part in zip(tokens, parts, strict=True))
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        return _View(row.id, key, frozenset(chain.from_iterable(tokens)))

    def add(self, view: _View, split: SplitName | None) -> None:
        self.add_exact(view, split)
        self.add_near(view, split)

    def add_exact(self, view: _View, split: SplitName | None) -> None:
        self._exact.setdefault(view.key, _Entry(view.id, split))

    def add_near(self, view: _View, split: SplitName | None) -> None:
        if not self._near:
            return
        tokens, _ = self._token_numbers(view)
        if len(tokens) < MIN_NEAR_TOKENS:
            return
        position = len(self._entries)
        self._entries.append(_Entry(view.id, split))
        self._tokens.append(tokens)
        if len(tokens) <= self._pairs_to:
            for pair in self._pairs(tokens[: self._prefix_length(len(tokens)) + 1]):
                self._pair_postings[pair].append(position)
        if len(tokens) >= self._singles_from:
            for token in tokens[: self._prefix_length(len(tokens))]:
                self._postings[token].append(position)

    def _pairs(self, prefix: Sequence[int]) -> list[int]:
        n = len(self._number)
        return [a * n + b for a, b in combinations(prefix, 2)]

    def _candidates(self, known: Sequence[int], n_unknown: int) -> set[int]:
        """Positions of all rows that may reach the similarity. Sizes of a pair differ by the factor t at most."""
        size = len(known) + n_unknown
        # Tokens that no added row has come first in the common order: they fill the prefix and match nothing.
        prefix = self._prefix_length(size) - n_unknown
        if size / self._similarity + _ROUNDING <= self._pairs_to:
            pairs = self._pairs(known[: max(0, prefix + 1)])
            return {position for pair in pairs for position in self._pair_postings.get(pair, ())}
        return {position for token in known[: max(0, prefix)] for position in self._postings.get(token, ())}

    def find(self, view: _View) -> _Match | None:
        """The kept row that a row repeats: an exact duplicate, else the most similar row, test before labelled."""
        exact = self._exact.get(view.key)
        if exact is not None:
            return _Match(exact.id, exact.split, 1.0)
        return self._find_near(view) if self._near else None

    def _find_near(self, view: _View) -> _Match | None:
        known, n_unknown = self._token_numbers(view)
        size = len(known) + n_unknown
        if size < MIN_NEAR_TOKENS:
            return None
        smallest, largest = size * self._similarity - _ROUNDING, size / self._similarity + _ROUNDING
        tokens = frozenset(known)
        best: tuple[bool, float, int] | None = None
        for position in self._candidates(known, n_unknown):
            other = self._tokens[position]
            if not smallest <= len(other) <= largest:
                continue
            n_shared = len(tokens.intersection(other))
            value = n_shared / (size + len(other) - n_shared)
            if value >= self._similarity:
                rank = (self._entries[position].split != "test", -value, position)
                best = rank if best is None else min(best, rank)
        if best is None:
            return None
        entry = self._entries[best[2]]
        return _Match(entry.id, entry.split, -best[1])

    def _prefix_length(self, size: int) -> int:
        return size - math.ceil(self._similarity * size - _ROUNDING) + 1

    def _token_numbers(self, view: _View) -> tuple[tuple[int, ...], int]:
        """Sorted numbers of the row's known tokens, and how many of its tokens are unknown."""
        known = sorted(self._number[token] for token in view.tokens if token in self._number)
        return tuple(known), len(view.tokens) - len(known)
