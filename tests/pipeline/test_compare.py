"""Comparisons over the fake backends: what runs once, what is shared, what a failure or a kill leaves."""

import json
import os
import shutil
import signal
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest

from semievol import pipeline
from semievol.arms import ARMS, CONTROL_OF, Arm
from semievol.artifacts import SEALED_GOLD, RunDir
from semievol.backends.fake import FakeTrainer
from semievol.compare_load import load_comparison
from semievol.compare_plan import guess_seconds
from semievol.comparing import KILLED, compare, run_part
from semievol.comparison import read_comparison
from semievol.errors import ArtifactError, ConfigError, DataError, DiskFullError
from semievol.model_sizes import ModelSize
from semievol.sharing import SharedSteps
from semievol.stage import SilentReporter
from semievol.summary import read_run_config
from semievol.sweeping import plan_points, point_settings
from semievol.types import Prediction
from tests.pipeline.conftest import write_task
from tests.unit.comparison_folder import change_run

FREE = [name for name, arm in ARMS.items() if not arm.uses_gold]


class Recorder(SilentReporter):
    """Remembers which steps really ran, and the notes."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.notes: list[str] = []

    def stage(self, name: str, text: str) -> None:
        self.ran.append(name)

    def note(self, text: str) -> None:
        self.notes.append(text)


def run_compare(config, folder: Path, arms, **options) -> Recorder:
    recorder = Recorder()
    options = {"seeds": [0], **options}
    compare(config, arms, output_dir=folder, reporter=recorder, **options)
    return recorder


def artifacts(folder: Path) -> dict[str, bytes]:
    """All that a comparison leaves, but for what it cost, what it is stored in, and who was first to run a step."""
    locks, reports = {".lock", ".comparison.lock"}, {"manifest.json", "config.resolved.json", "fit_report.json"}
    left_out = locks | reports | {"adapter.origin.json"}
    files = [p for p in folder.rglob("*") if p.is_file() and p.name not in left_out and "sqlite" not in p.name]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def test_arms_run_each_step_once(make_config, tmp_path):
    recorder = run_compare(make_config(), tmp_path / "c", ["sft", "semievol", "sft_matched", "semievol-as"])
    stages = Counter(name.split()[1] for name in recorder.ran)
    assert stages == {
        "data": 1,
        "warmup": 1,
        "round-1/retrieve": 1,
        "round-1/propagate": 1,
        "round-1/justify": 1,
        "round-1/select": 2,
        "round-1/evolve": 2,
        "control": 2,
        "measure": 5,
    }
    assert [r.status for r in read_comparison(tmp_path / "c").runs] == ["done"] * 5


def test_shared_step_is_linked_and_says_whose_it_is(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["sft", "semievol"])
    runs = [RunDir(tmp_path / "c" / "split-0" / "seed-0" / arm) for arm in ("sft", "semievol")]
    models = [run.path / "warmup" / "adapter" / "fake_adapter.json" for run in runs]
    assert models[0].samefile(models[1])
    assert "shared_from" not in runs[0].manifest()["warmup"]
    assert runs[1].manifest()["warmup"]["shared_from"] == "split-0/seed-0/sft"
    assert runs[1].read_json("warmup/model")["adapter"] == "./warmup/adapter"


def test_shared_arm_gives_what_it_gives_alone(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "together", ["sft", "pseudo_all", "semievol"])
    run_compare(make_config(), tmp_path / "alone", ["semievol"])
    place = "split-0/seed-0/semievol"
    assert artifacts(tmp_path / "together" / place) == artifacts(tmp_path / "alone" / place)


def test_all_arms_predict_every_test_row_in_order(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["all"], use_gold=True)
    record = read_comparison(tmp_path / "c")
    assert {r.arm: r.error for r in record.runs if r.status != "done"} == {}
    assert [a.name for a in record.arms if CONTROL_OF not in a.name] == list(ARMS)
    ids = [p.example_id for p in predictions(tmp_path / "c", "zero_shot")]
    assert len(ids) == 40
    for arm in ARMS:
        assert [p.example_id for p in predictions(tmp_path / "c", arm)] == ids


def predictions(folder: Path, arm: str) -> list[Prediction]:
    run_dir = RunDir(folder / "split-0" / "seed-0" / arm)
    return list(run_dir.read_records("measure/predictions", Prediction))


def test_finished_comparison_runs_nothing_again(make_config, tmp_path):
    arms = ["zero_shot", "sft", "semievol"]
    run_compare(make_config(), tmp_path / "c", arms)
    again = run_compare(make_config(), tmp_path / "c", arms)
    assert again.ran == []
    assert again.notes[0].startswith("3 runs, 3 done before")
    assert [r.status for r in read_comparison(tmp_path / "c").runs] == ["done"] * 3


def test_added_arm_takes_over_what_is_there(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["semievol"])
    recorder = run_compare(make_config(), tmp_path / "c", ["semievol", "sft_matched"])
    assert recorder.ran == ["sft_matched control", "sft_matched measure"]


def test_narrower_call_keeps_the_runs_that_are_done(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["zero_shot", "sft", "semievol"], seeds=[0, 1])
    before = read_comparison(tmp_path / "c")
    recorder = run_compare(make_config(), tmp_path / "c", ["zero_shot", "semievol-as"], seeds=[2])
    after = read_comparison(tmp_path / "c")
    assert "still in the comparison: 6 finished runs of an earlier call" in recorder.notes
    assert [arm.name for arm in after.arms] == ["zero_shot", "sft", "semievol", "semievol-as"]
    assert (after.seeds, after.reference) == ((0, 1, 2), "sft")
    assert set(before.runs) < set(after.runs)
    assert {run.status for run in after.runs} == {"done"}
    assert len(after.runs) == 8


def test_runs_of_another_config_leave_the_comparison_and_that_is_said(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["zero_shot", "sft"])
    recorder = run_compare(make_config(warmup={"max_steps": 3}), tmp_path / "c", ["sft"])
    assert [run.arm for run in read_comparison(tmp_path / "c").runs] == ["sft"]
    assert any(
        note.startswith(
            "no longer in the comparison: 1 finished run of an earlier call, because their config is another"
        )
        and "warmup.max_steps" in note
        for note in recorder.notes
    )
    recorder = run_compare(make_config(), tmp_path / "c", ["sft"])
    said = "run again in their place: 1 finished run of an earlier call, because their config is another one"
    assert any(note.startswith(said) for note in recorder.notes)


def test_runs_of_other_data_leave_the_comparison_and_that_is_said(make_config, tmp_path):
    files = write_task(tmp_path)
    run_compare(make_config(data=files), tmp_path / "c", ["zero_shot", "sft"])
    labeled = Path(files["labeled"])
    labeled.write_text("".join(labeled.read_text().splitlines(keepends=True)[:13]))
    again = run_compare(make_config(data=files), tmp_path / "c", ["sft"], plan_only=True)
    assert again.notes[0].startswith("1 runs, 0 done before")
    recorder = run_compare(make_config(data=files), tmp_path / "c", ["semievol"])
    assert [run.arm for run in read_comparison(tmp_path / "c").runs] == ["semievol"]
    assert any(
        "2 finished runs of an earlier call, because they were made from other data" in n for n in recorder.notes
    )


def test_runs_of_other_data_that_are_asked_for_again_are_named(make_config, tmp_path):
    files = write_task(tmp_path)
    run_compare(make_config(data=files), tmp_path / "c", ["sft"])
    labeled = Path(files["labeled"])
    labeled.write_text("".join(labeled.read_text().splitlines(keepends=True)[:13]))
    recorder = run_compare(make_config(data=files), tmp_path / "c", ["sft"])
    said = "run again in their place: 1 finished run of an earlier call, because they were made from other data files"
    assert any(note.startswith(said) for note in recorder.notes)
    assert not any(
        "in their place" in note for note in run_compare(make_config(data=files), tmp_path / "c", ["sft"]).notes
    )
    gold = run_compare(make_config(data=files), tmp_path / "c", ["sft"], use_gold=True)
    assert not any("in their place" in note for note in gold.notes)


def test_damaged_config_of_an_earlier_run_costs_that_run_alone(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["zero_shot", "sft"])
    (tmp_path / "c/split-0/seed-0/sft/config.resolved.json").write_text("{")
    recorder = run_compare(make_config(), tmp_path / "c", ["semievol"])
    assert [run.arm for run in read_comparison(tmp_path / "c").runs] == ["semievol", "zero_shot"]
    assert any(note.startswith("no longer in the comparison: 1 finished run") for note in recorder.notes)


def test_run_of_a_comparison_is_not_gone_on_with_alone(make_config, tmp_path):
    """The stages that its arm lacks would run in its folder, and count as its own."""
    run_compare(make_config(), tmp_path / "c", ["sft"])
    folder = tmp_path / "c" / "split-0/seed-0/sft"
    before = RunDir(folder).manifest()
    config = read_run_config(folder).model_copy(update={"output_dir": str(folder)})
    refused = pytest.raises(ArtifactError, match=r"is one run of the comparison in .*/c: `semievol report")
    with refused:
        pipeline.run(config)
    with refused:
        pipeline.redraw(config, RunDir(folder))
    (tmp_path / "link").symlink_to(folder)
    for place in (tmp_path / "link", folder.parent / "../seed-0/sft"):
        with refused:
            pipeline.run(config.model_copy(update={"output_dir": str(place)}))
    assert RunDir(folder).manifest() == before


def test_gold_that_is_not_there_is_said_before_anything_runs(make_config, tmp_path):
    files = write_task(tmp_path)
    bare = Path(files["unlabeled"])
    bare.write_text("\n".join(line.rpartition(",")[0] for line in bare.read_text().splitlines()) + "\n")
    config = make_config(data=files)
    with pytest.raises(ConfigError, match=r"oracle_full: these arms read the targets .* no unlabelled row has one"):
        run_compare(config, tmp_path / "c", ["sft", "oracle_full"], use_gold=True)
    assert not (tmp_path / "c").exists()
    recorder = run_compare(config, tmp_path / "c", ["all"], use_gold=True, plan_only=True)
    assert recorder.notes[0].startswith("--use-gold: no unlabelled row has a target, so the oracle arms")
    assert recorder.notes[1].startswith("8 further runs of SFT on the labelled rows, for as many steps as pseudo_all, ")
    assert f"{len(FREE) + 8} runs" in recorder.notes[2]


def end_process(folder, part, failures, shown):
    """Stands in for a worker of `--jobs` that the system ends when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)


def test_single_run_that_is_left_has_a_process_of_its_own(make_config, tmp_path, monkeypatch):
    monkeypatch.setattr("semievol.comparing._run_part_in_process", end_process)
    run_compare(make_config(), tmp_path / "c", ["sft"], jobs=2)
    (run,) = read_comparison(tmp_path / "c").runs
    assert (run.status, run.error) == ("failed", KILLED)


def test_all_leaves_out_arms_that_do_not_fit_and_says_why(make_config, tmp_path):
    config = make_config(propagate={"draw": 2, "configurations": [{"model": "warm", "k": 0}]})
    recorder = run_compare(config, tmp_path / "c", ["all"])
    arms = {run.arm: run.status for run in read_comparison(tmp_path / "c").runs}
    assert set(FREE) - set(arms) == {"semievol-iwp", "semievol-icp", "semievol-cl"}
    assert set(arms.values()) == {"done"}
    assert sum("is left out: propagate.draw" in note for note in recorder.notes) == 3


def test_seeds_of_a_split_have_the_same_rows_and_other_models(make_config, tmp_path):
    config = make_config(data={"path": make_config().data.labeled})
    run_compare(config, tmp_path / "c", ["sft"], seeds=[0, 1], splits=[0, 1])
    files = {
        (s, n): (tmp_path / "c" / f"split-{s}" / f"seed-{n}" / "sft" / "data" / "test.jsonl").read_bytes()
        for s in (0, 1)
        for n in (0, 1)
    }
    assert files[0, 0] == files[0, 1] != files[1, 0] == files[1, 1]
    models = {p.read_bytes() for p in (tmp_path / "c").glob("*/*/sft/warmup/adapter/fake_adapter.json")}
    assert len(models) == 4


def test_seeds_share_what_does_not_depend_on_them(make_config, tmp_path):
    recorder = run_compare(make_config(), tmp_path / "c", ["zero_shot", "few_shot_bm25", "semievol"], seeds=[0, 1, 2])
    ran = Counter(recorder.ran)
    once = ("zero_shot data", "zero_shot measure", "few_shot_bm25 measure", "semievol round-1/retrieve")
    assert [ran[name] for name in once] == [1, 1, 1, 1]
    assert ran["semievol warmup"] == ran["semievol measure"] == 3


def test_splits_of_separate_files_are_refused(make_config, tmp_path):
    with pytest.raises(ConfigError, match="2 splits of separate files would all be the same"):
        run_compare(make_config(), tmp_path / "c", ["sft"], splits=[0, 1])
    assert not (tmp_path / "c").exists()


def test_failed_arm_leaves_the_others_alone(make_config, tmp_path, monkeypatch):
    broken = Arm("sft", "an arm that measures what it has not trained", ("data",), lambda _: {"measure.model": "warm"})
    monkeypatch.setattr("semievol.arms.ARMS", {**ARMS, "sft": broken})
    run_compare(make_config(), tmp_path / "c", ["zero_shot", "sft", "semievol"])
    runs = {r.arm: r for r in read_comparison(tmp_path / "c").runs}
    assert {arm: r.status for arm, r in runs.items()} == {"zero_shot": "done", "sft": "failed", "semievol": "done"}
    assert "warmup/model.json is missing" in runs["sft"].error


def fit_on_a_full_disk(*_, **__):
    raise RuntimeError(
        "Error while serializing: I/O error: No space left on device (os error 28)"
    )  # as safetensors does


def run_part_on_a_full_disk(folder, part, failures, shown):
    """Stands in for a worker of `--jobs`."""
    FakeTrainer.fit = fit_on_a_full_disk
    return run_part(folder, part, failures, SilentReporter()), failures


@pytest.mark.parametrize("jobs", [1, 2])
def test_full_disk_ends_the_comparison_and_costs_no_run(make_config, tmp_path, monkeypatch, jobs):
    if jobs == 1:
        monkeypatch.setattr(FakeTrainer, "fit", fit_on_a_full_disk)
    monkeypatch.setattr("semievol.comparing._run_part_in_process", run_part_on_a_full_disk)
    with pytest.raises(DiskFullError, match=r"no space left on the disk of .*seed-0/sft: free some and run again"):
        run_compare(make_config(), tmp_path / "c", ["zero_shot", "sft", "semievol"], jobs=jobs)
    assert [r.status for r in read_comparison(tmp_path / "c").runs] == ["done", "pending", "pending"]
    monkeypatch.undo()
    run_compare(make_config(), tmp_path / "c", ["zero_shot", "sft", "semievol"], jobs=jobs)
    assert {r.status for r in read_comparison(tmp_path / "c").runs} == {"done"}


def test_plan_says_how_much_room_the_models_take(make_config, tmp_path, monkeypatch, tiny_llama_dir):
    config = make_config(
        model={"path": tiny_llama_dir, "device": "cpu"}, trainer={"type": "trl", "method": "full", "max_steps": 1}
    )
    n = sum(file.stat().st_size for file in Path(tiny_llama_dir).glob("*.safetensors"))
    found = run_compare(config, tmp_path / "c", ["sft", "semievol"], seeds=[0, 1], plan_only=True).notes[-1]
    start = f"disk: 4 trainings, {4 * n / 1e9:.1f} GB of models, up to {6 * n / 1e9:.1f} GB of checkpoints, "
    assert found.startswith(start)
    assert found.endswith(" GB free")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=7 * n))
    found = run_compare(config, tmp_path / "c", ["sft", "semievol"], seeds=[0, 1], plan_only=True).notes[-1]
    assert found.endswith(f"{7 * n / 1e9:.1f} GB free: too little; --no-keep-models keeps what they predict alone")


def test_room_of_the_models_goes_by_the_config_of_each_run(make_config, tmp_path, monkeypatch, tiny_llama_dir):
    sizes = {4: 10**9, 8: 2 * 10**9}

    def check(config):
        return [], [], ModelSize("Llama", 10**10, sizes[config.trainer.r], 1, 1, 1, 1)

    monkeypatch.setattr("semievol.surroundings.check_model", check)
    config = make_config(
        model={"path": tiny_llama_dir, "device": "cpu"}, trainer={"type": "trl", "max_steps": 1, "r": 4}
    )
    axes = {"trainer.r": [4, 8]}
    settings = point_settings(plan_points(axes, cartesian=False))
    recorder = run_compare(config, tmp_path / "c", ["semievol"], settings=settings, sweep=axes, plan_only=True, jobs=2)
    assert recorder.notes[-1].startswith("disk: 4 trainings, 24.0 GB of models, up to 96.0 GB of checkpoints, ")
    options = {"plan_only": True, "jobs": 2}
    found = run_compare(config, tmp_path / "c", ["sft"], **options, keep_models=False).notes[-1]
    assert found.startswith("disk: 1 training, up to 24.0 GB of checkpoints, ")
    usage = shutil.disk_usage(tmp_path)
    for free, remedy in ((27, "; --no-keep-models keeps"), (23, "; free some, or choose another --output-dir")):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free * 10**9))
        assert (
            f"{free}.0 GB free: too little{remedy}" in run_compare(config, tmp_path / "c", ["sft"], **options).notes[-1]
        )


def test_cost_of_a_step_counts_what_was_trained_before_a_restart(make_config, tmp_path, monkeypatch):
    fit = FakeTrainer.fit
    monkeypatch.setattr(FakeTrainer, "fit", lambda *a, **options: fit(*a, **options)._replace(train_seconds=500.0))
    run_compare(make_config(), tmp_path / "c", ["sft"])
    assert warmup_seconds(tmp_path / "c") == 500.0


def test_cost_of_a_step_does_not_count_the_wait_for_another_process(make_config, tmp_path, monkeypatch):
    hold = SharedSteps.hold_training

    @contextmanager
    def wait(*args, **options):
        time.sleep(0.5)
        with hold(*args, **options) as found:
            yield found._replace(waited_seconds=0.5)

    monkeypatch.setattr(SharedSteps, "hold_training", wait)
    run_compare(make_config(), tmp_path / "c", ["sft"])
    assert 0 <= warmup_seconds(tmp_path / "c") < 0.5


def warmup_seconds(folder: Path) -> float:
    (run,) = read_comparison(folder).runs
    return RunDir(folder / run.folder).manifest()["warmup"]["cost"]["seconds"]


def test_failed_step_fails_once_for_all_arms_that_share_it(make_config, tmp_path):
    # The fake generator is never so sure, so there is nothing to train on.
    config = make_config(select={"min_confidence": 0.99}, evolve={"train_on": "selected"})
    recorder = run_compare(config, tmp_path / "c", ["semievol", "sft_matched"])
    runs = read_comparison(tmp_path / "c").runs
    assert [r.status for r in runs] == ["failed", "failed"]
    assert runs[0].error in runs[1].error
    assert len([s for s in recorder.ran if s.endswith("evolve")]) == 1


def test_failed_arm_runs_again_at_the_next_start(make_config, tmp_path, monkeypatch):
    broken = Arm("sft", "an arm that measures what it has not trained", ("data",), lambda _: {"measure.model": "warm"})
    monkeypatch.setattr("semievol.arms.ARMS", {**ARMS, "sft": broken})
    run_compare(make_config(), tmp_path / "c", ["sft"])
    monkeypatch.undo()
    run_compare(make_config(), tmp_path / "c", ["sft"])
    assert read_comparison(tmp_path / "c").runs[0].status == "done"


def test_second_process_on_a_comparison_stops(make_config, tmp_path):
    with RunDir(tmp_path / "c").lock(), pytest.raises(ArtifactError, match="in use by another semievol process"):
        run_compare(make_config(), tmp_path / "c", ["zero_shot"])


def test_sealed_targets_have_no_say_without_use_gold(make_config, tmp_path):
    """Garbled between the data stage and the others: a step that read them would break or give other bytes."""
    config = make_config(data=write_task(tmp_path, {"labeled": 12, "unlabeled": 24, "test": 12}))
    run_compare(config, tmp_path / "intact", FREE)
    run_compare(config, tmp_path / "garbled", ["zero_shot"])
    sealed = RunDir(tmp_path / "garbled" / "split-0" / "seed-0" / "zero_shot").file(SEALED_GOLD)
    assert sealed.read_bytes()
    sealed.write_bytes(b"\x00 not a record")
    run_compare(config, tmp_path / "garbled", FREE)
    record = read_comparison(tmp_path / "garbled")
    assert {r.status for r in record.runs} == {"done"}
    expected, found = artifacts(tmp_path / "intact"), artifacts(tmp_path / "garbled")
    assert {k for k in expected if expected[k] != found.get(k)} == {
        f"{run.folder}/data/sealed_gold.jsonl" for run in record.runs
    }


def test_gold_arms_need_to_be_asked_for(make_config, tmp_path):
    bound = next(name for name, arm in ARMS.items() if arm.uses_gold)
    with pytest.raises(ConfigError, match=f"arm {bound} reads the targets of the unlabelled rows.*--use-gold"):
        run_compare(make_config(), tmp_path / "c", [bound])


def test_answers_that_were_lost_are_measured_again(make_config, tmp_path):
    folder = tmp_path / "c"
    run_compare(make_config(), folder, ["sft", "semievol"])
    answers = folder / "split-0/seed-0/semievol/measure/predictions.jsonl"
    before = answers.read_bytes()
    answers.unlink()
    assert run_compare(make_config(), folder, ["sft", "semievol"]).ran == ["semievol measure"]
    assert answers.read_bytes() == before


def test_artifacts_that_were_lost_are_not_taken_over(make_config, tmp_path):
    folder = tmp_path / "c"
    run_compare(make_config(), folder, ["sft"])
    source = folder / "split-0/seed-0/sft/warmup"
    for path in source.glob("*.json"):
        path.unlink()
    assert "semievol warmup" in run_compare(make_config(), folder, ["semievol"]).ran
    assert (folder / "split-0/seed-0/semievol/warmup/model.json").exists()


def test_audit_of_pseudo_labels_needs_use_gold(make_config, tmp_path):
    for use_gold in (False, True):
        run_compare(make_config(), tmp_path / f"{use_gold}", ["sft", "sft_matched", "semievol"], use_gold=use_gold)
    found = {p.parents[1].name for p in tmp_path.rglob("audit/audited.jsonl")}
    assert found == {"semievol"}
    assert not list((tmp_path / "False").rglob("audit"))
    quality = json.loads((tmp_path / "True/split-0/seed-0/semievol/audit/pseudo_labels.json").read_text())
    assert quality["pseudo_labels"][0]["precision"]["kept"]["n"] == 40


def test_cost_can_be_counted_with_and_without_sharing(make_config, tmp_path):
    arms = ["sft", "semievol", "semievol-as"]
    run_compare(make_config(), tmp_path / "c", arms)
    run_compare(make_config(), tmp_path / "alone", ["semievol-as"])

    def entries(folder: str, arm: str):
        return RunDir(tmp_path / folder / "split-0" / "seed-0" / arm).manifest().values()

    def full(folder: str, arm: str) -> int:
        costs = [e["cost"] for e in entries(folder, arm)]
        return sum(c["prompt_tokens"] + c["reused_prompt_tokens"] for c in costs)

    assert full("c", "semievol-as") == full("alone", "semievol-as") > 0
    own = [e["cost"]["prompt_tokens"] for arm in arms for e in entries("c", arm) if "shared_from" not in e]
    assert 0 < sum(own) < sum(full("c", arm) for arm in arms)


def test_reference_has_to_run(make_config, tmp_path):
    with pytest.raises(ConfigError, match="--reference sft: it is not among the arms zero_shot"):
        run_compare(make_config(), tmp_path / "c", ["zero_shot"], reference="sft")


def test_reference_that_is_no_arm_names_the_nearest(make_config, tmp_path):
    with pytest.raises(ConfigError, match="--reference zeroshot: there is no such arm; did you mean zero_shot"):
        run_compare(make_config(), tmp_path / "c", ["zero_shot", "sft"], reference="zeroshot")


def test_later_calls_keep_the_reference_that_was_named(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["zero_shot", "sft"], reference="zero_shot")
    said = "compared with zero_shot, as in an earlier call; --reference names another arm"
    for arms in (["zero_shot", "sft"], ["sft"], ["sft", "sft_matched"]):
        recorder = run_compare(make_config(), tmp_path / "c", arms)
        assert read_comparison(tmp_path / "c").reference == "zero_shot"
        assert said in recorder.notes
    run_compare(make_config(), tmp_path / "c", ["sft"], reference="sft")
    assert read_comparison(tmp_path / "c").reference == "sft"


def test_later_calls_choose_anew_where_no_reference_was_named(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["zero_shot", "sft"])
    recorder = run_compare(make_config(), tmp_path / "c", ["sft", "sft_matched"])
    assert read_comparison(tmp_path / "c").reference == "sft_matched"
    assert not any(note.startswith("compared with") for note in recorder.notes)


def test_plan_counts_what_is_left_after_sharing(make_config, tmp_path):
    recorder = run_compare(make_config(), tmp_path / "c", ["sft", "semievol"], seeds=[0, 1])
    assert recorder.notes[:3] == [
        "4 runs, 0 done before; 22 steps, 6 of them shared, 0 done before",
        "left to run: data 1, warmup 2, measure 4, retrieve 1, propagate 2, justify 2, select 2, evolve 2",
        "time left: not yet measured here: data, warmup, measure, retrieve, propagate, justify, select, evolve",
    ]
    assert [n.split(":")[0] for n in recorder.notes if "; time left: about " in n] == ["2 of 4 runs", "3 of 4 runs"]
    more = run_compare(make_config(), tmp_path / "c", ["sft", "semievol"], seeds=[0, 1, 2])
    assert more.notes[0] == "6 runs, 4 done before; 33 steps, 4 of them shared, 22 done before"
    assert more.notes[2].startswith("time left: about ")


def models(folder: Path) -> set[str]:
    return {str(p.parent.relative_to(folder)) for p in folder.rglob("adapter") if p.is_dir()}


def test_plan_of_a_fresh_folder_takes_timed_steps(make_config, tmp_path, monkeypatch):
    guesses = {"warmup": 10.0, "propagate": 3.0, "justify": 2.0, "evolve": 20.0, "measure": 1.0}
    monkeypatch.setattr("semievol.comparing.guess_seconds", lambda config: guesses)
    config = make_config(propagate={"configurations": [{"model": "warm", "k": 0}] * 4})
    options = {"plan_only": True, "time_steps": True}
    recorder = run_compare(config, tmp_path / "c", ["sft", "semievol", "semievol-cl"], **options)
    # One warm-up, three measures, then labels by four configurations and by one, each settled and trained on.
    assert "time left: about 72 s (from a few steps timed now, right within a factor of 1.6 or so)" in recorder.notes
    assert not recorder.ran
    assert not (tmp_path / "c" / "comparison.json").exists()
    recorder = run_compare(config, tmp_path / "c", ["sft"], **options, jobs=2)
    assert "time left: about 6 s (from a few steps timed now, right within a factor of 1.6 or so)" in recorder.notes


def test_steps_of_what_is_not_local_are_not_timed(make_config):
    assert guess_seconds(make_config()) == {}


def test_models_that_no_run_needs_are_dropped(make_config, tmp_path):
    arms = ["sft", "sft_matched", "semievol", "pseudo_all"]
    run_compare(make_config(), tmp_path / "kept", arms)
    assert models(tmp_path / "kept")
    run_compare(make_config(), tmp_path / "c", arms, keep_models=False)
    assert not models(tmp_path / "c")
    predictions = sorted(p.read_bytes() for p in (tmp_path / "c").rglob("measure/predictions.jsonl"))
    assert predictions == sorted(p.read_bytes() for p in (tmp_path / "kept").rglob("measure/predictions.jsonl"))
    assert run_compare(make_config(), tmp_path / "c", arms, keep_models=False).ran == []


def test_models_of_a_finished_comparison_can_be_dropped(make_config, tmp_path):
    folder = tmp_path / "c"
    run_compare(make_config(), folder, ["sft", "semievol"])
    assert list(folder.rglob("adapter"))
    assert run_compare(make_config(), folder, ["sft", "semievol"], keep_models=False).ran == []
    assert not list(folder.rglob("adapter"))
    config = make_config(data=write_task(tmp_path) | {"max_labeled": 12})
    run_compare(config, tmp_path / "d", ["sft"], splits=[0, 1])
    run_compare(config, tmp_path / "d", ["sft"], splits=[0], keep_models=False)
    assert not list((tmp_path / "d").rglob("adapter"))


def test_arm_that_needs_a_dropped_model_trains_it_again(make_config, tmp_path):
    folder = tmp_path / "c"
    run_compare(make_config(), folder, ["sft"], keep_models=False)
    assert run_compare(make_config(), folder, ["sft", "self_consistency"]).ran == [
        "self_consistency warmup",
        "self_consistency measure",
    ]
    expected = tmp_path / "at-once"
    run_compare(make_config(), expected, ["sft", "self_consistency"])
    place = "split-0/seed-0/self_consistency/measure/predictions.jsonl"
    assert (folder / place).read_bytes() == (expected / place).read_bytes()


def test_audit_of_a_finished_run_needs_no_dropped_model(make_config, tmp_path):
    folder = tmp_path / "c"
    run_compare(make_config(), folder, ["semievol"], keep_models=False)
    assert run_compare(make_config(), folder, ["semievol"], use_gold=True).ran == ["semievol audit"]


def test_steps_of_an_earlier_config_count_no_more(make_config, tmp_path):
    run_compare(make_config(rounds=2, adapt={"enabled": True}), tmp_path / "c", ["semievol"], use_gold=True)
    run_compare(make_config(), tmp_path / "c", ["semievol"])
    run_compare(make_config(), tmp_path / "fresh", ["semievol"])
    names = [set(RunDir(tmp_path / f / "split-0/seed-0/semievol").manifest()) for f in ("c", "fresh")]
    assert names[0] == names[1]
    again, fresh = ((load_comparison(tmp_path / f).cells[0].runs[0]) for f in ("c", "fresh"))
    assert again.audited == {}
    assert again.pseudo_labels() == fresh.pseudo_labels()
    assert again.steps_from_base == fresh.steps_from_base


def test_models_that_rounds_do_not_change_are_measured_once(make_config, tmp_path):
    settings = point_settings(plan_points({"rounds": [1, 2]}, cartesian=False))
    arms = ["zero_shot", "self_consistency"]
    recorder = run_compare(make_config(), tmp_path / "c", arms, settings=settings, sweep={"rounds": [1, 2]})
    assert Counter(name.split()[1] for name in recorder.ran)["measure"] == 2


def test_arm_that_sets_the_swept_key_itself_is_named(make_config, tmp_path):
    settings = point_settings(plan_points({"theta": [0.3, 0.5]}, cartesian=False))
    arms = ["semievol", "semievol_released"]
    recorder = run_compare(make_config(), tmp_path / "c", arms, settings=settings, sweep={"theta": [0.3, 0.5]})
    assert [n for n in recorder.notes if "changes nothing" in n] == [
        "theta changes nothing of semievol_released: the arm sets it itself"
    ]


def test_title_of_the_report_makes_no_other_comparison(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["zero_shot"])
    recorder = run_compare(make_config(report={"title": "Tickets"}), tmp_path / "c", ["sft"])
    assert [r.arm for r in read_comparison(tmp_path / "c").runs if r.status == "done"] == ["sft", "zero_shot"]
    assert "still in the comparison: 1 finished run of an earlier call" in recorder.notes


def test_answers_of_another_generator_are_not_taken_for_its_own(make_config, tmp_path):
    sweep = {"generator.accuracy": [0.1, 0.95]}
    settings = point_settings(plan_points(sweep, cartesian=False))
    run_compare(make_config(), tmp_path / "c", ["zero_shot"], settings=settings, sweep=sweep)
    low, high = (float(run.scores.mean()) for cell in load_comparison(tmp_path / "c").cells for run in cell.runs)
    assert low < 0.4 < 0.8 < high


def test_another_model_in_the_same_folder_is_another_model(make_config, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "model.safetensors").write_bytes(b"first")
    config = make_config(model={"path": str(model)})
    run_compare(config, tmp_path / "c", ["zero_shot"])
    assert run_compare(config, tmp_path / "c", ["zero_shot"]).ran == []
    (model / "model.safetensors").write_bytes(b"other")
    assert [name.split()[1] for name in run_compare(config, tmp_path / "c", ["zero_shot"]).ran] == ["data", "measure"]


@pytest.mark.parametrize("arm", ["semievol", "semievol-cl"])
def test_one_configuration_leaves_the_released_selection_in_place(make_config, tmp_path, arm):
    run_compare(make_config(recipe="released"), tmp_path / "c", [arm])
    stats = RunDir(tmp_path / "c/split-0/seed-0" / arm).manifest()["round-1/select"]["stats"]
    assert stats["n_dropped"] > 0


@pytest.mark.parametrize("changes", [{}, {"rounds": 2}, {"recipe": "released", "rounds": 2}])
def test_control_of_an_arm_has_its_steps_from_the_same_weights(make_config, tmp_path, changes):
    arms = ["sft_matched", "pseudo_all", "icl_distill", "semievol", "semievol_released", "semievol-as"]
    run_compare(make_config(**changes), tmp_path / "c", arms)
    data = load_comparison(tmp_path / "c")
    assert {run.status for cell in data.all_cells for run in cell.runs} == {"done"}
    for arm in ("pseudo_all", "icl_distill", "semievol_released", "semievol-as"):
        cell = data.find(arm)
        control = data.reference_of(cell)
        assert control.arm.name == f"sft_matched@{arm}"
        assert control.done[0].steps_from_base == cell.done[0].steps_from_base
        trained = RunDir(control.done[0].folder).read_json("control/training")
        assert trained["n_rows"] == 24
    assert data.reference_of(data.find("semievol")).arm.name == "sft_matched"
    assert data.reference_of(data.find("sft_matched")).arm.name == "sft_matched"


def test_controls_that_are_the_same_training_train_once(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["sft_matched", "semievol", "semievol-icp"])
    manifest = RunDir(tmp_path / "c/split-0/seed-0/sft_matched@semievol-icp").manifest()
    assert manifest["control"]["stats"]["trained_in"] == "split-0/seed-0/sft_matched/control"
    assert manifest["measure"]["cost"]["forward_passes"] == 0


def test_no_controls_run_for_another_reference(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["sft", "sft_matched", "semievol-as"], reference="sft")
    assert {r.arm for r in read_comparison(tmp_path / "c").runs} == {"sft", "sft_matched", "semievol-as"}


@pytest.mark.parametrize("name", ["results.json", "tables/ablation.tex", "manifest.json"])
def test_folder_of_something_else_is_left_alone(make_config, tmp_path, name):
    mine = tmp_path / "c" / name
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=f"not the folder of a comparison, and holds {name.partition('/')[0]}"):
        run_compare(make_config(), tmp_path / "c", ["zero_shot"])
    assert [p.name for p in tmp_path.joinpath("c").rglob("*") if p.is_file()] == [mine.name]
    assert mine.read_text() == "mine"


def test_comparison_without_test_rows_is_refused_before_anything_runs(make_config, tmp_path, task_files):
    config = make_config(data={name: path for name, path in task_files.items() if name != "test"})
    with pytest.raises(ConfigError, match=r"there are none: set data.test, or data.split.test"):
        run_compare(config, tmp_path / "c", ["sft", "semievol"])
    assert not list((tmp_path / "c").glob("split-*"))


def test_fault_of_a_row_is_said_once_before_anything_runs(make_config, tmp_path):
    files = write_task(tmp_path)
    labeled = Path(files["labeled"])
    labeled.write_text(labeled.read_text().replace(",A\n", ",Q\n"))
    with pytest.raises(DataError, match="Q"):
        run_compare(make_config(data=files), tmp_path / "c", ["sft", "semievol"], plan_only=True)
    with pytest.raises(DataError, match=r"nope.csv"):
        run_compare(make_config(data=files | {"labeled": "nope.csv"}), tmp_path / "c", ["sft"], plan_only=True)


def test_finished_comparison_does_not_read_its_rows_again(make_config, tmp_path, monkeypatch):
    run_compare(make_config(), tmp_path / "c", ["zero_shot"])
    monkeypatch.setattr("semievol.comparing.load_examples", None)
    assert run_compare(make_config(), tmp_path / "c", ["zero_shot"]).ran == []


def test_arms_of_a_later_call_have_controls_of_their_own(make_config, tmp_path):
    """Whichever call has the arm and which the common control."""
    for calls in ((["sft_matched", "semievol"], ["pseudo_all"]), (["semievol", "pseudo_all"], ["sft_matched"])):
        folder = tmp_path / calls[0][-1]
        for arms in calls:
            run_compare(make_config(), folder, arms)
        record = read_comparison(folder)
        assert record.reference == "sft_matched"
        assert {run.arm for run in record.runs} == {"sft_matched", "semievol", "pseudo_all", "sft_matched@pseudo_all"}
        data = load_comparison(folder)
        assert data.reference_of(data.find("pseudo_all")).arm.name == "sft_matched@pseudo_all"


def test_controls_run_where_their_arms_did(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["sft_matched", "semievol", "pseudo_all"])
    recorder = run_compare(make_config(), tmp_path / "c", ["zero_shot"], seeds=[5])
    assert recorder.ran == ["zero_shot measure"]
    assert not any("further run" in note for note in recorder.notes)
    runs = read_comparison(tmp_path / "c").runs
    assert {(run.arm, run.seed) for run in runs if run.arm.startswith("sft_matched@")} == {
        ("sft_matched@pseudo_all", 0)
    }


def test_failed_reference_is_the_reference_again_once_it_runs(make_config, tmp_path):
    arms = ["sft", "sft_matched", "semievol"]
    run_compare(make_config(), tmp_path / "c", arms)
    for place, run in enumerate(read_comparison(tmp_path / "c").runs):
        if run.arm == "sft_matched":
            change_run(tmp_path / "c", place, status="failed", error="no room")
    run_compare(make_config(), tmp_path / "c", ["zero_shot"])
    recorder = run_compare(make_config(), tmp_path / "c", arms)
    assert read_comparison(tmp_path / "c").reference == "sft_matched"
    assert not any(note.startswith("compared with") for note in recorder.notes)


def test_no_controls_run_where_an_earlier_call_named_another_reference(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["zero_shot", "sft"], reference="zero_shot")
    run_compare(make_config(), tmp_path / "c", ["sft_matched", "pseudo_all"])
    record = read_comparison(tmp_path / "c")
    assert record.reference == "zero_shot"
    assert {run.arm for run in record.runs} == {"zero_shot", "sft", "sft_matched", "pseudo_all"}


def test_failed_run_of_an_earlier_call_stays_failed(make_config, tmp_path):
    config = make_config(select={"min_confidence": 0.99}, evolve={"train_on": "selected"})
    run_compare(config, tmp_path / "c", ["sft", "semievol"])
    recorder = run_compare(config, tmp_path / "c", ["zero_shot"])
    statuses = {run.arm: run.status for run in read_comparison(tmp_path / "c").runs}
    assert statuses == {"zero_shot": "done", "sft": "done", "semievol": "failed"}
    assert "still in the comparison: 1 finished run and 1 failed run of an earlier call" in recorder.notes
    run_compare(make_config(), tmp_path / "c", ["zero_shot"])
    assert [run.arm for run in read_comparison(tmp_path / "c").runs] == ["zero_shot"]


def test_failed_run_of_other_data_leaves(make_config, tmp_path):
    files = write_task(tmp_path)
    config = make_config(data=files, select={"min_confidence": 0.99}, evolve={"train_on": "selected"})
    run_compare(config, tmp_path / "c", ["semievol"])
    labeled = Path(files["labeled"])
    labeled.write_text("".join(labeled.read_text().splitlines(keepends=True)[:13]))
    run_compare(config, tmp_path / "c", ["zero_shot"])
    assert [run.arm for run in read_comparison(tmp_path / "c").runs] == ["zero_shot"]


def test_plan_says_what_becomes_of_the_runs_that_are_there(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["zero_shot", "sft"])
    before = (tmp_path / "c/comparison.json").read_bytes()
    recorder = run_compare(make_config(warmup={"max_steps": 3}), tmp_path / "c", ["sft"], plan_only=True)
    assert [note.split(":")[0] for note in recorder.notes[-2:]] == [
        "no longer in the comparison",
        "run again in their place",
    ]
    assert (tmp_path / "c/comparison.json").read_bytes() == before


def test_plan_counts_trainings_whose_models_were_dropped(make_config, tmp_path):
    run_compare(make_config(), tmp_path / "c", ["sft"], keep_models=False)
    changed = make_config(evaluate={"answer_with": "greedy"})
    planned = run_compare(changed, tmp_path / "c", ["sft"], plan_only=True)
    assert "left to run: warmup 1, measure 1" in planned.notes
    assert run_compare(changed, tmp_path / "c", ["sft"]).ran == ["sft warmup", "sft measure"]
