"""An exported model is an ordinary folder that computes what base and adapter compute."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from semievol.artifacts import RunDir
from semievol.config import parse_config
from semievol.errors import ArtifactError, ConfigError
from semievol.exporting import export_model
from semievol.types import Example, TaskFacts

RESULTS: dict[str, Any] = {
    "metrics": [
        {"model": m, "split": "test", "metric": "accuracy", "value": v, "ci_low": v - 0.1, "ci_high": v + 0.1, "n": 40,
         "n_unparsed": 0}
        for m, v in (("base", 0.5), ("sft", 0.6), ("sft_matched", 0.61), ("semievol", 0.7))
    ],
    "comparisons": [
        {"a": "semievol", "b": "sft", "metric": "accuracy", "difference": 0.1, "ci_low": -0.05, "ci_high": 0.25,
         "p_value": 0.2, "n": 40, "n_differing": 9, "detectable": 0.2}
    ],
    "rows": {"n_labeled": 2, "n_unlabeled": 6, "n_test": 40},
    "pseudo_labels": [
        {"round": 1, "n_kept": 3, "n_labels": 6,
         "precision": {"kept": {"value": 1.0, "ci_low": 0.44, "ci_high": 1.0, "n": 3}}}
    ],
    "recipe_differences": [{"key": "select.keep_fraction", "value": 0.4, "recipe_value": 0.5}],
    "training": [{"stage": "warmup", "n_rows": 2, "optimizer_steps": 1}],
    "environment": {"semievol": "0", "platform": "Linux", "torch": "2"},
}  # fmt: skip


@pytest.fixture
def make_run(tmp_path: Path, tiny_llama_dir: str, make_adapter):
    """A finished run with a real adapter, as its stages would have left it."""

    def make(model_dir: str = tiny_llama_dir, **changes: Any) -> Path:
        data = {"labeled": "l.csv", "unlabeled": "u.csv", "test": "t.csv"}
        raw = {"data": data, "output_dir": str(tmp_path / "run"), "model": {"path": model_dir}, **changes}
        config = parse_config(raw)
        run_dir = RunDir(tmp_path / "run")
        run_dir.write_text("config.resolved.json", config.model_dump_json())
        run_dir.write_json("data/task", asdict(TaskFacts(shared_choices=("yes", "no"))))
        secret = Example("a", "a customer's secret", choices=("yes", "no"), target="A")
        run_dir.write_records("data/labeled", [secret], Example)
        Path(make_adapter(model_dir)).rename(_parent(tmp_path / "run/round-1/evolve/adapter"))
        stored = {"base": model_dir, "adapter": "./round-1/evolve/adapter"}
        run_dir.write_json("round-1/evolve/model", stored)
        run_dir.record_stage("round-1/evolve", {"fingerprint": "x"})
        run_dir.write_json("results", RESULTS)
        return tmp_path / "run"

    return make


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def logits(model: Any) -> Any:
    import torch

    with torch.no_grad():
        return model.eval()(torch.tensor([[5, 17, 60, 7, 9]])).logits


def expected_logits(run_path: Path, base: str) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    opened = AutoModelForCausalLM.from_pretrained(base)
    return logits(PeftModel.from_pretrained(opened, str(run_path / "round-1/evolve/adapter")))


def test_a_merged_export_is_a_plain_model_with_the_same_logits(make_run, tiny_llama_dir: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run_path = make_run()
    folder = export_model(run_path, tmp_path / "merged", merge=True)
    model = AutoModelForCausalLM.from_pretrained(str(folder), use_safetensors=True)
    assert torch.allclose(logits(model), expected_logits(run_path, tiny_llama_dir), atol=1e-4)
    assert not torch.allclose(logits(AutoModelForCausalLM.from_pretrained(tiny_llama_dir)), logits(model), atol=1e-2)
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(tiny_llama_dir).chat_template
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in model.generation_config.eos_token_id


def test_an_adapter_export_loads_on_the_base(make_run, tiny_llama_dir: str, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    run_path = make_run()
    folder = export_model(run_path, tmp_path / "adapter", merge=False)
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    model = PeftModel.from_pretrained(base, str(folder))
    assert torch.equal(logits(model), expected_logits(run_path, tiny_llama_dir))
    assert (folder / "chat_template.jinja").is_file()


def test_a_merged_export_keeps_the_dtype_of_the_base(make_run, tiny_llama_dir: str, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(tiny_llama_dir).save_pretrained(half)
    folder = export_model(make_run(str(half)), tmp_path / "merged", merge=True)
    assert AutoModelForCausalLM.from_pretrained(str(folder), dtype="auto").dtype == torch.bfloat16


@pytest.mark.parametrize("merge", [True, False])
def test_nothing_names_a_folder_of_this_machine(make_run, tmp_path: Path, merge: bool) -> None:
    folder = export_model(make_run(), tmp_path / "out", merge=merge)
    for file in folder.iterdir():
        if file.suffix in (".json", ".md", ".jinja"):
            text = file.read_text()
            assert str(tmp_path) not in text, file.name
            assert "/tmp/" not in text, file.name


def test_the_card_says_what_was_measured_and_no_row(make_run, tmp_path: Path) -> None:
    card = (export_model(make_run(), tmp_path / "out", merge=False) / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["library_name"] == "peft"
    assert "license" not in front
    assert "| SemiEvol | 70.0 | 60.0 to 80.0 | 0 |" in card
    assert "+10.0 points (paired, 95% -5.0 to +25.0, p = 0.2)" in card
    assert "`select.keep_fraction`: 0.4 (recipe: 0.5)" in card
    assert "Question: {question}" in card
    assert "<|im_start|>assistant" in card
    assert "vllm serve" in card
    assert "secret" not in card


def test_the_license_of_the_base_is_taken_over(make_run, tiny_llama_dir: str, tmp_path: Path) -> None:
    import shutil

    base = tmp_path / "base"
    shutil.copytree(tiny_llama_dir, base)
    (base / "README.md").write_text("---\nlicense: mit\nbase_model: org/first\n---\n# base\n")
    card = (export_model(make_run(str(base)), tmp_path / "out", merge=True) / "README.md").read_text()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["base_model"], front["library_name"]) == ("mit", "org/first", "transformers")


def test_a_fully_fine_tuned_model_is_copied(make_run, tiny_qwen_dir: str, tmp_path: Path) -> None:
    import shutil

    run_path = make_run()
    shutil.rmtree(run_path / "round-1/evolve/adapter")
    shutil.copytree(tiny_qwen_dir, run_path / "round-1/evolve/adapter")
    RunDir(run_path).write_json("round-1/evolve/model", {"base": "./round-1/evolve/adapter", "adapter": None})
    folder = export_model(run_path, tmp_path / "out", merge=False)
    weights = "model.safetensors"
    assert (folder / weights).read_bytes() == (Path(tiny_qwen_dir) / weights).read_bytes()


def test_a_folder_that_is_not_empty_is_refused(make_run, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/file").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        export_model(make_run(), tmp_path / "out", merge=True)


def test_a_failure_leaves_nothing(make_run, tmp_path: Path) -> None:
    run_path = make_run()
    (run_path / "round-1/evolve/adapter/adapter_model.safetensors").write_bytes(b"broken")
    with pytest.raises(ArtifactError, match="damaged"):
        export_model(run_path, tmp_path / "sub/out", merge=True)
    assert list((tmp_path / "sub").iterdir()) == []


def test_a_run_that_is_not_finished_is_refused(make_run, tmp_path: Path) -> None:
    run_path = make_run()
    RunDir(run_path).forget_stages(["round-1/evolve"])
    with pytest.raises(ArtifactError, match="not done"):
        export_model(run_path, tmp_path / "out", merge=True)


def test_an_unknown_model_is_refused_with_the_names(make_run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="sft_matched"):
        export_model(make_run(), tmp_path / "out", merge=True, which="best")


def test_the_json_settings_stay_valid(make_run, tmp_path: Path) -> None:
    folder = export_model(make_run(), tmp_path / "out", merge=False)
    settings = json.loads((folder / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "llama"
    assert settings["r"] == 4
