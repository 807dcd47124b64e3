"""Draw from a seed in a way that gives the same rows on every Python.

Of `random.Random`, only the sequence of `random()` is promised to stay the same between versions; shuffling and
choosing are therefore built on it here. Counts come from whole numbers, because sums of fractions differ between
versions too.
"""

import re
from collections.abc import Iterator, Sequence
from random import Random
from typing import Generic, TypeVar

__all__ = ["Deck", "NearDuplicates", "apportion", "pick", "shuffled"]

T = TypeVar("T")

_NEAR_DUPLICATE_PERCENT = 90


def pick(rng: Random, options: Sequence[T]) -> T:
    """Choose one of the options, all equally likely."""
    return options[int(rng.random() * len(options))]


def shuffled(rng: Random, items: Sequence[T]) -> list[T]:
    """Return the items in a random order; the argument stays as it is."""
    result = list(items)
    for last in range(len(result) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        result[last], result[other] = result[other], result[last]
    return result


def apportion(total: int, shares: Sequence[int], *, least: int = 0) -> list[int]:
    """Split `total` by `shares` with largest remainders, each part being `least` at the least.

    Where `total` is no more than the sum of the shares and `least` is 0, no part is larger than its share.
    """
    spare, whole = total - least * len(shares), sum(shares)
    if not spare:
        return [least] * len(shares)
    counts = [spare * share // whole for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda index: (-(spare * shares[index] % whole), index))
    for index in by_remainder[: spare - sum(counts)]:
        counts[index] += 1
    return [count + least for count in counts]


class Deck(Generic[T]):
    """Deals items evenly: none comes a second time before all have come once."""

    def __init__(self, rng: Random, items: Sequence[T]) -> None:
        self._cards = self._dealt(rng, items)

    @staticmethod
    def _dealt(rng: Random, items: Sequence[T]) -> Iterator[T]:
        while True:
            yield from shuffled(rng, items)

    def draw(self) -> T:
        """Take the next item; there always is one."""
        return next(self._cards)


class NearDuplicates:
    """Tells whether a text shares nine tenths of its words with an earlier one (Jaccard similarity of word sets).

    Two such texts agree in at least one of their first few words under any fixed order of words, so that only texts
    filed under one of these words have to be compared. Long words come first in the order, as they are the rarer ones.
    """

    def __init__(self) -> None:
        self._filed: dict[str, list[frozenset[str]]] = {}

    def admit(self, text: str) -> bool:
        """Remember the text and return True, unless it is too close to a remembered one."""
        tokens = frozenset(re.findall(r"\w+", text.lower()))
        ordered = sorted(tokens, key=lambda token: (-len(token), token))
        prefix = ordered[: len(ordered) - _NEAR_DUPLICATE_PERCENT * len(ordered) // 100 + 1]
        for token in prefix:
            for other in self._filed.get(token, ()):
                if 100 * len(tokens & other) >= _NEAR_DUPLICATE_PERCENT * len(tokens | other):
                    return False
        for token in prefix:
            self._filed.setdefault(token, []).append(tokens)
        return True
