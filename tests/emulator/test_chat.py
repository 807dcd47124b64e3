"""Chat completions and embeddings, asked by the official SDK."""

import asyncio
import subprocess
import sys
import time

import pytest

from tests.emulator.fixtures import ROOT, running_emulator

openai = pytest.importorskip("openai")

QUESTION = [{"role": "user", "content": "Question: where is my parcel? #B\nA. refund\nB. delivery\nC. lost"}]
MODEL = "gpt-4o-mini-2024-07-18"
EMBEDDER = "text-embedding-3-small"


@pytest.fixture
def client(emulator):
    emulator.reset()
    with openai.OpenAI(base_url=emulator.base_url, api_key=emulator.api_key, max_retries=3) as client:
        yield client


def ask(client, **changes):
    return client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "seed": 1, **changes})


def texts(answer):
    return [choice.message.content for choice in answer.choices]


def test_chat_gives_n_choices_with_logprobs(client):
    answer = ask(client, n=3, temperature=0.7, logprobs=True, top_logprobs=5, max_completion_tokens=20)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        tokens = choice.logprobs.content
        assert "".join(t.token for t in tokens) == choice.message.content
        assert all(t.logprob < 0 and len(t.top_logprobs) == 5 for t in tokens)
        assert all(bytes(t.bytes).decode() == t.token for t in tokens)


def test_seed_decides_the_samples(client):
    assert texts(ask(client, n=40)) == texts(ask(client, n=40))
    assert texts(ask(client, n=40)) != texts(ask(client, n=40, seed=2))


def test_accuracy_is_that_of_the_model(client):
    def share(model):
        turns = [{"role": "user", "content": f"Question: {i} #B\nA. x\nB. y\nC. z"} for i in range(80)]
        answers = [ask(client, model=model, messages=[turn], temperature=0) for turn in turns]
        return sum(texts(a) == ["Answer: B"] for a in answers) / 80

    weaker, stronger = share(MODEL), share("gpt-4.1-mini-2025-04-14")
    assert weaker == pytest.approx(0.6, abs=0.15)
    assert weaker < stronger == pytest.approx(0.7, abs=0.15)


def test_max_tokens_cuts_and_stop_ends(client):
    cut = ask(client, max_tokens=1).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("Answer:", "length")
    stopped = ask(client, stop=["wer"]).choices[0]
    assert (stopped.message.content, stopped.finish_reason) == ("Ans", "stop")


def test_usage_adds_up_and_long_prompts_are_cached(client):
    long = [{"role": "user", "content": "word " * 1100}]
    first, second = ask(client, messages=long), ask(client, messages=long, seed=2)
    assert first.usage.total_tokens == first.usage.prompt_tokens + first.usage.completion_tokens
    assert first.usage.prompt_tokens_details.cached_tokens == 0
    assert second.usage.prompt_tokens_details.cached_tokens == 1024


def test_an_alias_is_answered_by_its_snapshot(client):
    assert ask(client, model="gpt-4o-mini").model == MODEL


def test_embeddings_have_length_one(client):
    answer = client.embeddings.create(model=EMBEDDER, input=["card lost", "card stolen"], dimensions=64)
    for row in answer.data:
        assert len(row.embedding) == 64
        assert sum(x * x for x in row.embedding) == pytest.approx(1, abs=1e-5)


def test_embedding_encodings_agree(client):
    encoded = client.embeddings.create(model=EMBEDDER, input="card lost", encoding_format="base64").data[0].embedding
    plain = client.embeddings.create(model=EMBEDDER, input="card lost", encoding_format="float").data[0].embedding
    assert len(encoded) != len(plain) == 1536
    assert client.embeddings.create(model=EMBEDDER, input="card lost").data[0].embedding == pytest.approx(plain)


@pytest.mark.parametrize("texts", [[], [""], ["x"] * 2049])
def test_embedding_inputs_are_checked(client, texts):
    with pytest.raises(openai.BadRequestError):
        client.embeddings.create(model=EMBEDDER, input=texts)


def test_unknown_model_is_404(client):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-9")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-9")


def test_wrong_key_is_401(client):
    with pytest.raises(openai.AuthenticationError) as caught:
        ask(client.with_options(api_key="wrong"))
    assert caught.value.code == "invalid_api_key"


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"n": 129}, "n"),
        ({"temperature": 2.5}, "temperature"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 5}, "top_logprobs"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"extra_body": {"top_k": 5}}, "top_k"),
        ({"messages": [{"role": "user", "content": "word " * 130_000}]}, "messages"),
    ],
)
def test_wrong_parameters_are_400(client, changes, param):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, **changes)
    assert caught.value.param == param


@pytest.mark.parametrize("changes", [{"temperature": 0.2}, {"logprobs": True}, {"max_tokens": 5}])
def test_reasoning_models_refuse_sampling_parameters(client, changes):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, model="gpt-6-luna", **changes)
    assert caught.value.code == "unsupported_parameter"


def test_rate_limit_is_retried_by_the_sdk(client, emulator):
    emulator.set_faults(rate_limit=2)
    ask(client)
    counters = emulator.counters()
    assert counters["requests"] == {"POST /v1/chat/completions": 3}
    assert counters["statuses"] == {"429": 2, "200": 1}
    assert list(counters["paid"].values()) == [1]
    assert [r["retry"] for r in emulator.requests("chat")] == [0, 1, 2]


def test_server_error_is_retried_by_the_sdk(client, emulator):
    emulator.set_faults(server_error=1)
    ask(client)
    assert emulator.counters()["statuses"] == {"500": 1, "200": 1}


def test_spent_quota_stays_spent(client, emulator):
    emulator.set_faults(quota=True)
    with pytest.raises(openai.RateLimitError) as caught:
        ask(client.with_options(max_retries=0))
    assert caught.value.code == "insufficient_quota"


@pytest.mark.parametrize(("kind", "times_paid"), [("drop_before", 1), ("drop_after", 2)])
def test_dropped_connection_is_paid_only_after_generation(client, emulator, kind, times_paid):
    emulator.set_faults(**{kind: 1})
    ask(client)
    assert list(emulator.counters()["paid"].values()) == [times_paid]


def test_dropped_connection_is_a_connection_error(client, emulator):
    emulator.set_faults(drop_before=True)
    with pytest.raises(openai.APIConnectionError):
        ask(client.with_options(max_retries=0))


def test_truncated_body_cannot_be_read(client, emulator):
    emulator.set_faults(truncate=1)
    with pytest.raises(ValueError, match=r"line 1 column"):
        ask(client)


def test_slow_answer_runs_into_the_timeout(client, emulator):
    emulator.set_faults(slow=True, slow_seconds=5)
    with pytest.raises(openai.APITimeoutError):
        ask(client.with_options(timeout=0.2, max_retries=0))


def test_parameters_can_be_ignored(client, emulator):
    same = texts(ask(client, n=40))
    emulator.set_faults(ignore_seed=True)
    assert texts(ask(client, n=40)) != same
    emulator.set_faults(ignore_n=True, no_logprobs=True, no_usage=True)
    answer = ask(client, n=3, logprobs=True)
    assert len(answer.choices) == 1
    assert answer.choices[0].logprobs is None
    assert answer.usage is None


def test_filtered_content_is_empty(client, emulator):
    emulator.set_faults(content_filter=1)
    choice = ask(client).choices[0]
    assert (choice.message.content, choice.finish_reason) == ("", "content_filter")


def test_share_of_faults_hangs_on_content_and_seed(client, emulator):
    def struck(seed):
        emulator.set_faults(server_error=0.3, seed=seed)
        found = []
        for i in range(40):
            try:
                ask(client.with_options(max_retries=0), messages=[{"role": "user", "content": str(i)}])
            except openai.InternalServerError:
                found.append(i)
        return found

    first = struck(0)
    assert 4 <= len(first) <= 22
    assert struck(0) == first
    assert struck(1) != first


def test_fault_can_be_for_one_route_and_skip_requests(client, emulator):
    emulator.set_faults(server_error={"times": 1, "route": "/v1/chat/completions", "skip": 1})
    client.embeddings.create(model=EMBEDDER, input="x")
    for _ in range(2):
        ask(client)
    assert emulator.counters()["requests"]["POST /v1/chat/completions"] == 3


def test_unknown_fault_is_refused(emulator):
    with pytest.raises(ValueError, match="no such fault"):
        emulator.set_faults(rate_limits=1)


def test_same_request_twice_is_bought_twice(client, emulator):
    ask(client)
    assert emulator.bought_twice() == []
    ask(client)
    assert len(emulator.bought_twice()) == 1
    emulator.reset()
    assert emulator.counters()["paid"] == {}


def test_many_requests_are_in_flight_together(emulator):
    emulator.reset()
    emulator.set_faults(latency_ms=1500)

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=emulator.base_url, api_key=emulator.api_key, max_retries=0) as client:
            await asyncio.gather(*(ask(client, seed=i) for i in range(64)))

    started = time.monotonic()
    asyncio.run(ask_all())
    assert emulator.counters()["max_in_flight"] == 64
    assert time.monotonic() - started < 64 * 1.5 / 4


def test_requests_over_the_limit_are_429(emulator):
    emulator.reset()
    emulator.set_faults(latency_ms=300, max_in_flight=4)

    async def ask_all():
        async with openai.AsyncOpenAI(base_url=emulator.base_url, api_key=emulator.api_key, max_retries=0) as client:
            return await asyncio.gather(*(ask(client, seed=i) for i in range(12)), return_exceptions=True)

    refused = [a for a in asyncio.run(ask_all()) if isinstance(a, openai.RateLimitError)]
    assert len(refused) == 8
    assert len(emulator.counters()["paid"]) == 4


def test_azure_client_finds_deployments_files_and_jobs(emulator):
    emulator.reset()
    with openai.AzureOpenAI(
        azure_endpoint=emulator.origin, api_key=emulator.api_key, api_version="2025-04-01-preview"
    ) as client:
        assert len(ask(client, n=2).choices) == 2
        assert client.embeddings.create(model=EMBEDDER, input="x").data[0].index == 0
        file = client.files.create(file=("batch.jsonl", b'{"a": 1}\n'), purpose="batch")
        assert client.files.retrieve(file.id).bytes == 9
        assert list(client.fine_tuning.jobs.list()) == []
    assert "POST /v1/chat/completions" in emulator.counters()["requests"]


def test_azure_v1_address_needs_no_version(emulator):
    emulator.reset()
    with openai.OpenAI(base_url=f"{emulator.origin}/openai/v1/", api_key=emulator.api_key) as client:
        assert len(ask(client).choices) == 1
    with (
        openai.OpenAI(base_url=f"{emulator.origin}/openai/deployments/{MODEL}", api_key=emulator.api_key) as client,
        pytest.raises(openai.NotFoundError, match="api-version"),
    ):
        ask(client)


def test_command_line_sets_key_accuracy_and_faults():
    arguments = ["--accuracy", "mine=1.0", "--fault", "server_error=1", "--fault", "latency_ms=1"]
    with (
        running_emulator(*arguments, api_key="sk-mine") as running,
        openai.OpenAI(base_url=running.base_url, api_key="sk-mine", max_retries=1) as client,
    ):
        assert texts(ask(client, model="mine", temperature=0)) == ["Answer: B"]
        assert running.counters()["statuses"] == {"500": 1, "200": 1}


def test_help_lists_the_faults():
    shown = subprocess.run(
        [sys.executable, "-m", "tests.emulator", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "drop_after" in shown.stdout
    assert "job_unknown_state" in shown.stdout
