"""The stage `distill`: soft targets of a teacher with demonstrations, a student without."""

import json

import pytest

from semievol.errors import ConfigError
from semievol.pipeline import run
from semievol.stages import distill
from semievol.stages.distill import soft_target
from semievol.types import ChoiceScores, Example, SoftTarget
from tests.pipeline.test_measure import context

LN = {0.5: -0.693147, 0.495: -0.703198, 0.005: -5.298317, 0.004: -5.521461}


def test_soft_target_leaves_improbable_answers_out_and_scales_the_rest():
    scores = ChoiceScores("u1", (LN[0.495], LN[0.005], LN[0.5]), (1, 1, 1))
    target = soft_target(scores, ("A", "B", "C"))
    assert target.answers == ("C", "A")
    assert target.probabilities == pytest.approx((0.5 / 0.995, 0.495 / 0.995), abs=1e-5)


def test_soft_target_of_many_improbable_answers_keeps_the_best():
    scores = ChoiceScores("u1", (LN[0.004],) * 249 + (LN[0.005],), (1,) * 250)
    target = soft_target(scores, [f"label {i}" for i in range(250)])
    assert (target.answers, target.probabilities) == (("label 249",), (1.0,))


@pytest.fixture
def distilled(make_config):
    """Run distill; returns its context, statistics and what the student was trained on."""

    def distil(teacher="base", until="retrieve"):
        config = make_config(distill={"teacher": teacher, "max_steps": 5})
        run(config, until_stage=until)
        ctx = context(config, distill.STAGE)
        stats = distill.run(ctx)
        trained = (ctx.run_dir.path / "distill/adapter/fake_adapter.json").read_text(encoding="utf-8")
        return ctx, stats, json.loads(trained)

    return distil


def test_distill_trains_on_labels_and_on_soft_targets_from_the_base(distilled):
    ctx, stats, trained = distilled()
    targets = list(ctx.run_dir.read_records("distill/targets", SoftTarget))
    assert (stats["n_targets"], len(targets), stats["optimizer_steps"]) == (80, 80, 5)
    assert stats["n_rows"] == 24 + sum(len(t.answers) for t in targets)
    assert all(sum(t.probabilities) == pytest.approx(1, abs=1e-5) for t in targets)
    assert trained["init"] is None
    first = targets[0]
    ids = [f"{first.example_id}/{answer}" for answer in first.answers]
    assert [trained["weights"][i] for i in ids] == list(first.probabilities)
    assert not [i for i in trained["weights"] if i.startswith("labeled-")]


def test_distill_shows_the_teacher_demonstrations(make_config):
    config = make_config()
    run(config, until_stage="retrieve")
    ctx = context(config, distill.STAGE)
    asked = list(distill.teacher_requests(ctx, ctx.read("data/unlabeled", Example), ctx.base_model))
    assert {r.messages[-1].content.count("\nAnswer: ") for r in asked} == {3}


def test_distill_of_the_warm_teacher_reads_the_warmup(distilled, make_config):
    assert "warmup/model" in distill.STAGE.reads_of(make_config(distill={"teacher": "warm"}))
    assert "warmup/model" not in distill.STAGE.reads_of(make_config())
    _, _, by_warm = distilled("warm")
    _, _, by_base = distilled("base")
    assert by_warm["weights"] != by_base["weights"]


def test_distill_of_open_answers_is_a_config_error(make_config):
    config = make_config(task={"type": "span"}, data={"labeled": "l.csv", "unlabeled": "u.csv"})
    with pytest.raises(ConfigError, match=r"closed answer set.*task.type is span"):
        distill.run(context(config, distill.STAGE))
