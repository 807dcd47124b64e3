"""What a check finds before anything is computed."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from semievol.artifacts import RunDir
from semievol.checking import CheckResult, check_run
from semievol.config import RunConfig, apply_overrides, parse_config
from semievol.costs import Sizes, plan_stages

FAKE: dict[str, Any] = {"generator": {"type": "fake"}, "trainer": {"type": "fake"}, "embedder": {"type": "fake"}}
TOPICS = ["card", "refund", "parcel", "order", "invoice", "street", "phone", "garden", "window", "letter", "engine"]


def write_rows(path: Path, n: int, *, first: int = 0) -> str:
    lines = []
    for i in range(first, first + n):
        words = [TOPICS[(i * (j + 3) + j) % len(TOPICS)] for j in range(6)]
        row = {"question": f"{' '.join(words)} case {i * 7919} #{'ABC'[i % 3]}", "options": ["yes", "no", "maybe"]}
        lines.append(json.dumps(row | {"answer": "ABC"[i % 3]}))
    path.write_text("\n".join(lines))
    return str(path)


def make_config(tmp_path: Path, *overrides: str, **sections: Any) -> RunConfig:
    data = {
        "labeled": write_rows(tmp_path / "labeled.jsonl", 24),
        "unlabeled": write_rows(tmp_path / "unlabeled.jsonl", 48, first=1000),
        "test": write_rows(tmp_path / "test.jsonl", 24, first=2000),
    }
    raw = {"data": data, "output_dir": str(tmp_path / "run"), **FAKE, **sections}
    return parse_config(apply_overrides(raw, overrides))


def shown(found: CheckResult) -> str:
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(found.render())
    return console.export_text()


def test_a_good_config_has_no_fault_and_writes_nothing(tmp_path: Path) -> None:
    found = check_run(make_config(tmp_path))
    assert found.faults == []
    assert not (tmp_path / "run").exists()


def test_rows_are_those_of_the_data_stage(tmp_path: Path) -> None:
    rows = check_run(make_config(tmp_path)).rows
    assert rows is not None
    assert (rows.labeled, rows.unlabeled, rows.test, rows.gold_sealed) == (24, 48, 24, 48)
    assert rows.targets == {"A": 8, "B": 8, "C": 8}


def test_prompts_of_four_stages_are_shown(tmp_path: Path) -> None:
    found = check_run(make_config(tmp_path))
    by_stage = {p.stage: p for p in found.prompts}
    assert list(by_stage) == ["warmup", "propagate", "justify", "evaluate"]
    assert by_stage["warmup"].completion == "Answer: A"
    assert by_stage["propagate"].text.count("\nAnswer: ") == 3
    assert "Proposed answers: A; B" in by_stage["justify"].text


def test_prompt_lengths_grow_with_demonstrations(tmp_path: Path) -> None:
    medians = {x.prompt: x.median for x in check_run(make_config(tmp_path)).lengths}
    zero, one, three = (medians[f"unlabeled, {x}"] for x in ("no demonstration", "1 demonstration", "3 demonstrations"))
    assert zero < one < three


def test_the_plan_counts_requests_and_steps(tmp_path: Path) -> None:
    plan = {p.stage: p for p in check_run(make_config(tmp_path)).plan}
    assert (plan["propagate"].n_sampled, plan["evaluate"].n_scored) == (4 * 48, 4 * 24)
    assert (plan["evolve"].rows, plan["evolve"].at_most) == (24 + 24, False)
    assert plan["control"].optimizer_steps == plan["evolve"].optimizer_steps


def test_the_plan_of_the_released_recipe_is_an_upper_bound(tmp_path: Path) -> None:
    plan = {p.stage: p for p in check_run(make_config(tmp_path, "recipe=released")).plan}
    assert (plan["evolve"].rows, plan["evolve"].at_most) == (48, True)


def test_rounds_answer_what_the_rounds_before_dropped(tmp_path: Path) -> None:
    sizes = Sizes(10, 100, 10, {0: 10.0, 1: 15.0, 3: 20.0}, 12.0, 3.0)
    plan = {p.stage: p for p in plan_stages(make_config(tmp_path, "rounds=2"), sizes)}
    assert plan["propagate"].rows == 100 + 50
    assert plan["evolve"].rows == (10 + 50) + (10 + 75)


def test_bad_rows_are_a_fault_with_their_place(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    path = tmp_path / "labeled.jsonl"
    path.write_text(path.read_text() + '\n{"question": "x y z", "options": ["yes", "no", "maybe"], "answer": "Z"}\n')
    found = check_run(config)
    assert len(found.faults) == 1
    assert "labeled.jsonl" in found.faults[0]
    assert "data.max_bad_fraction" in found.faults[0]


def test_a_missing_file_is_a_fault(tmp_path: Path) -> None:
    found = check_run(make_config(tmp_path, f"data.test={tmp_path}/tset.jsonl"))
    assert any("no such file" in fault for fault in found.faults)


def test_a_training_row_that_is_too_long_is_a_fault(tmp_path: Path) -> None:
    found = check_run(make_config(tmp_path, "model.max_length=45", "propagate.max_tokens=4"))
    assert found.faults == []
    trained = next(x for x in found.lengths if x.prompt == "training rows")
    shorter = check_run(make_config(tmp_path, f"model.max_length={trained.longest - 1}", "propagate.max_tokens=1"))
    assert any("would stop the training" in fault for fault in shorter.faults)


def test_a_locked_run_folder_is_a_fault(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    run_dir = RunDir(tmp_path / "run")
    run_dir.write_text("config.resolved.json", "{}")
    with run_dir.lock():
        found = check_run(config)
    assert any("in use by another" in fault for fault in found.faults)


def test_finished_stages_are_named(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    run_dir = RunDir(tmp_path / "run")
    run_dir.write_text("config.resolved.json", "{}")
    run_dir.record_stage("data", {"fingerprint": "x"})
    assert check_run(config).finished == ["data"]


def test_an_output_dir_that_is_a_file_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    assert any("is a file" in fault for fault in check_run(make_config(tmp_path)).faults)


def test_a_missing_package_is_a_fault_with_its_command(tmp_path: Path, tiny_llama_dir: str) -> None:
    trainer = {"type": "trl", "report_to": ["no_such_tracker"]}
    found = check_run(make_config(tmp_path, model={"path": tiny_llama_dir}, trainer=trainer))
    assert any("pip install no_such_tracker" in fault for fault in found.faults)


def test_no_test_rows_are_a_warning(tmp_path: Path) -> None:
    found = check_run(make_config(tmp_path, "data.test=null"))
    assert any("nothing will be measured" in warning for warning in found.warnings)
    assert found.faults == []


def test_the_result_is_json_and_a_table(tmp_path: Path) -> None:
    found = check_run(make_config(tmp_path))
    assert json.loads(json.dumps(found.to_json()))["ok"] is True
    text = shown(found)
    assert "ready to run" in text
    assert "SFT with pseudo-labels" in text


def test_faults_are_shown_last(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    assert shown(check_run(make_config(tmp_path))).rstrip().endswith("1 fault: this run would stop")


def test_a_model_that_is_not_there_is_a_fault(tmp_path: Path) -> None:
    sections = {"generator": {"type": "transformers"}, "model": {"path": str(tmp_path / "nothing")}}
    found = check_run(make_config(tmp_path, **sections))
    assert any(str(tmp_path / "nothing") in fault for fault in found.faults)


def test_a_hub_model_without_the_hub_is_a_fault_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(111, "Connection refused")

    monkeypatch.setattr("socket.create_connection", refuse)
    monkeypatch.delenv("HTTPS_PROXY", raising=False)
    monkeypatch.delenv("https_proxy", raising=False)
    sections = {"generator": {"type": "transformers"}, "model": {"path": "nobody/none"}}
    found = check_run(make_config(tmp_path, **sections))
    assert len(found.faults) == 1
    assert "nobody/none is neither a folder here nor in the cache of the hub" in found.faults[0]
    assert found.rows is not None


def test_a_real_model_is_sized_without_its_weights(tmp_path: Path, tiny_llama_dir: str) -> None:
    from transformers import AutoModelForCausalLM

    sections = {"generator": {"type": "transformers"}, "trainer": {"type": "trl"}, "model": {"path": tiny_llama_dir}}
    found = check_run(make_config(tmp_path, **sections))
    assert found.faults == []
    assert found.model is not None
    weights = AutoModelForCausalLM.from_pretrained(tiny_llama_dir)
    assert found.model.n_parameters == sum(p.numel() for p in weights.parameters())
    assert 0 < found.model.n_adapter < found.model.n_parameters
    assert found.memory is not None
    assert found.memory.training > 0
    assert found.disk is not None
    assert found.disk.models == 3 * 4 * found.model.n_adapter


def test_a_launch_that_cannot_work_is_a_fault(tmp_path: Path, tiny_llama_dir: str) -> None:
    launch = {"num_processes": 2, "strategy": "fsdp"}
    sections = {"model": {"path": tiny_llama_dir, "device": "cpu"}, "trainer": {"type": "trl", "launch": launch}}
    faults = check_run(make_config(tmp_path, **sections)).faults
    assert "trainer.launch.strategy: fsdp needs CUDA GPUs, but the device is cpu; use ddp" in faults


@pytest.mark.slow
def test_measuring_gives_seconds_for_each_stage(tmp_path: Path, tiny_llama_dir: str) -> None:
    trainer = {"type": "trl", "gradient_accumulation_steps": 1}
    sections = {"generator": {"type": "transformers"}, "trainer": trainer, "model": {"path": tiny_llama_dir}}
    found = check_run(make_config(tmp_path, **sections), measure=True)
    assert found.timing is not None
    assert 0 < found.timing["total_low"] < found.timing["total_high"]
    assert "total" in shown(found)
