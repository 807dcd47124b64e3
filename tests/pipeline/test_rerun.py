"""Runs that begin again under other settings or data: what fails at once changes nothing, what stops does not lie."""

import json
import shutil
from pathlib import Path

import pytest

from semievol import pipeline
from semievol.artifacts import CONFIG, RunDir
from semievol.backends.fake import FakeTrainer
from semievol.cli import run_app
from semievol.demo.running import prepare_demo
from semievol.errors import ArtifactError, ConfigError, DataError, TrainingError
from semievol.runs import open_run
from semievol.stages import data, evaluate
from semievol.summary import status_of
from tests.pipeline.conftest import write_task


def files_of(folder: Path) -> dict[str, bytes]:
    """All but locks and stored answers."""
    paths = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock" and "sqlite" not in p.name]
    return {str(p.relative_to(folder)): p.read_bytes() for p in paths}


def test_rerun_that_fails_before_it_writes_leaves_the_run_as_it_was(make_config, tmp_path):
    run_dir = pipeline.run(make_config())
    before = files_of(run_dir.path)
    no_model = {"generator": {"type": "transformers"}, "model": {"path": str(tmp_path / "none"), "device": "cpu"}}
    no_file = {"data": write_task(tmp_path) | {"labeled": str(tmp_path / "typo.csv")}}
    for changes, error in ((no_model, ConfigError), (no_file, DataError)):
        with pytest.raises(error):
            pipeline.run(make_config(**changes))
        assert files_of(run_dir.path) == before
    assert status_of(run_dir.path)["finished"]


def test_rerun_that_stops_forgets_what_was_of_other_data(make_config, tmp_path, monkeypatch):
    files = write_task(tmp_path)
    run_dir = pipeline.run(make_config(data=files))
    write_task(tmp_path, {"labeled": 12, "unlabeled": 40, "test": 20})

    def fail(*_, **__):
        raise TrainingError("enough")

    monkeypatch.setattr(FakeTrainer, "fit", fail)
    with pytest.raises(TrainingError):
        pipeline.run(make_config(data=files))
    assert set(run_dir.manifest()) == {"data"}
    assert not (run_dir.path / "results.json").exists()
    assert not (run_dir.path / "report.html").exists()
    assert not status_of(run_dir.path)["finished"]
    with pytest.raises(ArtifactError, match="round-1/evolve is not done"):
        open_run(run_dir.path).model()
    with pytest.raises(ArtifactError, match="these stages are not done: warmup"):
        pipeline.redraw(make_config(data=files), run_dir)
    monkeypatch.undo()
    pipeline.run(make_config(data=files))
    assert status_of(run_dir.path)["finished"]


@pytest.mark.parametrize("stage", ["data", "evaluate"])
def test_stages_that_were_to_run_again_still_do_after_an_interruption(make_config, monkeypatch, stage):
    run_dir = pipeline.run(make_config())
    before = files_of(run_dir.path)

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(data if stage == "data" else evaluate, "load" if stage == "data" else "predict_rows", interrupt)
        with pytest.raises(KeyboardInterrupt):
            pipeline.run(make_config(), from_stage=stage)
    assert stage not in run_dir.manifest()
    assert not status_of(run_dir.path)["finished"]
    pipeline.run(make_config())
    assert status_of(run_dir.path)["finished"]
    after = files_of(run_dir.path)
    assert set(after) == set(before)
    changed = {name for name in after if after[name] != before[name]}
    assert changed <= {"manifest.json", "results.json", "report.html"}  # they hold seconds


def test_stages_behind_the_last_one_asked_for_do_not_count_under_other_settings(make_config):
    run_dir = pipeline.run(make_config())
    task = make_config().task.model_copy(update={"instruction": "Loud"})
    pipeline.run(make_config().model_copy(update={"task": task}), until_stage="warmup")
    assert set(run_dir.manifest()) == {"data", "warmup"}
    assert not status_of(run_dir.path)["finished"]
    assert not (run_dir.path / "results.json").exists()


def test_stage_whose_files_are_gone_runs_again(make_config):
    run_dir = pipeline.run(make_config())
    before = files_of(run_dir.path)
    run_dir.file("round-1/retrieve/demonstrations").unlink()
    pipeline.run(make_config())
    after = files_of(run_dir.path)
    changed = {name for name in before if after.get(name) != before[name]}
    assert changed <= {"manifest.json"}


def test_stopping_early_under_the_same_settings_forgets_nothing(make_config):
    run_dir = pipeline.run(make_config())
    before = files_of(run_dir.path)
    pipeline.run(make_config(), until_stage="warmup")
    assert files_of(run_dir.path) == before


def test_setting_without_effect_is_stored_and_nothing_runs_again(make_config):
    run_dir = pipeline.run(make_config())
    before = run_dir.manifest()
    pipeline.run(make_config(trainer={"type": "fake", "max_steps": None}, report={"title": None}))
    assert run_dir.manifest() == before
    config = make_config(report={"title": "Other"})
    pipeline.run(config)
    assert json.loads((run_dir.path / CONFIG).read_text()) == json.loads(config.model_dump_json())
    assert {k: v for k, v in run_dir.manifest().items() if k != "report"} == {
        k: v for k, v in before.items() if k != "report"
    }


@pytest.mark.parametrize("name", ["data/labeled.jsonl", "results.json", "manifest.json", "round-1/select/kept.jsonl"])
def test_files_of_another_tool_are_not_written_over(make_config, tmp_path, name):
    folder = tmp_path / "run"
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text("mine")
    with pytest.raises(ConfigError, match=f"holds files that a run would write over: {name}; name another folder"):
        pipeline.run(make_config())
    assert (folder / name).read_text() == "mine"


def test_data_files_are_not_written_over(make_config, task_files, tmp_path, capsys):
    run_dir = pipeline.run(make_config())
    own = task_files | {"unlabeled": str(run_dir.file("data/unlabeled"))}
    before = run_dir.file("data/unlabeled").read_bytes()
    with pytest.raises(ConfigError, match=r"data\.unlabeled: the run would write over .*unlabeled\.jsonl; set another"):
        pipeline.run(make_config(data=own))
    config = tmp_path / "config.yaml"
    config.write_text(make_config(data=own).model_dump_json())
    assert run_app(["check", str(config)]) == 2
    assert "would write over" in " ".join(capsys.readouterr().out.split())
    assert run_dir.file("data/unlabeled").read_bytes() == before


def test_own_rows_with_a_split_are_not_written_over(make_config, tmp_path):
    run_dir = pipeline.run(make_config())
    before = files_of(run_dir.path)
    files = write_task(tmp_path) | {"labeled": f"{run_dir.path}/data/labeled.jsonl:train"}
    with pytest.raises(ConfigError, match=r"data\.labeled: the run would write over"):
        pipeline.run(make_config(data=files))
    assert files_of(run_dir.path) == before


@pytest.mark.parametrize("place", ["x" * 300, "file/run"])
@pytest.mark.parametrize("command", ["run", "check"])
def test_folder_that_cannot_be_is_one_clear_error(capsys, tmp_path, place, command):
    (tmp_path / "file").touch()
    config = tmp_path / "config.yaml"
    fake = {"generator": {"type": "fake"}, "trainer": {"type": "fake"}, "embedder": {"type": "fake"}}
    config.write_text(json.dumps({"data": write_task(tmp_path), **fake}))
    assert run_app([command, str(config), f"output_dir={tmp_path}/{place}"]) in (1, 2)
    told = capsys.readouterr()
    assert "Traceback" not in told.err + told.out
    assert "another" in told.err + told.out


@pytest.mark.parametrize("source", ["~nobody-is-called-so/x.csv", "a\0b.csv"])
def test_path_that_no_system_has_is_one_clear_error(make_config, tmp_path, source):
    with pytest.raises(DataError, match=r"write the folder out|correct the path"):
        pipeline.run(make_config(data=write_task(tmp_path) | {"unlabeled": source}))


@pytest.mark.parametrize("name", ["config.yaml", "input/test.csv", "manifest.json"])
def test_demo_writes_over_no_file_of_another_tool(tmp_path, name):
    (tmp_path / "input").mkdir()
    (tmp_path / name).write_text("{}")
    before = files_of(tmp_path)
    with pytest.raises(ConfigError, match=name):
        prepare_demo("tickets", seed=0, output_dir=tmp_path, overrides=[])
    assert files_of(tmp_path) == before


def test_demo_goes_on_in_its_own_folder(tmp_path):
    first = prepare_demo("tickets", seed=0, output_dir=tmp_path, overrides=[])
    before = files_of(tmp_path)
    assert prepare_demo("tickets", seed=0, output_dir=tmp_path, overrides=[]) == first
    assert files_of(tmp_path) == before


def test_round_without_rows_is_said_and_the_run_ends(make_config):
    run_dir = pipeline.run(make_config(rounds=2, select={"keep_fraction": 1}))
    found = run_dir.read_json("results")["pseudo_labels"]
    assert [(entry["n_labels"], entry["n_kept"]) for entry in found] == [(80, 80), (0, 0)]
    assert run_dir.read_json("round-1/evolve/training") == run_dir.read_json("round-2/evolve/training")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"data": 1}'])
def test_damaged_manifest_is_one_clear_error(make_config, tmp_path, capsys, text):
    run_dir = pipeline.run(make_config())
    (run_dir.path / "manifest.json").write_text(text)
    for command in (["status"], ["report"]):
        assert run_app([*command, str(run_dir.path)]) == 1
        assert "manifest.json is damaged" in " ".join(capsys.readouterr().err.split())


def test_damaged_row_store_is_one_clear_error(make_config, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run/rows.sqlite").write_bytes(b"no database" * 1000)
    with pytest.raises(ArtifactError, match=r"rows\.sqlite is damaged .*remove it"):
        pipeline.run(make_config())


@pytest.mark.parametrize("command", ["status", "cancel", "report", "export", "predict"])
def test_folder_that_is_no_run_is_the_users_to_change(capsys, tmp_path, command):
    rest = {"export": ["-o", str(tmp_path / "x")], "predict": ["in.csv", "-o", str(tmp_path / "x.csv")]}
    assert run_app([command, str(tmp_path / "nosuch"), *rest.get(command, [])]) == 2
    assert "is not the folder of a run" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("place", ["file/inner", "/proc/semievol/model"])
def test_export_to_a_place_that_cannot_be_made_is_one_clear_error(make_config, tmp_path, capsys, monkeypatch, place):
    run_dir = pipeline.run(make_config())
    monkeypatch.setattr("semievol.exporting._check_trained", lambda *_: None)
    (tmp_path / "file").touch()
    assert run_app(["export", str(run_dir.path), "-o", str(tmp_path / place)]) == 2
    assert "cannot be made" in " ".join(capsys.readouterr().err.split())


def test_export_of_a_run_that_began_again_is_refused(make_config, tmp_path, monkeypatch):
    run_dir = pipeline.run(make_config())
    monkeypatch.setattr("semievol.exporting._check_trained", lambda *_: None)
    with pytest.raises(DataError):
        pipeline.run(
            make_config(select={"keep_fraction": 0.3, "min_confidence": 0.999}, evolve={"train_on": "selected"})
        )
    shutil.copytree(run_dir.path / "round-1/evolve", tmp_path / "kept")
    assert "round-1/evolve" not in RunDir(run_dir.path).manifest()
    assert run_app(["export", str(run_dir.path), "-o", str(tmp_path / "model")]) == 1
