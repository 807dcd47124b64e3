import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
from scipy import stats

from semievol.artifacts import RunDir
from semievol.config import parse_config
from semievol.drafts import Rejected
from semievol.duplicates import Duplicate
from semievol.errors import ArtifactError
from semievol.metrics import holm
from semievol.report import draw_report, split_rendered
from semievol.report_rows import choose_rows, cut_text, find_record, sample_records
from semievol.report_tables import answer_lines, place_marks, read_strip
from semievol.report_text import p_value, signed, write_headline
from semievol.types import (
    AuditedRow,
    Candidates,
    Completion,
    Demonstrations,
    Dropped,
    Example,
    Gold,
    Prediction,
    PseudoLabel,
)

NASTY = """<script>alert("1")</script> & 'quoted' <b>"""
VOID = {"meta", "br", "link", "path", "rect", "use", "img", "input"}


def example(row_id: str, target: str | None = None) -> Example:
    return Example(
        row_id, f"{NASTY} {row_id}", context=NASTY, choices=(f"yes {NASTY}", "no"), target=target, group=NASTY
    )


def label(row_id: str, answer: str, source: str, nll: float) -> PseudoLabel:
    justified = source == "justified"
    return PseudoLabel(
        row_id,
        answer,
        f"Answer: {answer}",
        source,
        0.5 if justified else 1.0,
        mean_nll=nll,
        entropy=nll,
        max_probability=0.5,
        justify_nll=0.3 if justified else None,
        justification=f"{NASTY} so {answer}" if justified else None,
    )


def candidates(row_id: str) -> Candidates:
    return Candidates(
        row_id,
        (Completion(f"{NASTY} Answer: A", (-0.25, -0.75), "raw"), Completion("I do not know")),
        ("A", None),
        ("warm-0", "base-1"),
    )


def predictions(model: str) -> list[Prediction]:
    hits = {"base": 4, "sft": 5, "sft_matched": 5, "semievol": 6}[model]
    return [
        Prediction(
            f"t{i}",
            "A",
            "A" if i < hits else "B",
            float(i < hits),
            0.9 - 0.05 * i,
            0.1 * i,
            0.05 * i,
            NASTY if i % 2 else "plain",
        )
        for i in range(8)
    ]


def write_run(path: Path, *, gold: bool = True, rounds: int = 1) -> RunDir:
    """Six unlabelled rows: u1, u2 kept, u3, u4 dropped, u5 unparsable, u6 failed; round 2 keeps u3."""
    run_dir = RunDir(path)
    run_dir.write_records("data/labeled", [example("l1", "A"), example("l2", "B")], Example)
    run_dir.write_records("data/unlabeled", [example(f"u{i}") for i in range(1, 7)], Example)
    targets = ["A", "B", "A", "B", "A", "B"]
    right = [True, False, True, False, None, None]
    rows = [AuditedRow(f"u{i}", t, r) for i, (t, r) in enumerate(zip(targets, right, strict=True), 1)] if gold else []
    run_dir.write_records("evaluate/audited", rows, AuditedRow)
    run_dir.write_records(
        "data/rejected", [Rejected(NASTY, 3, "question", NASTY, "empty", "fill it in", None)], Rejected
    )
    run_dir.write_records("data/duplicates", [Duplicate("u9", "unlabeled", "t1", "test", 1.0, True)], Duplicate)
    for model in ("base", "sft", "sft_matched", "semievol"):
        run_dir.write_records(f"evaluate/predictions_{model}", predictions(model), Prediction)
    labels = [
        label("u1", "A", "consensus", 0.1),
        label("u2", "A", "justified", 0.2),
        label("u3", "A", "consensus", 0.3),
        label("u4", "A", "justified", 0.4),
    ]
    for number in range(1, rounds + 1):
        here = labels if number == 1 else labels[2:]
        kept, rest = (here[:2], here[2:]) if number == 1 else (here[:1], here[1:])
        near = [Demonstrations(f"u{i}", ("l1", "u1") if number > 1 else ("l1", "l2"), (0.9, 0.8)) for i in range(1, 7)]
        folder = f"round-{number}"
        run_dir.write_records(f"{folder}/retrieve/demonstrations", near, Demonstrations)
        run_dir.write_records(f"{folder}/propagate/candidates", [candidates(f"u{i}") for i in range(1, 6)], Candidates)
        run_dir.write_records(
            f"{folder}/propagate/failed", [Dropped("u6", "propagate", "generation failed", NASTY, number)], Dropped
        )
        run_dir.write_records(f"{folder}/justify/pseudo_labels", here, PseudoLabel)
        run_dir.write_records(
            f"{folder}/justify/dropped", [Dropped("u5", "justify", "unparsable answer", NASTY, number)], Dropped
        )
        run_dir.write_records(f"{folder}/select/kept", kept, PseudoLabel)
        drops = [Dropped(x.example_id, "select", "not confident enough", "mean_nll 0.4", number) for x in rest]
        run_dir.write_records(f"{folder}/select/dropped", drops, Dropped)
    return run_dir


def metric_entry(model: str, value: float, low: float, high: float, n_unparsed: int = 0) -> dict:
    return {
        "model": model,
        "split": "test",
        "metric": "accuracy",
        "value": value,
        "ci_low": low,
        "ci_high": high,
        "n": 8,
        "n_unparsed": n_unparsed,
    }


def share(value: float, n: int) -> dict:
    return {"value": value, "ci_low": max(0.0, value - 0.1), "ci_high": min(1.0, value + 0.1), "n": n}


def audit_entry(number: int, n_labels: int, n_kept: int, *, gold: bool) -> dict:
    return {
        "round": number,
        "n_labels": n_labels,
        "n_kept": n_kept,
        "coverage": n_kept / n_labels,
        "mean_agreement": 0.75,
        "n_by_source": {"consensus": 2, "justified": n_labels - 2},
        "n_with_gold": n_labels if gold else 0,
        "precision": {"all": share(0.5, n_labels), "kept": share(0.625, n_kept), "dropped": share(0.4, 2)}
        if gold
        else {},
        "threshold": {
            "n_kept": n_kept,
            "n_dropped": n_labels - n_kept,
            "signal": "mean_nll",
            "uncertainty": 0.2,
            "n_ranked": n_labels,
        },
    }


def training_entry(stage: str) -> dict:
    return {
        "stage": stage,
        "n_rows": 2,
        "optimizer_steps": 4,
        "n_tokens": 64,
        "last_loss": 0.5,
        "losses": [[1, 2.0], [4, 0.5]],
        "rendered_example": f"<|user|>{NASTY}<|assistant|>\u27e6Answer: A\u27e7",
    }


def make_results(*, gold: bool = True, rounds: int = 1) -> dict:
    entries = [audit_entry(1, 4, 2, gold=gold)] + [audit_entry(n, 2, 1, gold=gold) for n in range(2, rounds + 1)]
    points = [{"coverage": c, "precision": 1 - c / 2, "mean_nll": c} for c in (0.25, 0.5, 1.0)] if gold else []
    models = [
        ("base", 0.512, 0.2, 0.8),
        ("sft", 0.634, 0.3, 0.9),
        ("sft_matched", 0.645, 0.31, 0.91),
        ("semievol", 0.756, 0.4, 0.95),
    ]
    comparison = {
        "metric": "accuracy",
        "p_value": 0.0123,
        "n": 8,
        "n_differing": 3,
        "detectable": 0.5,
        "a": "semievol",
        "difference": 0.111,
        "ci_low": 0.033,
        "ci_high": 0.222,
    }
    cost = {
        "seconds": 12.5,
        "model_seconds": 10.0,
        "prompt_tokens": 12345,
        "completion_tokens": 678,
        "forward_passes": 9,
        "train_tokens": 0,
        "peak_memory_bytes": 3 * 2**30,
    }
    return {
        "schema_version": 1,
        "recipe": "paper",
        "seed": 0,
        "rounds": rounds,
        "model": NASTY,
        "recipe_differences": [{"key": "select.keep_fraction", "value": 0.3, "recipe_value": 0.5}],
        "task": {"type": "choice", "labels": [], "shared_choices": []},
        "metrics": [metric_entry(*m) for m in models],
        "comparisons": [comparison | {"b": b} for b in ("sft_matched", "sft", "base")],
        "groups": [{"model": m[0], "group": g, **share(0.5, 4)} for m in models for g in (NASTY, "plain")],
        "calibration": [{"model": m[0], "ece": 0.1234, "brier": 0.2, "n": 8} for m in models],
        "pseudo_labels": entries,
        "precision_curves": [{"round": e["round"], "points": points} for e in entries],
        "rows": {
            "n_read": 19,
            "n_labeled": 2,
            "n_unlabeled": 6,
            "n_test": 8,
            "n_rejected": 1,
            "n_duplicates_dropped": 1,
            "n_not_drawn": 1,
            "n_gold_sealed": 6 if gold else 0,
            "notes": [NASTY],
            "targets": {"labeled": {NASTY: 2}, "test": {}},
            "fates": [
                {"fate": "kept", "reason": "selected as a pseudo-label", "n": 3},
                {"fate": "select", "reason": "x", "n": 3},
            ],
        },
        "training": [
            training_entry(s) for s in ("warmup", *(f"round-{r + 1}/evolve" for r in range(rounds)), "control")
        ],
        "stages": [{"name": "data", **cost}],
        "environment": {"semievol": "0.1.0", "python": NASTY},
    }


def make_config(**sections):
    return parse_config({"data": {"labeled": "l.jsonl", "unlabeled": "u.jsonl"}, **sections})


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> RunDir:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def page(run_dir) -> str:
    return draw_report(make_config(), run_dir, make_results())


class Tags(HTMLParser):
    """Collects tags and attributes, and checks that every element is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.names: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def parse(page: str) -> Tags:
    tags = Tags()
    tags.feed(page)
    tags.close()
    assert tags.open == []
    return tags


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_report_escapes_all_text_from_data(page):
    assert parse(page).names.count("script") == 1  # the filter's own
    assert "alert(&#34;1&#34;)" in page
    assert not re.search(r"<script>\s*alert", page)
    assert "'quoted' <b>" not in page
    assert NASTY not in page


def test_report_refers_to_nothing_outside_itself(page):
    attributes = parse(page).attributes
    assert not [a for a in attributes if a[1] in ("src", "srcset", "action", "xmlns")]
    assert all(value.startswith("#") for _, name, value in attributes if name.endswith("href"))
    assert not re.search(r"@import|url\((?!#)|https?:", page)


def test_report_has_every_id_once(page):
    ids = [value for _, name, value in parse(page).attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_report_is_the_same_twice_and_leaves_results_as_they_are(run_dir, page):
    results = make_results()
    assert draw_report(make_config(), run_dir, results) == page
    assert results == make_results()


def test_main_table_shows_the_numbers_of_results(page):
    text = text_of(page)
    assert "SemiEvol 75.6 [40.0, 95.0]" in text
    assert "SFT, matched steps 64.5 [31.0, 91.0]" in text
    assert "8 0 12.3" in text
    assert "SemiEvol minus SFT, matched steps +11.1 [3.3, 22.2]" in text
    assert "p = 0.012" in text


def test_rows_add_up_in_the_table(page):
    text = text_of(page)
    assert "Rows read labelled 2" in text
    assert "sum 19 100.0" in text
    assert (
        "Unlabelled rows kept 2 33.3 not confident enough 2 33.3 no parsable answer 1 16.7 request failed 1 16.7 sum 6"
        in text
    )


def test_rows_that_are_nowhere_are_shown():
    rows = make_results()["rows"] | {"n_read": 25}
    assert [(p.label, p.n) for p in read_strip(rows).parts][-1] == ("not accounted for", 6)
    assert read_strip(rows).n == 25


def test_browsable_rows_show_what_happened(page):
    text = text_of(page)
    assert "I do not know unparsable" in text
    assert "0.900" in text  # similarity
    assert "0.500" in text  # mean NLL of a candidate
    assert "opened for the audit" in text
    assert "generation failed" in text


def test_trained_part_is_marked(page):
    assert "<mark>Answer: A</mark>" in page


def test_report_says_what_trainings_ran_in(page, run_dir):
    assert "Trained in" not in text_of(page)  # by a server, or by an earlier version
    results = make_results()
    for entry in results["training"]:
        entry["precision"] = "bf16"
    assert "Trained in bf16." in text_of(draw_report(make_config(), run_dir, results))
    results["training"][0]["precision"] = "fp32"
    text = text_of(draw_report(make_config(), run_dir, results))
    assert "Trained in bf16 and fp32, as the machines differed" in text


def answered(labeled: dict[str, int], **found: tuple[int, int]) -> dict:
    """Results of a task with three shared options, whose pseudo-labels and kept ones are as many."""
    results = make_results()
    results["task"] = {"type": "choice", "labels": [], "shared_choices": ["down", NASTY, "up"]}
    results["rows"] = results["rows"] | {"targets": {"labeled": labeled, "test": {}}}
    results["pseudo_labels"][0]["threshold"]["answers"] = found
    return results


def test_answers_are_held_against_the_labelled_rows():
    results = answered({"A": 10, "B": 60, "C": 30}, A=(110, 55), B=(420, 400), C=(470, 45))
    lines = answer_lines(results, results["pseudo_labels"])
    assert [line.answer for line in lines] == ["C (up)", f"B ({NASTY})", "A (down)"]
    assert [line.labeled for line in lines] == pytest.approx([0.3, 0.6, 0.1])
    assert [line.rounds for line in lines] == [((0.47, 0.09),), ((0.42, 0.8),), ((0.11, 0.11),)]
    p_values = [
        stats.fisher_exact([[ours, 1000 - ours], [theirs, 100 - theirs]]).pvalue
        for ours, theirs in ((470, 30), (420, 60), (110, 10))
    ]
    assert [line.differs for line in lines] == (holm(p_values) <= 0.01).tolist() == [True, True, False]


def test_report_shows_answers_that_are_given_too_often(run_dir):
    same = answered({"A": 10, "B": 60, "C": 30}, A=(110, 55), B=(600, 400), C=(290, 45))
    text = text_of(draw_report(make_config(), run_dir, same))
    assert "How often each answer is given" in text
    assert "let expect" not in text
    other = answered({"A": 10, "B": 60, "C": 30}, A=(110, 55), B=(420, 400), C=(470, 45))
    text = text_of(draw_report(make_config(), run_dir, other))
    assert "let expect: C (up) 47.0% against 30.0%, B" in text


@pytest.mark.parametrize("missing", ["options", "targets", "answers"])
def test_answers_are_left_out_where_they_say_nothing(page, missing):
    results = answered({"A": 10, "B": 60}, A=(3, 1), B=(3, 1))
    if missing == "options":  # each row has its own
        results["task"]["shared_choices"] = []
    elif missing == "targets":
        results["rows"]["targets"] = {}
    else:  # of an earlier version, or a bound's selection
        del results["pseudo_labels"][0]["threshold"]["answers"]
    assert answer_lines(results, results["pseudo_labels"]) == []
    assert "How often each answer" not in page


def test_report_without_test_rows(run_dir):
    results = make_results() | {"metrics": [], "comparisons": [], "groups": [], "calibration": []}
    text = text_of(draw_report(make_config(), run_dir, results))
    assert "Nothing was measured" in text
    assert "Result on the test rows" not in text
    assert "Where the rows went" in text


def test_report_without_gold(tmp_path):
    text = text_of(draw_report(make_config(), write_run(tmp_path, gold=False), make_results(gold=False)))
    assert "how many pseudo-labels are right is not known" in text
    assert "opened for the audit" not in text


def test_report_without_control(run_dir):
    results = make_results()
    results["metrics"] = [m for m in results["metrics"] if m["model"] != "sft_matched"]
    results["comparisons"] = [c for c in results["comparisons"] if c["b"] != "sft_matched"]
    results["groups"] = [g for g in results["groups"] if g["model"] != "sft_matched"]
    results["training"] = [t for t in results["training"] if t["stage"] != "control"]
    text = text_of(draw_report(make_config(control={"enabled": False}), run_dir, results))
    assert "matched steps" not in text
    assert "was switched off" in text


def test_report_of_an_open_task_draws_nll(tmp_path):
    run_dir = write_run(tmp_path)
    for model in ("base", "sft", "sft_matched", "semievol"):
        found = [Prediction(p.example_id, "x", "x", 0.25, 0.5, None, 0.7) for p in predictions(model)]
        run_dir.write_records(f"evaluate/predictions_{model}", found, Prediction)
    results = make_results() | {"groups": [], "task": {"type": "span", "labels": [], "shared_choices": []}}
    results["metrics"] = [m | {"metric": "token_f1"} for m in results["metrics"]]
    text = text_of(draw_report(make_config(task={"type": "span", "metric": "token_f1"}), run_dir, results))
    assert "Mean NLL of the answer" in text
    assert "of 100 in token F1" in text
    assert "Right is a full score in token F1" in text


def test_report_of_two_rounds_shows_each(tmp_path):
    page = draw_report(make_config(rounds=2), write_run(tmp_path, rounds=2), make_results(rounds=2))
    text = text_of(page)
    assert "Unlabelled rows, round 2" in text
    assert "Unlabelled rows, at the end 6" in text
    assert "SemiEvol, round 2" in text
    assert "pseudo-label" in text
    parse(page)


def test_report_without_examples(run_dir):
    assert choose_rows(make_config(report={"n_examples": 0}), run_dir) == []


def test_report_names_a_missing_artifact(tmp_path):
    with pytest.raises(ArtifactError, match="missing"):
        draw_report(make_config(), RunDir(tmp_path), make_results())


def test_report_stays_small_with_long_texts_and_long_trainings(tmp_path):
    run_dir = write_run(tmp_path)
    long = [replace(example(f"u{i}"), question="word " * 20_000, context="word " * 20_000) for i in range(1, 7)]
    run_dir.write_records("data/unlabeled", long, Example)
    results = make_results()
    results["training"][0]["losses"] = [[i, 1.0] for i in range(50_000)]
    assert len(draw_report(make_config(), run_dir, results)) < 400_000


def test_headline_reads_a_gain():
    sentence = write_headline(make_results(), metric="accuracy").sentence
    assert sentence == (
        "SemiEvol answers 75.6% [40.0, 95.0] of 8 test rows right, 11.1 points [3.3, 22.2] more than "
        "fine-tuning on the 2 labelled rows alone for as many steps."
    )


def test_headline_reads_a_loss():
    results = make_results()
    results["comparisons"][0] |= {"difference": -0.05, "ci_low": -0.09, "ci_high": -0.01}
    assert "5.0 points [1.0, 9.0] less than" in write_headline(results, metric="accuracy").sentence


def test_headline_reads_no_difference_with_what_could_be_seen():
    results = make_results()
    results["comparisons"][0] |= {"difference": 0.004, "ci_low": -0.0196, "ci_high": 0.0196, "p_value": 0.7}
    results["comparisons"][0]["detectable"] = 0.028
    headline = write_headline(results, metric="accuracy")
    assert (
        "No difference from fine-tuning on the 2 labelled rows alone for as many steps was seen (+0.4 points"
        in headline.sentence
    )
    assert "about 2.8 points" in headline.remarks[0]


def test_headline_tells_when_no_row_differs():
    results = make_results()
    results["comparisons"][0] |= {"difference": 0.0, "ci_low": -0.01, "ci_high": 0.01, "p_value": 1.0}
    results["comparisons"][0] |= {"n": 400, "n_differing": 0, "detectable": 0.0197}
    headline = write_headline(results, metric="accuracy")
    assert "No difference from" in headline.sentence
    assert headline.remarks[0] == "Both models have the same score on every test row."
    assert "400 test rows a true difference of about 2.0 points" in headline.remarks[1]


def test_headline_calls_nothing_a_difference_that_the_exact_test_does_not_find():
    results = make_results()
    results["comparisons"][0] |= {"difference": 0.02, "ci_low": 0.001, "ci_high": 0.04, "p_value": 0.07}
    headline = write_headline(results, metric="accuracy")
    assert headline.sentence.endswith(
        ". Whether that differs from fine-tuning on the 2 labelled rows alone for as many steps cannot be told "
        "(+2.0 points [0.1, 4.0], p = 0.070)."
    )
    assert "four times in five" in headline.remarks[0]


def test_headline_tells_where_rows_are_too_few_to_show_a_difference():
    results = make_results()
    results["comparisons"][0] |= {"difference": 0.25, "ci_low": -0.3, "ci_high": 0.6, "p_value": 0.5}
    results["comparisons"][0] |= {"n": 4, "detectable": 1.0}
    remarks = write_headline(results, metric="accuracy").remarks
    assert "4 test rows are too few to show a difference, however large." in remarks


def test_headline_warns_of_unparsed_answers():
    results = make_results()
    results["metrics"][0]["n_unparsed"] = 3
    assert (
        "Base: 3 of 8 answers could not be parsed; they count as wrong."
        in write_headline(results, metric="accuracy").remarks
    )


def test_headline_weighs_precision_of_rounds_by_their_rows():
    results = make_results(rounds=2)
    results["pseudo_labels"][0]["precision"]["kept"] = share(1.0, 3)
    results["pseudo_labels"][1]["precision"]["kept"] = share(0.0, 1)
    assert any("75.0%" in remark for remark in write_headline(results, metric="accuracy").remarks)


@pytest.mark.parametrize(
    ("value", "text"), [(0.0001, "p < 0.001"), (0.0123, "p = 0.012"), (0.0499, "p = 0.050"), (0.5, "p = 0.50")]
)
def test_p_value_text(value, text):
    assert p_value(value) == text


@pytest.mark.parametrize(("value", "text"), [(0.042, "+4.2"), (-0.042, "\N{MINUS SIGN}4.2"), (-0.0001, "0.0")])
def test_signed_text(value, text):
    assert signed(value) == text


def test_place_marks_share_a_scale_with_room():
    first, second = place_marks([(0.0, 0.5, 1.0), (0.5, 0.75, 1.0)])
    assert first.dot == second.low == 50.0
    assert 0 < first.low < first.high < 100


def test_choose_rows_mixes_kinds(run_dir):
    rows = choose_rows(make_config(report={"n_examples": 6}), run_dir)
    assert [(r.id, r.fate, r.is_right) for r in rows] == [
        ("u1", "kept", True),
        ("u2", "kept", False),
        ("u3", "dropped", True),
        ("u4", "dropped", False),
        ("u5", "unusable", None),
        ("u6", "unusable", None),
    ]


def test_choose_rows_takes_no_more_than_asked(run_dir):
    assert len(choose_rows(make_config(report={"n_examples": 3}), run_dir)) == 3


def test_find_record_finds_rows_far_from_the_hint(tmp_path):
    run_dir = RunDir(tmp_path)
    texts = (f"t{i} " + "x" * 3000 for i in range(500))
    run_dir.write_records("data/unlabeled", (Example(f"r{i}", text) for i, text in enumerate(texts)), Example)
    for row in ("r0", "r250", "r499"):
        found = find_record(run_dir, "data/unlabeled", row, Example, near=0.99, key="id")
        assert found is not None
        assert found.id == row
    assert find_record(run_dir, "data/unlabeled", "r500", Example, near=0.1, key="id") is None


def test_find_record_is_not_fooled_by_text_that_looks_like_a_row(tmp_path):
    run_dir = RunDir(tmp_path)
    rows = [
        Example("a", 'see {"id":"b",', metadata={"id": "b"}),
        Example("b", "the one"),
        Example('q"\u00e9', "quoted"),
    ]
    run_dir.write_records("data/unlabeled", rows, Example)
    for row in rows:
        assert find_record(run_dir, "data/unlabeled", row.id, Example, near=0.0, key="id") == row


def test_sample_records_of_few_rows_are_all(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.write_records("x", [Gold(f"g{i}", "A") for i in range(5)], Gold)
    assert [g.example_id for _, g in sample_records(run_dir, "x", Gold, 50)] == ["g0", "g1", "g2", "g3", "g4"]
    assert len(sample_records(run_dir, "x", Gold, 2)) == 2


def test_sample_records_of_an_empty_file_are_none(tmp_path):
    run_dir = RunDir(tmp_path)
    run_dir.write_records("x", [], Gold)
    assert sample_records(run_dir, "x", Gold, 5) == []


def test_split_rendered_without_marks_shows_all_plain():
    assert split_rendered([{"rendered_example": "abc"}]) == ("abc", "", "")
    assert split_rendered([{"rendered_example": ""}]) is None


def test_cut_text_says_what_is_left_out():
    assert cut_text("abcdef", 4) == "abcd … (2 more characters)"
    assert cut_text("abcd", 4) == "abcd"
