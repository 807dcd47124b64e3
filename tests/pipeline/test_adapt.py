"""The stage `adapt`: task-adaptive pretraining before the warm-up."""

import json

from semievol.artifacts import file_hash
from semievol.pipeline import plan_steps, run
from semievol.sft import build_text_row
from semievol.types import Example, SftRow


def adapter(run_dir, stage: str) -> dict:
    return json.loads((run_dir.path / stage / "adapter/fake_adapter.json").read_text(encoding="utf-8"))


def test_build_text_row_takes_context_and_question_and_no_answer():
    rows = [
        build_text_row(e) for e in (Example("a", "Why?", target="because"), Example("b", "Who?", context="A tale."))
    ]
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


def test_report_lists_the_training_of_adapt_first(make_config):
    results = run(make_config(adapt={"enabled": True})).read_json("results")
    assert [t["stage"] for t in results["training"]] == ["adapt", "warmup", "round-1/evolve", "control"]
    assert {"key": "adapt.enabled", "value": True, "recipe_value": False} in results["recipe_differences"]


def test_plan_counts_the_steps_of_adapt(make_config):
    from semievol.costs import Sizes, plan_stages

    sizes = Sizes(24, 80, 40, prompt_tokens=dict.fromkeys(range(4), 30.0), completion_tokens=2.0, train_tokens=32.0)
    plan = plan_stages(make_config(adapt={"enabled": True}), sizes)[0]
    assert (plan.stage, plan.rows, plan.optimizer_steps) == ("adapt", 104, 26)
