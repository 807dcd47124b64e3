"""The cascade: what it settles, what it leaves as it was, and what is said about it."""

from collections import Counter
from itertools import product

import pytest

from semievol.artifacts import RunDir
from semievol.config import parse_config
from semievol.errors import ConfigError
from semievol.pipeline import run
from semievol.stage import SilentReporter
from semievol.types import Candidates, PseudoLabel
from tests.pipeline.conftest import FAKE, write_task
from tests.pipeline.test_fake_run import artifacts, results_without_cost

CASCADE = {"min_confidence": 0.85, "audit_fraction": 0.5}


@pytest.fixture(scope="module")
def runs(task_files, tmp_path_factory) -> dict[str, RunDir]:
    """The same run with and without a cascade."""
    folder = tmp_path_factory.mktemp("cascade")
    found = {}
    for name, cascade in (("full", None), ("cascade", CASCADE)):
        raw = {"output_dir": str(folder / name), "data": task_files, "propagate": {"cascade": cascade}, **FAKE}
        found[name] = run(parse_config(raw))
    return found


def read(run_dir: RunDir, artifact: str, kind: type) -> dict:
    return {record.example_id: record for record in run_dir.read_records(f"round-1/{artifact}", kind)}


def counts(run_dir: RunDir) -> dict:
    (entry,) = run_dir.read_json("results")["cascade"]
    return entry


def test_rows_are_settled_by_their_probability(runs):
    looks = {row["candidates"]["example_id"]: row for row in lines(runs["cascade"], "propagate/first_looks")}
    settled = {i for i, row in looks.items() if row["max_probability"] >= 0.85}
    assert 0 < len(settled) < len(looks) == 80
    assert {i for i, row in looks.items() if row["is_settled"]} == settled
    candidates = read(runs["cascade"], "propagate/candidates", Candidates)
    assert {i for i, c in candidates.items() if c.by_cascade} == settled
    assert all(len(candidates[i].answers) == 1 and candidates[i].config_names == ("warm-0",) for i in settled)


def lines(run_dir: RunDir, artifact: str) -> list[dict]:
    return list(run_dir.read_records(f"round-1/{artifact}", dict))


def test_every_row_ends_in_one_place(runs):
    rows = runs["cascade"].read_json("results")["rows"]
    assert sum(f["n"] for f in rows["fates"]) == rows["n_unlabeled"] == 80
    labels = read(runs["cascade"], "justify/pseudo_labels", PseudoLabel)
    sources = Counter(label.source for label in labels.values())
    assert sources["cascade"] == counts(runs["cascade"])["n_settled"]
    assert runs["cascade"].read_json("results")["pseudo_labels"][0]["n_by_source"]["cascade"] == sources["cascade"]


def test_open_rows_are_answered_as_without_a_cascade(runs):
    full, cascade = (read(runs[name], "propagate/candidates", Candidates) for name in ("full", "cascade"))
    for row_id, candidates in cascade.items():
        assert candidates.by_cascade or candidates == full[row_id]


def test_confidence_of_a_settled_row_is_that_of_a_run_without_a_cascade(runs):
    full, cascade = (read(runs[name], "justify/pseudo_labels", PseudoLabel) for name in ("full", "cascade"))
    alike = [(full[i], x) for i, x in cascade.items() if x.source == "cascade" and full[i].answer == x.answer]
    assert len(alike) > 10
    for one, other in alike:
        assert (one.mean_nll, one.entropy, one.max_probability) == (
            other.mean_nll,
            other.entropy,
            other.max_probability,
        )
        assert (other.agreement, other.sample_entropy, other.justify_nll) == (1.0, 0.0, None)


def test_audited_rows_have_the_answers_of_a_run_without_a_cascade(runs):
    full = read(runs["full"], "justify/pseudo_labels", PseudoLabel)
    answers = lines(runs["cascade"], "justify/audited")
    assert {a["example_id"]: a["full_answer"] for a in answers} == {
        a["example_id"]: full[a["example_id"]].answer for a in answers
    }
    found = counts(runs["cascade"])
    assert found["n_compared"] == found["n_audited"] == len(answers) > 0
    assert found["n_changed"] == sum(a["cascade_answer"] != a["full_answer"] for a in answers)
    assert found["ci_low"] <= found["changed_fraction"] <= found["ci_high"]


def test_the_audit_changes_no_label(runs, task_files, tmp_path):
    cascade = CASCADE | {"audit_fraction": 0.0}
    raw = {"output_dir": str(tmp_path / "run"), "data": task_files, "propagate": {"cascade": cascade}, **FAKE}
    run_dir = run(parse_config(raw), until_stage="select")
    place = "round-1/justify/pseudo_labels.jsonl"
    assert (run_dir.path / place).read_bytes() == (runs["cascade"].path / place).read_bytes()
    stats = run_dir.manifest()["round-1/justify"]["stats"]["cascade"]
    assert (stats["n_compared"], stats["changed_fraction"]) == (0, None)


def test_savings_are_requests_not_sent_and_mean_tokens_of_those_sent(runs):
    found, stages = counts(runs["cascade"]), {}
    for name, run_dir in runs.items():
        stages[name] = next(s for s in run_dir.read_json("results")["stages"] if s["name"] == "round-1/propagate")
    n_left_out = found["n_settled"] - found["n_audited"]
    assert found["n_requests_saved"] == 4 * n_left_out
    # The first look is 80 of the forward passes with a cascade.
    assert stages["cascade"]["forward_passes"] - 80 == stages["full"]["forward_passes"] - found["n_requests_saved"]
    saved = stages["full"]["prompt_tokens"] * n_left_out / 80
    assert found["prompt_tokens_saved"] == pytest.approx(saved, rel=0.05)


def test_first_looks_are_reused_for_confidence(runs):
    stages = {name: {s["name"]: s for s in r.read_json("results")["stages"]} for name, r in runs.items()}
    assert stages["full"]["round-1/justify"]["reused_prompt_tokens"] == 0
    assert stages["cascade"]["round-1/justify"]["reused_prompt_tokens"] > 0


def test_report_shows_the_cascade(runs):
    pages = {name: (run_dir.path / "report.html").read_text(encoding="utf-8") for name, run_dir in runs.items()}
    assert "requests saved" in pages["cascade"]
    assert "requests saved" not in pages["full"]
    assert runs["full"].read_json("results")["cascade"] == []


def test_settled_rows_stand_with_consensus_where_only_justified_rows_are_ranked(task_files, tmp_path):
    raw = {"output_dir": str(tmp_path / "run"), "data": task_files, "recipe": "released", **FAKE}
    run_dir = run(parse_config(raw | {"propagate": {"cascade": CASCADE}}), until_stage="select")
    labels, kept = (read(run_dir, f"{a}", PseudoLabel) for a in ("justify/pseudo_labels", "select/kept"))
    settled = {i for i, label in labels.items() if label.source == "cascade"}
    assert settled
    assert settled <= set(kept)


def test_settled_rows_are_not_justified_even_where_all_others_are(make_config):
    run_dir = run(make_config(propagate={"cascade": CASCADE}, justify={"when": "always"}), until_stage="justify")
    labels = read(run_dir, "justify/pseudo_labels", PseudoLabel).values()
    assert {(x.source, x.justification is None) for x in labels} == {("cascade", True), ("justified", False)}


class Interrupted(SilentReporter):
    """Ends the run at the start of the nth count of rows."""

    def __init__(self, n: int) -> None:
        self.left = n

    def task(self, text, total, unit):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        return lambda _: None


def test_an_interrupted_run_ends_with_the_same_bytes(make_config):
    config = make_config(propagate={"cascade": CASCADE}, rounds=2)
    run_dir = run(config)
    expected, results = artifacts(run_dir), results_without_cost(run_dir)
    assert [entry["round"] for entry in results["cascade"]] == [1, 2]
    run_dir.path.rename(run_dir.path.with_name("undisturbed"))
    n_interrupted = 0
    for n in (3, 3, 4, 4, 5):
        try:
            run(config, reporter=Interrupted(n))
        except KeyboardInterrupt:
            n_interrupted += 1
    run(config)
    assert n_interrupted >= 3
    assert artifacts(run_dir) == expected
    seconds = ("model_seconds_saved", "first_look_seconds")
    counted = [{k: v for k, v in e.items() if k not in seconds} for e in results["cascade"]]
    again = [{k: v for k, v in e.items() if k not in seconds} for e in results_without_cost(run_dir)["cascade"]]
    assert again == counted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": {"type": "text"}}, "propagate.cascade needs a closed answer set.*text"),
        ({"generator": {"type": "openai"}}, "propagate.cascade needs exact scores.*openai"),
    ],
)
def test_a_cascade_needs_exact_scores_of_a_closed_set(make_config, changes, message):
    with pytest.raises(ConfigError, match=message):
        make_config(**{"propagate": {"cascade": {}}, **changes})


def test_a_plan_counts_the_first_look(make_config):
    from semievol.costs import Sizes, plan_stages

    sizes = Sizes(24, 80, 40, dict.fromkeys(range(4), 50.0), 60.0, 3.0)
    plain, cascade = (
        next(p for p in plan_stages(make_config(propagate={"cascade": c}), sizes) if p.stage == "propagate")
        for c in (None, {})
    )
    assert (cascade.n_scored, cascade.prompt_tokens) == (plain.n_scored + 80, plain.prompt_tokens + 80 * 50)
    assert (plain.at_most, cascade.at_most) == (False, True)


@pytest.mark.parametrize(("answer_with", "model"), product(("samples", "scores"), ("base", "warm")))
def test_base_configurations_are_looked_at_with_the_base(make_config, answer_with, model):
    propagate = {"cascade": CASCADE, "configurations": [{"model": model, "k": 1}] * 2, "answer_with": answer_with}
    run_dir = run(make_config(propagate=propagate), until_stage="propagate")
    settled = [c for c in read(run_dir, "propagate/candidates", Candidates).values() if c.by_cascade]
    assert {c.config_names for c in settled} == {(f"{model}-0",)}


def test_a_cascade_over_a_real_model(tiny_llama_dir, tmp_path):
    pytest.importorskip("bm25s")
    config = parse_config(
        {
            "output_dir": str(tmp_path / "run"),
            "data": write_task(tmp_path, {"labeled": 8, "unlabeled": 24, "test": 4}),
            "model": {"path": tiny_llama_dir, "device": "cpu"},
            "trainer": {"type": "trl", "r": 4, "max_steps": 2, "per_device_train_batch_size": 4},
            "embedder": {"type": "bm25"},
            "propagate": {"cascade": {"min_confidence": 0.95, "audit_fraction": 0.4}},
        }
    )
    run_dir = run(config, until_stage="select")
    looks = {row["candidates"]["example_id"]: row for row in lines(run_dir, "propagate/first_looks")}
    labels = read(run_dir, "justify/pseudo_labels", PseudoLabel)
    settled = {i for i, row in looks.items() if row["max_probability"] >= 0.95}
    assert 0 < len(settled) < 24
    assert {i for i, label in labels.items() if label.source == "cascade"} == settled
    for i in settled:
        (completion,) = looks[i]["candidates"]["completions"]
        logprobs = completion["token_logprobs"]
        assert labels[i].max_probability == looks[i]["max_probability"]
        assert labels[i].mean_nll == pytest.approx(-sum(logprobs) / len(logprobs))
    manifest = run_dir.manifest()
    saved = manifest["round-1/propagate"]["stats"]["cascade"]
    n_left_out = saved["n_settled"] - saved["n_audited"]
    assert n_left_out > 0
    assert saved["n_requests_saved"] == 4 * n_left_out
    assert saved["first_look_seconds"] > 0
    seconds = manifest["round-1/propagate"]["cost"]["model_seconds"] - saved["first_look_seconds"]
    assert saved["model_seconds_saved"] == pytest.approx(seconds * n_left_out / (24 - n_left_out), rel=0.01)
    assert manifest["round-1/justify"]["stats"]["cascade"]["n_compared"] == saved["n_audited"] > 0
    # All 24 first looks are found again; only answers that are not the likeliest one would need another request.
    assert manifest["round-1/justify"]["cost"]["reused_prompt_tokens"] > 0
