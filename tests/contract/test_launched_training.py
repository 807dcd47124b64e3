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
from semievol.config import LaunchConfig, ModelConfig, TrlTrainerConfig
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
    return TrlTrainerConfig(**{**small, "num_train_epochs": 2, "learning_rate": 1e-3, "eval_fraction": 0.2, **changes})


def fit(path, output_dir, *, rows, progress=None, **changes) -> FitReport:
    trainer = open_trainer(make_config(), ModelConfig(path=path, device="cpu"))
    config = make_config(**changes)
    return trainer.fit(ModelRef(path), rows, output_dir, config=config, seed=0, progress=progress)


def held_out_loss(folder: Path) -> float:
    return json.loads((folder / "fit_report.json").read_text())["held_out_loss"]


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
