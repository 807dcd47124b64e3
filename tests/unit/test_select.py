from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.artifacts import RunDir
from semievol.config import SelectConfig, parse_config
from semievol.errors import ConfigError, DataError
from semievol.stage import Backends, SilentReporter, StageContext
from semievol.stages import select
from semievol.types import Dropped, PseudoLabel

FAKE = {"generator": {"type": "fake"}, "trainer": {"type": "fake"}, "embedder": {"type": "fake"}}


def make_label(name: str, probability: float, agreement: float = 1.0, source="consensus") -> PseudoLabel:
    return PseudoLabel(name, "A", "Answer: A", source, agreement, mean_nll=1 - probability, max_probability=probability)


def select_labels(
    folder: Path, labels: list[PseudoLabel], *, reporter: SilentReporter | None = None, **changes
) -> tuple[dict, list[str], dict[str, str]]:
    """Statistics, ids kept, and the reason for each id dropped."""
    data = {"labeled": "l.csv", "unlabeled": "u.csv"}
    config = parse_config({"output_dir": str(folder), "data": data, **FAKE, "select": changes})
    ctx = StageContext(config, RunDir(folder), select.STAGE, Backends(config), reporter or SilentReporter())
    ctx.run_dir.write_records("round-1/justify/pseudo_labels", labels, PseudoLabel)
    stats = select.run(ctx)
    kept = [x.example_id for x in ctx.run_dir.read_records("round-1/select/kept", PseudoLabel)]
    dropped = {x.example_id: x.reason for x in ctx.run_dir.read_records("round-1/select/dropped", Dropped)}
    return stats, kept, dropped


LABELS = [
    make_label("sure", 0.99),
    make_label("split", 0.97, 1 / 3, "majority"),
    make_label("fair", 0.9, 0.666667, "justified"),
    make_label("weak", 0.5, 1.0),
]


def test_select_without_minima_keeps_the_surest_half(tmp_path):
    stats, kept, dropped = select_labels(tmp_path, LABELS)
    assert kept == ["sure", "split"]
    assert dropped == {"fair": "not confident enough", "weak": "not confident enough"}
    assert stats == {
        "n_kept": 2,
        "n_dropped": 2,
        "signal": "mean_nll",
        "uncertainty": pytest.approx(0.03),
        "n_ranked": 4,
    }


def test_select_min_confidence_drops_every_row_below_it(tmp_path):
    _, kept, dropped = select_labels(tmp_path, LABELS, min_confidence=0.9, keep_fraction=1)
    assert kept == ["sure", "split", "fair"]
    assert dropped == {"weak": "probability below the minimum"}


def test_select_min_agreement_takes_two_of_three_for_two_thirds(tmp_path):
    _, kept, dropped = select_labels(tmp_path, LABELS, min_agreement=2 / 3, keep_fraction=1)
    assert kept == ["sure", "fair", "weak"]
    assert dropped == {"split": "agreement below the minimum"}


def test_select_takes_the_threshold_over_what_reaches_the_minima(tmp_path):
    stats, kept, dropped = select_labels(tmp_path, LABELS, min_agreement=0.6, min_confidence=0.6, keep_fraction=0.5)
    assert (stats["n_ranked"], kept) == (2, ["sure"])
    assert dropped == {
        "split": "agreement below the minimum",
        "fair": "not confident enough",
        "weak": "probability below the minimum",
    }


def test_select_minima_hold_for_consensus_rows_that_are_not_ranked(tmp_path):
    stats, kept, _ = select_labels(tmp_path, LABELS, min_confidence=0.95, apply_to="justified", keep_fraction=1)
    assert kept == ["sure", "split"]
    assert stats["n_ranked"] == 1


def test_select_minima_may_leave_nothing(tmp_path):
    stats, kept, dropped = select_labels(tmp_path, LABELS, min_confidence=0.999)
    assert (kept, len(dropped), stats["uncertainty"]) == ([], 4, None)


def test_select_of_no_labels_is_refused(tmp_path):
    with pytest.raises(DataError, match="no pseudo-labels to choose from"):
        select_labels(tmp_path, [])


def test_select_min_confidence_drops_labels_without_a_probability(tmp_path):
    """A server gives one for some answers alone."""
    labels = [*LABELS, replace(make_label("unread", 0.99), max_probability=None)]
    _, kept, dropped = select_labels(tmp_path / "some", labels, min_confidence=0.9, keep_fraction=1)
    assert kept == ["sure", "split", "fair"]
    assert dropped == {"weak": "probability below the minimum", "unread": "probability not measurable"}
    unread = [replace(x, max_probability=None) for x in LABELS]
    with pytest.raises(DataError, match=r"none of 4 labels has a probability.*min_confidence asks for; leave it out"):
        select_labels(tmp_path / "none", unread, min_confidence=0.9)


def test_select_min_confidence_needs_a_closed_set():
    raw = {"data": {"path": "x.csv"}, "task": {"type": "span"}, "select": {"min_confidence": 0.9}}
    with pytest.raises(ConfigError, match=r"select.min_confidence needs a closed answer set, but task.type is span"):
        parse_config(raw)


@given(
    st.lists(st.tuples(st.floats(0.01, 1), st.sampled_from([0.25, 0.5, 0.75, 1.0])), min_size=1, max_size=20),
    st.none() | st.floats(0.01, 0.99),
    st.none() | st.floats(0.01, 1),
    st.floats(0.05, 1),
)
def test_select_keeps_no_row_below_a_minimum_and_the_surest_of_the_rest(rows, confidence, agreement, fraction):
    config = SelectConfig(min_confidence=confidence, min_agreement=agreement, keep_fraction=fraction)
    labels = [make_label(f"r{i}", p, a) for i, (p, a) in enumerate(rows)]
    passing = [x for x in labels if select.below_minimum(x, config) is None]
    threshold = select.find_threshold([x.mean_nll for x in passing], config)
    kept = [x for x in labels if select.reason_to_drop(x, threshold, config) is None]
    assert all(x.max_probability >= (confidence or 0) and x.agreement >= (agreement or 0) - 1e-6 for x in kept)
    assert len(kept) >= fraction * len(passing) - 1e-9
    left = [x.mean_nll for x in passing if x not in kept]
    assert not left or max(x.mean_nll for x in kept) < min(left)


def test_an_answer_that_the_selection_takes_out_is_said(tmp_path):
    labels = [make_label(f"a{i}", 0.9 + i / 1000) for i in range(40)]
    labels += [replace(make_label(f"b{i}", 0.6 + i / 1000), answer="B") for i in range(20)]
    labels += [replace(make_label(f"c{i}", 0.5), answer="C") for i in range(5)]  # too few to tell
    notes = []
    reporter = SilentReporter()
    reporter.note = notes.append
    select_labels(tmp_path / "half", labels, reporter=reporter)
    assert notes == [
        "select: 'B' is the answer of 20 of 65 pseudo-labels and of 0 of the 33 kept ones: training on these may "
        "unlearn it; set select.per_answer, or raise select.keep_fraction (1 keeps all)"
    ]
    threshold = RunDir(tmp_path / "half").read_json("round-1/select/threshold")
    assert threshold["scarce"] == {"B": [20, 0]}
    assert threshold["answers"] == {"A": [40, 33], "B": [20, 0], "C": [5, 0]}
    notes.clear()
    select_labels(tmp_path / "all", labels, reporter=reporter, keep_fraction=1)
    assert notes == []
    select_labels(tmp_path / "minimum", labels, reporter=reporter, per_answer=True, min_confidence=0.65)
    assert notes == [
        "select: 'B' is the answer of 20 of 65 pseudo-labels and of 0 of the 20 kept ones: training on these may "
        "unlearn it; lower select.min_confidence"
    ]


@pytest.mark.parametrize(("n_kept", "expected"), [(3, {"B": (20, 3)}), (4, {})])
def test_an_answer_is_scarce_below_a_fifth_of_its_share(n_kept, expected):
    assert select.find_scarce({"A": 80, "B": 20}, {"A": 100 - n_kept, "B": n_kept}) == expected


@pytest.mark.parametrize(
    ("reasons", "per_answer", "expected"),
    [
        ({"not confident enough": 3, "agreement below the minimum": 1}, False, "set select.per_answer"),
        ({"not confident enough": 3}, True, "raise select.keep_fraction"),
        ({"confidence not measurable": 2, "not confident enough": 1}, True, "choose another select.signal"),
        ({"agreement below the minimum": 2}, False, "lower select.min_agreement"),
    ],
)
def test_remedy_is_the_setting_that_dropped_most(reasons, per_answer, expected):
    assert select.remedy_for(reasons, SelectConfig(per_answer=per_answer)).split(", or")[0].endswith(expected)


def two_answers() -> list[PseudoLabel]:
    """40 labels A that are surer than the 20 B."""
    labels = [make_label(f"a{i}", 0.9 + i / 1000) for i in range(40)]
    return labels + [replace(make_label(f"b{i}", 0.6 + i / 1000), answer="B") for i in range(20)]


def test_select_per_answer_keeps_theta_of_each_answer(tmp_path):
    stats, kept, dropped = select_labels(tmp_path, two_answers(), per_answer=True, keep_fraction=0.25)
    assert kept == [f"a{i}" for i in range(30, 40)] + [f"b{i}" for i in range(15, 20)]
    assert set(dropped.values()) == {"not confident enough"}
    assert (stats["n_ranked"], stats["uncertainty"]) == (60, pytest.approx(1 - 0.615))
    threshold = RunDir(tmp_path).read_json("round-1/select/threshold")
    assert threshold["scarce"] == {}
    assert threshold["by_answer"] == {
        "A": {"uncertainty": pytest.approx(1 - 0.93), "n_ranked": 40},
        "B": {"uncertainty": pytest.approx(1 - 0.615), "n_ranked": 20},
    }


def test_select_per_answer_comes_after_the_minima_and_leaves_consensus_rows_alone(tmp_path):
    labels = [
        make_label("sure", 0.9, source="justified"),
        make_label("unsure", 0.8, source="justified"),
        make_label("low", 0.3, source="justified"),
        make_label("agreed", 0.5),
        replace(make_label("other", 0.4, source="justified"), answer="B"),
    ]
    _, kept, dropped = select_labels(tmp_path, labels, per_answer=True, apply_to="justified", min_confidence=0.35)
    assert kept == ["sure", "agreed", "other"]
    assert dropped == {"unsure": "not confident enough", "low": "probability below the minimum"}


def test_select_per_answer_drops_an_answer_that_could_not_be_measured(tmp_path):
    labels = [*two_answers(), *(replace(make_label(f"c{i}", 0.5), answer="C", mean_nll=None) for i in range(3))]
    stats, kept, dropped = select_labels(tmp_path, labels, per_answer=True)
    assert (len(kept), stats["n_unmeasured"]) == (30, 3)
    assert {dropped[f"c{i}"] for i in range(3)} == {"confidence not measurable"}


@given(
    st.lists(st.tuples(st.sampled_from("ABC"), st.floats(0.01, 1)), min_size=1, max_size=30),
    st.floats(0.05, 1),
)
def test_select_per_answer_is_the_selection_of_each_answer_alone(tmp_path_factory, rows, fraction):
    labels = [replace(make_label(f"r{i}", p), answer=answer) for i, (answer, p) in enumerate(rows)]
    settings = {"keep_fraction": fraction}
    _, kept, _ = select_labels(tmp_path_factory.mktemp("all"), labels, per_answer=True, **settings)
    alone = []
    for answer in sorted({x.answer for x in labels}):
        of_it = [x for x in labels if x.answer == answer]
        alone += select_labels(tmp_path_factory.mktemp(answer), of_it, **settings)[1]
    assert sorted(kept) == sorted(alone)


def test_select_per_answer_needs_a_closed_set():
    raw = {"data": {"path": "x.csv"}, "task": {"type": "span"}, "select": {"per_answer": True}}
    with pytest.raises(ConfigError, match=r"select.per_answer needs a closed answer set, but task.type is span"):
        parse_config(raw)


def test_select_per_answer_counts_for_the_fingerprint_only_where_it_is_set():
    assert "per_answer" not in SelectConfig().lasting()
    assert SelectConfig(per_answer=True).lasting() == SelectConfig().lasting() | {"per_answer": True}


def test_select_of_all_keeps_labels_that_could_not_be_measured(tmp_path):
    labels = [LABELS[0], replace(LABELS[1], mean_nll=None)]
    assert select_labels(tmp_path, labels, keep_fraction=1)[1] == ["sure", "split"]
    assert select_labels(tmp_path, labels[1:], keep_fraction=1)[1] == ["split"]
