"""Training in two processes on two GPUs, whole (ddp) and cut into shares (fsdp)."""

import pytest
import torch
from safetensors.torch import load_file

from semievol.backends.base import open_trainer
from semievol.config import ModelConfig
from semievol.types import ModelRef
from tests.contract.test_launched_training import make_config, make_rows

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(900),
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA GPUs"),
]


class Stopped(Exception):
    """Raised by a progress callback."""


def fit(path, output_dir, *, progress=None, **changes):
    trainer = open_trainer(make_config(), ModelConfig(path=path, device="cuda"))
    config = make_config(**{"precision": "fp32", **changes})
    return trainer.fit(ModelRef(path), make_rows(39), output_dir, config=config, seed=0, progress=progress)


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_gpus_train_as_one_with_the_same_global_batch(tiny_llama_dir, tmp_path, strategy, method):
    alone = fit(tiny_llama_dir, tmp_path / "one", method=method, gradient_accumulation_steps=4)
    launch = {"num_processes": 2, "strategy": strategy}
    both = fit(tiny_llama_dir, tmp_path / "two", method=method, launch=launch)
    assert [loss for _, loss in both.losses] == pytest.approx([loss for _, loss in alone.losses], rel=1e-3)
    assert both.n_tokens == alone.n_tokens
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    expected, found = load_file(tmp_path / "one" / name), load_file(tmp_path / "two" / name)
    assert found.keys() == expected.keys()
    for key, weight in found.items():
        torch.testing.assert_close(weight, expected[key], rtol=0, atol=1e-3)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_shares_go_on_from_a_checkpoint(tiny_llama_dir, tmp_path, method):
    settings = {"launch": {"num_processes": 2, "strategy": "fsdp"}, "method": method, "save_steps": 2}
    undisturbed = fit(tiny_llama_dir, tmp_path / "undisturbed", **settings)
    done: list[int] = []

    def stop(n: int) -> None:
        done.append(n)
        if sum(done) == 4:
            raise Stopped

    with pytest.raises(Stopped):
        fit(tiny_llama_dir, tmp_path / "out", progress=stop, **settings)
    counts: list[int] = []
    resumed = fit(tiny_llama_dir, tmp_path / "out", progress=counts.append, **settings)
    assert counts[0] >= 2
    assert [loss for _, loss in resumed.losses] == pytest.approx([loss for _, loss in undisturbed.losses], rel=1e-4)


def test_shares_in_bf16_with_checkpointed_activations_learn(tiny_llama_dir, tmp_path):
    settings = {"precision": "bf16", "activation_checkpointing": True, "method": "full", "num_train_epochs": 8}
    report = fit(tiny_llama_dir, tmp_path / "out", launch={"num_processes": 2, "strategy": "fsdp"}, **settings)
    assert report.losses[-1][1] < 0.8 * report.losses[0][1]
