"""Whole runs against an emulated server: without torch, with faults, killed; nothing lost, nothing bought twice."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from semievol import pipeline
from semievol.artifacts import RunDir
from semievol.config import parse_config
from semievol.errors import ConfigError, GenerationError
from semievol.types import PseudoLabel
from tests.pipeline.conftest import write_task

KEY = "sk-emulator"
SIZES = {"labeled": 12, "unlabeled": 30, "test": 12}
CHAT = "POST /v1/chat/completions"
OTHER_EACH_TIME = ("config.resolved.json", "manifest.json", "results.json", "model.json", "training.json")
"""Names of trained models, times and places."""


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    return write_task(tmp_path_factory.mktemp("hosted"), SIZES)


@pytest.fixture(autouse=True)
def fresh(emulator, monkeypatch):
    monkeypatch.setenv("EMULATOR_KEY", KEY)
    emulator.reset()


def settings(emulator, files, folder: Path, **changes) -> dict:
    endpoint = {"type": "openai", "base_url": emulator.base_url, "api_key_env": "EMULATOR_KEY"}
    return {
        "output_dir": str(folder / "run"),
        "data": files,
        "model": {"path": "gpt-4o-mini"},
        "generator": endpoint | {"max_concurrency": 8} | changes.pop("generator", {}),
        "trainer": endpoint | {"poll_seconds": 0.02},
        "embedder": {"type": "openai", "base_url": emulator.base_url, "api_key_env": "EMULATOR_KEY"},
        **changes,
    }


def decisions(run_dir: RunDir) -> dict[str, str]:
    """All artifacts but for the names of trained models and what a server said to whom."""
    found = {}
    for path in sorted(run_dir.path.rglob("*.json*")):
        name = path.relative_to(run_dir.path).as_posix()
        if path.name in OTHER_EACH_TIME or name.startswith("hosted/") or "/adapter/" in name:
            continue
        found[name] = path.read_text()
    return found


def bought_twice(emulator) -> int:
    """Without the probe, which asks the same twice to see whether the same comes back."""
    return len(emulator.bought_twice()) - 1


def in_process(config: dict, until_stage: str = "report") -> RunDir:
    return pipeline.run(parse_config(config), until_stage=until_stage)


@pytest.fixture(scope="module")
def undisturbed(emulator, files, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EMULATOR_KEY", KEY)
        emulator.reset()
        run_dir = in_process(settings(emulator, files, tmp_path_factory.mktemp("undisturbed")))
        return run_dir, decisions(run_dir), emulator.counters()["requests"][CHAT]


def test_run_measures_confidence_from_the_listed_alternatives(undisturbed):
    run_dir, _, _ = undisturbed
    labels = list(run_dir.read_records("round-1/justify/pseudo_labels", PseudoLabel))
    assert len(labels) == SIZES["unlabeled"]
    assert all(x.mean_nll is not None and x.entropy is not None and x.max_probability is not None for x in labels)
    results = run_dir.read_json("results")
    assert results["rows"]["n_read"] == sum(SIZES.values())
    assert results["calibration"]


def test_no_file_of_a_run_holds_the_key(undisturbed):
    run_dir, _, _ = undisturbed
    holding = [p for p in run_dir.path.rglob("*") if p.is_file() and KEY.encode() in p.read_bytes()]
    assert holding == []


def test_changed_limits_run_no_stage_again(emulator, files, undisturbed):
    run_dir, _, _ = undisturbed
    config = settings(emulator, files, run_dir.path.parent, generator={"max_concurrency": 3, "max_requests": 10_000})
    before = run_dir.manifest()
    in_process(config)
    assert run_dir.manifest() == before
    assert emulator.counters()["requests"] == {}


def test_faults_change_no_artifact_and_buy_nothing_twice(emulator, files, tmp_path, undisturbed):
    _, expected, _ = undisturbed
    faults = {kind: {"rate": 0.07, "route": "chat"} for kind in ("rate_limit", "server_error", "drop_before")}
    emulator.set_faults(seed=5, retry_after=0.01, **faults)
    run_dir = in_process(settings(emulator, files, tmp_path), "evaluate")
    assert decisions(run_dir) == expected
    assert bought_twice(emulator) == 0


CHECK_AND_RUN = """
import sys
from semievol.cli import run_app
assert run_app(["check", sys.argv[1]]) == 0
assert run_app(["run", sys.argv[1], "--yes"]) == 0
print("heavy:", [m for m in ("torch", "transformers", "trl", "peft", "datasets", "vllm") if m in sys.modules])
"""


def start(config: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CHECK_AND_RUN, str(config)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def n_stored(run: Path) -> int:
    try:
        with sqlite3.connect(f"file:{run / 'rows.sqlite'}?mode=ro", uri=True) as connection:
            return connection.execute("SELECT count(*) FROM rows").fetchone()[0]
    except sqlite3.OperationalError:
        return 0


def kill_when_stored(config: Path, run: Path, n_rows: int, extra_seconds: float = 0.0) -> bool:
    """Start the run and kill it once it has stored `n_rows` answers; False if it ended before."""
    process = start(config)
    end = time.monotonic() + 60
    while n_stored(run) < n_rows and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(extra_seconds)
    running = process.poll() is None
    if running:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return running


def finish(config: Path) -> str:
    """Run to the end; what it wrote to both streams."""
    process = start(config)
    stdout, stderr = (stream.decode() for stream in process.communicate(timeout=120))
    assert process.returncode == 0, stderr[-2000:]
    assert stdout.strip().endswith("heavy: []")
    return stdout + stderr


def test_run_killed_twice_ends_the_same_and_asks_no_stored_row_again_and_imports_no_torch(
    emulator, files, tmp_path, undisturbed
):
    _, expected, n_undisturbed = undisturbed
    emulator.set_faults(latency_ms=20)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(emulator, files, tmp_path, generator={"max_concurrency": 4})))
    for n_rows in (20, 120):
        assert kill_when_stored(config, tmp_path / "run", n_rows)
    shown = finish(config)
    assert decisions(RunDir(tmp_path / "run")) == expected
    # What was under way when the process died is all that can have been answered twice.
    n_requests = emulator.counters()["requests"][CHAT]
    assert n_undisturbed <= n_requests <= n_undisturbed + 2 * 4
    assert KEY not in shown


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_run_killed_at_twenty_random_moments_ends_the_same(emulator, files, tmp_path, undisturbed):
    _, expected, n_undisturbed = undisturbed
    faults = {kind: {"rate": 0.07, "route": "chat"} for kind in ("rate_limit", "server_error", "drop_before")}
    emulator.set_faults(latency_ms=20, seed=5, retry_after=0.01, **faults)
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(settings(emulator, files, tmp_path, generator={"max_concurrency": 4})))
    draw = random.Random(7)
    moments = sorted(draw.randrange(n_undisturbed) for _ in range(20))
    n_killed = sum(kill_when_stored(config, tmp_path / "run", n, draw.uniform(0, 0.2)) for n in moments)
    assert n_killed >= 15
    finish(config)
    assert decisions(RunDir(tmp_path / "run")) == expected
    assert bought_twice(emulator) <= 4 * n_killed


def test_server_without_logprobs_stops_the_run_before_anything_is_paid(emulator, files, tmp_path):
    emulator.set_faults(no_logprobs=True)
    with pytest.raises(ConfigError, match=r"select\.signal: agreement or sample_entropy"):
        in_process(settings(emulator, files, tmp_path))
    with pytest.raises(ConfigError, match=r"select\.min_confidence needs log-probabilities"):
        in_process(settings(emulator, files, tmp_path, select={"signal": "sample_entropy", "min_confidence": 0.9}))
    assert set(emulator.counters()["requests"]) == {CHAT}


def test_server_without_logprobs_runs_on_what_the_samples_say(emulator, files, tmp_path):
    emulator.set_faults(no_logprobs=True)
    run_dir = in_process(settings(emulator, files, tmp_path, select={"signal": "sample_entropy"}))
    labels = list(run_dir.read_records("round-1/justify/pseudo_labels", PseudoLabel))
    assert all(x.mean_nll is None and x.sample_entropy is not None for x in labels)
    assert run_dir.read_json("round-1/select/threshold")["signal"] == "sample_entropy"
    assert "entropy of the sampled answers" in (run_dir.path / "report.html").read_text()
    assert run_dir.read_json("results")["calibration"] == []


def test_budget_ends_a_run_that_goes_on_with_a_larger_one(emulator, files, tmp_path, undisturbed):
    _, expected, n_undisturbed = undisturbed
    with pytest.raises(GenerationError, match="max_requests: 60 is reached"):
        in_process(settings(emulator, files, tmp_path, generator={"max_requests": 60}))
    assert emulator.counters()["requests"][CHAT] == 60
    run_dir = in_process(settings(emulator, files, tmp_path, generator={"max_requests": 10_000}), "evaluate")
    assert decisions(run_dir) == expected
    assert emulator.counters()["requests"][CHAT] == n_undisturbed


def test_unknown_embedding_model_stops_the_run_before_a_training(emulator, files, tmp_path):
    config = settings(emulator, files, tmp_path)
    config["embedder"]["model"] = "none-3"
    with pytest.raises(ConfigError, match=r"knows no model none-3 .* check embedder\.model"):
        in_process(config)
    assert not any("fine_tuning" in route for route in emulator.counters()["requests"])
