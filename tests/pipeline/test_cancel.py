"""`semievol cancel RUN`: what a run has under way at a server is stopped and named; the run can go on afterwards."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from semievol.artifacts import STATE, RunDir
from semievol.backends.openai_batches import BatchRecords
from semievol.backends.openai_jobs import read_record, write_record
from semievol.cli import run_app
from semievol.config import parse_config
from semievol.errors import GenerationError, TrainingError
from semievol.pipeline import run
from tests.pipeline.conftest import write_task

MODEL = "gpt-4o-mini-2024-07-18"


@pytest.fixture
def config(emulator, monkeypatch, tmp_path):
    emulator.reset()
    monkeypatch.setenv("OPENAI_API_KEY", emulator.api_key)
    endpoint = {"base_url": emulator.base_url, "poll_seconds": 0.01, "deadline_hours": 0.0001}
    return parse_config(
        {
            "output_dir": str(tmp_path / "run"),
            "data": write_task(tmp_path, {"labeled": 12, "unlabeled": 12, "test": 4}),
            "model": {"path": MODEL},
            "generator": {"type": "openai_batch", **endpoint},
            "trainer": {"type": "openai", **endpoint},
            "control": {"enabled": False},
        }
    )


def cancelled(config, capsys) -> list[dict]:
    capsys.readouterr()
    assert run_app(["cancel", config.output_dir, "--json"]) == 0
    found: list[dict] = json.loads(capsys.readouterr().out)
    return found


def job_folder(config) -> RunDir:
    return RunDir(Path(config.output_dir) / "warmup" / "adapter.partial")


def test_cancel_stops_a_job_and_the_next_run_starts_another(emulator, config, capsys):
    emulator.set_faults(job_stuck=1)
    with pytest.raises(TrainingError, match="is still queued"):
        run(config, until_stage="warmup")
    (stopped,) = cancelled(config, capsys)
    assert stopped == {**stopped, "kind": "job", "model": MODEL, "status": "cancelled", "is_cancelled": True}
    assert cancelled(config, capsys) == [{**stopped, "is_cancelled": False}]
    run(config, until_stage="warmup")
    assert emulator.counters()["requests"]["POST /v1/fine_tuning/jobs"] == 2
    assert cancelled(config, capsys) == []


def test_cancel_finds_a_job_whose_id_never_arrived(emulator, config, capsys):
    emulator.set_faults(job_stuck=1)
    with pytest.raises(TrainingError):
        run(config, until_stage="warmup")
    folder = job_folder(config)
    job = read_record(folder).job
    write_record(folder, replace(read_record(folder), job=None))
    assert [(s["id"], s["is_cancelled"]) for s in cancelled(config, capsys)] == [(job, True)]


def test_cancel_stops_batches_and_the_next_run_sends_the_rest(emulator, config, capsys):
    run(config, until_stage="retrieve")
    emulator.set_faults(batch_stuck=True)
    with pytest.raises(GenerationError, match="have not ended"):
        run(config, until_stage="propagate")
    stopped = cancelled(config, capsys)
    assert len(stopped) == 2  # the base and the warm model
    assert all(s["kind"] == "batch" and s["is_cancelled"] for s in stopped)
    emulator.set_faults()
    run(config, until_stage="propagate")
    assert BatchRecords(Path(config.output_dir) / STATE).read() == []


def test_cancel_of_a_run_without_a_server_says_so(tmp_path, capsys):
    data = write_task(tmp_path, {"labeled": 12, "unlabeled": 12, "test": 4})
    fake = {"generator": {"type": "fake"}, "trainer": {"type": "fake"}, "embedder": {"type": "fake"}}
    run(parse_config({"output_dir": str(tmp_path / "run"), "data": data, **fake}), until_stage="data")
    assert run_app(["cancel", str(tmp_path / "run")]) == 0
    assert capsys.readouterr().out == "nothing is under way\n"


def test_cancel_of_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert run_app(["cancel", str(tmp_path)]) == 2
    assert "is not the folder of a run" in capsys.readouterr().err
