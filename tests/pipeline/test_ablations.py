"""What the ablations of the method leave out is not needed either."""

import json

import pytest

from semievol.artifacts import file_hash
from semievol.errors import ArtifactError, DataError
from semievol.pipeline import STAGES, run
from semievol.stages import control, evolve, justify, propagate
from semievol.types import PseudoLabel

BASE_ALONE = {"propagate": {"configurations": [{"model": "base", "k": k} for k in (0, 1, 3, 3)]}}
WARM = {"warmup/model", "evolve/model"}


def test_run_of_the_base_alone_needs_no_warmup(make_config, monkeypatch):
    from semievol import pipeline

    monkeypatch.setattr(pipeline, "STAGES", tuple(s for s in STAGES if s.name not in ("warmup", "evaluate", "report")))
    monkeypatch.setattr(pipeline, "plan_steps", lambda _: [pipeline.Step(s, 1) for s in pipeline.STAGES])
    run_dir = run(make_config(**BASE_ALONE, justify={"model": "base"}))
    assert not run_dir.file("warmup/model", ".json").exists()
    assert run_dir.read_json("control/training")["n_rows"] == 24


def test_justify_of_the_base_alone_asks_the_base(make_config):
    labels = {}
    for model in ("warm", "base"):
        run_dir = run(make_config(justify={"model": model}), until_stage="justify")
        labels[model] = list(run_dir.read_records("round-1/justify/pseudo_labels", PseudoLabel))
    # The fake generator is as sure as the adapter says, so the confidences differ where the model does.
    same = [a.max_probability == b.max_probability for a, b in zip(labels["warm"], labels["base"], strict=True)]
    assert not any(same)


@pytest.mark.parametrize(
    ("stage", "changes", "expected"),
    [
        (propagate, {}, WARM),
        (propagate, BASE_ALONE, set()),
        (propagate, {"propagate": {"configurations": [{"model": "base", "k": 0}], "draw": 2}}, WARM),
        (justify, {}, WARM),
        (justify, {"justify": {"model": "base"}}, set()),
        (evolve, {}, set()),
        (evolve, {"evolve": {"init": "warm"}}, WARM),
        (control, {}, set()),
        (control, {"evolve": {"init": "warm"}}, {"warmup/model"}),
    ],
)
def test_stages_read_trained_models_only_where_the_config_uses_them(make_config, stage, changes, expected):
    assert set(stage.STAGE.reads_of(make_config(**changes))) & WARM == expected


def test_stage_cannot_read_what_its_config_leaves_unread(make_config):
    from tests.pipeline.test_measure import context

    config = make_config()
    run(config, until_stage="warmup")
    with pytest.raises(ArtifactError, match="evolve does not declare warmup/model"):
        context(config, evolve.STAGE).read_model("warmup/model")


def test_control_of_several_rounds_starts_from_the_warmup(make_config):
    run_dir = run(make_config(recipe="released", rounds=2))
    trained = {t["stage"]: t["optimizer_steps"] for t in run_dir.read_json("results")["training"]}
    assert trained["control"] == trained["round-1/evolve"] + trained["round-2/evolve"]
    warm = file_hash(run_dir.path / "warmup/adapter/fake_adapter.json")
    adapter = (run_dir.path / "control/adapter/fake_adapter.json").read_text(encoding="utf-8")
    assert json.loads(adapter)["init"] == warm


def test_evolve_trains_on_the_labelled_rows_alone_where_nothing_is_kept(make_config):
    run_dir = run(make_config(select={"min_confidence": 0.999}))
    assert run_dir.read_json("round-1/evolve/training")["n_rows"] == 24
    assert run_dir.read_json("results")["pseudo_labels"][0]["n_kept"] == 0


def test_evolve_without_any_row_says_what_to_change(make_config):
    config = make_config(select={"min_confidence": 0.999}, evolve={"train_on": "selected"})
    with pytest.raises(DataError, match=r"no pseudo-label was kept.*lower select.min_confidence"):
        run(config)
