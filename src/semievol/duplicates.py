"""Finds exact and near duplicates across and within splits.

Rows are exact duplicates when their normal forms are equal: NFKC, case folded, whitespace and punctuation collapsed;
signs that carry meaning (`+`, `*`, the minus of a number) stay, so "3 + 4" and "3 * 4" differ. Near duplicates have
a Jaccard similarity of their token sets of at least the threshold. The search is exact, it misses no pair: two sets
that reach the threshold t share a token among the first |x| - ceil(t |x|) + 1 in any common order (prefix filtering;
Bayardo et al. 2007, Xiao et al. 2008), and with rare tokens first few rows share one. Only rows that others are
compared with are held, as tuples of token numbers.
"""

import hashlib
import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from semievol.types import Example, SplitName, choice_letter

MIN_NEAR_TOKENS = 4
"""Rows of fewer different tokens are compared exactly only: one word more would mean too much."""

_PUNCTUATION = re.escape("!\"'(),.:;?[]{}`-‘’“”„‚–—―…«»‹›·•、。「」『』【】〈〉《》¿¡′″")  # noqa: RUF001
_CJK = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_TOKEN = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+|[^\w\s{_PUNCTUATION}]|-(?=\d)|(?<=\s)-(?=\s)")
_ROUNDING = 1e-9


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
) -> list[Duplicate]:
    """Find the labelled and unlabelled rows that repeat another row, each with the one it repeats.

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
    index.number_tokens([*test, *labeled])
    for row in test:
        index.add(row, "test")
    found: list[Duplicate] = []
    kept: list[Example] = []
    for row in labeled:
        match = index.find(row)
        if match is None:
            index.add_exact(row, "labeled")
            kept.append(row)
        else:
            found.append(Duplicate(row.id, "labeled", match.id, match.split, match.similarity, drop))
    for row in kept:  # only now: near duplicates among labelled rows are no fault
        index.add_near(row, "labeled")
    for row in unlabeled:
        match = index.find(row)
        if match is None:
            index.add_exact(row, "unlabeled")
        else:
            found.append(Duplicate(row.id, "unlabeled", match.id, match.split, match.similarity, drop))
    return found


def find_duplicates_within(
    rows: Sequence[Example], *, similarity: float, shared_choices: bool, drop: bool
) -> list[Duplicate]:
    """Find the rows of a file, before it is split, that repeat an earlier one, exactly or nearly.

    Put rows that should win first.
    """
    index = _Index(similarity, shared_choices=shared_choices)
    index.number_tokens(rows)
    found = []
    for row in rows:
        match = index.find(row)
        if match is None:
            index.add(row, None)
        else:
            found.append(Duplicate(row.id, None, match.id, None, match.similarity, drop))
    return found


def find_conflicts(duplicates: Iterable[Duplicate], rows: Iterable[Example]) -> list[Duplicate]:
    """The exact duplicates among `rows` whose target means something else than the one of the row they repeat."""
    by_id = {row.id: row for row in rows}
    conflicts = []
    for duplicate in duplicates:
        row, other = by_id.get(duplicate.id), by_id.get(duplicate.of_id)
        if row is None or other is None or duplicate.similarity < 1 or row.target is None or other.target is None:
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


@dataclass(frozen=True, slots=True)
class _Entry:
    id: str
    split: SplitName | None


@dataclass(frozen=True, slots=True)
class _Match:
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
        self._number: dict[str, int] = {}

    def number_tokens(self, rows: Iterable[Example]) -> None:
        """Number the tokens of all rows that may be added near, rarest first."""
        if not self._near:
            return
        counts: Counter[str] = Counter()
        for row in rows:
            counts.update(set(tokenize("\n".join(self._parts(row)))))
        order = sorted(counts, key=lambda token: (counts[token], token))
        self._number = {token: i for i, token in enumerate(order)}

    def add(self, row: Example, split: SplitName | None) -> None:
        self.add_exact(row, split)
        self.add_near(row, split)

    def add_exact(self, row: Example, split: SplitName | None) -> None:
        self._exact.setdefault(self._key(row), _Entry(row.id, split))

    def add_near(self, row: Example, split: SplitName | None) -> None:
        if not self._near:
            return
        tokens, _ = self._token_numbers(row)
        if len(tokens) < MIN_NEAR_TOKENS:
            return
        position = len(self._entries)
        self._entries.append(_Entry(row.id, split))
        self._tokens.append(tokens)
        for token in tokens[: self._prefix_length(len(tokens))]:
            self._postings[token].append(position)

    def find(self, row: Example) -> _Match | None:
        """The kept row that `row` repeats: an exact duplicate, else the most similar row, test before labelled."""
        exact = self._exact.get(self._key(row))
        if exact is not None:
            return _Match(exact.id, exact.split, 1.0)
        return self._find_near(row) if self._near else None

    def _find_near(self, row: Example) -> _Match | None:
        known, n_unknown = self._token_numbers(row)
        size = len(known) + n_unknown
        # Tokens that no added row has come first in the common order: they fill the prefix and match nothing.
        prefix = self._prefix_length(size) - n_unknown
        if size < MIN_NEAR_TOKENS or prefix <= 0:
            return None
        smallest, largest = size * self._similarity - _ROUNDING, size / self._similarity + _ROUNDING
        candidates = {position for token in known[:prefix] for position in self._postings.get(token, ())}
        tokens = frozenset(known)
        best: tuple[bool, float, int] | None = None
        for position in candidates:
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

    def _token_numbers(self, row: Example) -> tuple[tuple[int, ...], int]:
        """Sorted numbers of the row's known tokens, and how many of its tokens are unknown."""
        tokens = set(tokenize("\n".join(self._parts(row))))
        known = sorted(self._number[token] for token in tokens if token in self._number)
        return tuple(known), len(tokens) - len(known)

    def _key(self, row: Example) -> bytes:
        parts = (" ".join(tokenize(part)) or part.strip() for part in self._parts(row))
        return hashlib.blake2b("\x1f".join(parts).encode("utf-8", "surrogatepass"), digest_size=16).digest()

    def _parts(self, row: Example) -> list[str]:
        parts = [row.question, row.context or "", *(turn.content for turn in row.history)]
        return parts if self._shared_choices else [*parts, *row.choices]
