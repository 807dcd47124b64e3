"""The stage `measure`: one model of an arm on the test rows."""

from pathlib import Path

import pytest

from semievol.artifacts import RunDir
from semievol.errors import ArtifactError
from semievol.pipeline import run
from semievol.stage import Backends, SilentReporter, Stage, StageContext
from semievol.stages import measure
from semievol.stages.measure import prompts_with_demonstrations
from semievol.types import Example, Prediction


def context(config, stage: Stage = measure.STAGE) -> StageContext:
    return StageContext(config, RunDir(Path(config.output_dir)), stage, Backends(config), SilentReporter())


def predictions(ctx: StageContext, name: str = "measure/predictions") -> list[Prediction]:
    return list(ctx.run_dir.read_records(name, Prediction))


@pytest.mark.parametrize(("model", "column"), [("base", "base"), ("warm", "sft"), ("evolved", "semievol")])
def test_measure_gives_the_predictions_of_evaluate(make_config, model, column):
    config = make_config(measure={"model": model})
    run(config)
    ctx = context(config)
    stats = measure.run(ctx)
    assert stats["n_rows"] == 40
    assert predictions(ctx) == predictions(ctx, f"evaluate/predictions_{column}")


def test_measure_of_open_answers_gives_the_greedy_ones_of_evaluate(make_config):
    config = make_config(measure={"model": "base"}, evaluate={"answer_with": "greedy"})
    run(config)
    ctx = context(config)
    measure.run(ctx)
    assert predictions(ctx) == predictions(ctx, "evaluate/predictions_base")


def test_measure_of_the_base_needs_nothing_but_the_data(make_config):
    config = make_config(measure={"model": "base"})
    run(config, until_stage="data")
    assert measure.run(context(config))["n_unparsed"] == 0
    assert measure.STAGE.reads_of(config) == ("data/test", "data/task")


def test_measure_reads_the_one_model_it_measures(make_config):
    config = make_config(measure={"model": "warm", "k": 2})
    assert measure.STAGE.reads_of(config) == ("data/test", "data/labeled", "data/task", "warmup/model")


def test_measure_of_a_model_that_was_not_trained_says_so(make_config):
    config = make_config(measure={"model": "distilled"})
    run(config, until_stage="data")
    with pytest.raises(ArtifactError, match=r"distill/model.json is missing"):
        measure.run(context(config))


def test_measure_demonstrations_never_hold_the_row_or_its_text(make_config, tmp_path):
    options = '"[""lost"", ""late"", ""broken""]"'
    labeled = ["id,question,options,answer", *(f"l{i},where is box number {i} #A,{options},A" for i in range(6))]
    test = ["id,question,options,answer", *(f"t{i},where is box number {i} #A,{options},A" for i in range(3))]
    unlabeled = ["id,question,options,answer", f"u0,when does the shop open #B,{options},B"]
    paths = {name: tmp_path / f"{name}.csv" for name in ("labeled", "unlabeled", "test")}
    for name, lines in (("labeled", labeled), ("unlabeled", unlabeled), ("test", test)):
        paths[name].write_text("\n".join(lines) + "\n", encoding="utf-8")
    data = {"duplicates": "keep", **{name: str(path) for name, path in paths.items()}}
    config = make_config(data=data, measure={"model": "base", "k": 3})
    run(config, until_stage="data")
    ctx = context(config)
    rows = list(ctx.read("data/test", Example))
    prompts = prompts_with_demonstrations(ctx, rows, k=3)
    for row in rows:
        turn = prompts[row.id].messages[-1].content
        assert turn.count("\nAnswer: ") == 3
        assert turn.count(f"Question: {row.question}\n") + turn.endswith(f"Question: {row.question}") == 1


def test_measure_shows_k_demonstrations(make_config):
    config = make_config(measure={"model": "base", "k": 2})
    run(config, until_stage="data")
    plain = context(make_config(measure={"model": "base"}))
    measure.run(plain)
    without = predictions(plain)
    ctx = context(config)
    measure.run(ctx)
    # The fake generator knows more rows with demonstrations, and none less.
    assert sum(p.score for p in predictions(ctx)) > sum(p.score for p in without)


def test_measure_takes_the_majority_of_the_samples(make_config):
    config = make_config(measure={"model": "base", "n_samples": 5})
    run(config, until_stage="data")
    ctx = context(config)
    measure.run(ctx)
    found = predictions(ctx)
    assert {p.confidence for p in found} <= {0.2, 0.4, 0.6, 0.8, 1.0}
    assert len({p.confidence for p in found}) > 1
    assert sum(p.score for p in found) / len(found) > 0.5
    measure.run(ctx)
    assert predictions(ctx) == found
