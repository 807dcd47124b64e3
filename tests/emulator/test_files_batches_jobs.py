"""Files, batches and fine-tuning jobs, driven by the official SDK."""

import json

import pytest

openai = pytest.importorskip("openai")

MODEL = "gpt-4o-mini-2024-07-18"


@pytest.fixture
def client(emulator):
    emulator.reset()
    with openai.OpenAI(base_url=emulator.base_url, api_key=emulator.api_key, max_retries=1) as client:
        yield client


def line(number, **changes):
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"Question: {number}? #B"}], "seed": 1, **changes}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/chat/completions", "body": body}


def upload(client, rows, purpose):
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return client.files.create(file=("rows.jsonl", data), purpose=purpose)


def start_batch(client, lines):
    file = upload(client, lines, "batch")
    return client.batches.create(
        input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"stage": "propagate"}
    )


def look(client, batch_id, until=("completed", "failed", "expired", "cancelled")):
    seen = []
    while not seen or seen[-1].status not in until:
        seen.append(client.batches.retrieve(batch_id))
        assert len(seen) < 50
    return seen


def rows_of(client, file_id):
    return [] if file_id is None else [json.loads(row) for row in client.files.content(file_id).text.splitlines()]


def chats(n=12):
    turns = [{"role": "user", "content": "Where? #A"}, {"role": "assistant", "content": "Answer: A"}]
    return [{"messages": turns}] * n


def start_job(client, rows=None, **changes):
    file = upload(client, rows or chats(), "fine-tune")
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2, "batch_size": 4}}}
    return client.fine_tuning.jobs.create(
        **{"model": MODEL, "training_file": file.id, "method": method, "seed": 7, "suffix": "warm", **changes}
    )


def watch(client, job_id):
    seen = []
    while not seen or seen[-1].status not in ("succeeded", "failed", "cancelled"):
        seen.append(client.fine_tuning.jobs.retrieve(job_id))
        assert len(seen) < 50
    return seen


def test_file_comes_back_byte_for_byte(client):
    data = b'{"a": "\xc3\xa9\\r\\n--x"}\n{"b": 2}\r\n'
    file = client.files.create(file=("rows.jsonl", data), purpose="batch")
    assert (file.bytes, file.filename) == (len(data), "rows.jsonl")
    assert client.files.content(file.id).content == data
    assert [f.id for f in client.files.list(purpose="batch")] == [file.id]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)


def test_file_that_is_not_jsonl_is_refused(client):
    with pytest.raises(openai.BadRequestError, match="line 2"):
        client.files.create(file=("rows.jsonl", b'{"a": 1}\nnot json\n'), purpose="fine-tune")


def test_batch_passes_through_its_states_and_answers_in_another_order(client, emulator):
    batch = start_batch(client, [line(i) for i in range(10)])
    assert batch.status == "validating"
    seen = look(client, batch.id)
    states = list(dict.fromkeys(b.status for b in seen))
    assert states == ["in_progress", "finalizing", "completed"]
    assert seen[-1].request_counts.completed == 10
    ids = [row["custom_id"] for row in rows_of(client, seen[-1].output_file_id)]
    assert sorted(ids) == sorted(f"row-{i}" for i in range(10))
    assert ids != [f"row-{i}" for i in range(10)]
    assert emulator.bought_twice() == []
    assert len(emulator.counters()["paid"]) == 10


def test_batch_answer_is_the_chat_answer(client, emulator):
    batch = start_batch(client, [line(1)])
    (row,) = rows_of(client, look(client, batch.id)[-1].output_file_id)
    asked = client.chat.completions.create(**line(1)["body"])
    assert row["response"]["body"]["choices"][0]["message"]["content"] == asked.choices[0].message.content
    assert len(emulator.bought_twice()) == 1


def test_batch_line_that_the_chat_route_refuses_is_in_the_error_file(client):
    batch = start_batch(client, [line(0), line(1, n=0)])
    done = look(client, batch.id)[-1]
    (row,) = rows_of(client, done.error_file_id)
    assert (row["custom_id"], row["response"]["status_code"]) == ("row-1", 400)
    assert [r["custom_id"] for r in rows_of(client, done.output_file_id)] == ["row-0"]


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([line(0), line(0)], "duplicate_custom_id"),
        ([line(0), line(1, model="gpt-4.1-mini-2025-04-14")], "mismatched_model"),
        ([{**line(0), "url": "/v1/embeddings"}], "invalid_request"),
    ],
)
def test_batch_with_a_wrong_file_fails(client, lines, code):
    done = look(client, start_batch(client, lines).id)[-1]
    assert done.status == "failed"
    assert [e.code for e in done.errors.data] == [code]


def test_cancelled_batch_keeps_what_was_done(client):
    batch = start_batch(client, [line(i) for i in range(10)])
    while client.batches.retrieve(batch.id).request_counts.completed == 0:
        pass
    assert client.batches.cancel(batch.id).status == "cancelling"
    done = look(client, batch.id)[-1]
    assert done.status == "cancelled"
    assert len(rows_of(client, done.output_file_id)) == 5
    assert {row["error"]["code"] for row in rows_of(client, done.error_file_id)} == {"batch_cancelled"}


def test_expired_batch_has_half_of_its_lines(client, emulator):
    emulator.set_faults(batch_expired=True)
    done = look(client, start_batch(client, [line(i) for i in range(10)]).id)[-1]
    assert done.status == "expired"
    assert len(rows_of(client, done.output_file_id)) == 5
    assert len(rows_of(client, done.error_file_id)) == 5


def test_batch_faults_lose_double_and_break_lines(client, emulator):
    emulator.set_faults(batch_missing=1, batch_duplicate=1, batch_line_error=2)
    done = look(client, start_batch(client, [line(i) for i in range(10)]).id)[-1]
    assert len({row["custom_id"] for row in rows_of(client, done.error_file_id)}) == 2
    ids = [row["custom_id"] for row in rows_of(client, done.output_file_id)]
    assert (len(ids), len(set(ids))) == (8, 7)


def test_job_trains_and_serves_a_better_model(client, emulator):
    job = start_job(client, metadata={"stage_hash": "abc"})
    assert job.status == "validating_files"
    seen = watch(client, job.id)
    assert [j.status for j in seen] == ["queued", "running", "succeeded"]
    done = seen[-1]
    assert done.fine_tuned_model.startswith(f"ft:{MODEL}:emulator:warm:")
    events = list(client.fine_tuning.jobs.list_events(job.id, limit=50))
    assert sum(e.type == "metrics" for e in events) == 6
    steps = [c.step_number for c in client.fine_tuning.jobs.checkpoints.list(job.id)]
    assert steps == [6, 3]
    assert client.files.content(done.result_files[0]).text.count("\n") == 6

    def right(model):
        questions = [line(i, model=model, temperature=0)["body"] for i in range(60)]
        return sum(client.chat.completions.create(**q).choices[0].message.content == "Answer: B" for q in questions)

    assert right(done.fine_tuned_model) > right(MODEL)


def test_jobs_can_be_found_by_metadata(client):
    job = start_job(client, metadata={"stage_hash": "abc"})
    start_job(client, metadata={"stage_hash": "def"})
    found = client.fine_tuning.jobs.list(metadata={"stage_hash": "abc"})
    assert [j.id for j in found] == [job.id]


def test_job_with_nine_rows_fails_with_a_reason(client):
    done = watch(client, start_job(client, chats(9)).id)[-1]
    assert (done.status, done.error.code) == ("failed", "invalid_training_file")


def test_job_on_a_model_that_cannot_be_tuned_is_refused(client):
    with pytest.raises(openai.BadRequestError) as caught:
        start_job(client, model="gpt-6-luna")
    assert caught.value.code == "model_not_available"


def test_cancelled_job_serves_no_model(client, emulator):
    job = start_job(client)
    assert client.fine_tuning.jobs.cancel(job.id).status == "cancelled"
    assert client.fine_tuning.jobs.retrieve(job.id).fine_tuned_model is None
    assert emulator.counters()["trainings"] == {}
    with pytest.raises(openai.BadRequestError):
        client.fine_tuning.jobs.cancel(job.id)


def test_tuning_goes_on_from_a_tuned_model(client):
    first = watch(client, start_job(client).id)[-1].fine_tuned_model
    second = watch(client, start_job(client, model=first, suffix="final").id)[-1].fine_tuned_model
    assert second.startswith(f"ft:{MODEL}:emulator:final:")


@pytest.mark.parametrize(
    ("kind", "states"),
    [
        ("job_failed", ["queued", "running", "failed"]),
        ("job_unknown_state", ["queued", "awaiting_capacity", "running", "succeeded"]),
    ],
)
def test_job_faults(client, emulator, kind, states):
    emulator.set_faults(**{kind: 1})
    assert [j.status for j in watch(client, start_job(client).id)] == states


def test_stuck_job_stays_queued(client, emulator):
    emulator.set_faults(job_stuck=True)
    job = start_job(client)
    assert {client.fine_tuning.jobs.retrieve(job.id).status for _ in range(5)} == {"queued"}


def test_job_created_twice_by_a_retry_can_be_seen(client, emulator):
    file = upload(client, chats(), "fine-tune")
    emulator.set_faults(drop_after={"times": 1, "route": "fine_tuning/jobs"})
    client.fine_tuning.jobs.create(model=MODEL, training_file=file.id, metadata={"stage_hash": "abc"})
    assert len(list(client.fine_tuning.jobs.list())) == 2
