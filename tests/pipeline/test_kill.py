"""Real processes killed with SIGKILL: the run goes on and ends with the same bytes as an undisturbed one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from semievol.artifacts import RunDir
from tests.pipeline.conftest import FAKE
from tests.pipeline.test_fake_run import artifacts, results_without_cost

DEADLINE_SECONDS = 240
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}


def start(config: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "semievol", "run", str(config)],
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def finish(config: Path) -> None:
    process = start(config)
    _, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, stderr.decode()[-3000:]


def kill_when(config: Path, happened) -> bool:
    """Start the run and kill it as soon as `happened()`; False if it ended before."""
    process = start(config)
    end = time.monotonic() + DEADLINE_SECONDS
    while process.poll() is None and time.monotonic() < end:
        if happened():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            process.stderr.close()
            return True
        time.sleep(0.002)
    _, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, stderr.decode()[-3000:]
    return False


def write_config(folder: Path, task_files: dict[str, str], **changes) -> Path:
    # The run folder's name is part of the config, so both runs use the same one, in turn.
    config = {"output_dir": str(folder / "run"), "data": task_files, **changes}
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(config), encoding="utf-8")
    return path


def test_run_killed_at_random_moments_ends_with_the_same_bytes(tmp_path, task_files):
    config = write_config(tmp_path, task_files, rounds=2, **FAKE)
    start_time = time.monotonic()
    finish(config)
    seconds = time.monotonic() - start_time
    run_dir = RunDir(tmp_path / "run")
    expected, results = artifacts(run_dir), results_without_cost(run_dir)
    run_dir.path.rename(tmp_path / "undisturbed")

    generator = random.Random(11)
    n_killed = 0
    for _ in range(6):
        moment = time.monotonic() + seconds * generator.uniform(0.2, 0.9)
        n_killed += kill_when(config, lambda moment=moment: time.monotonic() > moment)
    finish(config)
    assert n_killed >= 2
    assert artifacts(run_dir) == expected
    assert results_without_cost(run_dir) == results


def test_real_run_killed_in_four_stages_ends_with_the_same_bytes(tmp_path, task_files, tiny_llama_dir):
    trainer = {"learning_rate": 5e-3, "num_train_epochs": 3, "per_device_train_batch_size": 4}
    trainer |= {"gradient_accumulation_steps": 1, "save_steps": 5, "max_length": 400}
    config = write_config(
        tmp_path,
        task_files,
        model={"path": tiny_llama_dir, "max_length": 400},
        trainer=trainer,
        generator={"type": "transformers", "threads": 1},
    )
    finish(config)
    run_dir = RunDir(tmp_path / "run")
    expected, results = artifacts(run_dir), results_without_cost(run_dir)
    run_dir.path.rename(tmp_path / "undisturbed")

    run = run_dir.path

    def checkpoint_in(folder: Path):
        return lambda: any(folder.glob("adapter.partial/**/checkpoint-*/trainer_state.json"))

    moments = {
        "warmup": checkpoint_in(run / "warmup"),
        "propagate": lambda: (run / "rows.sqlite").exists(),
        "evolve": checkpoint_in(run / "round-1" / "evolve"),
        "evaluate": lambda: (run / "evaluate" / "predictions_base.jsonl").exists(),
    }
    killed = {name: kill_when(config, happened) for name, happened in moments.items()}
    assert all(killed.values()), killed
    finish(config)
    assert artifacts(run_dir) == expected
    assert results_without_cost(run_dir) == results


def test_interrupted_run_says_how_to_go_on(tmp_path, task_files):
    config = write_config(tmp_path, task_files, rounds=3, **FAKE)
    process = start(config)
    while not (tmp_path / "run" / "data" / "counts.json").exists() and process.poll() is None:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    if process.returncode == 0:
        pytest.skip("the run was over before the signal came")
    assert process.returncode == 130
    assert f"Go on with: semievol run {config}" in stderr.decode()
    finish(config)
