"""The stage `adapt`: task-adaptive pretraining before the warm-up."""

import json

from semievol.artifacts import file_hash
from semievol.pipeline import plan_steps, run
from semievol.sft import build_text_rows
from semievol.types import Example, SftRow


def adapter(run_dir, stage: str) -> dict:
    return json.loads((run_dir.path / stage / "adapter/fake_adapter.json").read_text(encoding="utf-8"))


def test_build_text_rows_takes_context_and_question_and_no_answer():
    rows = build_text_rows([Example("a", "Why?", target="because"), Example("b", "Who?", context="A tale.")])
    assert rows == [SftRow("a", (), "Why?"), SftRow("b", (), "A tale.\n\nWho?")]


def test_adapt_trains_on_the_text_of_all_rows(make_config):
    run_dir = run(make_config(adapt={"enabled": True}), until_stage="adapt")
    rows = adapter(run_dir, "adapt")["rows"]
    assert len(rows) == 24 + 80
    assert not [text for text in rows.values() if "Answer:" in text]


def test_warmup_goes_on_from_the_adapted_model(make_config):
    run_dir = run(make_config(adapt={"enabled": True}))
    adapted = run_dir.path / "adapt/adapter/fake_adapter.json"
    assert adapter(run_dir, "warmup")["init"] == file_hash(adapted)
    assert adapter(run_dir, "round-1/evolve")["init"] is None


def test_run_adapts_only_where_it_is_asked_to(make_config):
    names = [step.name for step in plan_steps(make_config(adapt={"enabled": True}))]
    assert names[:3] == ["data", "adapt", "warmup"]
    assert "adapt" not in [step.name for step in plan_steps(make_config())]
    run_dir = run(make_config(), until_stage="warmup")
    assert adapter(run_dir, "warmup")["init"] is None


def test_adapt_takes_its_own_steps(make_config):
    run_dir = run(make_config(adapt={"enabled": True, "max_steps": 3}), until_stage="adapt")
    assert run_dir.read_json("adapt/training")["optimizer_steps"] == 3
