import csv
import hashlib
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console
from scipy import stats
from sklearn.metrics import f1_score

from semievol.artifacts import RunDir
from semievol.audit import measure_calibration, measure_groups
from semievol.compare_details import total_cost
from semievol.compare_figures import Bar, draw_forest, standalone
from semievol.compare_format import Column, Table, table_csv, table_latex, table_markdown
from semievol.compare_load import answer_rates, load_comparison, run_cost
from semievol.compare_report import build_results, list_failures, short_table, write_compare_report
from semievol.compare_results import run_units
from semievol.compare_tables import build_tables
from semievol.compare_text import arm_label, duration, large, write_verdict
from semievol.comparison import read_comparison, write_comparison
from semievol.errors import ArtifactError, ConfigError
from semievol.metrics import (
    clopper_pearson_interval,
    holm,
    mcnemar_p_value,
    minimum_detectable_difference,
    wilson_interval,
)
from semievol.report_text import MINUS
from semievol.types import AuditedRow, Prediction, PseudoLabel
from tests.unit.comparison_folder import COST, change_run, write_folder, write_run
from tests.unit.test_report import NASTY, parse, text_of

ARMS = {"sft": 0.5, "sft_matched": 0.52, "semievol": 0.7, "semievol-icp": 0.6, "oracle_full": 0.9}
GOLD = ("oracle_full",)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(
        tmp_path_factory.mktemp("comparison"),
        ARMS,
        gold=GOLD,
        reference="sft_matched",
        use_gold=True,
        groups=(NASTY, "plain"),
        description=NASTY,
        failed={("sft", 2): NASTY},
    )


@pytest.fixture(scope="module")
def results(folder: Path) -> dict:
    return build_results(load_comparison(folder))


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return write_compare_report(folder).read_text(encoding="utf-8")


def entry(results: dict, arm: str) -> dict:
    return next(e for e in results["arms"] if e["arm"] == arm)


def find(rows: list[dict], arm: str) -> dict:
    return next(row for row in rows if row["arm"] == arm)


def scores(folder: Path, arm: str, seed: int) -> np.ndarray:
    run_dir = RunDir(folder / f"split-0/seed-{seed}/{arm}")
    return np.array([p.score for p in run_dir.read_records("measure/predictions", Prediction)])


def set_scores(folder: Path, arm: str, seed: int, scores: object, *, split: int = 0, **changes: list) -> None:
    """Give the answers of a run these scores, and its other fields the values by row in `changes`."""
    run_dir = RunDir(folder / f"split-{split}/seed-{seed}/{arm}")
    answers = [
        replace(
            p,
            score=float(score),
            answer=p.target if score else "no" if p.target != "no" else "yes",
            **{name: values[place] for name, values in changes.items()},
        )
        for place, (p, score) in enumerate(
            zip(run_dir.read_records("measure/predictions", Prediction), np.asarray(scores), strict=True)
        )
    ]
    run_dir.write_records("measure/predictions", answers, Prediction)


def hashes(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and "split-" not in str(p.relative_to(folder)))
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_value_is_the_mean_of_the_runs_and_their_spread_stands_apart(folder, results):
    means = [scores(folder, "semievol", seed).mean() for seed in range(3)]
    found = entry(results, "semievol")
    assert found["value"] == pytest.approx(np.mean(means))
    assert found["seed_sd"] == pytest.approx(np.std(means, ddof=1))
    by_row = np.mean([scores(folder, "semievol", seed) for seed in range(3)], axis=0)
    assert found["sampling_se"] == pytest.approx(stats.sem(by_row))
    assert [run["value"] for run in found["by_run"]] == pytest.approx(means)


def test_macro_f1_is_the_mean_of_the_runs(folder, results):
    expected = []
    for seed in (0, 1):  # the third failed
        rows = list(RunDir(folder / f"split-0/seed-{seed}/sft").read_records("measure/predictions", Prediction))
        targets, answers = [p.target for p in rows], [p.answer or "none" for p in rows]
        labels = sorted(set(targets))
        expected.append(f1_score(targets, answers, average="macro", labels=labels))
    assert entry(results, "sft")["macro_f1"] == pytest.approx(np.mean(expected))


def test_macro_f1_is_left_out_where_each_row_has_its_own_options(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.6}, seeds=(0,))
    for arm in ("sft", "semievol"):
        RunDir(tmp_path / f"split-0/seed-0/{arm}").write_json("data/task", {"labels": [], "shared_choices": []})
    assert [e["macro_f1"] for e in build_results(load_comparison(tmp_path))["arms"]] == [None, None]


def test_differences_are_paired_and_adjusted_over_all_arms(folder, results):
    found = results["differences"]
    assert [d["arm"] for d in found] == ["sft", "semievol", "semievol-icp", "oracle_full"]
    ours = np.mean([scores(folder, "semievol", s).mean() - scores(folder, "sft_matched", s).mean() for s in range(3)])
    assert find(found, "semievol")["difference"] == pytest.approx(ours)
    assert [d["p_holm"] for d in found] == pytest.approx(holm([d["p_value"] for d in found]).tolist())
    assert all(d["ci_low"] < d["difference"] < d["ci_high"] for d in found)


def test_a_seed_that_one_arm_lacks_is_left_out_and_named(results):
    found = find(results["differences"], "sft")
    assert (found["n_runs"], found["unpaired"]) == (2, ("split 0, seed 2",))


def test_failed_runs_are_shown_with_their_reason(results, page):
    found = entry(results, "sft")
    assert found["status"] == "partial"
    assert found["unfinished"] == [{"split": 0, "seed": 2, "status": "failed", "error": NASTY}]
    assert "2 of 3 done, 1 failed" in text_of(page)
    assert "seed 2 &lt;script&gt;" in text_of(page)


def test_arms_without_a_finished_run_stand_in_the_table(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.6, "zero_shot": 0.4}, seeds=(0,), failed={("zero_shot", 0): "no"})
    change_run(tmp_path, 1, status="pending")
    found = build_results(load_comparison(tmp_path))
    assert [row["state"] for row in build_tables(found)["main"].rows] == ["done", "pending", "failed"]
    assert found["headline"] is None
    text = text_of(write_compare_report(tmp_path).read_text())
    assert "Nothing can be compared yet" in text
    assert "pending" in text


def test_report_of_a_comparison_that_has_not_begun(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.6}, seeds=(0,))
    for place in (0, 1):
        change_run(tmp_path, place, status="pending")
    assert "Nothing is measured yet: 2 runs are to come" in text_of(write_compare_report(tmp_path).read_text())


def test_single_runs_are_tested_by_mcnemar(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.7}, seeds=(4,))
    found = build_results(load_comparison(tmp_path))
    difference = found["differences"][0]
    ours, theirs = scores(tmp_path, "semievol", 4), scores(tmp_path, "sft", 4)
    assert difference["method"] == "mcnemar"
    assert difference["p_value"] == pytest.approx(mcnemar_p_value(ours, theirs))
    assert "nothing is known about the chance in training" in found["verdict"]["points"][0][1]


@pytest.mark.parametrize(("n_rows", "method"), [(60, clopper_pearson_interval), (300, wilson_interval)])
def test_interval_of_a_single_run_depends_on_its_rows(tmp_path, n_rows, method):
    write_folder(tmp_path, {"sft": 0.5}, seeds=(0,), n_rows=n_rows)
    found = build_results(load_comparison(tmp_path))["arms"][0]
    assert (found["ci_low"], found["ci_high"]) == method(int(scores(tmp_path, "sft", 0).sum()), n_rows)


def test_runs_that_answered_other_rows_are_not_paired(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.7}, seeds=(0,))
    run_dir = RunDir(tmp_path / "split-0/seed-0/sft")
    rows = list(run_dir.read_records("measure/predictions", Prediction))
    run_dir.write_records("measure/predictions", rows[1:], Prediction)
    with pytest.raises(ArtifactError, match="different test rows"):
        build_results(load_comparison(tmp_path))


def test_gap_closed_is_the_ratio_of_the_differences(folder, results):
    seeds = (0, 1)  # sft lacks the third
    sft, ours, top = (
        np.mean([scores(folder, arm, s).mean() for s in seeds]) for arm in ("sft", "semievol", "oracle_full")
    )
    found = find(results["gap_closed"], "semievol")
    assert found["value"] == pytest.approx((ours - sft) / (top - sft))
    assert found["ci_low"] < found["value"] < found["ci_high"]


def test_gap_is_not_defined_where_gold_gains_nothing_certain(tmp_path):
    write_folder(tmp_path, {"sft": 0.6, "semievol": 0.7, "oracle_full": 0.6}, gold=GOLD)
    found = build_results(load_comparison(tmp_path))
    gap = find(found["gap_closed"], "semievol")
    assert gap["value"] is None
    assert re.match(r"there may be no gap: all gold adds \S+ points \[\S+, \S+\] to SFT$", gap["reason"])
    assert ("How much of the gap is closed?") in [question for question, _ in found["verdict"]["points"]]
    assert "Not defined" in text_of(write_compare_report(tmp_path).read_text())


@pytest.mark.parametrize(
    ("same", "reason"),
    [
        (("sft", "semievol"), "SemiEvol and SFT score the same on every test row"),
        (("oracle_full", "semievol"), "SemiEvol and training on all gold score the same on every test row"),
        (("sft", "oracle_full"), "SFT and training on all gold score the same on every test row"),
    ],
)
def test_gap_is_not_defined_where_two_arms_score_the_same(tmp_path, same, reason):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.7, "oracle_full": 0.9}, gold=GOLD, n_rows=100)
    for seed in range(3):
        of_seed = tmp_path / f"split-0/seed-{seed}"
        shutil.copy(of_seed / same[0] / "measure/predictions.jsonl", of_seed / same[1] / "measure/predictions.jsonl")
    found = build_results(load_comparison(tmp_path))
    gap = find(found["gap_closed"], "semievol")
    assert (gap["value"], gap["ci_low"], gap["ci_high"], gap["reason"]) == (None, None, None, reason)
    assert dict(found["verdict"]["points"])["How much of the gap is closed?"] == f"Not defined: {reason}."


def test_cost_counts_shared_steps_and_leaves_measuring_out(folder):
    runs = {run.arm: run for cell in load_comparison(folder).cells for run in cell.done}
    cost = run_cost(runs["semievol"], {})
    seconds = [e["cost"]["seconds"] for name, e in runs["semievol"].steps.items() if name != "measure"]
    assert cost["seconds"] == pytest.approx(sum(seconds))
    assert cost["shared_seconds"] == 12.0
    assert (cost["optimizer_steps"], cost["train_tokens"]) == (8, 1000)
    assert cost["answer_prompt_tokens"] == pytest.approx(1000 / 60)


def test_cost_counts_tokens_of_answers_from_the_row_store(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    data = load_comparison(tmp_path / "copy")
    run = data.find("semievol").done[0]
    before = run_cost(run, {})["prompt_tokens"]
    step = dict(run.steps["warmup"])
    step["cost"] = step["cost"] | {"reused_prompt_tokens": 70}
    RunDir(run.folder).record_stage("warmup", step)
    assert run_cost(load_comparison(tmp_path / "copy").find("semievol").done[0], {})["prompt_tokens"] == before + 70


def test_time_of_stored_answers_is_that_of_as_many_tokens_of_the_same_step(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    run = load_comparison(tmp_path / "copy").find("semievol").done[0]
    answered = {"model_seconds": 6.0, "prompt_tokens": 250, "completion_tokens": 50, "train_tokens": 0}
    asked, stored = COST | answered, COST | dict.fromkeys((*answered, "forward_passes"), 0) | {"seconds": 0.5}
    stored |= {"reused_prompt_tokens": 1000, "reused_completion_tokens": 200}
    RunDir(run.folder).record_stage("round-1/propagate", dict(run.steps["warmup"]) | {"cost": asked})
    RunDir(run.folder).record_stage("round-2/propagate", dict(run.steps["warmup"]) | {"cost": stored})
    data = load_comparison(tmp_path / "copy")
    run, rates = data.find("semievol").done[0], answer_rates(data)
    assert rates["propagate"] == pytest.approx(6.0 / 300)
    estimated, measured = run_cost(run, rates), run_cost(run, {})
    assert estimated["reused_seconds"] == pytest.approx(24.0)
    assert estimated["seconds"] - measured["seconds"] == pytest.approx(24.0)
    assert estimated["model_seconds"] - measured["model_seconds"] == pytest.approx(24.0)
    found = find(build_results(data)["arms"], "semievol")["cost"]
    assert found["reused_seconds"] == pytest.approx(24.0 / len(data.seeds))


def test_cost_counts_a_training_that_another_step_did(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    run = load_comparison(tmp_path / "copy").find("semievol").done[0]
    before = run_cost(run, {})
    name = "round-1/evolve"
    step = dict(run.steps[name])
    cost = step["cost"]
    reused = {f"reused_{key}": cost[key] for key in ("seconds", "model_seconds", "train_tokens")}
    own = cost | dict.fromkeys(("seconds", "model_seconds", "train_tokens"), 0) | reused
    RunDir(run.folder).record_stage(name, step | {"cost": own})
    data = load_comparison(tmp_path / "copy")
    after = run_cost(data.find("semievol").done[0], answer_rates(data))
    assert after == before | {"shared_seconds": before["shared_seconds"] + cost["seconds"]}
    whole = total_cost(load_comparison(folder))["seconds"]
    assert total_cost(data)["seconds"] == pytest.approx(whole - cost["seconds"])


def test_control_does_not_pay_for_the_method_whose_steps_it_counts(folder):
    for init, steps in {"base": ["data"], "warm": ["data", "warmup"]}.items():
        run = next(run for run in load_comparison(folder).find("sft_matched").done)
        run.__dict__["config"] = {"evolve": {"init": init}}
        assert run_cost(run, {})["seconds"] == pytest.approx(sum(run.steps[name]["cost"]["seconds"] for name in steps))


def test_total_cost_counts_each_step_once(folder, results):
    steps = [step for cell in load_comparison(folder).cells for run in cell.runs for step in run.steps.values()]
    own = [step["cost"]["seconds"] for step in steps if "shared_from" not in step]
    assert len(own) < len(steps)
    assert results["total_cost"]["seconds"] == pytest.approx(sum(own))


def test_total_cost_counts_controls(tmp_path):
    accuracies = {"sft_matched": 0.5, "semievol-as": 0.7}
    without = load_comparison(write_folder(tmp_path / "a", accuracies))
    control = {"sft_matched@semievol-as": 0.6}
    data = load_comparison(write_folder(tmp_path / "b", accuracies | control))
    steps = [step for cell in data.controls for run in cell.runs for step in run.steps.values()]
    own = sum(step["cost"]["seconds"] for step in steps if "shared_from" not in step)
    assert own > 0
    assert total_cost(data)["seconds"] == pytest.approx(total_cost(without)["seconds"] + own)


def test_tables_of_an_earlier_report_do_not_stay(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.7}, seeds=(0,))
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/parts.csv").write_text("old")
    (tmp_path / "tables/notes.txt").write_text("mine")
    write_compare_report(tmp_path)
    assert not (tmp_path / "tables/parts.csv").exists()
    assert (tmp_path / "tables/notes.txt").exists()


def test_parts_are_the_method_minus_the_arm_without_them(results):
    (part,) = results["parts"]
    assert (part["arm"], part["reference"]) == ("semievol", "semievol-icp")
    expected = entry(results, "semievol")["value"] - entry(results, "semievol-icp")["value"]
    assert part["difference"] == pytest.approx(expected)
    assert "in-context propagation" in dict(results["verdict"]["points"])["Which part matters?"]


def test_signals_are_rated_on_audited_labels(results):
    signals = {s["signal"]: s for s in entry(results, "semievol")["signals"]}
    assert signals["agreement"]["aurc"] == pytest.approx(0.25)
    assert signals["mean_nll"]["aurc"] < 0.05
    assert signals["mean_nll"]["error"] == pytest.approx(0.25)


def test_no_signals_without_an_audit(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.7}, seeds=(0,))
    found = build_results(load_comparison(tmp_path))
    assert all(e["signals"] == [] for e in found["arms"])
    assert "signals" not in build_tables(found)


def test_calibration_bins_hold_every_answer_that_could_be_read(results):
    found = entry(results, "semievol")["calibration"]
    n_read = entry(results, "semievol")["n_answers"] - entry(results, "semievol")["n_unparsed"]
    assert sum(b["n"] for b in found["bins"]) == found["n"] == n_read < 180
    assert 0 < found["ece"] < 1


@pytest.mark.parametrize("of_unread", [None, 0.6])  # as votes and as single answers store it
def test_calibration_leaves_out_answers_that_could_not_be_read(tmp_path, of_unread):
    write_folder(tmp_path, {"sft": 0.5}, seeds=(0,))
    run_dir = RunDir(tmp_path / "split-0/seed-0/sft")
    answers = [
        replace(p, answer=None, score=0.0, confidence=of_unread)
        if i % 2
        else replace(p, answer=p.target, score=1.0, confidence=0.95)
        for i, p in enumerate(run_dir.read_records("measure/predictions", Prediction))
    ]
    run_dir.write_records("measure/predictions", answers, Prediction)
    found = build_results(load_comparison(tmp_path))
    assert entry(found, "sft")["calibration"]["ece"] == pytest.approx(0.05)
    assert entry(found, "sft")["calibration"]["n"] == measure_calibration("sft", answers)["n"] == 30
    assert "could not be read are left out" in build_tables(found)["calibration"].note


def test_reliability_does_not_depend_on_the_order_of_ties(tmp_path):
    write_folder(tmp_path, {"sft": 0.5}, seeds=(0,), n_rows=100)
    set_scores(tmp_path, "sft", 0, np.arange(100) < 80, confidence=[0.8] * 100)
    found = entry(build_results(load_comparison(tmp_path)), "sft")["calibration"]
    assert found["ece"] == pytest.approx(0.0, abs=1e-12)
    assert [b["accuracy"] for b in found["bins"]] == pytest.approx([0.8] * 10)


def test_signals_are_rated_on_the_labels_that_carry_all_of_them(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.7}, seeds=(0,), use_gold=True)
    run_dir = RunDir(tmp_path / "split-0/seed-0/semievol")
    labels = [
        PseudoLabel(f"u{i}", "yes", "yes", "consensus", 0.5, mean_nll=1.0 if i < 60 or i >= 95 else None)
        for i in range(100)
    ]
    run_dir.write_records("round-1/justify/pseudo_labels", labels, PseudoLabel)
    run_dir.write_records("audit/audited", [AuditedRow(f"u{i}", "yes", i < 60) for i in range(100)], AuditedRow)
    found = build_results(load_comparison(tmp_path))
    signals = entry(found, "semievol")["signals"]
    assert [(s["signal"], s["n"], s["n_left_out"]) for s in signals] == [("mean_nll", 65, 35), ("agreement", 65, 35)]
    assert [s["error"] for s in signals] == pytest.approx([5 / 65] * 2)
    assert [s["aurc"] for s in signals] == pytest.approx([5 / 65] * 2)
    row = next(r for r in build_tables(found)["signals"].rows if r["name"] == "semievol")
    assert (row["n"], row["n_left_out"]) == (65, 35)


def test_table_of_signals_does_not_count_labels_left_out_where_all_carry_them(results):
    table = build_tables(results)["signals"]
    assert "n_left_out" not in [c.key for c in table.columns]


def test_groups_add_up(results):
    lines = [line for line in results["groups"] if line["arm"] == "semievol"]
    assert sum(line["n"] for line in lines) == 60
    mean = sum(line["value"] * line["n"] for line in lines) / 60
    assert mean == pytest.approx(entry(results, "semievol")["value"])


def test_many_groups_share_the_last_line(tmp_path):
    groups = [f"large {i:02}" for i in range(40)] * 6 + [f"small {i}" for i in range(8)]
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0,), n_rows=len(groups), groups=groups)
    found = build_results(load_comparison(tmp_path))
    lines = [line for line in found["groups"] if line["arm"] == "semievol"]
    assert [line["group"] for line in lines] == [f"large {i:02}" for i in range(29)] + ["19 other groups"]
    assert [line["n"] for line in lines] == [6] * 29 + [11 * 6 + 8]
    assert sum(line["value"] * line["n"] for line in lines) / 248 == pytest.approx(entry(found, "semievol")["value"])
    run = load_comparison(tmp_path).find("semievol").done[0]
    assert [(line["group"], line["n"]) for line in measure_groups("semievol", run.predictions)] == [
        (line["group"], line["n"]) for line in lines
    ]


def test_groups_of_a_row_or_two_have_no_table(tmp_path):
    groups = [f"document {i}" for i in range(40)]
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0,), n_rows=80, groups=groups)
    assert build_results(load_comparison(tmp_path))["groups"] == []


@pytest.mark.parametrize("n_seeds", [1, 3])
def test_a_group_of_one_graded_row_tells_nothing_of_others(tmp_path, n_seeds):
    graded = np.array([0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.35])
    write_folder(tmp_path, {"sft": 0.5}, seeds=range(n_seeds), n_rows=7)
    for seed in range(n_seeds):
        set_scores(tmp_path, "sft", seed, graded + 0.01 * seed, group=list("aaabbbc"))
    data = load_comparison(tmp_path)
    lines = {line["group"]: line for line in build_results(data)["groups"]}
    assert (lines["c"]["ci_low"], lines["c"]["ci_high"]) == (0.0, 1.0)
    assert 0.0 < lines["b"]["ci_low"] < lines["b"]["ci_high"] < 1.0 or n_seeds > 1
    of_run = {line["group"]: line for line in measure_groups("sft", data.find("sft").done[0].predictions)}
    assert (of_run["c"]["ci_low"], of_run["c"]["ci_high"]) == (0.0, 1.0)
    assert 0.0 < of_run["b"]["ci_low"] < of_run["b"]["ci_high"] < 1.0


def test_oracles_are_marked_everywhere(results, page):
    for name, table in build_tables(results).items():
        for row in table.rows:
            if row.get("name") == "oracle_full":
                assert "uses gold" in row["arm"], name
    assert "SFT on all gold (uses gold)" in build_tables(results)["groups"].columns[-1].title
    assert not re.search(r"SFT on all gold(?! \((uses )?gold\))", text_of(page))


def test_report_of_a_copied_folder_has_the_same_bytes(folder, page, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("tables", "figures", "compare.html", "results.json"))
    write_compare_report(copy)
    found = hashes(copy)
    assert found == hashes(folder)
    assert {"compare.html", "results.json", "tables/main.csv", "tables/main.tex", "figures/forest.svg"} <= set(found)


def test_page_escapes_all_text_from_data(page):
    assert parse(page).names.count("script") == 0
    assert NASTY not in page
    assert "alert(&#34;1&#34;)" in page


def test_page_refers_to_nothing_outside_itself(page):
    attributes = parse(page).attributes
    assert not [a for a in attributes if a[1] in ("src", "srcset", "action", "xmlns")]
    assert not re.search(r"@import|url\((?!#)|https?:", page)
    ids = [value for _, name, value in attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_verdict_stands_first(page):
    text = text_of(page[page.index("<h1>") :])
    assert text.strip().startswith("SemiEvol pays: ")
    places = [text.index(q) for q in ("How sure are we?", "What does it cost?", "Which part matters?", "Result")]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("ours", "sentence"), [(0.9, "pays:"), (0.1, "does not pay:"), (0.5, "Whether SemiEvol pays cannot be told:")]
)
def test_verdict_says_what_the_interval_says(tmp_path, ours, sentence):
    write_folder(tmp_path, {"sft": 0.5, "semievol": ours})
    assert sentence in build_results(load_comparison(tmp_path))["verdict"]["sentence"]


def test_verdict_on_arms_that_answer_alike(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.7}, seeds=(0, 1))
    for seed in (0, 1):
        found = tmp_path / f"split-0/seed-{seed}"
        shutil.copytree(found / "sft", found / "semievol", dirs_exist_ok=True)
    sentence = build_results(load_comparison(tmp_path))["verdict"]["sentence"]
    assert sentence == "SemiEvol and SFT have the same score on every test row: 50.0% accuracy."


def test_verdict_needs_the_test_beside_the_interval(results):
    headline = results["headline"] | {"ci_low": 0.01, "p_value": 0.06}
    assert "cannot be told" in write_verdict(results | {"headline": headline}).sentence


def test_verdict_gives_the_values_of_the_runs_that_are_compared(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.5}, n_rows=200, failed={("semievol", 2): "out of memory"})
    for seed in range(3):
        set_scores(tmp_path, "sft", seed, np.arange(200) < (100 if seed < 2 else 180))
    for seed in range(2):
        set_scores(tmp_path, "semievol", seed, np.arange(200) < 116)
    found = build_results(load_comparison(tmp_path))
    assert (found["headline"]["value"], found["headline"]["reference_value"]) == pytest.approx((0.58, 0.5))
    assert "58.0% against 50.0% accuracy in the runs that both have." in found["verdict"]["sentence"]


def test_verdict_on_arms_that_answer_alike_is_of_the_runs_that_both_have(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.5}, seeds=(0, 1), failed={("sft", 1): "out of memory"})
    found = tmp_path / "split-0/seed-0"
    shutil.copytree(found / "sft", found / "semievol", dirs_exist_ok=True)
    set_scores(tmp_path, "semievol", 1, np.arange(60) < 54)
    assert build_results(load_comparison(tmp_path))["verdict"]["sentence"] == (
        "SemiEvol and SFT have the same score on every test row in the runs that both have: 50.0% accuracy."
    )


def paired_scores(folder: Path, pairs: list[tuple[object, object]]) -> dict:
    """The difference of arms with these (method, reference) scores, one pair a seed, as (results, difference)."""
    write_folder(folder, {"sft": 0.5, "semievol": 0.5}, seeds=range(len(pairs)), n_rows=len(pairs[0][0]))
    for seed, (ours, theirs) in enumerate(pairs):
        set_scores(folder, "semievol", seed, ours)
        set_scores(folder, "sft", seed, theirs)
    found = build_results(load_comparison(folder))
    return {
        **found["headline"],
        "points": dict(found["verdict"]["points"]),
        "table": build_tables(found)["differences"],
    }


def flip(scores: np.ndarray, *rows: int) -> np.ndarray:
    """0/1 scores that differ on these rows."""
    changed = scores.copy()
    changed[list(rows)] = 1 - changed[list(rows)]
    return changed


HALF = (np.arange(350) % 2).astype(float)


def test_runs_that_are_copies_of_one_count_as_one(tmp_path):
    ours = flip(HALF, 0, 2, 4, 6)
    found = paired_scores(tmp_path, [(ours, HALF)] * 3)
    assert (found["method"], found["n_runs"], found["bootstrap_low"]) == ("mcnemar", 3, None)
    assert found["p_value"] == pytest.approx(mcnemar_p_value(ours, HALF)) == pytest.approx(0.125)
    assert "All runs differ on the same rows, so they count as one." in found["points"]["How sure are we?"]


def test_no_less_can_be_detected_over_several_runs_than_the_exact_test_needs(tmp_path):
    few = paired_scores(tmp_path / "few", [(flip(HALF, 0), HALF), (flip(HALF, 2), HALF), (flip(HALF, 0, 2), HALF)])
    assert few["method"] == "crossed_t"
    assert few["detectable"] == pytest.approx(minimum_detectable_difference(350, 0.0))
    many = paired_scores(tmp_path / "many", [(flip(HALF, *range(6), 6 + i), HALF) for i in range(3)])
    assert many["detectable"] < few["detectable"]


def test_two_runs_that_are_far_apart_can_tell_no_difference(tmp_path):
    half = np.arange(60) < 30
    found = paired_scores(tmp_path, [(np.arange(60) < 36, half), (np.arange(60) < 20, half)])
    assert found["detectable"] == 1.0
    assert "With so few runs no difference could be told." in found["points"]["How sure are we?"]
    assert found["table"].rows[0]["detectable"] is None
    assert "A dash: none would be, they are too few." in found["table"].note


def test_a_run_of_few_rows_can_tell_no_difference(tmp_path):
    found = paired_scores(tmp_path, [([1, 0, 1, 0], [0, 0, 1, 0])])
    assert "With so few rows no difference could be told." in found["points"]["How sure are we?"]


def test_graded_scores_need_no_six_rows_that_differ(tmp_path):
    generator = np.random.default_rng(0)
    ours = generator.uniform(0.3, 0.6, 20)
    found = paired_scores(tmp_path, [(ours, ours - 0.05 + generator.normal(0, 0.01, 20))])
    assert found["method"] == "sign_flip"
    width = found["ci_high"] - found["ci_low"]
    assert found["detectable"] == pytest.approx(2.8 * width / 3.92)
    assert found["detectable"] < 0.02


@pytest.mark.parametrize("n_seeds", [1, 3])
@pytest.mark.parametrize("ours", [0.0, 1.0])
def test_a_difference_on_every_row_is_not_certain(tmp_path, ours, n_seeds):
    found = paired_scores(tmp_path, [(np.full(20, ours), np.full(20, 1 - ours))] * n_seeds)
    bound = 2 * clopper_pearson_interval(20, 20)[0] - 1
    assert (found["ci_low"], found["ci_high"]) == pytest.approx((bound, 1.0) if ours else (-1.0, -bound))
    assert found["p_value"] == pytest.approx(2 * 0.5**20)


def test_verdict_where_the_method_is_the_reference(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, reference="semievol")
    found = build_results(load_comparison(tmp_path))
    assert (found["headline"]["arm"], found["headline"]["reference"]) == ("semievol", "sft")
    assert found["headline"]["difference"] > 0


def test_sweep_compares_at_the_same_setting(tmp_path):
    sweep = {"theta": [0.3, 0.5, 1.0]}
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0, 1), sweep=sweep)
    found = build_results(load_comparison(tmp_path))
    assert [d["setting"] for d in found["differences"]] == [{"theta": 0.3}, {"theta": 0.5}, {"theta": 1.0}]
    (spread,) = [line for line in found["sweep_spread"] if line["arm"] == "semievol"]
    values = [e["value"] for e in found["arms"] if e["arm"] == "semievol"]
    assert (spread["mean"], spread["sd"]) == pytest.approx((np.mean(values), np.std(values, ddof=1)))
    text = text_of(write_compare_report(tmp_path).read_text())
    assert "share of pseudo-labels kept" in text
    assert (tmp_path / "figures/sweep_1.svg").exists()
    assert build_tables(found)["main"].columns[1].title == "theta"


@pytest.mark.parametrize(("many", "answer"), [((0.8, 0.85, 0.8), "Yes"), ((0.4, 0.85, 0.6), "Not beyond chance")])
def test_sweep_says_whether_a_key_matters_beyond_chance(tmp_path, many, answer):
    write_folder(tmp_path, {"semievol": 0.5}, seeds=(0, 1, 2), reference="semievol", sweep={"theta": [0.3, 1.0]})
    shares = {"theta=0.3": (0.4, 0.5, 0.45), "theta=1.0": many}
    for run in read_comparison(tmp_path).runs:
        write_run(tmp_path, run, shares[run.setting][run.seed], n_rows=60, groups=(None,), audited=False)
    found = build_results(load_comparison(tmp_path))
    (line,) = found["sweep_spread"]
    low, high = ([run["value"] for run in e["by_run"]] for e in found["arms"])
    assert line["p_value"] == pytest.approx(stats.ttest_rel(low, high).pvalue)
    point = next(text for question, text in found["verdict"]["points"] if question.startswith("Does"))
    assert point.startswith(f"{answer}: over its 2 values")
    assert f"where chance alone gives {100 * line['chance_sd']:.1f} (p" in point


def test_swept_key_is_judged_by_runs_that_all_values_have(tmp_path):
    """One failed run of three: the same seed of the other value says nothing of the key."""
    write_folder(tmp_path, {"semievol": 0.5}, seeds=(0, 1, 2), reference="semievol", sweep={"theta": [0.3, 1.0]})
    shares = {"theta=0.3": (0.4, 0.5, 0.05), "theta=1.0": (0.8, 0.85, 0.0)}
    record = read_comparison(tmp_path)
    runs = []
    for run in record.runs:
        failed = (run.setting, run.seed) == ("theta=1.0", 2)
        runs.append(replace(run, status="failed", error="killed") if failed else run)
        if not failed:
            write_run(tmp_path, run, shares[run.setting][run.seed], n_rows=60, groups=(None,), audited=False)
    write_comparison(tmp_path, replace(record, runs=tuple(runs)))
    found = build_results(load_comparison(tmp_path))
    low, high = ([run["value"] for run in e["by_run"] if run["seed"] < 2] for e in found["arms"])
    (line,) = found["sweep_spread"]
    assert line["p_value"] == pytest.approx(stats.ttest_rel(low, high).pvalue)
    assert (line["least"], line["most"]) == pytest.approx((np.mean(low), np.mean(high)))
    assert len(found["arms"][0]["by_run"]) == 3


def test_swept_key_is_judged_by_the_seeds_of_the_only_split_that_all_values_have(tmp_path):
    axes = {"theta": [0.3, 1.0]}
    write_folder(tmp_path, {"semievol": 0.5}, seeds=(0, 1, 2), splits=(0, 1), reference="semievol", sweep=axes)
    record = read_comparison(tmp_path)
    failed = [run.setting == "theta=1.0" and run.split == 1 for run in record.runs]
    runs = [replace(r, status="failed", error="killed") if f else r for r, f in zip(record.runs, failed, strict=True)]
    write_comparison(tmp_path, replace(record, runs=tuple(runs)))
    shares = {"theta=0.3": (0.4, 0.5, 0.45), "theta=1.0": (0.6, 0.75, 0.5)}
    for run in record.runs:
        write_run(tmp_path, run, shares[run.setting][run.seed], n_rows=60, groups=(None,), audited=False)
    found = build_results(load_comparison(tmp_path))
    low, high = ([run["value"] for run in e["by_run"] if run["split"] == 0] for e in found["arms"])
    (line,) = found["sweep_spread"]
    assert line["p_value"] == pytest.approx(stats.ttest_rel(low, high).pvalue)
    assert line["mean"] == pytest.approx(np.mean([low, high]))


def test_sweep_of_one_run_a_value_does_not_judge_the_key(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0,), sweep={"theta": [0.3, 1.0]})
    found = build_results(load_comparison(tmp_path))
    assert {(line["chance_sd"], line["p_value"]) for line in found["sweep_spread"]} == {(None, None)}


def test_sweep_of_one_key_at_a_time_leaves_the_other_empty(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0,), sweep={"theta": [0.3, 0.5]})
    record = json.loads((tmp_path / "comparison.json").read_text())
    record["sweep"] = {"theta": [0.3, 0.5], "k": [1, 2]}
    (tmp_path / "comparison.json").write_text(json.dumps(record))
    table = build_tables(build_results(load_comparison(tmp_path)))["main"]
    assert [c.key for c in table.columns[:2]] == ["arm", "setting_text"]
    assert [row["setting_text"] for row in table.rows[:2]] == ["theta=0.3", "theta=0.5"]


def test_points_of_a_sweep_with_one_config_count_once_in_the_family(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0, 1), sweep={"theta": [0.3, 0.5, 1.0]})
    before = build_results(load_comparison(tmp_path))
    for seed in (0, 1):
        for arm in ("sft", "semievol"):
            of_arm = [run for run in read_comparison(tmp_path).runs if (run.arm, run.seed) == (arm, seed)]
            shutil.copytree(tmp_path / of_arm[0].folder, tmp_path / of_arm[2].folder, dirs_exist_ok=True)
    found = build_results(load_comparison(tmp_path))
    assert [d["same_as"] for d in found["differences"]] == [None, None, {"theta": 0.3}]
    p_values = [d["p_value"] for d in found["differences"]]
    p_holm = [d["p_holm"] for d in found["differences"]]
    assert p_holm == pytest.approx([*holm(p_values[:2]), holm(p_values[:2])[0]])
    assert {d["same_as"] for d in before["differences"] if d["same_as"] is None} == {None}
    assert "Holm over 2" in str(found["verdict"]["points"])


def fail_runs(folder: Path, arm: str, *settings: str) -> None:
    for place, run in enumerate(read_comparison(folder).runs):
        if run.arm == arm and run.setting in settings:
            change_run(folder, place, status="failed", error="out of memory")


def test_settings_without_a_run_of_the_reference_are_counted(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, sweep={"theta": [0.3, 0.5, 1.0]})
    fail_runs(tmp_path, "sft", "theta=0.5")
    points = dict(build_results(load_comparison(tmp_path))["verdict"]["points"])
    assert points["Does it pay?"] == (
        "Above SFT in 2 and below it in 0 of 2 settings (Holm over 2); 1 setting lacks a run of the reference."
    )
    fail_runs(tmp_path, "sft", "theta=0.3")
    points = dict(build_results(load_comparison(tmp_path))["verdict"]["points"])
    assert points["Does it pay?"].endswith("of 1 setting (Holm over 1); 2 settings lack a run of the reference.")


def test_settings_at_chance_are_counted_in_a_sweep(tmp_path):
    write_folder(tmp_path, {"sft": 0.34, "semievol": 0.9}, seeds=(0,), sweep={"theta": [0.3, 1.0]})
    (remark,) = [r for r in build_results(load_comparison(tmp_path))["verdict"]["remarks"] if "at chance" in r]
    assert remark.startswith("2 of 4 settings of arms are at chance")


def test_lost_answers_of_a_run_leave_the_others_in_the_report(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0, 1))
    (tmp_path / "split-0/seed-1/semievol/measure/predictions.jsonl").unlink()
    found = build_results(load_comparison(tmp_path))
    assert found["n_runs"] == {"done": 3, "failed": 1, "pending": 0}
    (unfinished,) = entry(found, "semievol")["unfinished"]
    assert unfinished["error"] == (
        "split-0/seed-1/semievol/measure/predictions.jsonl is gone; run the comparison again"
    )
    assert find(found["differences"], "semievol")["n_runs"] == 1


def test_models_of_the_warm_up_count_its_steps(results):
    assert entry(results, "sft")["steps_from_base"] == 4


@pytest.mark.parametrize(("init", "steps"), [("base", 8), ("warm", 4 + 6 + 8)])
def test_steps_from_the_base_are_those_of_a_training_afresh_or_of_all_that_it_goes_on_from(tmp_path, init, steps):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0,))
    run_dir = RunDir(tmp_path / "split-0/seed-0/semievol")
    run_dir.write_json("config.resolved", run_dir.read_json("config.resolved") | {"evolve": {"init": init}})
    run_dir.forget_stages(["round-1/evolve"])
    for name, n in (("round-1/evolve", 6), ("round-2/evolve", 8)):
        run_dir.record_stage(name, {"fingerprint": name, "stats": {"optimizer_steps": n}, "cost": {}})
    assert entry(build_results(load_comparison(tmp_path)), "semievol")["steps_from_base"] == steps


def test_remark_names_versions_that_differ(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0,))
    for arm, version in (("sft", "2.13.0"), ("semievol", "2.14.1")):
        entry_of = {"fingerprint": "w", "stats": {}, "cost": {}, "versions": {"torch": version, "trl": "1.16.0"}}
        RunDir(tmp_path / "split-0/seed-0" / arm).record_stage("warmup", entry_of)
    remarks = build_results(load_comparison(tmp_path))["verdict"]["remarks"]
    assert [r for r in remarks if "environment" in r] == [
        "Not all steps ran in one environment: torch 2.13.0 and 2.14.1. A part of the differences may come from that; "
        "another --output-dir runs all of them in one."
    ]


def test_runs_that_agree_on_every_row_leave_what_a_share_of_none_leaves(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.5}, seeds=(0,))
    same = tmp_path / "split-0/seed-0/sft/measure/predictions.jsonl"
    shutil.copy(same, tmp_path / "split-0/seed-0/semievol/measure/predictions.jsonl")
    found = build_results(load_comparison(tmp_path))
    (line,) = found["differences"]
    bound = clopper_pearson_interval(0, 60)[1]
    assert (line["method"], line["difference"], line["p_value"]) == ("no_difference", 0.0, 1.0)
    assert (line["ci_low"], line["ci_high"]) == pytest.approx((-bound, bound))
    assert 0.1 < line["detectable"] < 0.15
    assert found["verdict"]["sentence"].startswith("SemiEvol and SFT have the same score on every test row")


def test_difference_of_two_runs_stays_within_what_scores_can_differ(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.5}, seeds=(0, 1))
    for seed, score in ((0, 1.0), (1, 0.0)):
        path = f"split-0/seed-{seed}/semievol"
        answers = RunDir(tmp_path / path).read_records("measure/predictions", Prediction)
        changed = [replace(p, score=score) for p in answers]
        RunDir(tmp_path / path).write_records("measure/predictions", changed, Prediction)
    (line,) = build_results(load_comparison(tmp_path))["differences"]
    assert (line["ci_low"], line["ci_high"]) == (-1.0, 1.0)


def test_a_control_at_chance_does_not_make_the_method_pay(tmp_path):
    write_folder(tmp_path, {"sft": 0.85, "sft_matched": 0.34, "semievol": 0.9}, reference="sft_matched", n_rows=200)
    found = build_results(load_comparison(tmp_path))
    sentence = found["verdict"]["sentence"]
    assert sentence.startswith("SemiEvol beats SFT, matched steps by ")
    other = found["headline_other"]
    assert (other["arm"], other["reference"]) == ("semievol", "sft")
    weak = "but SFT, matched steps is not seen to be better than always giving the most frequent answer (33.5%)"
    assert f"{weak}: against SFT {100 * other['difference']:+.1f} points" in sentence


def test_a_reference_at_chance_is_not_called_at_chance_as_a_fact(tmp_path):
    write_folder(tmp_path, {"sft": 0.34, "semievol": 0.9}, n_rows=200)
    sentence = build_results(load_comparison(tmp_path))["verdict"]["sentence"]
    assert sentence.startswith("SemiEvol beats SFT by ")
    assert sentence.endswith("but SFT is not seen to be better than always giving the most frequent answer (33.5%).")


def test_a_control_below_sft_is_said(tmp_path):
    write_folder(tmp_path, {"sft": 0.85, "sft_matched": 0.6, "semievol": 0.9}, reference="sft_matched", n_rows=200)
    sentence = build_results(load_comparison(tmp_path))["verdict"]["sentence"]
    assert "but another arm without unlabelled rows does better: against SFT" in sentence


def test_a_sound_control_needs_no_other_arm(results):
    assert results["headline_other"] is None


@pytest.mark.parametrize("width", [70, 80, 120, 200])
def test_numbers_of_the_terminal_are_whole(folder, results, width):
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(short_table(folder))
    text = console.export_text()
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert f"{100 * entry(results, 'semievol')['value']:.1f}" in text
    assert max(map(len, text.splitlines())) <= width
    assert any(line.rstrip().endswith("  tokens") for line in text.splitlines()) == (width > 90)


def test_the_note_of_the_main_table_names_the_intervals_there_are(tmp_path, results):
    assert "with crossed 95% intervals" in build_tables(results)["main"].note
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0,))
    assert "with Tango's 95% intervals" in build_tables(build_results(load_comparison(tmp_path)))["main"].note


def test_rewordings_are_places_not_numbers(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0,), sweep={"rewording": [0, 1, 5]})
    write_compare_report(tmp_path)
    texts = [t.text for t in ElementTree.parse(tmp_path / "figures/sweep_1.svg").iter() if t.tag.endswith("text")]
    assert [text for text in texts if text in {"0", "1", "2", "3", "4", "5"}] == ["0", "1", "5"]


def test_splits_from_three_on_are_the_units_of_training(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0, 1), splits=(0, 1, 2))
    found = build_results(load_comparison(tmp_path))
    ours = entry(found, "semievol")
    assert len(ours["by_run"]) == 6
    assert ours["split_sd"] is not None
    assert found["differences"][0]["n_runs"] == 6


def test_csv_carries_values_as_they_are(folder, page, results):
    lines = list(csv.DictReader((folder / "tables/main.csv").open()))
    assert float(lines[2]["value"]) == entry(results, "semievol")["value"]
    assert float(lines[2]["interval_low"]) == entry(results, "semievol")["ci_low"]


def test_results_are_plain_json(folder, page, results):
    stored = json.loads((folder / "results.json").read_text())
    assert stored["schema_version"] == 1
    assert stored == json.loads(json.dumps(results))


def test_tables_can_be_drawn_from_stored_results(folder, page, results):
    stored = json.loads((folder / "results.json").read_text())
    assert table_markdown(build_tables(stored)["main"]) == table_markdown(build_tables(results)["main"])


TABLE = Table("t", "50% & more", (Column("a", "a_b"), Column("v", "v", "percent")), ({"a": "x|y_$<i>\n#", "v": -0.5},))


def test_markdown_escapes_and_marks_what_is_missing():
    table = TABLE._replace(rows=(*TABLE.rows, {"a": "z", "v": None}))
    assert "| x\\|y\\_\\$\\<i\\> # | \N{MINUS SIGN}50.0 |" in table_markdown(table)
    assert "| z | \N{EN DASH} |" in table_markdown(table)


def test_latex_escapes():
    text = table_latex(TABLE)
    assert r"x|y\_\$\textless{}i\textgreater{} \# & $-$50.0 \\" in text
    assert r"a\_b & v" in text


def test_csv_leaves_missing_values_empty():
    assert table_csv(TABLE._replace(rows=({"a": "z", "v": None},))) == "a,v\nz,\n"


def test_formats_are_chosen(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.7}, seeds=(0,))
    write_compare_report(tmp_path, formats=("md",))
    assert {p.suffix for p in (tmp_path / "tables").iterdir()} == {".md"}
    with pytest.raises(ConfigError, match="xlsx"):
        write_compare_report(tmp_path, formats=("xlsx",))


def test_a_folder_without_a_comparison_is_named(tmp_path):
    with pytest.raises(ArtifactError, match="not the folder of a comparison"):
        write_compare_report(tmp_path)


@pytest.mark.parametrize("name", ["forest", "cost", "parts", "risk_coverage", "reliability", "entropy", "groups"])
def test_figure_files_stand_alone(folder, page, name):
    text = (folder / f"figures/{name}.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "var(" not in text
    assert text.count("http") == 1


def test_forest_gives_labels_as_text():
    svg = standalone(draw_forest("f", [Bar("<b> & c", 0.1, -0.1, 0.2, "gold")], x_label="points", title='"t"'))
    assert "<b> & c" in [t.text for t in ElementTree.fromstring(svg).iter() if t.tag.endswith("text")]


def test_short_table_fits_a_terminal(folder):
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(short_table(folder))
    text = console.export_text()
    assert "SemiEvol pays" in text
    assert "SFT on all gold (uses gold)" in text
    assert "SFT failed, seed 2" in text


def test_labels_of_arms():
    assert arm_label("semievol-icp") == "SemiEvol \N{MINUS SIGN} ICP"
    assert arm_label("oracle_selected", uses_gold=True) == "Oracle selected (uses gold)"


def test_durations_and_large_numbers():
    assert [duration(x) for x in (4.25, 80, 600, 7200, None)] == ["4.2 s", "80 s", "10.0 min", "2.0 h", "\N{EN DASH}"]
    assert [large(x) for x in (950, 12_300, 4_500_000)] == ["950", "12.3 k", "4.5 M"]


def remarks_of(folder: Path) -> str:
    return "\n".join(build_results(load_comparison(folder))["verdict"]["remarks"])


def test_arms_are_compared_with_the_next_best_reference_where_its_runs_failed(tmp_path):
    failed = {("sft_matched", seed): "out of memory" for seed in (0, 1, 2)}
    write_folder(tmp_path, {"sft": 0.5, "sft_matched": 0.5, "semievol": 0.8}, reference="sft_matched", failed=failed)
    found = build_results(load_comparison(tmp_path))
    assert (found["reference"], found["reference_asked"]) == ("sft", "sft_matched")
    assert [d["reference"] for d in found["differences"]] == ["sft"]
    assert found["headline"]["reference"] == "sft"
    assert "SFT, matched steps was to be the reference, but no run of it is done" in remarks_of(tmp_path)


@pytest.mark.parametrize(
    ("splits", "message"),
    [((0,), "All runs have the same labelled rows"), ((0, 1), "Two splits leave"), ((0, 1, 2), None)],
)
def test_remark_says_what_the_splits_leave_open(tmp_path, splits, message):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0, 1), splits=splits)
    text = remarks_of(tmp_path)
    assert (message or "") in text
    assert ("labelled rows" in text) == (len(splits) == 1)
    assert ("Two splits" in text) == (len(splits) == 2)


@pytest.mark.parametrize(
    ("undone", "message"),
    [
        ({("semievol", 1), ("semievol", 2), ("sft", 1), ("sft", 2)}, "Only one split is done in all arms, of 3:"),
        ({("semievol", 1), ("sft", 2)}, "Only one split is done in all arms, of 3:"),
        ({("semievol", 2)}, "Two of 3 splits are done in all arms, which leave the intervals very wide"),
        ({("semievol", 0), ("sft", 1), ("sft", 2)}, "No split is done in all arms, of 3:"),
    ],
)
def test_remark_counts_the_splits_that_all_arms_are_done_in(tmp_path, undone, message):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0, 1), splits=(0, 1, 2))
    for place, run in enumerate(read_comparison(tmp_path).runs):
        if (run.arm, run.split) in undone:
            change_run(tmp_path, place, status="pending")
    assert message in remarks_of(tmp_path)


@pytest.mark.parametrize(
    ("splits", "expected"), [((0,), None), ((0, 1), [0, 0, 1, 1]), ((0, 1, 2), [0, 0, 1, 1, 2, 2])]
)
def test_splits_are_the_units_of_an_interval_where_there_are_several(tmp_path, splits, expected):
    write_folder(tmp_path, {"sft": 0.5}, seeds=(0, 1), splits=splits)
    assert run_units(load_comparison(tmp_path).find("sft").done) == expected


def test_remark_says_that_splits_have_the_same_labelled_rows(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0,), splits=(0, 1, 2))
    assert "same labelled rows" not in remarks_of(tmp_path)
    for run in read_comparison(tmp_path).runs:
        RunDir(tmp_path / run.folder).write_text("data/labeled.jsonl", "rows\n")
    assert "All splits have the same labelled rows: no interval covers" in remarks_of(tmp_path)
    RunDir(tmp_path / run.folder).write_text("data/labeled.jsonl", "others\n")
    assert "same labelled rows" in remarks_of(tmp_path)  # that of the split's first run counts
    (tmp_path / "split-2/seed-0/sft/data/labeled.jsonl").unlink()  # a split that has not begun
    (tmp_path / "split-2/seed-0/semievol/data/labeled.jsonl").unlink()
    assert "same labelled rows" in remarks_of(tmp_path)
    RunDir(tmp_path / "split-1/seed-0/sft").write_text("data/labeled.jsonl", "others\n")
    assert "same labelled rows" not in remarks_of(tmp_path)


@pytest.mark.parametrize(
    ("n_groups", "message"),
    [(0, None), (12, "12 groups, too few to be the units"), (20, "20 groups, which are the units")],
)
def test_remark_says_whether_groups_are_the_units(tmp_path, n_groups, message):
    groups = [f"g{i}" for i in range(n_groups)] or [None]
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0,), groups=groups)
    text = remarks_of(tmp_path)
    assert message is None or message in text
    assert ("groups" in text) == (message is not None)


def test_remark_names_the_arms_that_are_at_chance(tmp_path):
    write_folder(tmp_path, {"zero_shot": 0.3, "sft": 0.8}, seeds=(0,))  # each of three answers is right for a third
    assert "1 of 2 arms is at chance" in remarks_of(tmp_path)
    assert "(33.3%): Zero-shot." in remarks_of(tmp_path)
    write_folder(tmp_path / "all", {"zero_shot": 0.3, "sft": 0.35}, seeds=(0,))
    assert "Every arm is at chance" in remarks_of(tmp_path / "all")


def test_remark_names_trainings_in_another_precision(tmp_path):
    write_folder(tmp_path, {"sft": 0.7, "pseudo_all": 0.7, "semievol": 0.8}, seeds=(0,))
    step = RunDir(tmp_path / "split-0/seed-0/sft").manifest()["round-1/evolve"]

    def train(arm: str, precision: str) -> str:
        RunDir(tmp_path / f"split-0/seed-0/{arm}").record_stage(
            "round-1/evolve", step | {"stats": {"optimizer_steps": 4, "precision": precision}}
        )
        return remarks_of(tmp_path)

    assert "precision" not in train("sft", "bf16")
    assert "precision" not in train("pseudo_all", "bf16")
    assert "precision" not in train("semievol", "bf16")
    assert "some in fp32 (SemiEvol)" in train("semievol", "fp32")


def test_remark_names_final_trainings_of_another_length(tmp_path):
    write_folder(tmp_path, {"pseudo_all": 0.7, "semievol": 0.8}, seeds=(0,), reference="semievol")
    assert "Final trainings" not in remarks_of(tmp_path)
    run_dir = RunDir(tmp_path / "split-0/seed-0/pseudo_all")
    run_dir.record_stage("round-1/evolve", run_dir.manifest()["round-1/evolve"] | {"stats": {"optimizer_steps": 9}})
    assert "SemiEvol 4, but All pseudo-labels 9." in remarks_of(tmp_path)


def test_table_of_rows_counts_what_was_left_out(tmp_path):
    write_folder(tmp_path, {"sft": 0.5}, seeds=(0, 1), splits=(0, 1))
    for split, seed in ((0, 0), (0, 1), (1, 0), (1, 1)):
        run_dir = RunDir(tmp_path / f"split-{split}/seed-{seed}/sft")
        stats = {"n_labeled": 20, "n_unlabeled": 100 + split, "n_test": 60, "n_duplicates_dropped": 7}
        run_dir.record_stage("data", run_dir.manifest()["data"] | {"stats": stats})
    found = build_results(load_comparison(tmp_path))
    assert [(r["split"], r["labeled"], r["unlabeled"], r["duplicates_dropped"]) for r in found["rows"]] == [
        (0, 20, 100, 7),
        (1, 20, 101, 7),
    ]
    assert "duplicates left out" in table_markdown(build_tables(found)["rows"])
    assert "7 duplicates left out" in " ".join(text_of(write_compare_report(tmp_path).read_text("utf-8")).split())


def test_arm_of_another_length_is_compared_with_its_own_control(tmp_path):
    accuracies = {"sft_matched": 0.5, "semievol": 0.8, "semievol-as": 0.7, "sft_matched@semievol-as": 0.6}
    write_folder(tmp_path, accuracies, reference="sft_matched")
    for seed in range(3):
        for arm in ("semievol-as", "sft_matched@semievol-as"):
            run_dir = RunDir(tmp_path / f"split-0/seed-{seed}" / arm)
            run_dir.record_stage("round-1/evolve", {"fingerprint": "e", "stats": {"optimizer_steps": 9}, "cost": {}})
        run_dir.record_stage("control", {"fingerprint": "c", "stats": {"optimizer_steps": 9}, "cost": {}})
    results = build_results(load_comparison(tmp_path))
    assert [e["arm"] for e in results["arms"]] == ["sft_matched", "semievol", "semievol-as"]
    assert [e["arm"] for e in results["controls"]] == ["sft_matched@semievol-as"]
    assert results["n_runs"]["done"] == 12
    method, other = find(results["differences"], "semievol"), find(results["differences"], "semievol-as")
    assert (method["reference"], other["reference"]) == ("sft_matched", "sft_matched@semievol-as")
    assert other["difference"] == pytest.approx(
        entry(results, "semievol-as")["value"] - results["controls"][0]["value"]
    )
    assert not any(r.startswith("Models differ in optimiser steps") for r in results["verdict"]["remarks"])
    row = build_tables(results)["differences"].rows[1]
    assert (row["against"], row["reference_steps"]) == (f"SFT, as long as SemiEvol {MINUS} AS", 9)
    assert "(of 1 arm: against SFT for as many steps, a control of its own)" in build_tables(results)["main"].note


def test_failed_control_is_shown_and_leaves_the_common_reference(tmp_path):
    accuracies = {"sft_matched": 0.5, "semievol": 0.8, "pseudo_all": 0.7, "sft_matched@pseudo_all": 0.6}
    failed = {("sft_matched@pseudo_all", seed): "no room" for seed in range(3)}
    write_folder(tmp_path, accuracies, reference="sft_matched", failed=failed)
    results = build_results(load_comparison(tmp_path))
    assert find(results["differences"], "pseudo_all")["reference"] == "sft_matched"
    assert list_failures(results) == [
        {"label": "SFT, as long as All pseudo-labels", "runs": "seed 0, seed 1, seed 2", "error": "no room"}
    ]


def test_gap_that_is_defined_for_no_arm_is_said_once(tmp_path):
    accuracies = {"sft": 0.8, "semievol": 0.7, "pseudo_all": 0.6, "oracle_full": 0.5}
    write_folder(tmp_path, accuracies, gold=["oracle_full"], use_gold=True)
    page = write_compare_report(tmp_path).read_text(encoding="utf-8")
    assert page.count("Not defined for any arm: there may be no gap: all gold adds") == 1
    assert page.count("there may be no gap") == 2  # at the head, too


def test_report_removes_its_own_files_alone(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8})
    stale = [tmp_path / "tables" / "gap.csv", tmp_path / "figures" / "sweep_2.svg"]
    mine = [tmp_path / "tables" / "ablation.tex", tmp_path / "figures" / "architecture.svg"]
    for path in (*stale, *mine):
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    write_compare_report(tmp_path)
    assert not any(path.exists() for path in stale)
    assert [path.read_text() for path in mine] == ["mine", "mine"]


@pytest.mark.parametrize(
    ("accuracies", "gold", "main"),
    [
        ({"semievol": 0.8, "semievol_released": 0.6}, (), "semievol_released"),
        ({"sft": 0.5, "semievol": 0.8}, (), "semievol"),
        ({"oracle_select": 0.6, "oracle_full": 0.9}, ("oracle_select", "oracle_full"), "oracle_full"),
    ],
)
def test_verdict_is_about_an_arm_that_can_be_compared(tmp_path, accuracies, gold, main):
    write_folder(
        tmp_path, accuracies, reference=next(iter(accuracies)) if "sft" not in accuracies else "semievol", gold=gold
    )
    results = build_results(load_comparison(tmp_path))
    assert results["main"] == main
    assert results["headline"] is not None
    assert "Nothing can be compared" not in results["verdict"]["sentence"]


def test_method_that_failed_is_said_to_have_failed(tmp_path):
    accuracies = {"sft": 0.5, "pseudo_all": 0.6, "semievol": 0.8}
    write_folder(tmp_path, accuracies, failed={("semievol", seed): "no room" for seed in range(3)})
    sentence = build_results(load_comparison(tmp_path))["verdict"]["sentence"]
    assert sentence == "Nothing can be said of SemiEvol: all of its runs failed."


def test_damaged_answers_of_a_run_leave_the_others_in_the_report(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0, 1))
    place = "split-0/seed-1/semievol/measure/predictions.jsonl"
    (tmp_path / place).write_bytes((tmp_path / place).read_bytes()[:-40])
    results = build_results(load_comparison(tmp_path))
    (unfinished,) = entry(results, "semievol")["unfinished"]
    assert unfinished["error"] == f"{place} is damaged; remove it and run the comparison again"
    (remark,) = [r for r in results["verdict"]["remarks"] if r.startswith("Values are over")]
    assert remark == "Values are over 2 runs, but fewer of: SemiEvol 1. Differences use the runs that both arms have."


def test_answers_that_take_more_tokens_than_those_of_the_reference_are_said_to(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "self_consistency": 0.6}, seeds=(0,))
    run_dir = RunDir(tmp_path / "split-0/seed-0/self_consistency")
    measured = run_dir.manifest()["measure"]
    run_dir.record_stage(
        "measure", measured | {"cost": measured["cost"] | {"prompt_tokens": 4400, "completion_tokens": 0}}
    )
    points = dict(build_results(load_comparison(tmp_path))["verdict"]["points"])
    assert points["What does it cost?"].endswith("An answer takes 4.0 times the tokens of one of SFT.")


def test_latex_row_that_begins_with_a_bracket_stays_a_row():
    table = Table(
        "t", "T", (Column("a", "a"), Column("b", "b")), ({"a": "[INST]", "b": "x"}, {"a": "*", "b": "y"}), None, "N"
    )
    assert r"{}[INST] & x \\" in table_latex(table)
    assert r"{}* & y \\" in table_latex(table)
    assert table_latex(table).endswith("% N\n")


def test_markdown_escapes_what_would_be_maths():
    table = Table("t", "T", (Column("a", "a"),), ({"a": "$x^2$ & ~y~"},), None)
    assert r"\$x^2\$ \& \~y\~" in table_markdown(table)


def test_columns_of_the_table_of_groups_are_named_by_arm(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, groups=("a", "b"))
    write_compare_report(tmp_path)
    assert (tmp_path / "tables/groups.csv").read_text().splitlines()[0] == "group,n,sft,semievol"


def test_report_shows_the_config_that_all_arms_start_from(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8})
    record = read_comparison(tmp_path)
    write_comparison(tmp_path, replace(record, config={"task": {"instruction": "<b>Sort & file</b>"}}))
    page = write_compare_report(tmp_path).read_text(encoding="utf-8")
    assert "&lt;b&gt;Sort &amp; file&lt;/b&gt;" in page
    assert json.loads((tmp_path / "results.json").read_text())["config"] == {
        "task": {"instruction": "<b>Sort & file</b>"}
    }


def renumber(folder: Path, split: int, arm: str = "semievol") -> None:
    """Give the rows of a split other groups and targets under the ids that they have."""
    run_dir = RunDir(folder / f"split-{split}/seed-0/{arm}")
    rows = list(run_dir.read_records("measure/predictions", Prediction))
    moved = [replace(p, example_id=q.example_id) for p, q in zip(rows, [*rows[7:], *rows[:7]], strict=True)]
    moved.sort(key=lambda p: int(p.example_id[1:]))
    run_dir.write_records("measure/predictions", moved, Prediction)


def test_rows_of_splits_that_number_anew_are_other_rows(tmp_path):
    """As those of demo:tickets: the same ids, other rows, so other groups."""
    arms = {"sft": 0.5, "semievol": 0.8}
    write_folder(tmp_path, arms, seeds=(0,), splits=(0, 1, 2), groups=("known", "new"))
    right = build_results(load_comparison(tmp_path))
    for arm in arms:
        for split in (1, 2):
            renumber(tmp_path, split, arm)
    found = build_results(load_comparison(tmp_path))
    assert [e["value"] for e in found["arms"]] == [e["value"] for e in right["arms"]]
    assert {e["n_rows"] for e in found["arms"]} == {180}
    assert {d["n_rows"] for d in found["differences"]} == {180}
    assert {(g["arm"], g["group"]): g["value"] for g in found["groups"]} == {
        (g["arm"], g["group"]): pytest.approx(g["value"]) for g in right["groups"]
    }
    assert {g["n"] for g in found["groups"]} == {90}


def test_lines_of_groups_are_those_of_all_arms(tmp_path):
    groups = [f"document {i:02d}" for i in range(40) for _ in range(1 + i // 2)]
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0,), splits=(0, 1, 2), n_rows=420, groups=groups)
    for split in (1, 2):
        for arm in ("sft", "semievol"):
            run_dir = RunDir(tmp_path / f"split-{split}/seed-0/{arm}")
            rows = list(run_dir.read_records("measure/predictions", Prediction))[: 420 - 90 * split]
            run_dir.write_records("measure/predictions", rows, Prediction)
    change_run(tmp_path, 0, status="pending")
    found = build_results(load_comparison(tmp_path))
    assert found["arms"][0]["unfinished"]
    lines = {arm: {g["group"] for g in found["groups"] if g["arm"] == arm} for arm in ("sft", "semievol")}
    assert lines["sft"] <= lines["semievol"]
    assert sum("other groups" in line for line in lines["semievol"]) == 1


def with_steps(folder: Path, arm: str, steps: int, *, stage: str = "round-1/evolve") -> None:
    for run in folder.rglob(f"seed-*/{arm}"):
        RunDir(run).record_stage(stage, {"fingerprint": "s", "stats": {"optimizer_steps": steps}, "cost": {}})


def test_sweep_with_controls_shows_the_steps_of_each_setting_and_names_the_control(tmp_path):
    own = "sft_matched@pseudo_all"
    arms = {"sft_matched": 0.5, "pseudo_all": 0.9, own: 0.55}
    write_folder(tmp_path, arms, reference="sft_matched", sweep={"unlabeled_ratio": [1, 2]}, n_rows=200)
    for ratio in (1, 2):
        with_steps(tmp_path / f"unlabeled_ratio={ratio}", own, 10 * ratio, stage="control")
    results = build_results(load_comparison(tmp_path))
    assert [row["reference_steps"] for row in build_tables(results)["differences"].rows] == [10, 20]
    (answer,) = [a for q, a in results["verdict"]["points"] if q == "Does it pay?"]
    assert answer.startswith("Above SFT, as long as All pseudo-labels in 2 and below it in 0 of 2 settings")
    assert "(of 1 arm: against" in build_tables(results)["main"].note
    page = write_compare_report(tmp_path).read_text(encoding="utf-8")
    assert "Difference from SFT, as long as All pseudo-labels at the same value" in page
    assert "points against the control" in (tmp_path / "figures/sweep_difference_1.svg").read_text(encoding="utf-8")


def test_controls_that_no_difference_is_from_are_not_claimed(tmp_path):
    arms = {"zero_shot": 0.4, "sft_matched": 0.5, "pseudo_all": 0.7, "sft_matched@pseudo_all": 0.55}
    write_folder(tmp_path, arms, reference="zero_shot")
    results = build_results(load_comparison(tmp_path))
    assert build_tables(results)["main"].note.startswith("Difference: points against Zero-shot, paired")
    page = write_compare_report(tmp_path).read_text(encoding="utf-8")
    assert "Points against Zero-shot, paired by run and row" in page


def test_verdict_looks_at_the_control_that_the_difference_is_from(tmp_path):
    own = "sft_matched@semievol_released"
    arms = {"sft": 0.85, "sft_matched": 0.86, "semievol_released": 0.9, own: 0.6}
    write_folder(tmp_path, arms, reference="sft_matched", n_rows=200)
    results = build_results(load_comparison(tmp_path))
    assert results["headline"]["reference"] == own
    assert results["headline_other"]["reference"] == "sft"
    assert "but another arm without unlabelled rows does better" in results["verdict"]["sentence"]


def test_runs_that_are_to_come_have_not_failed(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "zero_shot": 0.4, "semievol": 0.8}, failed={("semievol", 0): "no room"})
    for place, run in enumerate(read_comparison(tmp_path).runs):
        if run.arm == "semievol" and run.seed:
            change_run(tmp_path, place, status="pending")
    results = build_results(load_comparison(tmp_path))
    assert results["verdict"]["sentence"].endswith("1 of its 3 runs failed, the others are to come.")
    assert [row["state"] for row in build_tables(results)["main"].rows][-1] == "0 of 3 done, 1 failed"


def test_cost_of_an_answer_counts_what_it_generates(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0,))
    results = build_results(load_comparison(tmp_path))
    cost = entry(results, "semievol")["cost"]
    row = build_tables(results)["cost"].rows[1]
    assert row["answer_tokens"] == cost["answer_prompt_tokens"] + cost["answer_completion_tokens"]
    assert cost["answer_completion_tokens"] > 0


def test_every_run_is_in_the_table_of_runs_and_controls_too(tmp_path):
    arms = {"sft_matched": 0.5, "semievol": 0.8, "pseudo_all": 0.7, "sft_matched@pseudo_all": 0.6}
    write_folder(tmp_path, arms, reference="sft_matched", failed={("sft_matched@pseudo_all", 1): "no room"})
    results = build_results(load_comparison(tmp_path))
    rows = build_tables(results)["runs"].rows
    assert len(rows) == sum(results["n_runs"].values()) == 12
    assert [row["error"] for row in rows if row["name"] == "sft_matched@pseudo_all"] == ["", "", "no room"]
    write_compare_report(tmp_path)


def test_graded_scores_below_100_are_not_called_wrong(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, use_gold=True)
    for run in tmp_path.rglob("config.resolved.json"):
        run.write_text(json.dumps({"task": {"type": "text", "metric": "rouge_l"}, "evaluate": {"n_bootstrap": 200}}))
    page = write_compare_report(tmp_path).read_text(encoding="utf-8")
    assert "wrong (%)" not in page
    assert "Wrong is every label that scores below 100 in ROUGE-L." in page
    assert "Labels that score below 100 among the surest" in page


def test_open_answers_have_histograms_of_their_nll(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8}, seeds=(0,))
    for run in tmp_path.rglob("seed-0/*"):
        rows = [replace(p, entropy=None) for p in RunDir(run).read_records("measure/predictions", Prediction)]
        RunDir(run).write_records("measure/predictions", rows, Prediction)
    page = write_compare_report(tmp_path).read_text(encoding="utf-8")
    assert "Mean NLL of the answer; the lighter part of a bar is wrong answers." in page
    assert "mean NLL (nats per token)" in (tmp_path / "figures/entropy.svg").read_text(encoding="utf-8")


def test_oracle_that_finds_too_few_right_labels_says_so(tmp_path):
    write_folder(tmp_path, {"sft": 0.5, "semievol": 0.8, "oracle_select": 0.9}, gold=["oracle_select"], use_gold=True)
    stats = {"n_kept": 30, "n_wanted": 50, "n_right": 30}
    for run in tmp_path.rglob("seed-*/oracle_select"):
        RunDir(run).record_stage("round-1/oracle_select", {"fingerprint": "o", "stats": stats, "cost": {}})
    results = build_results(load_comparison(tmp_path))
    said = "Oracle selection (uses gold) keeps 30 labels, where selection keeps 50: no more are right"
    assert any(remark.startswith(said) for remark in results["verdict"]["remarks"])


def test_parts_of_another_length_are_named(tmp_path):
    arms = {"sft_matched": 0.5, "semievol": 0.8, "semievol-as": 0.7, "sft_matched@semievol-as": 0.6}
    write_folder(tmp_path, arms, reference="sft_matched")
    with_steps(tmp_path, "semievol-as", 9)
    with_steps(tmp_path, "sft_matched@semievol-as", 9, stage="control")
    (remark,) = [r for r in build_results(load_comparison(tmp_path))["verdict"]["remarks"] if "optimiser steps" in r]
    assert remark.startswith(f"SemiEvol takes 4 optimiser steps from the base, but SemiEvol {MINUS} AS 9:")


def test_swept_models_are_not_one_base_model(tmp_path):
    write_folder(tmp_path, {"sft": 0.5}, seeds=(0,), sweep={"model.path": ["org/a", "org/b"]})
    assert build_results(load_comparison(tmp_path))["model"] is None


def test_gold_arms_are_marked_in_the_csv_of_groups(tmp_path):
    arms = {"sft": 0.5, "oracle_full": 0.9}
    write_folder(tmp_path, arms, seeds=(0,), gold=["oracle_full"], use_gold=True, groups=("a", "b"))
    table = build_tables(build_results(load_comparison(tmp_path)))["groups"]
    assert table_csv(table).splitlines()[0] == "group,n,sft,oracle_full (uses gold)"
