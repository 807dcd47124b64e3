"""Training in two real processes over gloo: the same rows and losses as one process, and the same end after a kill."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from semievol.backends.base import FitReport, open_trainer
from semievol.config import ModelConfig, TrlTrainerConfig
from semievol.errors import ConfigError, TrainingError
from semievol.types import Message, ModelRef, SftRow

WORDS = ["where", "is", "my", "parcel", "the", "card", "was", "lost", "abroad", "top", "up", "failed", "again"]
START = "choose the right option and reply with answer and its letter only please now "
TWO = {"num_processes": 2}


def make_rows(n: int) -> list[SftRow]:
    """Rows of different lengths that begin alike; some weigh less."""
    rows = []
    for i in range(n):
        text = START + " ".join(WORDS[(i + j) % len(WORDS)] for j in range(2 + (i * 5) % 11))
        weight = 0.25 if i % 3 == 0 else 1.0
        rows.append(SftRow(f"row-{i}", (Message("user", text),), f"Answer: {'AB'[i % 2]}", weight))
    return rows


def make_config(**changes) -> TrlTrainerConfig:
    small = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "r": 4, "logging_steps": 1}
    return TrlTrainerConfig(
        **{**small, "num_train_epochs": 2, "learning_rate": 1e-3, "eval_fraction": 0.2, "precision": "fp32", **changes}
    )


def fit(path, output_dir, *, rows, progress=None, **changes) -> FitReport:
    trainer = open_trainer(make_config(), ModelConfig(path=path, device="cpu"))
    config = make_config(**changes)
    return trainer.fit(ModelRef(path), rows, output_dir, config=config, seed=0, progress=progress)


def held_out_loss(folder: Path) -> float:
    return json.loads((folder / "fit_report.json").read_text())["held_out_loss"]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("one_thread")
def test_two_processes_train_as_one_with_the_same_global_batch(tiny_llama_dir, tmp_path):
    rows = make_rows(39)  # 31 to train on: the epochs end with 3 + 3 + 1 rows, and one process gets a batch of none
    alone = fit(tiny_llama_dir, tmp_path / "one", rows=rows, gradient_accumulation_steps=4)
    counts: list[int] = []
    both = fit(tiny_llama_dir, tmp_path / "two", rows=rows, launch=TWO, progress=counts.append)
    assert counts == [1] * 6
    assert [step for step, _ in both.losses] == [step for step, _ in alone.losses]
    assert [loss for _, loss in both.losses] == pytest.approx([loss for _, loss in alone.losses], rel=1e-4)
    assert both.n_tokens == alone.n_tokens
    assert held_out_loss(tmp_path / "two") == pytest.approx(held_out_loss(tmp_path / "one"), rel=1e-4)
    expected = load_file(tmp_path / "one" / "adapter_model.safetensors")
    found = load_file(tmp_path / "two" / "adapter_model.safetensors")
    assert found.keys() == expected.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=2e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


CHILD = """
import json, sys
from pathlib import Path
from tests.contract.test_launched_training import fit, make_rows
job = json.loads(sys.argv[1])
fit(job["path"], Path(job["out"]), rows=make_rows(job["n"]), **job["config"])
"""
LONG = {"launch": TWO, "max_steps": 14, "save_steps": 2, "lora_dropout": 0.1, "eval_fraction": 0.0}


def start_child(path: str, out: Path, n: int, **config) -> subprocess.Popen:
    job = {"path": path, "out": str(out), "n": n, "config": config}
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, json.dumps(job)], env=environment, stderr=subprocess.PIPE, start_new_session=True
    )


def workers_of(out: Path) -> list[int]:
    """Processes whose command line names the job of `out`, torchrun first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if str(out.with_name(out.name + ".partial") / "launch.json").encode() in words:
            found.append((b"torch.distributed.run" not in words, int(folder.name)))
    return [pid for _, pid in sorted(found)]


def wait_until(happened, *, seconds: float = 200.0) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.05)


def has_checkpoint(out: Path) -> bool:
    return any(out.with_name(out.name + ".partial").glob("checkpoint-*/trainer_state.json"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for processes in /proc")
@pytest.mark.usefixtures("one_thread")
def test_killed_at_three_places_and_resumed_ends_with_the_same_bytes(tiny_llama_dir, tmp_path):
    rows, out = make_rows(39), tmp_path / "out"
    fit(tiny_llama_dir, tmp_path / "undisturbed", rows=rows, **LONG)
    expected = (tmp_path / "undisturbed" / "adapter_model.safetensors").read_bytes()

    killed: list[int] = []

    def kill_a_worker(n: int) -> None:
        if has_checkpoint(out) and not killed:
            killed.append(workers_of(out)[-1])
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(TrainingError, match=r"one of 2 training processes was killed by SIGKILL.*launch\.log"):
        fit(tiny_llama_dir, out, rows=rows, progress=kill_a_worker, **LONG)
    assert workers_of(out) == []
    assert not out.exists()

    child = start_child(tiny_llama_dir, out, 39, **LONG)
    wait_until(lambda: len(workers_of(out)) == 3)
    child.kill()
    child.communicate()
    wait_until(lambda: workers_of(out) == [], seconds=60)

    child = start_child(tiny_llama_dir, out, 39, **LONG)
    log = tmp_path / "out.partial" / "launch.log"
    wait_until(lambda: len(workers_of(out)) == 3)
    before = sorted(path.name for path in (tmp_path / "out.partial").glob("checkpoint-*"))
    wait_until(lambda: sorted(p.name for p in (tmp_path / "out.partial").glob("checkpoint-*")) != before)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=200)
    assert b"KeyboardInterrupt" in stderr
    wait_until(lambda: workers_of(out) == [], seconds=60)
    assert "Traceback" not in log.read_text()

    counts: list[int] = []
    fit(tiny_llama_dir, out, rows=rows, progress=counts.append, **LONG)
    assert counts[0] >= 3  # it did go on
    assert sum(counts) == 14
    assert (out / "adapter_model.safetensors").read_bytes() == expected


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("one_thread")
def test_two_torchruns_meet_and_train(tiny_llama_dir, tmp_path):
    on_each = 'for _ in 1 2; do "$@" <&0 & done; wait'  # what srun does, on two machines that are both this one
    launch = {"num_processes": 2, "num_machines": 2, "launcher": ["bash", "-c", on_each, "srun"]}
    launch |= {"main_process_ip": "localhost"}
    report = fit(tiny_llama_dir, tmp_path / "out", rows=make_rows(12), launch=launch, max_steps=2)
    assert [step for step, _ in report.losses] == [1, 2]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("one_thread")
def test_an_error_of_the_workers_comes_back_in_their_words(tiny_llama_dir, tmp_path):
    with pytest.raises(ConfigError, match="no_such"):
        fit(tiny_llama_dir, tmp_path / "out", rows=make_rows(8), launch=TWO, target_modules=("no_such",))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("launch", [TWO, {**TWO, "strategy": "fsdp"}])
def test_one_process_in_the_place_of_two_is_refused(launch):
    from accelerate import Accelerator

    from semievol.backends.sft_processes import check_strategy

    accelerator = Accelerator(cpu=True)
    check_strategy(accelerator, make_config())
    with pytest.raises(ConfigError, match=r"asked for 2 processes .*accelerate set up 1 \(NO\)"):
        check_strategy(accelerator, make_config(launch=launch))
