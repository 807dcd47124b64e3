"""The whole method at an emulated server: hosted answers, hosted trainings, and no torch where the run is."""

import csv
import io
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from semievol.artifacts import RunDir
from semievol.config import load_config, parse_config
from semievol.demo.running import DemoData, _csv_text, _tickets
from semievol.pipeline import run
from tests.emulator.fixtures import Emulator, serving

MODEL = "gpt-4o-mini-2024-07-18"
SIZES = {"labeled": 12, "unlabeled": 16, "test": 6}
CHAT, BATCH, JOB = "POST /v1/chat/completions", "POST /v1/batches", "POST /v1/fine_tuning/jobs"
CODE = """
import sys
from semievol.cli import run_app
code = run_app(sys.argv[1:])
heavy = [m for m in ("torch", "transformers", "trl", "peft", "datasets") if m in sys.modules]
assert not heavy, heavy
sys.exit(code)
"""


def tickets(folder: Path, sizes: dict[str, int]) -> dict[str, str]:
    """The first rows of the demo's tickets, and a table of new ones without answers."""
    data: DemoData = _tickets(0)
    rows = {"labeled": data.labeled, "unlabeled": data.unlabeled, "test": data.test}
    paths = {}
    for split, n in sizes.items():
        paths[split] = str(folder / f"{split}.csv")
        Path(paths[split]).write_text(_csv_text(rows[split][:n], data.options), encoding="utf-8")
    new = [row._replace(id=f"new-{row.id}", answer="") for row in data.test[-4:]]
    (folder / "new.csv").write_text(_csv_text(new, data.options), encoding="utf-8")
    return paths


def settings(emulator: Emulator, folder: Path, generator: str, sizes: dict[str, int], **changes) -> dict:
    endpoint = {"base_url": emulator.base_url}
    patience = {"poll_seconds": 0.01}
    return {
        "output_dir": str(folder / "run"),
        "task": {"type": "choice", "instruction": "Route the support ticket."},
        "data": tickets(folder, sizes),
        "model": {"path": MODEL},
        "generator": {"type": generator, **endpoint, **(patience if generator == "openai_batch" else {})},
        "trainer": {"type": "openai", "batch_size": 4, **endpoint, **patience},
        **changes,
    }


def semievol(*arguments: str) -> subprocess.CompletedProcess:
    """The command line in a process of its own, which fails where it loads torch."""
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", CODE, *arguments], capture_output=True, text=True, env=env, check=False
    )


def bought_twice(emulator: Emulator) -> int:
    """Without the probe, which asks the same twice to see whether the same comes back."""
    return len(emulator.bought_twice()) - 1


@pytest.fixture(scope="module")
def finished(emulator_process, tmp_path_factory):
    """A finished run whose answers come from batches, its config file, the server, and what the command said."""
    emulator_process.reset()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OPENAI_API_KEY", emulator_process.api_key)
        folder = tmp_path_factory.mktemp("hosted")
        config = folder / "config.yaml"
        config.write_text(yaml.safe_dump(settings(emulator_process, folder, "openai_batch", SIZES)), encoding="utf-8")
        done = semievol("run", str(config), "--yes")
        assert done.returncode == 0, done.stderr[-3000:]
        yield RunDir(folder / "run"), config, emulator_process, done


def test_run_goes_through_all_stages(finished):
    run_dir, _, _, _ = finished
    results = run_dir.read_json("results")
    assert [m["model"] for m in results["metrics"]] == ["base", "sft", "sft_matched", "semievol"]
    assert sum(fate["n"] for fate in results["rows"]["fates"]) == SIZES["unlabeled"]
    assert (run_dir.path / "report.html").is_file()


def test_run_trains_three_models_that_stay_at_the_server(finished):
    run_dir, _, emulator, _ = finished
    models = [run_dir.read_json(f"{step}/model") for step in ("warmup", "round-1/evolve", "control")]
    assert len({m["base"] for m in models}) == 3
    assert all(m["base"].startswith(f"ft:{MODEL}:") and m["adapter"] is None for m in models)
    assert emulator.counters()["requests"][JOB] == 3
    assert list(run_dir.path.rglob("*.partial")) == []


def test_control_takes_as_many_steps_as_evolve_over_other_rows(finished):
    run_dir, _, _, _ = finished
    evolve, control = run_dir.read_json("round-1/evolve/training"), run_dir.read_json("control/training")
    assert control["optimizer_steps"] == evolve["optimizer_steps"]
    assert (control["n_rows"], evolve["n_rows"]) == (12, 12 + 8)


def test_run_buys_nothing_twice_and_counts_what_it_spent(finished):
    run_dir, _, emulator, _ = finished
    assert bought_twice(emulator) == 0
    costs = [entry["cost"] for entry in run_dir.manifest().values()]
    assert sum(c["dollars"] for c in costs) > 0
    sent = emulator.counters()["requests"]
    assert sent[CHAT] == 3  # the probe; all else went through batches
    assert sent[BATCH] >= 6


def test_run_says_what_the_server_says(finished):
    _, _, _, done = finished
    assert "fine-tuning job ftjob-" in done.stderr
    assert "The job has successfully completed" in done.stderr


def test_run_again_asks_nothing(finished):
    _, config, emulator, _ = finished
    before = emulator.counters()["requests"]
    run(load_config(config))
    assert emulator.counters()["requests"] == before


def test_predict_asks_the_tuned_model_and_export_says_where_it_is(finished):
    run_dir, _, _, _ = finished
    output = run_dir.path.parent / "answered.csv"
    done = semievol("predict", str(run_dir.path), str(run_dir.path.parent / "new.csv"), "-o", str(output), "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(output.read_text().splitlines()) == 1 + 4
    assert json.loads(done.stdout)
    refused = semievol("export", str(run_dir.path), "-o", str(run_dir.path.parent / "exported"))
    assert refused.returncode == 2
    assert run_dir.read_json("round-1/evolve/model")["base"] in refused.stderr


QUEUES = ["refund", "delivery", "card lost"]
KEYWORDS = {0: ("refund", "top up failed"), 1: ("parcel", "delivery"), 2: ("card", "stolen")}


def keyword_rows(n: int, name: str, seed: int) -> str:
    """Rows whose right option can be learned from the keyword in them."""
    generator = random.Random(seed)
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(("id", "question", "options", "answer"))
    for i in range(n):
        answer = i % 3
        question = f"{generator.choice(KEYWORDS[answer])} {generator.randrange(10**6)}"
        writer.writerow((f"{name}-{i}", question, json.dumps(QUEUES), QUEUES[answer]))
    return stream.getvalue()


@pytest.fixture
def small_llama_dir(tmp_path, tiny_tokenizer) -> str:
    """A random model, small and yet large enough to learn the keywords."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    ids = {"bos_token_id": None, "eos_token_id": tiny_tokenizer.eos_token_id, "pad_token_id": 0}
    config = LlamaConfig(vocab_size=len(tiny_tokenizer), max_position_embeddings=512, **sizes, **ids)
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = tiny_tokenizer.eos_token_id
    model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.mark.slow
def test_hosted_training_of_a_real_model_learns_the_task(small_llama_dir, tmp_path, monkeypatch):
    from tests.emulator.causal import CausalEngine

    sizes = {"labeled": 48, "unlabeled": 48, "test": 30}
    for seed, (name, n) in enumerate(sizes.items()):
        (tmp_path / f"{name}.csv").write_text(keyword_rows(n, name, seed), encoding="utf-8")
    with serving(CausalEngine("small", small_llama_dir)) as server:
        monkeypatch.setenv("OPENAI_API_KEY", server.api_key)
        endpoint = {"type": "openai", "base_url": server.base_url}
        raw = {
            "output_dir": str(tmp_path / "run"),
            "data": {name: str(tmp_path / f"{name}.csv") for name in sizes},
            "task": {"type": "choice", "instruction": ""},
            "model": {"path": "small", "max_length": 400},
            "generator": {**endpoint, "logprobs": "require"},
            "trainer": {**endpoint, "learning_rate_multiplier": 5, "num_train_epochs": 15, "poll_seconds": 0.2},
            "evolve": {"num_train_epochs": 10},
            "propagate": {"max_failed_fraction": 1.0},
        }
        run_dir = run(parse_config(raw))
    results = run_dir.read_json("results")
    accuracy = {m["model"]: m["value"] for m in results["metrics"]}
    assert accuracy["base"] < 0.2  # a random model says nothing that can be parsed
    assert min(accuracy[name] for name in ("sft", "sft_matched", "semievol")) > 0.8
    precision = results["pseudo_labels"][0]["precision"]
    assert precision["kept"]["value"] > max(0.8, precision["all"]["value"])
    losses = [loss for _, loss in run_dir.read_json("warmup/training")["losses"]]
    assert losses[-1] < 0.2 * losses[0]
