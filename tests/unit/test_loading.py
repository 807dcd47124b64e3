import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from semievol.config import parse_config
from semievol.errors import ConfigError, DataError
from semievol.loading import LoadedData, load_examples
from semievol.types import Gold, Message

CHOICE = ["question,options,answer"]


def choice_row(question: str, answer: str, options: str = '[""yes"", ""no""]') -> str:
    return f'{question},"{options}",{answer}'


def load(folder: Path, task: str = "choice", **files: list[str] | dict[str, Any] | Any) -> LoadedData:
    """Write each list of lines to a file and load it; what is no list goes to the data section."""
    data: dict[str, Any] = {}
    seed = files.pop("seed", 0)
    task_section = {"type": task, **files.pop("task_keys", {})}
    lengths = {key: files.pop(key) for key in ("count_prompt", "max_prompt_tokens") if key in files}
    for key, value in files.items():
        if isinstance(value, list):
            suffix = "jsonl" if value and value[0].startswith("{") else "csv"
            path = folder / f"{key}.{suffix}"
            path.write_text("\n".join(value) + "\n", encoding="utf-8")
            value = str(path)
        data[key] = value
    return load_examples(parse_config({"seed": seed, "task": task_section, "data": data}), **lengths)


def jsonl(*rows: dict[str, Any]) -> list[str]:
    return [json.dumps(row) for row in rows]


LABELED = [*CHOICE, choice_row("one", "A"), choice_row("two", "B")]
UNLABELED = [*CHOICE, choice_row("three", "A"), choice_row("four", "")]
TEST = [*CHOICE, choice_row("five", "B")]


def test_load_examples_authors_layout_needs_no_mapping(tmp_path: Path) -> None:
    data = load(tmp_path, labeled=LABELED, unlabeled=UNLABELED, test=TEST)
    assert [(row.question, row.choices, row.target) for row in data.labeled] == [
        ("one", ("yes", "no"), "A"),
        ("two", ("yes", "no"), "B"),
    ]
    assert [row.target for row in data.test] == ["B"]
    assert data.facts.shared_choices == ("yes", "no")
    assert data.target_counts == {"labeled": {"A": 1, "B": 1}, "test": {"B": 1}}


def test_load_examples_seals_unlabeled_targets(tmp_path: Path) -> None:
    data = load(tmp_path, labeled=LABELED, unlabeled=UNLABELED, test=TEST)
    assert [row.target for row in data.unlabeled] == [None, None]
    assert data.gold == (Gold(data.unlabeled[0].id, "A"),)


def test_load_examples_keeps_no_other_column_of_unlabeled_rows(tmp_path: Path) -> None:
    labeled = jsonl({"text": "one", "label": "good"}, {"text": "two", "label": "bad"})
    unlabeled = jsonl({"text": "three", "label": "good", "gt": "SECRET", "category": "SECRET", "context": "SECRET"})
    data = load(tmp_path, "label", labeled=labeled, unlabeled=unlabeled)
    assert "SECRET" not in repr(data)
    assert data.unlabeled[0].metadata == {}


def test_load_examples_unlabeled_targets_do_not_make_labels(tmp_path: Path) -> None:
    labeled = jsonl({"text": "one", "label": "good"}, {"text": "two", "label": "bad"})
    unlabeled = jsonl({"text": "three", "label": "odd"}, {"text": "four", "label": "Good "})
    data = load(tmp_path, "label", labeled=labeled, unlabeled=unlabeled)
    assert data.facts.labels == ("bad", "good")
    assert data.gold == (Gold(data.unlabeled[1].id, "good"),)
    assert any("1 rows carry an answer that cannot be read" in note for note in data.notes)


def test_load_examples_labels_merge_spellings_in_case(tmp_path: Path) -> None:
    rows = [("one", "Good"), ("two", "good"), ("three", "good"), ("four", "C++"), ("five", "C#")]
    labeled = jsonl(*({"text": text, "label": label} for text, label in rows))
    data = load(tmp_path, "label", labeled=labeled, unlabeled=jsonl({"text": "six"}))
    assert data.facts.labels == ("C#", "C++", "good")


def test_load_examples_labels_of_the_config_come_first(tmp_path: Path) -> None:
    labeled = jsonl({"text": "one", "label": "good"})
    keys = {"labels": ["worst", "good"]}
    data = load(tmp_path, "label", labeled=labeled, unlabeled=jsonl({"text": "two"}), task_keys=keys)
    assert data.facts.labels == ("worst", "good")


def test_load_examples_bad_rows_are_reported_together(tmp_path: Path) -> None:
    labeled = [
        *CHOICE,
        choice_row("one", "A"),
        choice_row("", "A"),
        choice_row("three", "E"),
        choice_row("four", "A", "yes or no"),
        choice_row("five", ""),
        choice_row("six", "A", '[""only""]'),
        choice_row("seven", "A", ""),
        "eight,nine",
    ]
    with pytest.raises(DataError) as caught:
        load(tmp_path, labeled=labeled, unlabeled=UNLABELED)
    text = str(caught.value)
    assert text.startswith("7 of 10 rows cannot be used (data.max_bad_fraction allows 0):")
    for line, name, reason in [
        (3, "question", "the question is missing"),
        (4, "answer", "E"),
        (5, "options", "the options are not a list"),
        (6, "answer", "the target is missing"),
        (7, "options", "1 options"),
        (8, "options", "the options are missing"),
        (9, "row", "the header names 3 columns"),
    ]:
        (row,) = [row for row in text.splitlines() if f"labeled.csv  {line} " in row]
        assert name in row
        assert reason in row
    assert "set data.max_bad_fraction=0.7" in text


def test_load_examples_error_shows_twenty_rows_and_the_total(tmp_path: Path) -> None:
    labeled = [*CHOICE, *(choice_row(f"q{i}", "E") for i in range(30))]
    with pytest.raises(DataError, match="10 more") as caught:
        load(tmp_path, labeled=labeled, unlabeled=UNLABELED)
    assert len(str(caught.value).splitlines()) == 1 + 1 + 20 + 1 + 1


def test_load_examples_goes_on_below_the_allowed_fraction(tmp_path: Path) -> None:
    labeled = [*LABELED, choice_row("x\x07" * 50, "E")]
    data = load(tmp_path, labeled=labeled, unlabeled=UNLABELED, max_bad_fraction=0.2)
    (rejected,) = data.rejected
    assert (rejected.line, rejected.field, rejected.value, rejected.split) == (4, "answer", "E", "labeled")
    assert data.counts == (5, 1, 0, 0, 4)
    with pytest.raises(DataError):
        load(tmp_path, labeled=labeled, unlabeled=UNLABELED, max_bad_fraction=0.1)


def test_load_examples_rejected_values_are_short_and_escaped(tmp_path: Path) -> None:
    labeled = [*LABELED, choice_row("six", "E\x07" + "x" * 100)]
    data = load(tmp_path, labeled=labeled, unlabeled=UNLABELED, max_bad_fraction=0.2)
    assert data.rejected[0].value.startswith("E\\x07xxx")
    assert len(data.rejected[0].value) == 60


def test_load_examples_undecodable_row_is_bad(tmp_path: Path) -> None:
    path = tmp_path / "labeled.csv"
    path.write_bytes("\n".join(LABELED).encode() + b'\ncaf\xe9,"[""yes"", ""no""]",A\n')
    data = load(tmp_path, labeled=str(path), unlabeled=UNLABELED, max_bad_fraction=0.5)
    assert [(row.line, row.value, row.reason) for row in data.rejected] == [(4, "caf\\xe9", "not UTF-8 text")]


def test_load_examples_lone_surrogate_is_bad(tmp_path: Path) -> None:
    labeled = ['{"text": "one", "label": "a"}', '{"text": "two \\ud800", "label": "b"}']
    data = load(tmp_path, "label", labeled=labeled, unlabeled=jsonl({"text": "three"}), max_bad_fraction=0.5)
    assert "surrogate" in data.rejected[0].reason


def test_load_examples_long_prompt_is_bad(tmp_path: Path) -> None:
    seen = []

    def count(example: Any, facts: Any) -> int:
        seen.append(facts.shared_choices)
        return 612 if example.question == "four" else 5

    data = load(
        tmp_path, labeled=LABELED, unlabeled=UNLABELED, max_bad_fraction=0.5, count_prompt=count, max_prompt_tokens=500
    )
    (rejected,) = data.rejected
    assert (rejected.field, rejected.value, rejected.split) == ("question", "612 tokens", "unlabeled")
    assert "model.max_length" in rejected.remedy
    assert seen == [("yes", "no")] * 4


def test_load_examples_digit_answers_become_letters_with_a_note(tmp_path: Path) -> None:
    unlabeled = [*CHOICE, choice_row("three", "2"), choice_row("four", "A")]
    data = load(tmp_path, labeled=LABELED, unlabeled=unlabeled)
    assert [gold.target for gold in data.gold] == ["B", "A"]
    assert any("1 digit answers read as letters" in note for note in data.notes)


def test_load_examples_answers_that_count_from_zero(tmp_path: Path) -> None:
    labeled = [*CHOICE, choice_row("one", "0"), choice_row("two", "1")]
    data = load(tmp_path, labeled=labeled, unlabeled=UNLABELED)
    assert [row.target for row in data.labeled] == ["A", "B"]
    assert any("count from 0" in note for note in data.notes)


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        (["x", "y"], "B"),
        ('["x", "y"]', "B"),
        ("['x', 'y']", "y"),
        ({"text": ["x", "y"], "label": ["1", "2"]}, "2"),
        ({"A": "x", "B": "y"}, "B"),
    ],
)
def test_load_examples_reads_options_in_every_shape(tmp_path: Path, options: Any, answer: str) -> None:
    labeled = jsonl({"question": "one", "options": options, "answer": answer})
    data = load(tmp_path, labeled=labeled, unlabeled=UNLABELED)
    assert (data.labeled[0].choices, data.labeled[0].target) == (("x", "y"), "B")


def test_load_examples_never_runs_an_option_text(tmp_path: Path) -> None:
    labeled = jsonl({"question": "one", "options": "[__import__('os').getcwd(), 'b']", "answer": "A"})
    with pytest.raises(DataError, match="the options are not a list"):
        load(tmp_path, labeled=labeled, unlabeled=UNLABELED)


def test_load_examples_nan_option_is_the_text_none(tmp_path: Path) -> None:
    labeled = [*LABELED, choice_row("six", "A", '[NaN, ""I only""]')]
    data = load(tmp_path, labeled=labeled, unlabeled=UNLABELED)
    assert data.labeled[2].choices == ("None", "I only")
    assert any("1 options that are NaN" in note for note in data.notes)


@pytest.mark.parametrize("names", ["A,B,C", "option_a,option_b,option_c", "Option 1,Option 2,Option 3", "opa,opb,opc"])
def test_load_examples_options_in_columns_of_their_own(tmp_path: Path, names: str) -> None:
    labeled = [f"question,{names},answer", "one,x,y,z,C", "two,x,y,,B"]
    data = load(tmp_path, labeled=labeled, unlabeled=UNLABELED)
    assert [row.choices for row in data.labeled] == [("x", "y", "z"), ("x", "y")]
    assert [row.target for row in data.labeled] == ["C", "B"]


def test_load_examples_chat_rows(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "One?"},
    ]
    answer = {"role": "assistant", "content": "Two."}
    shared = [{"from": "human", "value": "Three?"}, {"from": "gpt", "value": "Four."}]
    labeled = jsonl({"messages": [*turns, answer]})
    unlabeled = jsonl({"messages": json.dumps(turns[3:])}, {"messages": shared})
    data = load(tmp_path, "text", labeled=labeled, unlabeled=unlabeled)
    (row,) = data.labeled
    assert (row.question, row.target) == ("One?", "Two.")
    assert row.history == (Message("system", "Be brief."), Message("user", "Hi"), Message("assistant", "Hello"))
    assert [row.question for row in data.unlabeled] == ["One?", "Three?"]
    assert data.gold == (Gold(data.unlabeled[1].id, "Four."),)


def test_load_examples_chat_faults_are_bad_rows(tmp_path: Path) -> None:
    bad: list[Any] = ["not json", [], [{"role": "bird", "content": "x"}], [{"role": "user", "content": " "}]]
    bad.append([{"role": "assistant", "content": "x"}])
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    labeled = jsonl(good, *({"messages": turns} for turns in bad))
    data = load(tmp_path, "text", labeled=labeled, unlabeled=jsonl({"text": "z"}), max_bad_fraction=0.9)
    assert [row.line for row in data.rejected] == [2, 3, 4, 5, 6]
    assert {row.field for row in data.rejected} == {"messages"}


def test_load_examples_several_candidates_are_noted(tmp_path: Path) -> None:
    labeled = jsonl({"text": "one", "label": "a", "category": "k"}, {"text": "two", "label": "b", "category": "k"})
    data = load(tmp_path, "label", labeled=labeled, unlabeled=jsonl({"text": "three"}))
    assert data.facts.labels == ("a", "b")
    assert any("target is read from column 'label' (also there: category)" in note for note in data.notes)
    assert {row.group for row in data.labeled} == {"k"}


def test_load_examples_columns_of_the_config_win(tmp_path: Path) -> None:
    labeled = jsonl({"text": "no", "body": "yes", "label": "a", "kind": "b"})
    columns = {"question": "body", "target": "kind", "group": ""}
    data = load(tmp_path, "label", labeled=labeled, unlabeled=jsonl({"body": "three"}), columns=columns)
    assert (data.labeled[0].question, data.labeled[0].target) == ("yes", "b")


def test_load_examples_missing_configured_column_suggests_a_near_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.columns\.question: .*no column 'questoin'; did you mean 'question'"):
        load(tmp_path, labeled=LABELED, unlabeled=UNLABELED, columns={"question": "questoin"})


def test_load_examples_choice_without_options_names_the_keys(tmp_path: Path) -> None:
    labeled = jsonl({"text": "one", "label": "a"})
    with pytest.raises(ConfigError, match=r"set data\.columns\.choices, or task\.type=label"):
        load(tmp_path, labeled=labeled, unlabeled=labeled)


def test_load_examples_generated_ids_are_stable_and_short(tmp_path: Path) -> None:
    first = load(tmp_path, labeled=LABELED, unlabeled=UNLABELED)
    second = load(tmp_path, labeled=[LABELED[0], LABELED[2], LABELED[1]], unlabeled=UNLABELED)
    assert {row.id for row in first.labeled} == {row.id for row in second.labeled}
    assert len(first.labeled[0].id) == 12


def test_load_examples_ids_are_unique_over_splits(tmp_path: Path) -> None:
    labeled = jsonl({"id": 1, "text": "one", "label": "a"}, {"id": 2, "text": "two", "label": "b"})
    same = jsonl({"id": 1, "text": "one"}, {"id": 3, "text": "three"})
    data = load(tmp_path, "label", labeled=labeled, unlabeled=same, duplicates="keep")
    assert [row.id for row in data.unlabeled] == ["1-2", "3"]


def test_load_examples_found_id_column_with_clashes_is_left_out(tmp_path: Path) -> None:
    labeled = jsonl({"id": 1, "text": "one", "label": "a"})
    data = load(tmp_path, "label", labeled=labeled, unlabeled=jsonl({"id": 1, "text": "three"}))
    assert len({row.id for row in (*data.labeled, *data.unlabeled)}) == 2
    assert any("share the id '1' but differ" in note for note in data.notes)


def test_load_examples_configured_ids_that_clash_are_bad_rows(tmp_path: Path) -> None:
    labeled = jsonl({"id": 1, "text": "one", "label": "a"})
    with pytest.raises(DataError, match=r"labeled\.jsonl, line 1 has the same id"):
        load(tmp_path, "label", labeled=labeled, unlabeled=jsonl({"id": 1, "text": "x"}), columns={"id": "id"})


def test_load_examples_drops_duplicates_from_the_training_side(tmp_path: Path) -> None:
    unlabeled = [*CHOICE, choice_row("ONE!", "B"), choice_row("five", "A"), choice_row("six", "")]
    labeled = [*LABELED, choice_row("five", "A")]
    data = load(tmp_path, labeled=labeled, unlabeled=unlabeled, test=TEST)
    assert [row.question for row in data.labeled] == ["one", "two"]
    assert [row.question for row in data.unlabeled] == ["six"]
    assert Counter((d.split, d.of_split) for d in data.duplicates) == {
        ("labeled", "test"): 1,
        ("unlabeled", "labeled"): 1,
        ("unlabeled", "test"): 1,
    }
    assert data.gold == ()
    assert data.counts.duplicate == 3


def test_load_examples_keeps_duplicates_on_request(tmp_path: Path) -> None:
    data = load(tmp_path, labeled=LABELED, unlabeled=[*CHOICE, choice_row("one", "")], duplicates="keep")
    assert len(data.unlabeled) == 1
    assert [d.dropped for d in data.duplicates] == [False]


def test_load_examples_notes_conflicting_targets(tmp_path: Path) -> None:
    data = load(tmp_path, labeled=[*LABELED, choice_row("One", "B")], unlabeled=UNLABELED)
    assert any(note.startswith("1 labelled rows repeat a row that has another target") for note in data.notes)


def test_load_examples_without_labeled_rows_left_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no labeled row is left \(3 rows read"):
        load(tmp_path, labeled=TEST, unlabeled=[*CHOICE, choice_row("q", "")], test=TEST)


def numbered(n: int, n_labels: int = 3) -> list[str]:
    words = [f"alpha{i} beta{i} gamma{i} delta{i}" for i in range(n)]
    return jsonl(*({"text": text, "label": f"k{i % n_labels}"} for i, text in enumerate(words)))


def test_load_examples_splits_one_file_by_class(tmp_path: Path) -> None:
    data = load(tmp_path, "label", path=numbered(100, 4))
    assert (len(data.labeled), len(data.unlabeled), len(data.test), len(data.gold)) == (20, 60, 20, 60)
    assert data.target_counts["labeled"] == {"k0": 5, "k1": 5, "k2": 5, "k3": 5}
    assert len({row.id for row in (*data.labeled, *data.unlabeled, *data.test)}) == 100


def test_load_examples_split_depends_on_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = (load(tmp_path, "label", path=numbered(50), seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert {row.id for row in first.labeled} != {row.id for row in other.labeled}


def test_load_examples_split_takes_counts(tmp_path: Path) -> None:
    data = load(tmp_path, "label", path=numbered(50), split={"labeled": 7, "unlabeled": 20, "test": 5})
    assert (len(data.labeled), len(data.unlabeled), len(data.test), data.counts.not_drawn) == (7, 20, 5, 18)
    with pytest.raises(DataError, match="asks for 90 rows"):
        load(tmp_path, "label", path=numbered(50), split={"labeled": 40, "unlabeled": 40, "test": 10})


def test_load_examples_split_keeps_every_class_among_the_labeled(tmp_path: Path) -> None:
    data = load(tmp_path, "label", path=numbered(60, 20), split={"labeled": 0.34, "unlabeled": 0.33, "test": 0.33})
    assert len(data.facts.labels) == 20


def test_load_examples_split_keeps_groups_whole(tmp_path: Path) -> None:
    rows = [json.loads(line) | {"group": i // 5} for i, line in enumerate(numbered(100))]
    data = load(tmp_path, "label", path=jsonl(*rows))
    groups = [{row.group for row in part} for part in (data.labeled, data.unlabeled, data.test)]
    assert sum(len(part) for part in groups) == 20
    assert [len(part) for part in groups] == [4, 12, 4]


def test_load_examples_split_puts_rows_without_target_among_the_unlabeled(tmp_path: Path) -> None:
    rows = [json.loads(line) for line in numbered(30)]
    for row in rows[10:]:
        row["label"] = ""
    data = load(tmp_path, "label", path=jsonl(*rows), split={"labeled": 0.3, "unlabeled": 0.4, "test": 0.3})
    assert (len(data.labeled), len(data.unlabeled), len(data.test), len(data.gold)) == (5, 20, 5, 0)


def test_load_examples_split_drops_duplicates_first(tmp_path: Path) -> None:
    data = load(tmp_path, "label", path=[*numbered(20), *numbered(20)])
    assert (data.counts.read, data.counts.duplicate, data.counts.kept) == (40, 20, 20)
    assert {duplicate.split for duplicate in data.duplicates} == {None}


def test_load_examples_draws_in_order_and_stratified(tmp_path: Path) -> None:
    labeled = jsonl(*({"text": f"q{i}", "label": "rare" if i == 7 else "common"} for i in range(40)))
    unlabeled = jsonl(*({"text": f"u{i}"} for i in range(40)))
    data = load(tmp_path, "label", labeled=labeled, unlabeled=unlabeled, max_labeled=4, max_unlabeled=10)
    assert data.target_counts["labeled"] == {"common": 3, "rare": 1}
    numbers = [int(row.question[1:]) for row in data.unlabeled]
    assert numbers == sorted(numbers)
    assert (len(numbers), data.counts.not_drawn) == (10, 66)


def test_load_examples_says_where_fewer_rows_are_there_than_asked_for(tmp_path: Path) -> None:
    unlabeled = jsonl(*({"text": f"u{i}"} for i in range(40)))
    data = load(tmp_path, "label", labeled=numbered(30), unlabeled=unlabeled, max_labeled=31, max_unlabeled=40)
    assert (len(data.labeled), len(data.unlabeled)) == (30, 40)
    assert data.notes == ("data.max_labeled asks for 31 labelled rows, but there are 30: all are used",)


def test_load_examples_says_how_many_test_rows_repeat_another(tmp_path: Path) -> None:
    test = jsonl(*({"text": f"row {i % 3}", "label": "k1"} for i in range(5)))
    unlabeled = jsonl(*({"text": f"u{i}"} for i in range(40)))
    data = load(tmp_path, "label", labeled=numbered(30), unlabeled=unlabeled, test=test)
    assert len(data.test) == 5
    assert data.duplicates == ()
    (note,) = data.notes
    assert note.startswith("2 of 5 test rows repeat another test row (")


def test_load_examples_max_rows_limits_each_file(tmp_path: Path) -> None:
    unlabeled = jsonl(*({"text": f"u{i}"} for i in range(40)))
    data = load(tmp_path, "label", labeled=numbered(30), unlabeled=unlabeled, max_rows=9)
    assert (len(data.labeled), len(data.unlabeled)) == (9, 9)


@pytest.mark.parametrize("seed", range(3))
def test_load_examples_every_row_ends_in_one_place(tmp_path: Path, seed: int) -> None:
    rows = [json.loads(line) | {"id": f"r{i}", "group": f"g{i // 3}"} for i, line in enumerate(numbered(120))]
    for row in rows[::7]:
        row["label"] = ""
    rows[5]["text"] = rows[6]["text"]
    rows[50]["text"] = ""
    split = {"labeled": 20, "unlabeled": 60, "test": 20}
    limits = {"max_rows": 110, "max_labeled": 15, "max_unlabeled": 40, "max_bad_fraction": 0.5}
    data = load(tmp_path, "label", path=jsonl(*rows), split=split, seed=seed, **limits)
    used = [row.id for row in (*data.labeled, *data.unlabeled, *data.test)]
    left_out = {row.id: row.reason for row in data.not_drawn}
    dropped = [row.id for row in data.duplicates]
    bad = [f"r{row.line - 1}" for row in data.rejected]
    assert sorted([*used, *left_out, *dropped, *bad]) == sorted(row["id"] for row in rows)
    assert len(data.not_drawn) == len(left_out) == data.counts.not_drawn
    assert all(row.line == int(row.id[1:]) + 1 for row in data.not_drawn)
    counts = Counter(left_out.values())
    in_test = {row.group for row in data.test}
    group_of = {row["id"]: row["group"] for row in rows}
    for_group = [row_id for row_id, reason in left_out.items() if reason == "rows of its group are in test"]
    assert all(group_of[row_id] in in_test for row_id in for_group)
    assert counts["data.max_rows"] == 120 - len(bad) - 110
    assert set(counts) >= {"data.max_rows", "data.max_labeled", "data.max_unlabeled", "data.split"}


def test_load_examples_numbers_and_gsm8k_answers(tmp_path: Path) -> None:
    labeled = jsonl({"question": "one", "answer": "So 40 + 2.\n#### 42"}, {"question": "two", "answer": 7.0})
    data = load(tmp_path, "number", labeled=labeled, unlabeled=jsonl({"question": "three", "answer": "unclear"}))
    assert [row.target for row in data.labeled] == ["42", "7"]
    assert data.gold == ()
