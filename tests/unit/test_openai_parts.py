"""The parts of the hosted backends that need no server."""

import asyncio
import json
import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import numpy as np
import pytest

from semievol.backends.openai_budget import Budget, read_ledger
from semievol.backends.openai_calls import ConcurrencyLimit
from semievol.backends.openai_chat import Abilities, chat_body, read_answer, sample_seed
from semievol.backends.openai_client import MalformedAnswer, read_key, redact, wait_asked_for
from semievol.backends.openai_embed import read_embeddings
from semievol.backends.openai_tokens import OpenAITokens, most_tokens
from semievol.config import EndpointConfig, ModelConfig, OpenAIGeneratorConfig, PricesConfig, parse_config
from semievol.errors import ConfigError, GenerationError
from semievol.prices import base_name, price_of
from semievol.types import Message, ModelRef, Request, Sampling

DATA = {"labeled": "l.csv", "unlabeled": "u.csv"}
ASK = Request("r", (Message("user", "where?"),), ModelRef("m"), 2**62)


# Bodies and answers


def test_body_asks_only_for_what_the_server_can():
    able = chat_body(ASK, Sampling(2, 0.5, 0.9, 8, 20), Abilities(), {"reasoning_effort": "none"}, n=2)
    assert able["n"] == 2
    assert able["top_logprobs"] == 20
    assert able["max_completion_tokens"] == 8
    assert 0 <= able["seed"] < 2**31
    assert able["reasoning_effort"] == "none"
    plain = Abilities(n=False, seed=False, logprobs=False, token_limit="max_tokens")
    assert chat_body(ASK, Sampling(2, 0.0), plain, {}, n=1) == {
        "model": "m", "messages": [{"role": "user", "content": "where?"}], "temperature": 0.0, "max_tokens": 64,
    }  # fmt: skip


def test_samples_of_a_request_have_seeds_of_their_own():
    assert len({sample_seed(seed, i) for seed in range(50) for i in range(4)}) == 200


def payload(*tokens: dict, text: str = "Answer: B", finish: str = "stop") -> dict:
    choice = {"message": {"content": text}, "finish_reason": finish, "logprobs": {"content": list(tokens)}}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}


def test_sentinel_is_no_logprob():
    sampled = read_answer(payload({"token": "x", "logprob": -9999.0, "top_logprobs": []}), "raw")
    assert sampled.completions[0].token_logprobs == ()
    assert sampled.completions[0].logprob_kind == "none"
    listed = [{"token": "x", "logprob": -0.1}, {"token": "y", "logprob": -9999.0}]
    read = read_answer(payload({"token": "x", "logprob": -0.1, "top_logprobs": listed}), "raw")
    assert read.completions[0].top_logprobs == ((("x", -0.1),),)


def test_answer_without_logprobs_keeps_its_text():
    answer = read_answer({"choices": [{"message": {"content": "B"}, "logprobs": None}]}, "raw")
    assert answer.completions[0].text == "B"
    assert answer.completions[0].logprob_kind == "none"


def test_held_back_answer_is_a_refusal():
    assert "filter" in read_answer(payload(text="", finish="content_filter"), "raw").refusal


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"choices": []},
        {"choices": [{}]},
        {"choices": "no"},
        {"choices": [{"message": {"content": ["B"]}}]},
        {"choices": [{"message": {"content": "B"}, "logprobs": "no"}]},
        {"choices": [{"message": {"content": "B"}}], "usage": "no"},
    ],
)
def test_answer_that_is_none_is_malformed(answer):
    with pytest.raises(MalformedAnswer):
        read_answer(answer, "raw")


@pytest.mark.parametrize("rows", [[], [{"index": 0, "embedding": [1.0]}], [{"index": 0}] * 2])
def test_embeddings_that_are_not_as_many_are_malformed(rows):
    with pytest.raises(MalformedAnswer):
        read_embeddings({"data": rows}, n=2)


def test_embeddings_come_as_lists_and_as_base64_in_any_order():
    found = read_embeddings(
        {"data": [{"index": 1, "embedding": [3.0, 4.0]}, {"index": 0, "embedding": "AACAPwAAAAA="}]}, n=2
    )
    assert np.array_equal(found, [[1.0, 0.0], [3.0, 4.0]])


# Secrets


def test_key_is_taken_out_of_texts(monkeypatch):
    monkeypatch.setenv("MY_KEY", "0123-secret-4567")
    config = EndpointConfig(api_key_env="MY_KEY")
    said = redact("Incorrect API key provided: 0123-secret-4567, or sk-proj-abcd****wxyz", config)
    assert "secret" not in said
    assert "abcd" not in said


@pytest.mark.parametrize("key", ["sk-ü", "sk-one\nsk-two", "Bearer sk-one"])
def test_what_can_be_no_key_is_refused_without_being_quoted(monkeypatch, key):
    monkeypatch.setenv("MY_KEY", key)
    with pytest.raises(ConfigError, match="MY_KEY holds no key") as caught:
        read_key(EndpointConfig(api_key_env="MY_KEY"))
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    "section",
    [
        {"type": "openai", "base_url": "http://user:pass@host/v1"},
        {"type": "openai", "base_url": "http://host/v1?api_key=x"},
        {"type": "openai", "extra_body": {"api_key": "x"}},
        {"type": "openai", "base_url": "localhost:8000"},
        {"type": "openai", "base_url": "http://host/v1", "azure": {"endpoint": "https://a.openai.azure.com"}},
    ],
)
def test_config_refuses_secrets_and_wrong_addresses(section):
    with pytest.raises(ConfigError, match="generator"):
        parse_config({"data": DATA, "generator": section})


def test_exact_scores_are_refused_for_servers():
    with pytest.raises(ConfigError, match="use samples"):
        parse_config({"data": DATA, "generator": {"type": "openai"}, "propagate": {"answer_with": "scores"}})


# Limits


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after-ms": "250", "retry-after": "1"}, 0.25),
        ({"retry-after": "3"}, 3.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "soon"}, None),
        ({}, None),
    ],
)
def test_wait_that_a_server_asks_for_is_a_number_or_a_date(headers, seconds):
    assert wait_asked_for(headers) == seconds


def test_wait_until_a_date_is_counted_from_now():
    moment = datetime.now(timezone.utc) + timedelta(seconds=90)
    assert wait_asked_for({"retry-after": format_datetime(moment, usegmt=True)}) == pytest.approx(90, abs=5)


def test_limit_halves_once_a_round_and_grows_by_one_a_round():
    async def check() -> None:
        limit = ConcurrencyLimit(16)
        limit.throttled(1.0, None)
        limit.throttled(1.0, None)  # was under way together with the first
        assert limit.limit == 8
        for _ in range(8):
            limit.answered(0.1)
        assert limit.limit == pytest.approx(9, abs=0.1)
        for _ in range(300):
            limit.answered(0.1)
        assert limit.limit == 16

    asyncio.run(check())


def test_requests_of_a_known_length_start_spread_over_half_of_it():
    async def check() -> float:
        limit = ConcurrencyLimit(8)
        limit.answered(0.4)
        start = time.monotonic()
        for _ in range(8):
            await limit.acquire()
        return time.monotonic() - start

    assert 7 / 8 * 0.2 - 0.01 <= asyncio.run(check()) < 0.4


def test_limit_waits_as_long_as_the_server_asks():
    async def check() -> float:
        limit = ConcurrencyLimit(2)
        limit.throttled(time.monotonic(), 0.15)
        start = time.monotonic()
        await limit.acquire()
        return time.monotonic() - start

    assert asyncio.run(check()) >= 0.14


def test_limit_lets_so_many_through_and_no_more():
    async def check() -> int:
        limit, n, most = ConcurrencyLimit(3), 0, 0

        async def work() -> None:
            nonlocal n, most
            await limit.acquire()
            n, most = n + 1, max(most, n + 1)
            await asyncio.sleep(0)
            n -= 1
            limit.release()

        await asyncio.gather(*(work() for _ in range(20)))
        return most

    assert asyncio.run(check()) == 3


def test_ledger_counts_what_a_killed_process_had_under_way(tmp_path):
    async def spend(*, settle: bool) -> None:
        budget = Budget(None, None, tmp_path)
        reservation = await budget.reserve(0.5)
        if settle:
            budget.settle(reservation, 0.25)
        budget.close()

    asyncio.run(spend(settle=True))
    assert read_ledger(tmp_path / "spent.jsonl") == (1, 0.25)
    asyncio.run(spend(settle=False))
    with (tmp_path / "spent.jsonl").open("ab") as stream:
        stream.write(b'{"id": 9, "mo')  # half a line
    asyncio.run(spend(settle=True))
    assert read_ledger(tmp_path / "spent.jsonl") == (3, 1.0)


def test_budget_waits_for_others_before_it_gives_up():
    async def check() -> float:
        budget = Budget(None, 1.0, None, name="m at http://host")
        first = await budget.reserve(0.8)
        second = asyncio.create_task(budget.reserve(0.8))
        await asyncio.sleep(0)
        assert not second.done()
        budget.settle(first, 0.1)
        budget.settle(await second, 0.7)
        with pytest.raises(GenerationError, match=r"generator\.max_cost: 1; all answers are kept"):
            await budget.reserve(0.8)
        return budget.dollars

    assert asyncio.run(check()) == pytest.approx(0.8)


# Tokens and prices


def test_tokens_are_estimated_and_never_more_than_the_bound():
    tokens = OpenAITokens(OpenAIGeneratorConfig(base_url="http://host/v1"), ModelConfig(path="m", max_length=100))
    messages = (Message("system", "be kind"), Message("user", "wo ist mein Päckchen?"))
    assert tokens.is_estimate
    assert tokens.max_length == 100
    assert tokens.count_text("12345678") == 2
    assert tokens.count_text("ä" * 4) == 2
    assert 0 < tokens.count_prompt(messages) < most_tokens(messages)


def test_fingerprint_names_the_server_and_no_limit():
    def fingerprint(**changes) -> str:
        return OpenAITokens(OpenAIGeneratorConfig(**changes), ModelConfig(path="m")).fingerprint

    assert fingerprint() == fingerprint(max_concurrency=2, max_cost=3.0, api_key_env="OTHER")
    assert len({fingerprint(), fingerprint(base_url="http://a/v1"), fingerprint(extra_body={"a": 1})}) == 3


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("gpt-4o-mini", "gpt-4o-mini"),
        ("gpt-4o-mini-2024-07-18", "gpt-4o-mini"),
        ("ft:gpt-4o-mini-2024-07-18:org:suffix:id", "gpt-4o-mini"),
        ("gpt-3.5-turbo-0125", "gpt-3.5-turbo"),
    ],
)
def test_price_is_found_by_the_name_without_snapshot(name, base):
    assert base_name(name) == base
    assert price_of(name) is not None


def test_tuned_models_have_prices_of_their_own():
    assert price_of("ft:gpt-4o-mini-2024-07-18:org::id").input == 0.30
    assert price_of("gpt-4o-mini", tuned=True).output == 1.20
    assert price_of("gpt-4o-mini").training == 3.00


def test_prices_of_the_config_go_first_and_unknown_ones_stay_unknown():
    assert price_of("my-model") is None
    assert price_of("gpt-5", tuned=True) is None
    assert price_of("gpt-4o-mini", PricesConfig(input=1, output=2)).input == 1
    assert price_of("my-model", PricesConfig(input=1, output=2, tuned_output=5), tuned=True)[:2] == (1, 5)


def test_ledger_lines_hold_numbers_alone(tmp_path):
    async def spend() -> None:
        budget = Budget(None, None, tmp_path, name="m at http://host")
        budget.settle(await budget.reserve(0.5), 0.25)
        budget.close()

    asyncio.run(spend())
    lines = [json.loads(x) for x in (tmp_path / "spent.jsonl").read_text().splitlines() if x]
    assert lines == [{"id": 0}, {"id": 1, "most": 0.5}, {"id": 1, "spent": 0.25}]
