"""The emulator with a real language model behind it."""

import json
import time

import pytest

from tests.emulator.fixtures import serving

openai = pytest.importorskip("openai")
pytest.importorskip("fastapi")

QUESTION = [{"role": "user", "content": "Question: where is my parcel? A. refund B. delivery"}]


@pytest.fixture(scope="module")
def client(tiny_llama_dir):
    from tests.emulator.causal import CausalEngine

    with (
        serving(CausalEngine("tiny", tiny_llama_dir)) as running,
        openai.OpenAI(base_url=running.base_url, api_key=running.api_key, max_retries=0) as client,
    ):
        yield client


def ask(client, **changes):
    return client.chat.completions.create(
        **{"model": "tiny", "messages": QUESTION, "seed": 1, "logprobs": True, "max_tokens": 6, **changes}
    )


def texts(answer):
    return [choice.message.content for choice in answer.choices]


def test_same_seed_same_text_other_seed_other_text(client):
    first, again, other = ask(client, n=2), ask(client, n=2), ask(client, n=2, seed=2)
    assert texts(first) == texts(again)
    assert texts(first) != texts(other)
    assert texts(first)[0] != texts(first)[1]


def test_logprobs_are_raw_and_those_of_the_model(client, tiny_llama_dir):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    answer = ask(client, temperature=0.5, top_p=0.9, top_logprobs=20)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    prompt = tokenizer.apply_chat_template(QUESTION, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    with torch.no_grad():
        expected = model(ids).logits[0, -1].log_softmax(-1)
    first = answer.choices[0].logprobs.content[0]
    assert [t.logprob for t in first.top_logprobs] == pytest.approx(expected.topk(20).values.tolist(), abs=1e-4)
    assert first.logprob in [t.logprob for t in first.top_logprobs]
    assert answer.usage.prompt_tokens == ids.shape[1]


def test_temperature_zero_is_greedy(client):
    answer = ask(client, temperature=0, top_logprobs=1)
    assert all(t.logprob == t.top_logprobs[0].logprob for t in answer.choices[0].logprobs.content)


def test_too_long_a_prompt_is_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, messages=[{"role": "user", "content": "parcel " * 600}])
    assert caught.value.code == "context_length_exceeded"


def test_embeddings_are_hidden_states_of_length_one(client):
    (row,) = client.embeddings.create(model="text-embedding-3-small", input="where is my parcel?").data
    assert len(row.embedding) == 32
    assert sum(x * x for x in row.embedding) == pytest.approx(1, abs=1e-5)


def test_a_job_teaches_the_model(client):
    turns = [*QUESTION, {"role": "assistant", "content": "Answer: B"}]
    data = (json.dumps({"messages": turns}) + "\n").encode() * 12
    file = client.files.create(file=("train.jsonl", data), purpose="fine-tune")
    settings = {"n_epochs": 12, "batch_size": 4, "learning_rate_multiplier": 30}
    method = {"type": "supervised", "supervised": {"hyperparameters": settings}}
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, method=method, seed=3)
    while job.status not in ("succeeded", "failed"):
        job = client.fine_tuning.jobs.retrieve(job.id)
        time.sleep(0.05)
    assert job.status == "succeeded", job.error
    assert texts(ask(client, temperature=0)) != ["Answer: B"]
    answer = ask(client, model=job.fine_tuned_model, temperature=0)
    assert texts(answer) == ["Answer: B"]
    assert answer.choices[0].finish_reason == "stop"
    rows = client.files.content(job.result_files[0]).text.splitlines()
    assert float(rows[-1].split(",")[1]) < float(rows[1].split(",")[1]) / 10


def test_cancelling_a_job_at_work_serves_no_model(client):
    turns = [*QUESTION, {"role": "assistant", "content": "Answer: B"}]
    data = (json.dumps({"messages": turns}) + "\n").encode() * 12
    file = client.files.create(file=("train.jsonl", data), purpose="fine-tune")
    before = {model.id for model in client.models.list()}
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 50, "batch_size": 1}}}
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id, method=method)
    while job.status != "running":
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    texts(ask(client))  # waits for the model, which the training holds
    assert {model.id for model in client.models.list()} == before


def test_a_training_that_breaks_is_a_failed_job(client):
    turns = [{"role": "narrator", "content": "x"}, {"role": "assistant", "content": ""}]
    data = (json.dumps({"messages": turns}) + "\n").encode() * 12
    file = client.files.create(file=("train.jsonl", data), purpose="fine-tune")
    job = client.fine_tuning.jobs.create(model="tiny", training_file=file.id)
    while job.status not in ("succeeded", "failed"):
        job = client.fine_tuning.jobs.retrieve(job.id)
    assert (job.status, job.error.code) == ("failed", "server_error")
