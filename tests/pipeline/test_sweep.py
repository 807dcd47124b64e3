"""Sweeps over the fake backends: points share every stage whose inputs they do not change."""

from collections import Counter
from dataclasses import replace

import pytest

from semievol.artifacts import RunDir
from semievol.compare_load import load_comparison, run_cost
from semievol.comparing import compare
from semievol.comparison import read_comparison, write_comparison
from semievol.errors import ConfigError
from semievol.sweeping import plan_points, point_settings
from semievol.types import Example
from tests.pipeline.test_compare import Recorder, artifacts


def run_sweep(config, folder, axes, arms=("semievol",), **options) -> Counter[str]:
    recorder = Recorder()
    settings = point_settings(plan_points(axes, cartesian=options.pop("cartesian", False)))
    options = {"seeds": [0], **options}
    compare(config, arms, output_dir=folder, settings=settings, sweep=axes, reporter=recorder, **options)
    assert {r.error for r in read_comparison(folder).runs} == {None}
    return Counter(name.split()[1] for name in recorder.ran)


def test_points_of_theta_share_all_before_selection(make_config, tmp_path):
    ran = run_sweep(make_config(), tmp_path / "s", {"theta": [0.1, 0.5, 1.0]}, ["sft_matched", "semievol"])
    once = ("data", "warmup", "round-1/retrieve", "round-1/propagate", "round-1/justify")
    thrice = ("round-1/select", "round-1/evolve", "control")
    assert ran == {**dict.fromkeys(once, 1), **dict.fromkeys(thrice, 3), "measure": 6}
    kept = [
        RunDir(tmp_path / "s" / r.folder).read_json("round-1/select/threshold")["n_kept"]
        for r in read_comparison(tmp_path / "s").runs
        if r.arm == "semievol"
    ]
    assert kept == [8, 40, 80]


def test_points_that_keep_the_same_rows_train_once(make_config, tmp_path):
    """The steps have other fingerprints, as their selections have other settings; the trainings are over equal rows."""
    ran = run_sweep(make_config(), tmp_path / "s", {"theta": [0.5, 0.499, 0.3]})
    assert ran["round-1/evolve"] == 3
    alone = run_sweep(make_config(), tmp_path / "alone", {"theta": [0.499]})
    assert alone["round-1/evolve"] == 1
    place = "split-0/seed-0/semievol"
    points = ("s/theta=0.5", "s/theta=0.499", "s/theta=0.3", "alone/theta=0.499")
    first, equal, other, own = (RunDir(tmp_path / point / place) for point in points)
    model = "round-1/evolve/adapter/fake_adapter.json"
    assert (equal.path / model).samefile(first.path / model)
    assert not (other.path / model).samefile(first.path / model)
    entries = {run: run.manifest()["round-1/evolve"] for run in (first, equal, other, own)}
    assert [e["stats"].get("trained_in") for e in entries.values()] == [
        None,
        f"theta=0.5/{place}/round-1/evolve",
        None,
        None,
    ]
    assert artifacts(equal.path) == artifacts(own.path)
    costs = [entries[run]["cost"] for run in (equal, own)]
    assert costs[0]["train_tokens"] == 0 < costs[0]["reused_train_tokens"] == costs[1]["train_tokens"]
    assert run_cost(find_run(tmp_path / "s", "0.499"), {})["train_tokens"] == sum(
        e["cost"]["train_tokens"] for e in own.manifest().values()
    )
    assert not (tmp_path / "s" / ".trainings").exists()


def find_run(folder, theta):
    cells = load_comparison(folder).cells
    return next(cell.runs[0] for cell in cells if cell.setting["theta"] == float(theta))


def test_sweeps_of_other_keys_stand_in_one_report(make_config, tmp_path):
    run_sweep(make_config(), tmp_path / "s", {"theta": [0.3]}, ["sft"])
    run_sweep(make_config(), tmp_path / "s", {"n": [1, 2]}, ["sft"])
    record = read_comparison(tmp_path / "s")
    assert record.sweep == {"theta": [0.3], "n": [1, 2]}
    assert sorted(r.setting for r in record.runs) == ["n=1", "n=2", "theta=0.3"]
    assert {key for cell in load_comparison(tmp_path / "s").cells for key in cell.setting} == {"theta", "n"}


def test_keys_of_which_no_run_is_left_leave_the_sweep(make_config, tmp_path):
    axes = {"theta": [0.3, 0.5], "n": [1, 2]}
    run_sweep(make_config(), tmp_path / "s", axes, ["sft"])
    record = read_comparison(tmp_path / "s")
    runs = tuple(r for r in record.runs if r.setting == "theta=0.3")
    write_comparison(tmp_path / "s", replace(record, runs=runs))
    run_sweep(make_config(), tmp_path / "s", {"k": [0]}, ["sft"])
    assert read_comparison(tmp_path / "s").sweep == {"theta": [0.3], "k": [0]}


def test_sweeps_of_combinations_of_other_keys_do_not_mix_and_that_is_said(make_config, tmp_path):
    axes = {"theta": [0.3], "n": [1]}
    run_sweep(make_config(), tmp_path / "s", axes, ["sft"], cartesian=True)
    recorder = Recorder()
    settings = point_settings(plan_points({"k": [0]}, cartesian=False))
    options = {"settings": settings, "sweep": {"k": [0]}, "seeds": [0], "reporter": recorder}
    compare(make_config(), ["sft"], output_dir=tmp_path / "s", **options)
    assert [r.setting for r in read_comparison(tmp_path / "s").runs] == ["k=0"]
    said = (
        "no longer in the comparison: 1 finished run of an earlier call, because they belong to a sweep over theta, n"
    )
    assert any(note.startswith(said) for note in recorder.notes)


def test_record_of_a_sweep_says_its_points(make_config, tmp_path):
    run_sweep(make_config(), tmp_path / "s", {"n": [1, 2], "theta": [0.3]}, ["sft"], seeds=[4])
    record = read_comparison(tmp_path / "s")
    assert record.sweep == {"n": [1, 2], "theta": [0.3]}
    assert [r.setting for r in record.runs] == ["n=1", "n=2", "theta=0.3"]
    assert record.runs[0].folder == "n=1/split-0/seed-4/sft"


def test_points_of_n_and_k_train_the_warm_model_once(make_config, tmp_path):
    ran = run_sweep(make_config(), tmp_path / "s", {"n": [1, 2, 5], "k": [0, 3]})
    assert (ran["data"], ran["warmup"]) == (1, 1)
    assert ran["round-1/retrieve"] == 2  # three neighbours are those of the config; none are others
    assert ran["round-1/propagate"] == 5


def test_answers_that_points_have_in_common_are_bought_once(make_config, tmp_path):
    run_sweep(make_config(), tmp_path / "s", {"n": [1, 2]})
    first, second = (
        RunDir(tmp_path / "s" / f"n={n}/split-0/seed-0/semievol").manifest()["round-1/propagate"]["cost"]
        for n in (1, 2)
    )
    assert second["reused_prompt_tokens"] == first["prompt_tokens"] > 0


def test_ratio_draws_so_many_unlabeled_rows(make_config, tmp_path):
    run_sweep(make_config(), tmp_path / "s", {"unlabeled_ratio": [0.5, 1, 3]}, ["sft"])
    sizes = [
        sum(1 for _ in RunDir(tmp_path / "s" / r.folder).read_records("data/unlabeled", Example))
        for r in read_comparison(tmp_path / "s").runs
    ]
    assert sizes == [12, 24, 72]


def test_rewordings_change_every_prompt(make_config, tmp_path):
    ran = run_sweep(make_config(), tmp_path / "s", {"rewording": [0, 1, 2, 3, 4]}, ["sft"])
    assert ran["warmup"] == 5
    models = {p.read_bytes() for p in (tmp_path / "s").glob("*/split-0/seed-0/sft/warmup/training.json")}
    assert len(models) == 5


def test_points_of_rounds_share_the_first_round(make_config, tmp_path):
    ran = run_sweep(make_config(), tmp_path / "s", {"rounds": [1, 2]})
    assert ran["round-1/evolve"] == ran["round-2/evolve"] == 1


def test_point_that_does_not_fit_stops_before_anything_runs(make_config, tmp_path):
    with pytest.raises(ConfigError, match=r"sweep unlabeled_ratio=9"):
        run_sweep(make_config(), tmp_path / "s", {"unlabeled_ratio": [1, 9]})
    assert not (tmp_path / "s").exists()


def test_control_is_run_where_any_point_needs_one(make_config, tmp_path):
    config = make_config(recipe="released", evolve={"max_steps": 4}, warmup={"max_steps": 4})
    run_sweep(config, tmp_path / "s", {"rounds": [1, 2]}, ["sft_matched", "semievol", "pseudo_all"])
    data = load_comparison(tmp_path / "s")
    for point in ({"rounds": 1}, {"rounds": 2}):
        arm = data.find("pseudo_all", point)
        (ours,), (own,) = arm.done, data.reference_of(arm).done
        assert ours.steps_from_base == own.steps_from_base


def test_splits_of_separate_files_may_be_drawn_by_a_swept_key(make_config, tmp_path):
    run_sweep(make_config(), tmp_path / "s", {"data.max_labeled": [10, 15]}, ["sft"], splits=[0, 1])
    assert len(read_comparison(tmp_path / "s").runs) == 4
    with pytest.raises(ConfigError, match=r"2 splits of separate files would all be the same at theta=0.3"):
        run_sweep(make_config(), tmp_path / "t", {"data.max_labeled": [10], "theta": [0.3]}, ["sft"], splits=[0, 1])


def test_control_of_an_arm_of_an_earlier_sweep_runs_at_the_points_that_it_has(make_config, tmp_path):
    run_sweep(make_config(), tmp_path / "s", {"theta": [0.3]}, ["sft_matched", "semievol-cl"])
    run_sweep(make_config(), tmp_path / "s", {"select.signal": ["agreement"]}, ["sft_matched", "semievol"])
    runs = read_comparison(tmp_path / "s").runs
    assert {run.setting for run in runs if run.arm in ("semievol-cl", "sft_matched@semievol-cl")} == {"theta=0.3"}


def test_arm_that_does_not_fit_a_point_is_named_or_left_out(make_config, tmp_path):
    axes = {"select.signal": ["mean_nll", "agreement"]}
    settings = point_settings(plan_points(axes, cartesian=False))
    options = {"seeds": [0], "settings": settings, "sweep": axes, "plan_only": True}
    with pytest.raises(ConfigError, match=r"arm semievol-cl does not fit select.signal=agreement: select.signal: agr"):
        compare(make_config(), ["semievol", "semievol-cl"], output_dir=tmp_path / "s", **options)
    recorder = Recorder()
    compare(make_config(), ["all"], output_dir=tmp_path / "s", reporter=recorder, **options)
    assert any(n.startswith("semievol-cl is left out: at select.signal=agreement") for n in recorder.notes)
