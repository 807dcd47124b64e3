"""Files for fine-tuning and batches, dates, retries: what needs no server."""

import json
import re
from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.backends.notes import hosted_notes, logger
from semievol.backends.openai_batch_files import best_outcomes, make_line, read_outcomes, split_lines
from semievol.backends.openai_dates import explain_refusal, fine_tuning_notice, retirement
from semievol.backends.openai_jobs import JobSpec
from semievol.backends.openai_rows import build_training_file, check_rows, check_size, hold_out, repeat_rows
from semievol.backends.openai_server import growing_waits
from semievol.config import parse_config
from semievol.errors import ConfigError, TrainingError
from semievol.surroundings import check_tuning
from semievol.types import Message, SftRow

OPENAI = "https://api.openai.com/v1"
MINE = "http://localhost:8000/v1"


def row(i: int, *turns: Message) -> SftRow:
    return SftRow(f"row-{i}", turns or (Message("user", f"q{i}"),), f"Answer: {i}")


ROWS = [row(i) for i in range(12)]


# Training files


def test_training_file_is_one_line_a_row_with_the_completion_last():
    file = build_training_file([row(1, Message("system", "Be brief."), Message("user", "é?"))])
    assert json.loads(file.data) == {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "é?"},
            {"role": "assistant", "content": "Answer: 1"},
        ]
    }
    assert file.data.endswith(b"\n")


def test_training_file_puts_no_loss_on_earlier_answers():
    turns = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    messages = json.loads(build_training_file([row(1, *turns)]).data)["messages"]
    assert [m.get("weight") for m in messages] == [None, 0, None, None]


def test_training_file_tokens_are_a_quarter_of_the_bytes_and_four_a_turn():
    assert build_training_file([row(1, Message("user", "é" * 6))]).n_tokens == (3 + 4) + (3 + 4)


def test_training_file_larger_than_the_api_takes_is_refused(monkeypatch):
    monkeypatch.setattr("semievol.backends.openai_rows.MAX_FILE_BYTES", 100)
    with pytest.raises(TrainingError, match=r"the Files API takes 100: lower select.keep_fraction"):
        check_size(build_training_file(ROWS))


def test_check_rows_takes_ten_rows():
    check_rows(ROWS[:10], max_length=100)


@given(st.integers(1, 40), st.integers(0, 5))
def test_repeat_rows_shows_each_row_equally_often(n, seed):
    repeated = [r.id for r in repeat_rows(ROWS, n, seed=seed)]
    counts = [repeated.count(r.id) for r in ROWS]
    assert len(repeated) == n
    assert max(counts) - min(counts) <= 1


@given(st.floats(0, 0.99), st.integers(2, 30))
def test_hold_out_parts_the_rows_and_keeps_their_order(fraction, n):
    rows = [row(i) for i in range(n)]
    train, held_out = hold_out(rows, fraction, seed=1)
    assert sorted([*train, *held_out], key=rows.index) == rows
    assert train == sorted(train, key=rows.index) != []
    assert bool(held_out) == (fraction > 0)


def test_fingerprint_changes_with_all_that_changes_the_model():
    file = build_training_file(ROWS)
    spec = JobSpec("gpt-4o-mini", file, None, {"n_epochs": 2}, 0, None)
    others = [
        spec._replace(model="gpt-4.1-mini"),
        spec._replace(training=build_training_file(ROWS[::-1])),
        spec._replace(validation=file),
        spec._replace(hyperparameters={"n_epochs": 3}),
        spec._replace(seed=1),
    ]
    assert len({s.fingerprint for s in (spec, *others)}) == 6
    assert spec._replace(suffix="named").fingerprint == spec.fingerprint
    assert len(spec.name) <= 18


# Batch files


def test_make_line_is_the_same_for_the_same_request_and_another_for_another_draw():
    body = {"model": "m", "messages": []}
    assert make_line(body).custom_id == make_line(dict(reversed(body.items()))).custom_id
    assert len({make_line(body, 7, i).custom_id for i in range(3)}) == 3
    sent = json.loads(make_line(body).data)
    assert (sent["method"], sent["url"], sent["body"]) == ("POST", "/v1/chat/completions", body)


@given(st.lists(st.integers(0, 60), max_size=40), st.integers(1, 7), st.integers(100, 400))
def test_split_lines_keeps_the_limits_and_every_line_in_order(lengths, max_lines, max_bytes):
    lines = [make_line({"text": "x" * n}, i) for i, n in enumerate(lengths)]
    files = list(split_lines(lines, max_lines=max_lines, max_bytes=max_bytes))
    assert [line for file in files for line in file] == lines
    assert all(len(file) <= max_lines for file in files)
    assert all(sum(len(x.data) for x in file) <= max_bytes or len(file) == 1 for file in files)


def result_line(custom_id: str, status: int | None = 200, code: str = "") -> str:
    response = None if status is None else {"status_code": status, "body": {"id": custom_id}}
    error = {"code": code, "message": "why"} if code else None
    return json.dumps({"id": "x", "custom_id": custom_id, "response": response, "error": error})


def test_read_outcomes_tells_answers_from_passing_and_lasting_errors():
    lines = [
        result_line("a"),
        result_line("b", 500),
        result_line("c", 429),
        result_line("d", 400),
        result_line("e", None, "batch_expired"),
        '{"custom_id": "f", "respo',
        "",
        "[]",
    ]
    reading = read_outcomes("\n".join(lines).encode())
    kinds = {o.custom_id: o.kind for o in reading.outcomes}
    assert kinds == {"a": "answered", "b": "transient", "c": "transient", "d": "permanent", "e": "transient"}
    assert reading.outcomes[-1].error == "batch_expired: why"
    assert reading.n_broken == 2


def test_best_outcomes_takes_the_answer_whatever_comes_after_it():
    lines = [
        result_line("a", 500),
        result_line("a"),
        result_line("a", 400),
        result_line("b", 400),
        result_line("b", 500),
    ]
    best = best_outcomes(read_outcomes("\n".join(lines).encode()).outcomes)
    assert {i: o.kind for i, o in best.items()} == {"a": "answered", "b": "permanent"}


def test_growing_waits_end_at_the_longest():
    waits = growing_waits(3.0)
    assert [next(waits) for _ in range(5)] == [1.0, 1.5, 2.25, 3.0, 3.0]
    assert next(growing_waits(0.01)) == 0.01


# What is known of OpenAI


def test_notice_before_the_end_names_both_dates():
    text = fine_tuning_notice(OPENAI, "gpt-4o-mini-2024-07-18", date(2026, 11, 23))
    assert "until 2027-01-06" in text
    assert "stop answering on 2027-01-14" in text
    assert "trainer.type: trl" in text


@pytest.mark.parametrize(
    ("today", "words"),
    [(date(2027, 1, 6), "no new fine-tuning jobs since 2027-01-06"), (date(2027, 1, 14), "retired .* on 2027-01-14")],
)
def test_refusal_of_openai_is_explained_by_its_date(today, words):
    text = explain_refusal(OPENAI, "gpt-4o-mini", today, "403: not allowed")
    assert "403: not allowed" in text
    assert re.search(words, text)


def test_refusal_of_any_other_server_is_its_own_words():
    text = explain_refusal(MINE, "gpt-4o-mini", date(2027, 6, 1), "400: cannot tune this")
    assert "400: cannot tune this" in text
    assert "2027" not in text
    assert "OpenAI" not in text


@pytest.mark.parametrize(
    ("model", "day"),
    [
        ("gpt-4o-mini", date(2027, 1, 14)),
        ("ft:gpt-4.1-mini-2025-04-14:me:warm:abc", date(2027, 1, 14)),
        ("gpt-4.1-nano-2025-04-14", date(2026, 10, 23)),
        ("gpt-4o-mini-audio-preview", None),
        ("gpt-4.1", None),
        ("my-model", None),
    ],
)
def test_retirement_counts_snapshots_and_tuned_copies(model, day):
    assert retirement(model) == day


def test_check_warns_of_the_end_at_openai_and_of_no_other_server():
    data = {"data": {"labeled": "a.csv", "unlabeled": "b.csv"}, "model": {"path": "gpt-4o-mini"}}
    openai, mine = ({"type": "openai", **changes} for changes in ({}, {"base_url": MINE}))
    (warning,) = check_tuning(parse_config({**data, "trainer": openai}), date(2026, 11, 23))
    assert "until 2027-01-06" in warning
    assert check_tuning(parse_config({**data, "trainer": mine}), date(2027, 6, 1)) == []


# Config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"trainer": {"type": "openai", "batch_size": "auto"}}, "control.enabled: false"),
        ({"trainer": {"type": "openai", "batch_size": 1.5}}, "trainer.batch_size: a whole number from 1 on, or auto"),
        ({"trainer": {"type": "openai"}, "recipe": "released"}, "set evolve.learning_rate: null"),
        ({"trainer": {"type": "openai"}, "warmup": {"num_train_epochs": 1.5}}, "warmup.num_train_epochs"),
        ({"generator": {"type": "openai_batch", "max_requests_per_batch": 50_001}}, "max_requests_per_batch"),
    ],
)
def test_settings_that_a_server_does_not_take_are_named(changes, words):
    with pytest.raises(ConfigError, match=words):
        parse_config({"data": {"labeled": "a.csv", "unlabeled": "b.csv"}, **changes})


def test_hosted_notes_hand_on_each_line_and_leave_the_logger_as_it_was():
    said: list[str] = []
    with hosted_notes(said.append):
        logger.info("job %s is running", "a")
    logger.info("job %s is over", "a")
    assert said == ["job a is running"]
    assert logger.handlers == []
