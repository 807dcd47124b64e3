from hypothesis import given
from hypothesis import strategies as st

from semievol.duplicates import (
    MIN_NEAR_TOKENS,
    Duplicate,
    find_conflicts,
    find_duplicates,
    find_duplicates_within,
    tokenize,
)
from semievol.types import Example

LONG = "the quick brown fox jumps over the lazy dog near river bank"


def find(
    test: list[Example],
    labeled: list[Example],
    unlabeled: list[Example],
    *,
    similarity: float = 0.8,
    shared: bool = False,
) -> list[tuple[str, str, float]]:
    found = find_duplicates(test, labeled, unlabeled, similarity=similarity, shared_choices=shared, drop=True)
    return [(d.id, d.of_id, round(d.similarity, 3)) for d in found]


def test_tokenize_drops_case_and_punctuation_but_keeps_signs() -> None:
    assert tokenize("Don't  STOP -- it's ｆｕｌｌ!") == ["don", "t", "stop", "it", "s", "full"]  # noqa: RUF001
    assert tokenize("3 * -4 - 2") == ["3", "*", "-", "4", "-", "2"]
    assert tokenize("C++") != tokenize("C#")


def test_tokenize_counts_cjk_by_the_character() -> None:
    assert tokenize("\u6771\u4eac ok") == ["\u6771", "\u4eac", "ok"]


def test_find_duplicates_unlabeled_loses_to_test_and_labeled() -> None:
    rows = find(
        [Example("t", "One two?")],
        [Example("l", "three four")],
        [Example("u", "one  TWO"), Example("v", "three four.")],
    )
    assert rows == [("u", "t", 1.0), ("v", "l", 1.0)]


def test_find_duplicates_labeled_loses_to_test() -> None:
    assert find([Example("t", "one two")], [Example("l", "one two")], []) == [("l", "t", 1.0)]


def test_find_duplicates_never_reports_test_rows() -> None:
    assert find([Example("t", "one two"), Example("s", "one two")], [], []) == []


def test_find_duplicates_within_a_split_are_exact_ones_only() -> None:
    labeled = [Example("a", LONG), Example("b", LONG.upper()), Example("c", LONG + " today")]
    assert find([], labeled, []) == [("b", "a", 1.0)]
    assert find([], [], labeled) == [("b", "a", 1.0)]


def test_find_duplicates_near_across_splits() -> None:
    assert find([Example("t", LONG)], [Example("l", LONG + " today")], []) == [("l", "t", round(11 / 12, 3))]


def test_find_duplicates_short_texts_exactly_only() -> None:
    assert find([Example("t", "a b c")], [Example("l", "c b a")], []) == []


def test_find_duplicates_same_question_with_other_options_is_none() -> None:
    test = Example("t", "Which is true?", choices=("cats bark", "dogs bark"))
    other = Example("l", "Which is true?", choices=("iron floats", "wood floats"))
    assert find([test], [other], []) == []
    assert find([test], [other], [], shared=True) == [("l", "t", 1.0)]


def test_find_duplicates_context_counts() -> None:
    assert find([Example("t", "why?", context="one")], [Example("l", "why?", context="two")], []) == []


def test_find_duplicates_threshold_one_finds_exact_ones_only() -> None:
    assert find([Example("t", LONG)], [Example("l", LONG + " today")], [], similarity=1.0) == []


def test_find_duplicates_copy_of_a_dropped_row_stays() -> None:
    words = [f"w{i}" for i in range(12)]
    t, first, second = (Example(name, " ".join(words[i : i + 10])) for i, name in enumerate("tlu"))
    assert [row[0] for row in find([t], [first], [second], similarity=0.8)] == ["l"]


def test_find_duplicates_within_keeps_the_first() -> None:
    rows = [Example("a", LONG), Example("b", LONG + " today"), Example("c", LONG)]
    found = find_duplicates_within(rows, similarity=0.9, shared_choices=False, drop=False)
    assert [(d.id, d.of_id, d.dropped) for d in found] == [("b", "a", False), ("c", "a", False)]


def test_find_conflicts_compares_option_texts() -> None:
    rows = [
        Example("a", "q", choices=("x", "y"), target="A"),
        Example("b", "q", choices=("x", "y"), target="A"),
        Example("c", "q", choices=("x", "y"), target="B"),
    ]
    found = [Duplicate(name, "labeled", "a", "labeled", 1.0, True) for name in "bc"]
    assert [d.id for d in find_conflicts(found, rows)] == ["c"]


WORDS = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=12).map(" ".join)


@given(
    test=st.lists(WORDS, max_size=8),
    unlabeled=st.lists(WORDS, max_size=8),
    similarity=st.sampled_from([0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.9]),
)
def test_find_duplicates_equals_brute_force(test: list[str], unlabeled: list[str], similarity: float) -> None:
    expected: dict[str, float] = {}
    seen: set[str] = set()
    for i, text in enumerate(unlabeled):
        a = set(text.split())
        scores = [
            len(a & set(t.split())) / len(a | set(t.split())) for t in test if len(set(t.split())) >= MIN_NEAR_TOKENS
        ]
        best = max(scores, default=0.0) if len(a) >= MIN_NEAR_TOKENS else 0.0
        if text in test or text in seen:
            expected[f"u{i}"] = 1.0
        elif best >= similarity:
            expected[f"u{i}"] = best
        else:
            seen.add(text)
    found = find_duplicates(
        [Example(f"t{i}", text) for i, text in enumerate(test)],
        [],
        [Example(f"u{i}", text) for i, text in enumerate(unlabeled)],
        similarity=similarity,
        shared_choices=False,
        drop=True,
    )
    assert {d.id: d.similarity for d in found} == expected
