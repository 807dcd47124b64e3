from itertools import combinations
from random import Random

import pytest

from semievol.demo.drawing import Deck, NearDuplicates, apportion, pick, shuffled


def test_apportion_adds_up_to_the_total() -> None:
    assert apportion(100, [20, 16, 13, 11, 10, 8, 7, 5, 5, 5], least=1) == [19, 15, 13, 11, 10, 8, 7, 6, 6, 5]


@pytest.mark.parametrize("total", range(0, 12))
def test_apportion_stays_within_shares(total: int) -> None:
    shares = [5, 3, 2, 1, 0]
    counts = apportion(total, shares) if total <= sum(shares) else shares
    assert sum(counts) == min(total, sum(shares))
    assert all(count <= share for count, share in zip(counts, shares, strict=True))


def test_apportion_of_nothing_over_empty_shares_is_nothing() -> None:
    assert apportion(0, [0, 0]) == [0, 0]


def test_shuffled_keeps_items_and_argument() -> None:
    items = list(range(20))
    assert sorted(shuffled(Random(0), items)) == items == list(range(20))


def test_pick_reaches_every_option() -> None:
    rng = Random(0)
    assert {pick(rng, "abc") for _ in range(100)} == set("abc")


def test_deck_deals_all_before_repeating() -> None:
    deck = Deck(Random(0), "abcd")
    assert all({deck.draw() for _ in range(4)} == set("abcd") for _ in range(3))


def test_near_duplicates_agrees_with_comparing_all_pairs() -> None:
    rng = Random(0)
    vocabulary = [f"{letter}{'x' * length}" for letter in "abcdef" for length in range(2)]
    texts = [" ".join(pick(rng, vocabulary) for _ in range(30)) for _ in range(200)]
    seen = NearDuplicates()
    admitted = [set(text.split()) for text in texts if seen.admit(text)]
    assert 1 < len(admitted) < len(texts)
    assert all(10 * len(a & b) < 9 * len(a | b) for a, b in combinations(admitted, 2))


def test_near_duplicates_ignores_case_and_punctuation() -> None:
    seen = NearDuplicates()
    assert seen.admit("Where is my parcel?")
    assert not seen.admit("where is my parcel")
