"""Chat completions and embeddings, asked by the official SDK."""

import pytest

openai = pytest.importorskip("openai")

QUESTION = [{"role": "user", "content": "Question: where is my parcel? #B\nA. refund\nB. delivery\nC. lost"}]
MODEL = "gpt-4o-mini-2024-07-18"


@pytest.fixture
def client(emulator):
    emulator.reset()
    with openai.OpenAI(base_url=emulator.base_url, api_key=emulator.api_key, max_retries=3) as client:
        yield client


def ask(client, **changes):
    return client.chat.completions.create(**{"model": MODEL, "messages": QUESTION, "seed": 1, **changes})


def test_chat_gives_n_choices_with_logprobs(client):
    answer = ask(client, n=3, temperature=0.7, logprobs=True, top_logprobs=5, max_completion_tokens=20)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    for choice in answer.choices:
        tokens = choice.logprobs.content
        assert "".join(t.token for t in tokens) == choice.message.content
        assert all(t.logprob < 0 and len(t.top_logprobs) == 5 for t in tokens)


def test_embeddings_have_length_one(client):
    answer = client.embeddings.create(model="text-embedding-3-small", input=["card lost", "card stolen"], dimensions=64)
    for row in answer.data:
        assert len(row.embedding) == 64
        assert sum(x * x for x in row.embedding) == pytest.approx(1, abs=1e-5)


def test_unknown_model_is_404(client):
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client, model="gpt-9")
    assert caught.value.code == "model_not_found"


def test_rate_limit_is_retried_by_the_sdk(client, emulator):
    emulator.set_faults(rate_limit=2)
    ask(client)
    counters = emulator.counters()
    assert counters["requests"] == {"POST /v1/chat/completions": 3}
    assert counters["statuses"] == {"429": 2, "200": 1}
    assert list(counters["paid"].values()) == [1]


@pytest.mark.parametrize(("kind", "times_paid"), [("drop_before", 1), ("drop_after", 2)])
def test_dropped_connection_is_paid_only_after_generation(client, emulator, kind, times_paid):
    emulator.set_faults(**{kind: 1})
    ask(client)
    assert list(emulator.counters()["paid"].values()) == [times_paid]
