"""Bodies and answers of vLLM's completions route, without a server."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.backends.openai_client import MalformedAnswer
from semievol.backends.tries import build_trie
from semievol.backends.vllm_requests import (
    MAX_PROMPTS,
    MAX_TOKEN_IDS,
    Question,
    plan_questions,
    read_samples,
    read_scores,
    sampling_body,
    scoring_body,
)
from semievol.errors import ConfigError
from semievol.types import Sampling

END = 0


def test_letters_are_asked_for_behind_their_shared_start():
    trie = build_trie(((7, 8, 1, END), (7, 8, 2, END), (7, 8, 3, END)))
    (questions,) = plan_questions(trie)
    assert [(q.path, q.tokens) for q in questions] == [((), (7,)), ((7,), (8,)), ((7, 8), (1, 2, 3))]
    body = scoring_body("m", [5, 6], questions)
    assert body["prompt"] == [[5, 6], [5, 6, 7], [5, 6, 7, 8]]
    assert body["logprob_token_ids"] == [1, 2, 3, 7, 8]
    assert body["max_tokens"] == 1


def test_nested_completions_ask_for_the_stop_token():
    (questions,) = plan_questions(build_trie(((7, END), (7, 8, END))))
    assert [(q.path, q.tokens) for q in questions] == [((), (7,)), ((7,), (END, 8))]


completions = st.sets(st.lists(st.integers(1, 300), min_size=1, max_size=4).map(tuple), min_size=1, max_size=200)


@given(completions)
def test_every_step_is_asked_for_once_within_the_limits_of_a_request(bodies):
    trie = build_trie(tuple((*body, END) for body in sorted(bodies)))
    requests = plan_questions(trie)
    asked = [(q.node, token) for questions in requests for q in questions for token in q.tokens]
    assert len(asked) == len(set(asked))
    assert set(asked) == {step for path in (trie.prefix, *trie.paths) for step in path}
    for questions in requests:
        body = scoring_body("m", [1], questions)
        assert len(body["logprob_token_ids"]) <= MAX_TOKEN_IDS
        assert len(body["prompt"]) <= MAX_PROMPTS
    paths = {q.path for questions in requests for q in questions}
    assert {(*body[:-1],) for body in bodies} <= paths


def score_choice(index, *entries):
    return {"index": index, "logprobs": {"top_logprobs": [{f"token_id:{t}": x for t, x in entries}]}}


QUESTIONS = [Question(-1, (), (7,)), Question(0, (7,), (1, 2))]


def test_scores_are_read_by_index_and_token():
    payload = {"choices": [score_choice(1, (1, -1.0), (2, -2.0), (9, -0.1)), score_choice(0, (7, -0.5), (1, -9.0))]}
    assert read_scores(payload, QUESTIONS) == {(-1, 7): -0.5, (0, 1): -1.0, (0, 2): -2.0}


def test_server_that_does_not_know_logprob_token_ids_is_found_out():
    payload = {"choices": [score_choice(0, (7, -0.5)), score_choice(1, (1, -1.0), (9, -0.1))]}
    with pytest.raises(ConfigError, match=r"logprob_token_ids.*0\.33"):
        read_scores(payload, QUESTIONS)


@pytest.mark.parametrize("value", [-9999.0, float("nan"), 1.0])
def test_what_is_no_log_probability_is_malformed(value):
    payload = {"choices": [score_choice(0, (7, value)), score_choice(1, (1, -1.0), (2, -1.0))]}
    with pytest.raises(MalformedAnswer):
        read_scores(payload, QUESTIONS)


def sample_choice(index=0, tokens=(3, 4), logprobs=(-0.1, -0.2), finish="stop"):
    listed = None if logprobs is None else {"token_logprobs": list(logprobs)}
    ids = None if tokens is None else list(tokens)
    return {"index": index, "token_ids": ids, "logprobs": listed, "finish_reason": finish}


def test_samples_are_read_in_the_order_of_their_numbers():
    payload = {"choices": [sample_choice(1, (5,), (-0.3,), "length"), sample_choice(0)]}
    first, second = read_samples(payload, n=2)
    assert (first.tokens, first.logprobs, first.stopped) == ((3, 4), (-0.1, -0.2), True)
    assert (second.tokens, second.stopped) == ((5,), False)


@pytest.mark.parametrize(
    "choices",
    [
        [],
        [sample_choice(), sample_choice(1)],
        [sample_choice(1)],
        [sample_choice(logprobs=None)],
        [sample_choice(logprobs=(-0.1,))],
        [sample_choice(logprobs=(-0.1, -9999.0))],
        [sample_choice(finish="abort")],
        None,
    ],
)
def test_samples_that_are_not_whole_are_malformed(choices):
    with pytest.raises(MalformedAnswer):
        read_samples({"choices": choices}, n=1)


def test_server_without_token_ids_is_found_out():
    with pytest.raises(ConfigError, match="return_token_ids"):
        read_samples({"choices": [sample_choice(tokens=None)]}, n=1)


def test_greedy_samples_are_asked_for_once():
    body = sampling_body("m", [1], Sampling(n=4, temperature=0.0), seed=1, stop_ids=[2])
    assert (body["n"], body["temperature"]) == (1, 0.0)
    warm = sampling_body("m", [1], Sampling(n=4, temperature=0.7, top_p=0.9), seed=1, stop_ids=[2])
    assert (warm["n"], warm["temperature"], warm["top_p"], warm["stop_token_ids"]) == (4, 0.7, 0.9, [2])
    other = sampling_body("m", [1], Sampling(n=4, temperature=0.7), seed=2, stop_ids=[2])
    assert warm["seed"] != other["seed"]
