"""A whole run whose model answers behind the stand-in for vLLM, against one whose model answers in this process."""

from pathlib import Path

import pytest

from semievol.config import parse_config
from semievol.pipeline import run
from semievol.types import Prediction, PseudoLabel
from tests.pipeline.conftest import write_task

pytestmark = pytest.mark.slow
TRAINER = {"type": "trl", "r": 4, "max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_llama_dir, vllm_python):
    folder = tmp_path_factory.mktemp("both")
    data = write_task(folder, {"labeled": 8, "unlabeled": 10, "test": 6})
    found = {}
    for name, generator in (
        ("transformers", {"type": "transformers"}),
        ("vllm", {"type": "vllm", "python": vllm_python, "max_concurrency": 4}),
    ):
        config = {
            "output_dir": str(folder / name),
            "data": data,
            "model": {"path": tiny_llama_dir, "device": "cpu", "dtype": "float32"},
            "generator": generator,
            "trainer": TRAINER,
            "propagate": {"answer_with": "scores"},
            "justify": {"when": "never"},
        }
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("VLLM_STANDIN", "")
            found[name] = (config, run(parse_config(config)))
    return found


def test_run_finds_the_same_labels_and_answers(runs):
    labels, predictions = (
        {name: list(run_dir.read_records(artifact, kind)) for name, (_, run_dir) in runs.items()}
        for artifact, kind in (
            ("round-1/justify/pseudo_labels", PseudoLabel),
            ("evaluate/predictions_semievol", Prediction),
        )
    )
    assert len(labels["vllm"]) == 10
    for a, b in zip(labels["vllm"], labels["transformers"], strict=True):
        assert (a.example_id, a.answer, a.agreement) == (b.example_id, b.answer, b.agreement)
        assert a.mean_nll == pytest.approx(b.mean_nll, abs=1e-4)
        assert a.entropy == pytest.approx(b.entropy, abs=1e-4)
    assert len(predictions["vllm"]) == 6
    for a, b in zip(predictions["vllm"], predictions["transformers"], strict=True):
        assert (a.example_id, a.answer) == (b.example_id, b.answer)
        assert a.confidence == pytest.approx(b.confidence, abs=1e-4)


def test_server_is_up_only_between_trainings(runs):
    _, run_dir = runs["vllm"]
    log = (Path(run_dir.path) / "hosted" / "vllm.log").read_text()
    assert log.count("non-default args") == 2  # propagate to justify, evaluate; warmup, evolve and control in between
    assert log.count("Traceback") == 0


def test_settings_of_the_server_run_no_stage_again(runs):
    config, run_dir = runs["vllm"]
    before = run_dir.manifest()
    changed = {"python": "/nowhere/python", "gpu_memory_utilization": 0.5, "max_concurrency": 9, "max_loras": 2}
    run(parse_config({**config, "generator": config["generator"] | changed}))
    assert run_dir.manifest() == before
