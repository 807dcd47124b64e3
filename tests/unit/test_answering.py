import pytest

from semievol.answering import Vote, count_votes, predict_by_vote, share_behind
from semievol.config import TaskConfig
from semievol.prompts import PromptBuilder
from semievol.types import Completion, Example, ModelRef, Result, Sampling, TaskFacts

BUILDER = PromptBuilder(TaskConfig(type="choice"), TaskFacts())


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (["A", "B", "B"], Vote("B", 2 / 3)),
        (["B", "A", "A", "B"], Vote("B", 0.5)),  # a tie goes to the first
        ([None, None, "C"], Vote("C", 1 / 3)),
        ([None, None], Vote(None, 0.0)),
    ],
)
def test_count_votes_takes_the_majority(answers, expected):
    assert count_votes(answers, BUILDER) == expected


def test_share_behind_counts_unparsable_answers_as_others():
    assert share_behind("A", ["A", None, "B", "A"], BUILDER) == 0.5


def vote(*texts: str):
    asked = []

    def generate(requests, sampling):
        for request in requests:
            asked.append((request, sampling))
            yield Result(request.id, tuple(Completion(text) for text in texts))

    example = Example("e1", "Which?", choices=("x", "y", "z"), group="g")
    sampling = Sampling(len(texts), 0.7, max_tokens=9)
    made = predict_by_vote([example], BUILDER, ModelRef("m"), generate, sampling=sampling, seed=lambda _: 42)
    return next(made), asked


def test_predict_by_vote_answers_with_the_majority_and_its_share():
    prediction, asked = vote("Answer: C", "Answer: B", "no idea", "Answer: B")
    assert (prediction.answer, prediction.confidence, prediction.group) == ("B", 0.5, "g")
    request, sampling = asked[0]
    assert (request.seed, sampling.n, sampling.temperature) == (42, 4, 0.7)


def test_predict_by_vote_without_a_parsable_sample_has_no_answer():
    prediction, _ = vote("no idea", "none")
    assert (prediction.answer, prediction.confidence) == (None, None)
