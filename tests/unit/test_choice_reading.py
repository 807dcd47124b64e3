import math

import pytest

from semievol.choice_reading import read_choices
from semievol.types import Completion

LETTERS = ("Answer: A", "Answer: B", "Answer: C")


def completion(*positions: tuple[str, dict[str, float]]) -> Completion:
    """Each position: the token taken and the listed alternatives."""
    tokens = tuple(token for token, _ in positions)
    top = tuple(tuple(listed.items()) for _, listed in positions)
    logprobs = tuple(listed.get(token, -1.0) for token, listed in positions)
    return Completion("".join(tokens), logprobs, "raw", "stop", tokens, top)


START = (("Answer", {"Answer": -0.1}), (":", {":": -0.2}))


def test_scores_are_those_of_the_token_in_which_the_answers_differ():
    found = read_choices(completion(*START, (" B", {" B": -0.5, " A": -1.5, " C": -3.0, " D": -4.0})), LETTERS)
    assert found.logprobs == (-1.5, -0.5, -3.0)
    assert found.prefix_logprob == pytest.approx(-0.3)
    assert found.is_exact
    assert math.fsum(found.probabilities) == pytest.approx(1)
    assert found.probabilities[1] == pytest.approx(math.exp(-0.5) / sum(map(math.exp, (-1.5, -0.5, -3.0))))


def test_space_may_be_a_token_of_its_own():
    found = read_choices(completion(*START, (" ", {" ": -0.1}), ("B", {"B": -0.5, "A": -1.5, "C": -3.0})), LETTERS)
    assert found.logprobs == (-1.5, -0.5, -3.0)


def test_answer_that_is_not_listed_has_no_score_and_the_set_no_entropy():
    found = read_choices(completion(*START, (" B", {" B": -0.5, " A": -1.5, "B": -2.0})), LETTERS)
    assert found.logprobs == (-1.5, -0.5, None)
    assert not found.is_exact
    assert found.probabilities is None
    assert found.entropy is None


def test_token_that_was_taken_counts_even_if_it_is_not_listed():
    found = read_choices(completion(*START, (" B", {" A": -0.5})), LETTERS)
    assert found.logprobs == (-0.5, -1.0, None)


def test_completion_in_another_format_says_nothing():
    said = completion(("The", {"The": -0.1}), (" answer", {" answer": -0.1}), (" B", {" B": -0.1, " A": -2.0}))
    assert read_choices(said, LETTERS) is None
    assert read_choices(completion(*START), LETTERS) is None


def test_completion_without_alternatives_says_nothing():
    assert read_choices(Completion("Answer: B", (-0.1, -0.2)), LETTERS) is None


def test_answer_that_begins_another_has_no_score():
    said = completion(*START, (" A", {" A": -0.5, " AA": -2.0, " B": -3.0}))
    assert read_choices(said, ("Answer: A", "Answer: AA", "Answer: B")).logprobs == (None, -2.0, -3.0)
    assert read_choices(said, ("Answer: A", "Answer: AA")) is None


def test_answer_of_several_tokens_has_no_score():
    texts = ("Answer: very good", "Answer: bad")
    found = read_choices(completion(*START, (" very", {" very": -0.5, " bad": -1.0})), texts)
    assert found.logprobs == (None, -1.0)


def test_model_without_capitals_is_read_in_lower_case():
    start = (("answer", {"answer": -0.1}), (":", {":": -0.2}))
    found = read_choices(completion(*start, (" b", {" b": -0.5, " a": -1.5, " A": -4.0, " c": -3.0})), LETTERS)
    assert found.logprobs == (-1.5, -0.5, -3.0)
    assert found.prefix_logprob == pytest.approx(-0.3)


def test_answers_that_differ_in_capitals_alone_are_not_read_in_lower_case():
    assert read_choices(completion(("x", {"x": -0.5, "y": -1.5})), ("X", "x", "Y")).logprobs == (None, -0.5, None)
    assert read_choices(completion(("y", {"y": -0.5})), ("X", "x", "Y")) is None
