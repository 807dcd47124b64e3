"""The whole pipeline over the fake backends: what goes where, what is seen by whom, what runs again."""

import json
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from semievol import pipeline
from semievol.answering import max_tokens
from semievol.artifacts import SEALED_GOLD, RunDir
from semievol.backends.fake import FakeGenerator, FakeTokens
from semievol.backends.host_memory import peak_bytes
from semievol.errors import ArtifactError, ConfigError
from semievol.loading import NotDrawn
from semievol.pipeline import STAGES, plan_steps, run
from semievol.prompts import PromptBuilder
from semievol.stage import SilentReporter
from semievol.types import Dropped, Example, PseudoLabel, TaskFacts


class Recorder(SilentReporter):
    """Remembers which steps really ran."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def stage(self, name: str, text: str) -> None:
        self.ran.append(name)


def run_and_record(config, **options) -> list[str]:
    recorder = Recorder()
    run(config, reporter=recorder, **options)
    return recorder.ran


def artifacts(run_dir: RunDir) -> dict[str, bytes]:
    """All that a run leaves, but for what it cost and what it is stored in."""
    costs = {"manifest.json", "results.json", "report.html", ".lock"}
    files = [p.relative_to(run_dir.path) for p in run_dir.path.rglob("*") if p.is_file()]
    kept = [p for p in files if str(p) not in costs and p.name != "fit_report.json" and "rows.sqlite" not in p.name]
    return {str(p): (run_dir.path / p).read_bytes() for p in kept}


def results_without_cost(run_dir: RunDir) -> dict:
    return {k: v for k, v in run_dir.read_json("results").items() if k != "stages"}


def test_stages_read_only_what_earlier_stages_write(make_config):
    config = make_config()
    written: set[str] = set()
    later = {w for s in STAGES for w in s.writes}
    for stage in STAGES:
        # A round reads what the rounds before it wrote, so select/kept and evolve/model may come from a later stage.
        assert set(stage.reads_of(config)) <= written | {"select/kept", "evolve/model"}
        written |= set(stage.writes)
    assert {"select/kept", "evolve/model"} <= later


def test_run_accounts_for_every_row(make_config):
    run_dir = run(make_config())
    rows = run_dir.read_json("results")["rows"]
    assert rows["n_read"] == 144
    parts = ("n_labeled", "n_unlabeled", "n_test", "n_rejected", "n_duplicates_dropped", "n_not_drawn")
    assert sum(rows[k] for k in parts) == 144
    assert sum(f["n"] for f in rows["fates"]) == rows["n_unlabeled"] == 80
    assert {f["fate"] for f in rows["fates"]} >= {"kept", "select"}


def test_rows_that_are_not_drawn_stand_in_a_file_of_their_own(make_config):
    config = make_config()
    data = config.data.model_copy(update={"max_unlabeled": 30})
    run_dir = run(config.model_copy(update={"data": data}), until_stage="data")
    used = {row.id for row in run_dir.read_records("data/unlabeled", Example)}
    left_out = list(run_dir.read_records("data/not_drawn", NotDrawn))
    assert len(used) == 30
    assert len(left_out) == run_dir.read_json("data/counts")["n_not_drawn"] == 50
    assert {row.reason for row in left_out} == {"data.max_unlabeled"}
    assert not used & {row.id for row in left_out}


def test_row_whose_justification_does_not_fit_is_dropped_and_the_others_go_on(make_config, tmp_path):
    whole = make_config(output_dir=str(tmp_path / "whole"), justify={"when": "disagree"})
    labels = list(run(whole).read_records("round-1/justify/pseudo_labels", PseudoLabel))
    settled = {x.example_id for x in labels if x.source != "justified"}
    examples = list(RunDir(tmp_path / "whole").read_records("data/unlabeled", Example))
    examples += list(RunDir(tmp_path / "whole").read_records("data/test", Example))
    prompts = PromptBuilder(whole.task, TaskFacts(**RunDir(tmp_path / "whole").read_json("data/task")))
    tokens = FakeTokens(whole.generator, whole.model)
    longest = max(tokens.count_prompt(prompts.answer(e)) for e in examples)
    limit = longest + max_tokens(whole, whole.propagate.max_tokens)  # no room for the proposed answers
    config = make_config(output_dir=str(tmp_path / "short"), justify={"when": "disagree"}, model={"max_length": limit})
    run_dir = run(config)
    dropped = list(run_dir.read_records("round-1/justify/dropped", Dropped))
    kept = {x.example_id for x in run_dir.read_records("round-1/justify/pseudo_labels", PseudoLabel)}
    assert {x.reason for x in dropped} == {"justification prompt too long"}
    assert "tokens over model.max_length" in dropped[0].detail
    assert len(dropped) + len(kept) == 80
    assert dropped
    assert 0 < len(kept) <= len(settled) + len(dropped)


def test_run_keeps_gold_in_the_sealed_file_alone(make_config, tmp_path, monkeypatch):
    """No artifact but the sealed one, and no prompt, may depend on the targets of the unlabelled rows."""
    from tests.pipeline.conftest import write_task

    seen, precision = {}, {}
    for name in ("true", "wrong"):
        folder = tmp_path / name
        folder.mkdir()
        paths = write_task(folder)
        if name == "wrong":
            with open(paths["unlabeled"], encoding="utf-8") as stream:  # noqa: PTH123
                lines = stream.read().splitlines()
            turned = [line[:-1] + {"A": "B", "B": "C", "C": "A"}[line[-1]] for line in lines[1:]]
            (folder / "unlabeled.csv").write_text("\n".join([lines[0], *turned]) + "\n", encoding="utf-8")
        run_dir = run(make_config(data=paths))
        seen[name] = artifacts(run_dir)
        precision[name] = run_dir.read_json("results")["pseudo_labels"][0]["precision"]["all"]["value"]
        run_dir.path.rename(tmp_path / f"run-{name}")
    differing = {k for k in seen["true"] if seen["true"][k] != seen["wrong"][k]}
    assert differing == {
        "config.resolved.json",  # names the input files
        "data/sealed_gold.jsonl",
        "evaluate/audited.jsonl",
        "evaluate/results.json",
    }
    assert precision["true"] > 0.5 > precision["wrong"]


def test_only_evaluate_declares_the_sealed_gold():
    assert [s.name for s in STAGES if SEALED_GOLD in s.reads] == ["evaluate"]


def test_stage_cannot_read_what_it_does_not_declare(make_config, monkeypatch):
    from semievol.stages import select
    from semievol.types import Gold

    def peek(ctx):
        return {"n": len(list(ctx.read(SEALED_GOLD, Gold)))}

    nosy = type(select.STAGE)("select", select.STAGE.reads, select.STAGE.writes, ("select",), peek)
    monkeypatch.setattr(pipeline, "STAGES", tuple(nosy if s.name == "select" else s for s in STAGES))
    with pytest.raises(ArtifactError, match="does not declare data/sealed_gold"):
        run(make_config())


def test_finished_run_does_nothing_again(make_config):
    config = make_config()
    assert len(run_and_record(config)) == len(plan_steps(config))
    assert run_and_record(config) == []


def test_changed_select_runs_select_and_what_follows(make_config):
    run(make_config())
    ran = run_and_record(make_config(select={"keep_fraction": 0.3}))
    assert ran == ["round-1/select", "round-1/evolve", "control", "evaluate", "report"]


def test_changed_input_file_runs_everything(make_config, tmp_path):
    from tests.pipeline.conftest import write_task

    paths = write_task(tmp_path)
    run(make_config(data=paths))
    with open(paths["labeled"], "a", encoding="utf-8") as stream:  # noqa: PTH123
        stream.write('labeled-new,one more row about a jetty #A,"[""lost"", ""late"", ""broken""]",A\n')
    assert run_and_record(make_config(data=paths))[0] == "data"


def test_from_stage_runs_it_and_what_follows_again(make_config):
    config = make_config()
    run(config)
    assert run_and_record(config, from_stage="evaluate") == ["evaluate", "report"]


def test_from_unknown_stage_names_the_stages(make_config):
    with pytest.raises(ConfigError, match=r"no stage 'selekt'.*round-1/select"):
        run(make_config(), from_stage="selekt")


def test_same_seed_gives_the_same_bytes(make_config, tmp_path):
    first = run(make_config())
    expected, results = artifacts(first), results_without_cost(first)
    first.path.rename(tmp_path / "first")
    second = run(make_config())
    assert artifacts(second) == expected
    assert results_without_cost(second) == results


def test_rounds_work_on_what_the_rounds_before_dropped(make_config):
    run_dir = run(make_config(rounds=3))
    entries = run_dir.read_json("results")["pseudo_labels"]
    assert [e["n_labels"] for e in entries] == [80, 40, 20]
    assert [e["n_kept"] for e in entries] == [40, 20, 10]
    rows = (run_dir.path / "round-3/evolve/training.json").read_text()
    assert json.loads(rows)["n_rows"] == 24 + 40 + 20 + 10


def test_released_recipe_keeps_consensus_and_trains_on_pseudo_labels_alone(make_config):
    run_dir = run(make_config(recipe="released"))
    results = run_dir.read_json("results")
    entry = results["pseudo_labels"][0]
    n_consensus, n_justified = entry["n_by_source"]["consensus"], entry["n_by_source"]["justified"]
    assert entry["n_kept"] == n_consensus + -(-n_justified * 3 // 10)
    evolve = next(t for t in results["training"] if t["stage"] == "round-1/evolve")
    assert evolve["n_rows"] == entry["n_kept"]


def test_control_takes_as_many_steps_as_evolve(make_config):
    run_dir = run(make_config())
    steps = {t["stage"]: t["optimizer_steps"] for t in run_dir.read_json("results")["training"]}
    assert steps["control"] == steps["round-1/evolve"] > steps["warmup"]


def test_control_can_be_left_out(make_config):
    results = run(make_config(control={"enabled": False})).read_json("results")
    assert [m["model"] for m in results["metrics"]] == ["base", "sft", "semievol"]


def test_run_without_test_rows_measures_nothing_and_says_so(make_config, task_files):
    data = {k: v for k, v in task_files.items() if k != "test"}
    results = run(make_config(data=data)).read_json("results")
    assert results["metrics"] == []
    assert results["pseudo_labels"][0]["precision"]["kept"]["n"] == 40


def test_exact_scores_can_answer_in_place_of_samples(make_config):
    run_dir = run(make_config(propagate={"answer_with": "scores"}))
    assert run_dir.read_json("results")["pseudo_labels"][0]["n_labels"] == 80


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process starts anew on Linux alone")
def test_each_step_has_its_own_peak_of_memory(make_config, monkeypatch):
    size, generate = 300 * 2**20, FakeGenerator.generate

    def generate_with_a_large_block(self, requests, sampling):
        np.empty(size, dtype=np.uint8).fill(1)
        yield from generate(self, requests, sampling)

    monkeypatch.setattr(FakeGenerator, "generate", generate_with_a_large_block)
    monkeypatch.setattr(FakeGenerator, "usage", property(lambda g: g._usage._replace(peak_memory_bytes=peak_bytes())))
    steps = run(make_config()).manifest()
    peaks = {name: steps[name]["cost"]["peak_memory_bytes"] for name in ("round-1/propagate", "evaluate")}
    assert peaks["round-1/propagate"] - peaks["evaluate"] > 0.9 * size


def test_second_process_on_a_folder_stops(make_config):
    config = make_config()
    run_dir = RunDir(Path(config.output_dir))
    entered, leave = threading.Event(), threading.Event()

    def hold():
        with run_dir.lock():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    entered.wait(10)
    try:
        with pytest.raises(ArtifactError, match="in use by another semievol process"):
            run(config)
    finally:
        leave.set()
        thread.join()


def test_moved_run_folder_goes_on(make_config, tmp_path):
    config = make_config()
    run(config, until_stage="select")
    moved = tmp_path / "elsewhere"
    (tmp_path / "run").rename(moved)
    ran = run_and_record(config.model_copy(update={"output_dir": str(moved)}))
    assert ran == ["round-1/evolve", "control", "evaluate", "report"]
