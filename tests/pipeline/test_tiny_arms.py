"""The stages of arms over a real, tiny Llama: adapt, warm up, distil, and measure in every way."""

from pathlib import Path

import pytest

from semievol.artifacts import RunDir
from semievol.compare_plan import guess_seconds
from semievol.config import parse_config
from semievol.pipeline import run
from semievol.stage import Backends, SilentReporter, StageContext
from semievol.stages import adapt, distill, measure
from semievol.types import Prediction, SoftTarget
from tests.pipeline.conftest import write_task

TRAINER = {"type": "trl", "r": 4, "max_steps": 2, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 1}


@pytest.fixture(scope="module")
def settings(tmp_path_factory, tiny_llama_dir):
    pytest.importorskip("bm25s")
    folder = tmp_path_factory.mktemp("tiny")
    data = write_task(folder, {"labeled": 8, "unlabeled": 10, "test": 6})
    config = {
        "output_dir": str(folder / "run"),
        "data": data,
        "model": {"path": tiny_llama_dir, "device": "cpu"},
        "trainer": TRAINER,
        "embedder": {"type": "bm25"},
        "adapt": {"enabled": True},
    }
    run(parse_config(config), until_stage="retrieve")
    return config


def make_context(settings, stage, **changes) -> StageContext:
    config = parse_config({**settings, **changes})
    return StageContext(config, RunDir(Path(config.output_dir)), stage, Backends(config), SilentReporter())


def predictions(settings, **changes) -> list[Prediction]:
    ctx = make_context(settings, measure.STAGE, measure=changes)
    try:
        measure.run(ctx)
    finally:
        ctx.backends.close()
    return list(ctx.run_dir.read_records("measure/predictions", Prediction))


def test_adapted_and_warm_models_differ_from_the_base_and_each_other(settings):
    found = {name: predictions(settings, model=name) for name in ("base", "adapted", "warm")}
    assert len({tuple(p.confidence for p in each) for each in found.values()}) == 3


def test_distilled_student_can_be_measured(settings):
    ctx = make_context(settings, distill.STAGE)
    stats = distill.run(ctx)
    targets = list(ctx.run_dir.read_records("distill/targets", SoftTarget))
    assert stats["n_targets"] == len(targets) == 10
    assert any(len(t.answers) > 1 for t in targets)
    student, base = predictions(settings, model="distilled"), predictions(settings, model="base")
    assert [p.confidence for p in student] != [p.confidence for p in base]


def test_demonstrations_and_votes_change_the_predictions_alone(settings):
    plain = predictions(settings, model="base")
    shown = predictions(settings, model="base", k=2)
    voted = predictions(settings, model="base", n_samples=4)
    assert [p.example_id for p in plain] == [p.example_id for p in shown] == [p.example_id for p in voted]
    assert [p.confidence for p in plain] != [p.confidence for p in shown]
    assert {p.confidence for p in voted} <= {None, 0.25, 0.5, 0.75, 1.0}


def test_adapt_of_full_weights_leads_to_a_warm_model_that_stands_alone(settings, tmp_path):
    trainer = {**TRAINER, "method": "full", "learning_rate": 1e-3}
    run_dir = run(
        parse_config({**settings, "trainer": trainer, "output_dir": str(tmp_path / "full")}), until_stage="warmup"
    )
    assert run_dir.read_json("adapt/model") == {"base": "./adapt/adapter", "adapter": None}
    assert run_dir.read_json("warmup/model") == {"base": "./warmup/adapter", "adapter": None}
    assert adapt.STAGE.name in run_dir.manifest()


def test_steps_of_the_real_model_tell_how_long_a_comparison_takes(settings, tmp_path):
    seconds = guess_seconds(parse_config({**settings, "output_dir": str(tmp_path)}))
    stages = {"adapt", "warmup", "propagate", "justify", "evolve", "control", "distill", "measure"}
    assert stages <= set(seconds)
    assert all(seconds[stage] > 0 for stage in stages)
