"""What the openai trainer promises, against the emulator over real sockets: one job whatever happens, and its words."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import date
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from semievol.artifacts import RunDir
from semievol.backends.base import FIT_REPORT, open_trainer
from semievol.backends.openai_jobs import FINGERPRINT_KEY, JobRecord, JobSpec, read_record, start_job, write_record
from semievol.backends.openai_rows import build_training_file
from semievol.backends.openai_server import open_server
from semievol.backends.openai_trainer import OpenAITrainer
from semievol.config import AzureConfig, FakeTrainerConfig, ModelConfig, OpenAITrainerConfig
from semievol.errors import ArtifactError, ConfigError, TrainingError
from semievol.types import Message, ModelRef, SftRow

MODEL = "gpt-4o-mini-2024-07-18"
CREATE = "POST /v1/fine_tuning/jobs"
UPLOAD = "POST /v1/files"


@pytest.fixture(autouse=True)
def _fresh(emulator, monkeypatch):
    emulator.reset()
    monkeypatch.setenv("OPENAI_API_KEY", emulator.api_key)


def make_rows(n: int = 20) -> list[SftRow]:
    return [
        SftRow(f"row-{i}", (Message("user", f"where is parcel {i}? #{'AB'[i % 2]}"),), "Answer: A") for i in range(n)
    ]


def make_config(emulator, **changes) -> OpenAITrainerConfig:
    fast = {"base_url": emulator.base_url, "poll_seconds": 0.01, "batch_size": 4}
    return OpenAITrainerConfig(**{**fast, **changes})


def fit(emulator, output_dir, *, rows=None, model=None, seed=0, progress=None, **changes):
    config = make_config(emulator, **changes)
    trainer = OpenAITrainer(
        ModelConfig(path=MODEL), today=lambda: date(2026, 12, 1), sleep=lambda s: time.sleep(s / 50)
    )
    rows = make_rows() if rows is None else rows
    return trainer.fit(model or ModelRef(MODEL), rows, output_dir, config=config, seed=seed, progress=progress)


def created(emulator) -> list[dict]:
    """Bodies of the requests that create a job."""
    return [r["body"] for r in emulator.requests("fine_tuning/jobs") if r["route"] == CREATE]


def n_requests(emulator, route: str) -> int:
    return emulator.counters()["requests"].get(route, 0)


def trainings(emulator) -> int:
    """Trainings that were paid."""
    return sum(emulator.counters()["trainings"].values())


# What a training is


def test_fit_returns_the_tuned_model_and_what_the_job_did(emulator, tmp_path):
    counts: list[int] = []
    report = fit(emulator, tmp_path / "out", progress=counts.append)
    assert report.model == ModelRef(report.model.base)
    assert report.model.base.startswith(f"ft:{MODEL}:")
    assert report.optimizer_steps == 2 * 5 == sum(counts)
    assert [step for step, _ in report.losses] == list(range(1, 11))
    assert report.losses[0][1] > report.losses[-1][1]
    assert (report.n_rows, report.n_tokens > 0) == (20, True)
    assert report.rendered_example == "[user]\nwhere is parcel 0? #A\n[assistant]\n⟦Answer: A⟧"


def test_fingerprint_is_that_of_the_finished_training(emulator, tmp_path):
    fit(emulator, tmp_path / "out", seed=3)
    stored = json.loads((tmp_path / "out" / FIT_REPORT).read_text())["fingerprint"]
    trainer, config = OpenAITrainer(ModelConfig(path=MODEL)), make_config(emulator)
    found = [
        trainer.fingerprint(ModelRef(MODEL), rows, config=config, seed=seed)
        for rows, seed in ((make_rows(), 3), (make_rows(19), 3), (make_rows(), 4))
    ]
    assert found[0] == stored
    assert len(set(found)) == 3


def test_fit_asks_for_what_the_config_says(emulator, tmp_path):
    fit(emulator, tmp_path / "out", seed=7, num_train_epochs=3, learning_rate_multiplier=0.5, suffix="mine")
    (body,) = created(emulator)
    settings = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 0.5}
    assert body["method"] == {"type": "supervised", "supervised": {"hyperparameters": settings}}
    assert (body["model"], body["seed"], body["suffix"]) == (MODEL, 7, "mine")
    assert len(body["metadata"][FINGERPRINT_KEY]) == 64


def test_fit_leaves_a_whole_folder_and_no_partial_one(emulator, tmp_path):
    report = fit(emulator, tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["events.jsonl", "fit_report.json", "job.json"]
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    assert (job["status"], job["job"][:6], len(job["training_sha256"])) == ("succeeded", "ftjob-", 64)
    assert report.model.base in (tmp_path / "out" / "events.jsonl").read_text()


def test_count_steps_is_what_fit_takes(emulator, tmp_path):
    trainer = open_trainer(make_config(emulator), ModelConfig(path=MODEL))
    for i, changes in enumerate(({}, {"batch_size": 3}, {"max_steps": 7}, {"eval_fraction": 0.25})):
        report = fit(emulator, tmp_path / str(i), **changes)
        assert trainer.count_steps(20, make_config(emulator, **changes)) == report.optimizer_steps
    assert trainer.count_steps(0, make_config(emulator)) == 0


def test_fit_max_steps_are_taken_exactly_over_whole_passes(emulator, tmp_path):
    report = fit(emulator, tmp_path / "out", rows=make_rows(12), max_steps=9)
    assert report.optimizer_steps == 9
    assert report.n_rows == 12
    (body,) = created(emulator)
    assert body["method"]["supervised"]["hyperparameters"]["n_epochs"] == 1


def test_fit_max_steps_without_a_batch_size_are_refused(emulator, tmp_path):
    with pytest.raises(ConfigError, match=r"batch_size: auto\), so it cannot train for 9 optimiser steps"):
        fit(emulator, tmp_path / "out", max_steps=9, batch_size="auto")


def test_fit_auto_takes_what_the_server_chose(emulator, tmp_path):
    report = fit(emulator, tmp_path / "out", num_train_epochs="auto", batch_size="auto")
    assert report.optimizer_steps == 3 * 3  # the emulator's own choice: 3 epochs, batches of 8


def test_fit_uploads_held_out_rows_as_the_validation_file(emulator, tmp_path):
    fit(emulator, tmp_path / "out", eval_fraction=0.25)
    (body,) = created(emulator)
    assert body["validation_file"].startswith("file-")
    assert n_requests(emulator, UPLOAD) == 2


def test_fit_on_azure_trains_under_its_own_addresses(emulator, tmp_path):
    azure = AzureConfig(endpoint=emulator.origin)
    assert fit(emulator, tmp_path / "out", base_url=None, azure=azure).model.base.startswith("ft:")


def test_fit_goes_on_from_a_tuned_model(emulator, tmp_path):
    first = fit(emulator, tmp_path / "one")
    second = fit(emulator, tmp_path / "two", model=first.model)
    assert created(emulator)[1]["model"] == first.model.base
    assert second.model.base != first.model.base


class OlderServer(BaseHTTPRequestHandler):
    """Refuses what came to the protocol later."""

    def answer(self, status: int, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        if "metadata" in self.path:
            self.answer(400, {"error": {"message": "Unknown query parameter: metadata"}})
        else:
            self.answer(200, {"object": "list", "data": [], "has_more": False})

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers["content-length"]))
        if self.path.endswith("/files"):
            self.answer(200, {"id": "file-1", "object": "file", "bytes": 1, "filename": "x", "status": "processed"})
            return
        body = json.loads(raw)
        unknown = [name for name in ("metadata", "method") if name in body]
        if unknown:
            self.answer(400, {"error": {"message": f"Unrecognized request argument supplied: {unknown[0]}"}})
        else:
            self.answer(200, {"id": "ftjob-1", "status": "queued", "model": json.dumps(body["hyperparameters"])})

    def log_message(self, *_: object) -> None:
        pass


def test_start_job_leaves_out_what_an_older_server_does_not_know(tmp_path):
    server = HTTPServer(("127.0.0.1", 0), OlderServer)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        config = OpenAITrainerConfig(base_url=f"http://127.0.0.1:{server.server_port}/v1", api_key_env=None)
        spec = JobSpec(MODEL, build_training_file(make_rows()), None, {"n_epochs": 2}, 0, None)
        with open_server(config, sleep=lambda s: None) as opened:
            assert start_job(opened, spec, RunDir(tmp_path)).job == "ftjob-1"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert read_record(RunDir(tmp_path)).training_file == "file-1"


# One job, whatever happens


def test_fit_finished_is_taken_as_it_is(emulator, tmp_path):
    first = fit(emulator, tmp_path / "out")
    before = emulator.counters()["requests"]
    counts: list[int] = []
    assert fit(emulator, tmp_path / "out", progress=counts.append) == first
    assert counts == [10]
    assert emulator.counters()["requests"] == before


def test_fit_with_other_rows_trains_anew(emulator, tmp_path):
    fit(emulator, tmp_path / "out")
    fit(emulator, tmp_path / "out", rows=make_rows(21))
    assert trainings(emulator) == 2


@pytest.mark.parametrize("fault", ["drop_after", "drop_before", "server_error", "rate_limit"])
def test_fit_creates_one_job_where_the_answer_is_lost(emulator, tmp_path, fault):
    emulator.set_faults(**{fault: {"times": 2, "route": CREATE}})
    report = fit(emulator, tmp_path / "out")
    assert report.model.base.startswith("ft:")
    assert trainings(emulator) == 1


@pytest.mark.parametrize("route", ["GET /v1/fine_tuning/jobs/{id}", "GET /v1/files", UPLOAD])
def test_fit_goes_on_through_passing_faults(emulator, tmp_path, route):
    emulator.set_faults(server_error={"times": 2, "route": route}, retry_after=0.001)
    fit(emulator, tmp_path / "out")
    assert trainings(emulator) == 1


def test_fit_finds_the_finished_job_of_a_lost_folder(emulator, tmp_path):
    first = fit(emulator, tmp_path / "out")
    again = fit(emulator, tmp_path / "elsewhere")
    assert again.model == first.model
    assert n_requests(emulator, CREATE) == 1


def test_fit_does_not_take_a_job_whose_record_was_lost_for_another(emulator, tmp_path):
    """Killed between the upload and the id of the job: the record says that a job may be there."""
    first = fit(emulator, tmp_path / "out")
    record = json.loads((tmp_path / "out" / "job.json").read_text())
    partial = RunDir(tmp_path / "again.partial")
    write_record(partial, JobRecord(**{**record, "job": None, "status": None}))
    assert fit(emulator, tmp_path / "again").model == first.model
    assert n_requests(emulator, CREATE) == 1


CHILD = """
import json, sys
from pathlib import Path
from semievol.backends.openai_trainer import OpenAITrainer
from semievol.config import ModelConfig, OpenAITrainerConfig
from semievol.types import Message, ModelRef, SftRow
job = json.loads(sys.argv[1])
rows = [SftRow(i, (Message("user", prompt),), completion) for i, prompt, completion in job["rows"]]
trainer = OpenAITrainer(ModelConfig(path=job["model"]))
config = OpenAITrainerConfig(**job["config"])
report = trainer.fit(ModelRef(job["model"]), rows, Path(job["out"]), config=config, seed=0)
assert "torch" not in sys.modules
print(report.model.base)
"""


def start_child(emulator, out: Path, **changes) -> subprocess.Popen:
    job = {
        "model": MODEL,
        "out": str(out),
        "rows": [(row.id, row.messages[0].content, row.completion) for row in make_rows()],
        "config": make_config(emulator, **changes).model_dump(mode="json"),
    }
    arguments = [sys.executable, "-c", CHILD, json.dumps(job)]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, env=os.environ | {"OMP_NUM_THREADS": "1"})


def kill_when(child: subprocess.Popen, happened) -> None:
    deadline = time.monotonic() + 60
    while child.poll() is None and time.monotonic() < deadline and not happened():
        time.sleep(0.002)
    child.kill()
    assert child.wait() == -signal.SIGKILL, "the training ended before it could be killed"


@pytest.mark.parametrize("route", [UPLOAD, CREATE])
def test_fit_killed_during_a_request_that_costs_creates_one_job(emulator, tmp_path, route):
    """The process is killed while the server is at work, so nobody here learns what came of the request."""
    emulator.set_faults(slow={"times": 1, "route": route}, slow_seconds=0.4)
    child = start_child(emulator, tmp_path / "out")
    kill_when(child, lambda: n_requests(emulator, route) > 0)
    child.stdout.close()
    time.sleep(0.5)
    report = fit(emulator, tmp_path / "out")
    assert report.model.base.startswith("ft:")
    assert n_requests(emulator, CREATE) == trainings(emulator) == 1


def test_fit_killed_while_it_waits_goes_on_with_the_stored_job(emulator, tmp_path):
    emulator.set_faults(job_stuck=1)
    child = start_child(emulator, tmp_path / "out")

    def is_stored() -> bool:
        record = read_record(RunDir(tmp_path / "out.partial"))
        return record is not None and record.job is not None

    kill_when(child, is_stored)
    child.stdout.close()
    stored = read_record(RunDir(tmp_path / "out.partial"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(TrainingError, match=f"{stored.job} is still queued"):
        fit(emulator, tmp_path / "out", deadline_hours=0.0001)
    assert n_requests(emulator, CREATE) == 1


# Ends that are no success


def test_fit_failed_job_is_an_error_in_its_own_words_and_can_be_tried_again(emulator, tmp_path):
    emulator.set_faults(job_failed=1)
    with pytest.raises(TrainingError, match=r"ftjob-\w+ is failed: server_error: The job failed due to an internal"):
        fit(emulator, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert fit(emulator, tmp_path / "out").model.base.startswith("ft:")
    assert n_requests(emulator, CREATE) == 2


def test_fit_unknown_state_is_waited_for(emulator, tmp_path, caplog):
    emulator.set_faults(job_unknown_state=1)
    with caplog.at_level("INFO", logger="semievol.hosted"):
        fit(emulator, tmp_path / "out")
    assert "is awaiting_capacity, a state that is not known here; waiting on" in caplog.text


def test_fit_stuck_job_hits_the_deadline_and_says_how_to_go_on(emulator, tmp_path):
    emulator.set_faults(job_stuck=1)
    with pytest.raises(TrainingError, match=r"ftjob-\w+ is still queued .*: run again .* `semievol cancel RUN`"):
        fit(emulator, tmp_path / "out", deadline_hours=0.0001)
    assert read_record(RunDir(tmp_path / "out.partial")).status == "validating_files"


def test_fit_job_cancelled_elsewhere_is_an_error(emulator, tmp_path):
    from openai import OpenAI

    emulator.set_faults(job_stuck=1)
    client = OpenAI(base_url=emulator.base_url, api_key=emulator.api_key)

    def cancel() -> None:
        while not (jobs := client.fine_tuning.jobs.list().data):
            time.sleep(0.01)
        client.fine_tuning.jobs.cancel(jobs[0].id)

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(TrainingError, match=r"ftjob-\w+ is cancelled"):
        fit(emulator, tmp_path / "out")
    thread.join()


def test_fit_model_that_cannot_be_tuned_is_a_config_error(emulator, tmp_path):
    with pytest.raises(ConfigError, match=r"refuses to fine-tune gpt-6-luna: .*not available for fine-tuning"):
        fit(emulator, tmp_path / "out", model=ModelRef("gpt-6-luna"))
    assert not (tmp_path / "out").exists()


def test_fit_wrong_key_is_a_config_error(emulator, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong-key-0000")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY") as caught:
        fit(emulator, tmp_path / "out")
    assert "sk-wrong" not in str(caught.value)


# Before a byte is sent


def test_fit_too_few_rows_are_refused_before_any_request(emulator, tmp_path):
    with pytest.raises(TrainingError, match="9 training rows: hosted fine-tuning takes 10 or more"):
        fit(emulator, tmp_path / "out", rows=make_rows(9))
    assert emulator.counters()["requests"] == {}


def test_fit_long_rows_are_named_before_any_request(emulator, tmp_path):
    long = SftRow("row-long", (Message("user", "parcel " * 100),), "Answer: A")
    with pytest.raises(TrainingError, match=r"1 of 21 .* row-long \(about 186 tokens\)"):
        fit(emulator, tmp_path / "out", rows=[*make_rows(), long], max_length=100)
    assert emulator.counters()["requests"] == {}


def test_fit_empty_completion_is_refused(emulator, tmp_path):
    with pytest.raises(TrainingError, match="no token carries loss in row-empty"):
        fit(emulator, tmp_path / "out", rows=[*make_rows(), SftRow("row-empty", (Message("user", "x"),), " ")])


def test_fit_of_a_local_adapter_is_a_config_error(emulator, tmp_path):
    with pytest.raises(ConfigError, match="cannot train the local adapter"):
        fit(emulator, tmp_path / "out", model=ModelRef(MODEL, "somewhere"))


def test_fit_does_not_remove_what_it_did_not_write(emulator, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(ArtifactError, match="holds no training of ours"):
        fit(emulator, tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").exists()


def test_fit_section_of_another_trainer_is_a_config_error(emulator):
    with pytest.raises(ConfigError, match="fake"):
        open_trainer(make_config(emulator), ModelConfig(path=MODEL)).count_steps(4, FakeTrainerConfig())
