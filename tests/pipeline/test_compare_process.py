"""Comparisons as processes: SIGKILL, two at once, several jobs, the command line."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from semievol.artifacts import RunDir
from semievol.cli import run_app
from semievol.comparing import compare, run_part
from semievol.comparison import comparison_of, read_comparison
from semievol.errors import ArtifactError, ConfigError
from semievol.runs import open_run
from semievol.stage import SilentReporter
from semievol.summary import read_run_config
from semievol.types import Prediction
from tests.pipeline.conftest import FAKE, write_task
from tests.pipeline.test_compare import Recorder, artifacts

DEADLINE_SECONDS = 120
ARMS = "zero_shot,sft_matched,pseudo_all,semievol"
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
SMALL = {"labeled": 12, "unlabeled": 24, "test": 12}
CODE = """
import sys
from pathlib import Path
from semievol.comparing import compare
from semievol.config import load_config

if __name__ == "__main__":
    config, folder, arms, jobs = sys.argv[1:]
    compare(load_config(Path(config)), arms.split(","), seeds=[0, 1], output_dir=Path(folder), jobs=int(jobs))
"""


@pytest.fixture
def config_file(tmp_path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": write_task(tmp_path, SMALL), **FAKE}), encoding="utf-8")
    return path


def start(config: Path, folder: Path, *, jobs: int = 1) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, str(config), str(folder), ARMS, str(jobs)],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def signals_blocked(pid: int) -> set[int]:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    mask = int(next(line.split()[1] for line in lines if line.startswith("SigBlk:")), 16)
    return {n + 1 for n in range(64) if mask >> n & 1}


def wait_for_end_of_group(group: int) -> None:
    end = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.05)
    pytest.fail("a process of the comparison is still there")


def finish(config: Path, folder: Path) -> None:
    process = start(config, folder)
    _, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    assert process.returncode == 0, stderr.decode()[-3000:]


def test_killed_comparison_goes_on_and_ends_with_the_same_bytes(config_file, tmp_path):
    folder = tmp_path / "c"
    finish(config_file, folder)
    expected = artifacts(folder)
    n_files = len(expected)
    folder.rename(tmp_path / "undisturbed")

    generator = random.Random(3)
    n_killed = 0
    for share in sorted(generator.uniform(0.05, 0.95) for _ in range(3)):
        process = start(config_file, folder)
        end = time.monotonic() + DEADLINE_SECONDS
        while process.poll() is None and time.monotonic() < end:
            if sum(len(names) for _, _, names in os.walk(folder)) >= share * n_files:
                os.killpg(process.pid, signal.SIGKILL)
                n_killed += 1
                break
            time.sleep(0.005)
        process.communicate(timeout=DEADLINE_SECONDS)
    assert n_killed >= 2
    finish(config_file, folder)
    assert artifacts(folder) == expected
    assert {r.status for r in read_comparison(folder).runs} == {"done"}


def test_jobs_give_the_same_bytes_and_record_every_run(make_config, tmp_path):
    folder = tmp_path / "c"
    arms = ["zero_shot", "sft", "sft_matched", "pseudo_all", "reflection", "semievol", "semievol-icp"]
    compare(make_config(), arms, seeds=[0, 1], output_dir=folder)
    expected = artifacts(folder)
    folder.rename(tmp_path / "one-after-another")
    compare(make_config(), arms, seeds=[0, 1], output_dir=folder, jobs=3)
    assert artifacts(folder) == expected
    assert {r.status for r in read_comparison(folder).runs} == {"done"}


def test_step_that_fails_in_one_process_is_not_tried_by_another(make_config, tmp_path):
    folder = tmp_path / "c"
    # The fake generator is never so sure, so there is nothing to train on.
    config = make_config(select={"min_confidence": 0.99}, evolve={"train_on": "selected"})
    compare(config, ["sft", "sft_matched", "semievol"], seeds=[0], output_dir=folder, jobs=2)
    runs = {r.arm: r for r in read_comparison(folder).runs}
    assert {arm: r.status for arm, r in runs.items()} == {"sft": "done", "sft_matched": "failed", "semievol": "failed"}
    errors = sorted((runs["sft_matched"].error, runs["semievol"].error), key=len)
    assert errors[1] == f"round-1/evolve: {errors[0]}"  # the one that tried, and the one that was told


def die_on_the_way(folder, part, failures, shown):
    """As a part that is killed: once one that has another beside it, and `semievol-cl` each time."""
    mark, died = folder / f"in-hand-{os.getpid()}", folder / "died"
    mark.touch()
    time.sleep(0.3)
    if not died.exists() and len(list(folder.glob("in-hand-*"))) > 1:
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if part.run.record.arm == "semievol-cl":
        mark.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        return run_part(folder, part, failures, SilentReporter()), failures
    finally:
        mark.unlink()


def test_killed_process_costs_at_most_its_own_run(make_config, tmp_path, monkeypatch):
    folder = tmp_path / "c"
    arms, seeds = ["few_shot_bm25", "sft", "semievol", "semievol-cl"], [0, 1]
    compare(make_config(), arms, seeds=seeds, output_dir=folder)
    expected = artifacts(folder)
    folder.rename(tmp_path / "undisturbed")
    monkeypatch.setattr("semievol.comparing._run_part_in_process", die_on_the_way)
    recorder = Recorder()
    compare(make_config(), arms, seeds=seeds, output_dir=folder, jobs=2, reporter=recorder)
    runs = read_comparison(folder).runs
    assert "a process of --jobs 2 was killed; its parts run one at a time" in recorder.notes
    assert {r.arm for r in runs if r.status == "done"} == set(arms) - {"semievol-cl"}
    assert {r.arm for r in runs if r.status == "failed"} == {"semievol-cl"}
    assert all("its process was killed" in r.error for r in runs if r.status == "failed")
    monkeypatch.undo()
    for left in [folder / "died", *folder.glob("in-hand-*")]:
        left.unlink()
    compare(make_config(), arms, seeds=seeds, output_dir=folder, jobs=2)
    assert artifacts(folder) == expected


@pytest.mark.parametrize("sent", [signal.SIGKILL, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_processes_of_several_jobs_end_with_the_one_that_started_them(config_file, tmp_path, sent):
    folder = tmp_path / "c"
    process = start(config_file, folder, jobs=2)
    end = time.monotonic() + DEADLINE_SECONDS
    while not list(folder.glob("split-0/seed-*/*/manifest.json")) and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(sent)  # to the parent alone
    process.wait(timeout=DEADLINE_SECONDS)
    process.stderr.close()
    wait_for_end_of_group(process.pid)
    assert "pending" in {r.status for r in read_comparison(folder).runs}


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
def test_ctrl_c_in_a_terminal_ends_all_processes_without_a_traceback(config_file, tmp_path):
    folder = tmp_path / "c"
    options = ["--arms", ARMS, "--seeds", "2", "--jobs", "2", "-o", str(folder)]
    process = subprocess.Popen(
        [sys.executable, "-m", "semievol", "compare", str(config_file), *options],
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    end = time.monotonic() + DEADLINE_SECONDS
    while not list(folder.glob("split-0/seed-*/*/manifest.json")) and time.monotonic() < end:
        time.sleep(0.005)
    workers = [p for p in psutil.Process(process.pid).children() if "spawn_main" in " ".join(p.cmdline())]
    assert workers
    assert all(signal.SIGINT in signals_blocked(worker.pid) for worker in workers)
    os.killpg(process.pid, signal.SIGINT)  # to the parent and its processes, as a terminal does
    _, stderr = process.communicate(timeout=DEADLINE_SECONDS)
    said = stderr.decode()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert "semievol compare" in said.splitlines()[-1]
    wait_for_end_of_group(process.pid)
    assert "pending" in {r.status for r in read_comparison(folder).runs}


def run_cli(capsys, *arguments: str) -> tuple[int, str, str]:
    code = run_app([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_compare_prints_a_table_and_where_the_report_lies(capsys, config_file, tmp_path):
    folder = tmp_path / "c"
    code, out, _ = run_cli(capsys, "compare", config_file, "--arms", "zero_shot,sft", "--seeds", "2", "-o", folder)
    assert code == 0
    assert "zero" in out.lower()
    assert str(folder) in out.replace("\n", "")
    assert [r.seed for r in read_comparison(folder).runs] == [0, 0, 1, 1]


def test_compare_json_is_the_stored_results(capsys, config_file, tmp_path):
    folder = tmp_path / "c"
    code, out, _ = run_cli(capsys, "compare", config_file, "--arms", "sft", "--seeds", "1", "-o", folder, "--json")
    assert code == 0
    assert json.loads(out) == RunDir(folder).read_json("results")


def test_report_draws_a_comparison_again_from_its_rows(capsys, config_file, tmp_path):
    folder = tmp_path / "c"
    run_cli(capsys, "compare", config_file, "--arms", "zero_shot,sft", "--seeds", "1", "-o", folder)
    before = (folder / "results.json").read_bytes()
    (folder / "results.json").unlink()
    code, out, _ = run_cli(capsys, "report", folder, "--format", "csv")
    assert code == 0
    assert out.startswith("arm,")
    assert (folder / "results.json").read_bytes() == before


@pytest.mark.parametrize("harm", ["gone", "damaged"])
def test_report_says_which_answers_are_lost(capsys, config_file, tmp_path, harm):
    folder = tmp_path / "c"
    arguments = ["compare", config_file, "--arms", "zero_shot,sft", "--seeds", "2", "-o", folder]
    assert run_cli(capsys, *arguments)[0] == 0
    answers = folder / "split-0/seed-1/sft/measure/predictions.jsonl"
    if harm == "gone":
        answers.unlink()
    else:
        answers.write_text('{"example_id": ')
    code, out, err = run_cli(capsys, "report", folder)
    assert code == 1
    assert f"SFT, seed 1: split-0/seed-1/sft/measure/predictions.jsonl is {harm}" in " ".join(err.split())
    assert "Zero-shot" in out
    assert run_cli(capsys, "compare", config_file, *arguments[2:])[0] == (0 if harm == "gone" else 1)


def test_sweep_from_the_command_line(capsys, config_file, tmp_path):
    folder = tmp_path / "s"
    arguments = ["sweep", config_file, "theta=0.3,1.0", "evaluate.n_bootstrap=300", "--arms", "sft,semievol"]
    code, _, _ = run_cli(capsys, *arguments, "--seeds", "1", "-o", folder)
    assert code == 0
    assert [r.setting for r in read_comparison(folder).runs] == ["theta=0.3"] * 2 + ["theta=1"] * 2
    code, _, _ = run_cli(capsys, "sweep", config_file, "theta=1,0.8", *arguments[3:], "--seeds", "1", "-o", folder)
    assert code == 0
    assert read_comparison(folder).sweep == {"theta": [0.3, 0.8, 1]}


def test_failed_run_gives_exit_code_1_and_its_reason(capsys, config_file, tmp_path):
    arguments = ["compare", config_file, "select.min_confidence=0.99", "evolve.train_on=selected"]
    code, _, err = run_cli(capsys, *arguments, "--arms", "sft,semievol", "--seeds", "1", "-o", tmp_path / "c")
    assert code == 1
    assert "1 run failed; the command that asks for their arms tries again" in err
    assert "split-0/seed-0/semievol: " in err


def test_status_of_a_comparison_counts_its_runs(capsys, config_file, tmp_path):
    folder = tmp_path / "c"
    run_cli(capsys, "compare", config_file, "--arms", "zero_shot,sft", "--seeds", "1", "-o", folder)
    assert run_cli(capsys, "status", folder)[:2] == (0, "2 runs done, 0 failed, 0 pending\n")
    code, out, _ = run_cli(capsys, "status", folder, "--json")
    assert code == 0
    assert json.loads(out) == {"comparison": str(folder), "done": 2, "failed": 0, "pending": 0, "errors": {}}


def test_report_draws_a_run_again(capsys, config_file, tmp_path):
    folder = tmp_path / "run"
    run_cli(capsys, "run", config_file, f"output_dir={folder}")
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    manifest = RunDir(folder).manifest()
    moved = shutil.move(folder, tmp_path / "elsewhere")  # nothing outside the folder is needed
    for path in config_file.parent.glob("*.csv"):
        path.unlink()
    code, _, _ = run_cli(capsys, "report", moved)
    assert code == 0
    assert (moved / "report.html").read_bytes() == before
    others = [name for name in manifest if name != "report"]
    assert {name: RunDir(moved).manifest()[name] for name in others} == {name: manifest[name] for name in others}


@pytest.mark.parametrize("text", ["[1, 2]", '{"my": "notes"}', "not json"])
def test_file_of_another_tool_does_not_make_a_run_a_part_of_a_comparison(capsys, config_file, tmp_path, text):
    (tmp_path / "comparison.json").write_text(text)
    for place in ("run", "runs/split-0/seed-0/sft", "split-0/seed-0/sft"):
        assert run_cli(capsys, "run", config_file, f"output_dir={tmp_path / place}")[0] == 0
        assert comparison_of(tmp_path / place) is None


def test_arm_answers_with_the_model_that_it_measured(capsys, config_file, tmp_path):
    folder = tmp_path / "c"
    arms = "zero_shot,few_shot_bm25,self_consistency,sft,sft_matched,semievol"
    run_cli(capsys, "compare", config_file, "--arms", arms, "--seeds", "1", "-o", folder)
    place = folder / "split-0/seed-0"
    steps = {"sft": "warmup", "sft_matched": "control", "semievol": "round-1/evolve"}
    for arm, step in steps.items():
        assert open_run(place / arm).model().adapter == str((place / arm / step / "adapter").resolve())
    assert open_run(place / "zero_shot").model().adapter is None
    with pytest.raises(ConfigError, match="answers with 3 demonstrations"):
        open_run(place / "few_shot_bm25").model()
    with pytest.raises(ConfigError, match="answers with a majority of 4 samples"):
        open_run(place / "self_consistency").model()
    for arm in steps:
        target = (place / arm, "--test", tmp_path / "test.csv", "--json")
        code, out, _ = run_cli(capsys, "evaluate", *target)
        scores = [p.score for p in RunDir(place / arm).read_records("measure/predictions", Prediction)]
        assert code == 0
        assert json.loads(out)["result"]["value"] == sum(scores) / len(scores)
    code, out, _ = run_cli(capsys, "status", place / "sft")
    assert code == 0
    assert "a run of the comparison in" in out
    assert "evolve" not in out
    code, _, err = run_cli(capsys, "export", place / "semievol", "-o", tmp_path / "model")
    assert code == 2
    assert "is a run of a comparison" in " ".join(err.split())
    run_cli(capsys, "compare", config_file, "--arms", arms, "--seeds", "1", "-o", folder, "--no-keep-models")
    with pytest.raises(ArtifactError, match="was deleted"):
        open_run(place / "sft").model()


def test_report_of_a_run_that_is_not_finished_runs_nothing(capsys, config_file, tmp_path):
    folder = tmp_path / "run"
    run_cli(capsys, "run", config_file, f"output_dir={folder}")
    RunDir(folder).forget_stages(["control", "evaluate"])
    code, _, err = run_cli(capsys, "report", folder)
    assert code == 1
    assert "these stages are not done: control, evaluate. `semievol run`" in " ".join(err.split())
    assert "control" not in RunDir(folder).manifest()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--arms", "semievl"], "did you mean semievol?"),
        (["--seeds", "x"], "--seeds x: expected how many"),
        (["--seeds", "1 2"], "--seeds 1 2: expected how many"),
        (["--splits", "3,4 5"], "--splits 3,4 5: expected how many"),
        (["--seeds", "1,1"], "a number comes twice"),
        (["--splits", "2"], "would all be the same"),
        (["--seeds", "00"], "--seeds 00: expected how many"),
        (["--arms", "all,semievl"], "did you mean semievol?"),
        (["--model", ""], "--model: the name is empty"),
        (["theta=0.3"], "theta is a key of `semievol sweep`; set select.keep_fraction here"),
        (["seed=3"], "use --seeds"),
        (["--arms", "zero_shot", "--reference", "sft"], "--reference sft: it is not among the arms"),
        (["--format", "xml"], "--format xml: choose one of text"),
        (["propagate.draw=2", "--arms", "semievol-cl"], "arm semievol-cl does not fit the config: propagate.draw"),
    ],
)
def test_what_the_user_has_to_change_gives_exit_code_2(capsys, config_file, tmp_path, arguments, message):
    code, _, err = run_cli(capsys, "compare", config_file, "-o", tmp_path / "c", *arguments)
    assert code == 2
    assert message in err
    assert not (tmp_path / "c" / "comparison.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["seed=1,2"], "use --seeds"),
        (["data.seed=1,2"], "use --splits"),
        (["output_dir=a,b"], "use --output-dir"),
        (["rewording=1,4", "rewordings=3"], "rewordings is given twice"),
        (["recipe=paper,released"], "a recipe is the defaults of other keys"),
        (["k=0,2", "--arms", "all"], "icl_distill would show no demonstrations"),
        (["rounds=2"], "nothing to sweep (rounds=2 has one value, so it is an override)"),
        (["theta=0.3,0.5", "select.keep_fraction=0.3,0.9"], "theta stands for select.keep_fraction; sweep one of them"),
    ],
)
def test_what_cannot_be_swept_gives_exit_code_2(capsys, config_file, tmp_path, arguments, message):
    code, _, err = run_cli(capsys, "sweep", config_file, *arguments, "-o", tmp_path / "s")
    assert code == 2
    assert message in " ".join(err.split())
    assert not (tmp_path / "s").exists()


def test_single_value_of_a_config_key_is_an_override_of_the_sweep(capsys, config_file, tmp_path):
    arguments = ["theta=0.3,0.5", "retrieve.k=4", "--arms", "few_shot_bm25", "--seeds", "1", "-o", tmp_path / "s"]
    assert run_cli(capsys, "sweep", config_file, *arguments)[0] == 0
    runs = read_comparison(tmp_path / "s").runs
    assert [run.setting for run in runs] == ["theta=0.3", "theta=0.5"]
    assert read_run_config(tmp_path / "s" / runs[0].folder).retrieve.k == 4


@pytest.mark.parametrize("place", ["file", "file/inner", "/proc/semievol"])
def test_folder_that_cannot_be_made_is_one_clear_error(capsys, config_file, tmp_path, place):
    (tmp_path / "file").touch()
    for command, option in (("compare", ["-o", tmp_path / place]), ("run", [f"output_dir={tmp_path / place}"])):
        code, _, err = run_cli(capsys, command, config_file, *option)
        assert code in (1, 2)
        assert "name another" in " ".join(err.split())


@pytest.mark.parametrize("command", ["compare", "sweep", "report"])
def test_help_has_an_example(capsys, command):
    code, out, _ = run_cli(capsys, command, "--help")
    assert code == 0
    assert f"Example: semievol {command}" in " ".join(out.replace("│", " ").split())


def test_demo_makes_new_rows_for_each_split(tmp_path):
    from semievol.compare_command import open_configs

    configs = open_configs("demo:tickets", ["evolve.max_steps=4"], splits=[0, 3], folder=tmp_path)
    rows = [Path(configs[s].data.labeled).read_bytes() for s in (0, 3)]
    assert rows[0] != rows[1]
    assert configs[3].evolve.max_steps == 4
