"""No row is lost, misread or unsealed without a word on the way from a table to the examples of a run."""

import csv
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from semievol import pipeline
from semievol.artifacts import file_hash
from semievol.config import parse_config
from semievol.errors import DataError
from semievol.evaluating import EvaluateSummary, evaluate_file
from semievol.loading import LoadedData, load_examples
from semievol.stage import SilentReporter, StageContext
from semievol.stages.data import input_files
from semievol.tables import read_table
from semievol.types import BadRow, RawRow

FAKE: dict[str, Any] = {"generator": {"type": "fake"}, "trainer": {"type": "fake"}, "embedder": {"type": "fake"}}


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def load(task: str = "choice", **data: Any) -> LoadedData:
    return load_examples(parse_config({"task": {"type": task}, "data": data}))


def choice(question: str, answer: Any, options: list[str] | None = None) -> dict[str, Any]:
    return {"question": question, "options": options or ["yes", "no", "maybe"], "answer": answer}


def read_csv(folder: Path, text: str) -> list[RawRow | BadRow]:
    path = folder / "table.csv"
    path.write_text(text, newline="")
    return list(read_table(str(path)))


# targets of unlabelled rows stay sealed


def test_notes_quote_no_target_of_an_unlabelled_row(tmp_path: Path) -> None:
    labeled = write(tmp_path / "l.jsonl", choice("one", "B"), choice("two", "A"))
    unlabeled = write(tmp_path / "u.jsonl", choice("three", "3"), choice("four", "A"))
    data = load(labeled=labeled, unlabeled=unlabeled)
    assert [gold.target for gold in data.gold] == ["C", "A"]
    assert f"{unlabeled}: 1 digit answers read as letters" in data.notes


def test_notes_about_one_file_quote_no_target_either(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", *(choice(f"row number {i}", str(1 + i % 3)) for i in range(30)))
    assert f"{path}: 30 digit answers read as letters" in load(path=path).notes


def test_notes_quote_the_first_target_of_labelled_rows(tmp_path: Path) -> None:
    labeled = write(tmp_path / "l.jsonl", choice("one", "3"))
    unlabeled = write(tmp_path / "u.jsonl", choice("three", None))
    assert any(
        "(first: digit answer '3' read as C)" in note for note in load(labeled=labeled, unlabeled=unlabeled).notes
    )


@pytest.mark.parametrize(("name", "shown"), [("unlabeled", ""), ("labeled", "SECRET caf\\xe9")])
def test_rejected_rows_show_no_unlabelled_target(tmp_path: Path, name: str, shown: str) -> None:
    files = {"labeled": b"question,answer\none,a\ntwo,b\n", "unlabeled": b"question,answer\nthree,a\nfour,b\n"}
    files[name] += b"five,SECRET caf\xe9\n"
    paths = {}
    for key, content in files.items():
        (tmp_path / f"{key}.csv").write_bytes(content)
        paths[key] = str(tmp_path / f"{key}.csv")
    (rejected,) = load("label", **paths, max_bad_fraction=0.5).rejected
    assert (rejected.line, rejected.field, rejected.value, rejected.reason) == (4, "answer", shown, "not UTF-8 text")


def test_a_broken_json_line_of_an_unlabelled_file_is_not_quoted(tmp_path: Path) -> None:
    labeled = write(tmp_path / "l.jsonl", {"text": "one", "label": "a"})
    unlabeled = tmp_path / "u.jsonl"
    unlabeled.write_text('{"text": "two"}\n{"text": "three", "label": "SECRET"\n')
    data = load("label", labeled=labeled, unlabeled=str(unlabeled), max_bad_fraction=0.5)
    assert "SECRET" not in repr(data.rejected)
    assert data.rejected[0].line == 2


def test_a_fault_in_the_question_of_an_unlabelled_row_is_shown(tmp_path: Path) -> None:
    labeled = write(tmp_path / "l.jsonl", {"text": "one", "label": "a"})
    unlabeled = write(tmp_path / "u.jsonl", {"text": "two"}, {"text": ["x"]})
    data = load("label", labeled=labeled, unlabeled=unlabeled, max_bad_fraction=0.5)
    assert data.rejected[0].value == "['x']"


def test_rows_of_one_file_in_conflict_are_counted_without_their_names(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "text": f"what is word{i // 2}", "label": "ab"[i % 2]} for i in range(60)]
    data = load("label", path=write(tmp_path / "all.jsonl", *rows), duplicates="keep")
    (note,) = [note for note in data.notes if "repeat" in note]
    assert note == "30 rows with a target repeat a row that has another one"


# one stray quote costs one row


def test_csv_goes_on_behind_an_unclosed_quote(tmp_path: Path) -> None:
    lines = ["id,question,answer", *(f"{i},where is {i},A" for i in range(1000))]
    lines[10] = '9,"where is 9,A'
    rows = read_csv(tmp_path, "\n".join(lines) + "\n")
    assert [row.line for row in rows] == list(range(2, 1002))
    (bad,) = [row for row in rows if isinstance(row, BadRow)]
    assert (bad.line, bad.field) == (11, "row")
    assert "unclosed quote at line 11" in bad.reason
    assert '("")' in bad.remedy


def test_csv_goes_on_where_a_later_quote_ends_the_swallowing(tmp_path: Path) -> None:
    text = 'q,a\none,"1\ntwo,2\nthree,"3, 3"\n"four\n4",4\nfive,5\n'
    rows = read_csv(tmp_path, text)
    assert [row.line for row in rows if isinstance(row, BadRow)] == [2]
    assert rows[1:] == [
        RawRow(3, {"q": "two", "a": "2"}),
        RawRow(4, {"q": "three", "a": "3, 3"}),
        RawRow(5, {"q": "four\n4", "a": "4"}),
        RawRow(7, {"q": "five", "a": "5"}),
    ]


def test_csv_names_each_of_several_unclosed_quotes(tmp_path: Path) -> None:
    rows = read_csv(tmp_path, 'q,a\n"one,1\ntwo,2\n"three,3\nfour,4\n')
    assert [(row.line, isinstance(row, BadRow)) for row in rows] == [(2, True), (3, False), (4, True), (5, False)]


def test_csv_reads_rows_that_a_wrong_record_swallowed(tmp_path: Path) -> None:
    rows = read_csv(tmp_path, 'q,a,b\nzero,1,"one\ntwo,2,x\nthree,"",y\nfour,4,z\n')
    assert [row.line for row in rows if isinstance(row, RawRow)] == [3, 4, 5]


def test_csv_end_of_a_broken_text_makes_no_row(tmp_path: Path) -> None:
    rows = read_csv(tmp_path, 'q,a\n"one\nmore"x,1\ntwo,2\n')
    assert rows[-1] == RawRow(4, {"q": "two", "a": "2"})
    assert all(isinstance(row, BadRow) for row in rows[:-1])


def test_csv_multi_line_record_with_too_many_fields_is_one_bad_row(tmp_path: Path) -> None:
    bad, good = read_csv(tmp_path, 'q,a\n"one\nmore",1,extra\ntwo,2\n')
    assert isinstance(bad, BadRow)
    assert (bad.value, good) == ("3 fields", RawRow(4, {"q": "two", "a": "2"}))


@pytest.mark.parametrize(
    ("name", "lines", "bad"),
    [
        ("a.csv", ["id,q,a", '1,"foo,A', "2,bar,B", '3,TV 42",C', "4,z,A"], [2, 4]),
        ("a.csv", ["id,q,a", '1,"foo,A', '2,"",B', "3,bar,C", '4,"x, y",C'], [2]),
        ("a.csv", ["id,q,a", '"0",foo,"A', "1,bar,B", '2,x,TV 42"', "3,z,A"], [2, 4]),
        ("a.tsv", ["q\ta", '"foo\tA', '42"\tB', "z\tA"], [2, 3]),
    ],
)
def test_csv_a_later_quote_of_the_same_column_swallows_nothing(
    tmp_path: Path, name: str, lines: list[str], bad: list[int]
) -> None:
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    rows = list(read_table(str(tmp_path / name)))
    assert [row.line for row in rows] == list(range(2, len(lines) + 1))
    assert [row.line for row in rows if isinstance(row, BadRow)] == bad


@pytest.mark.parametrize("text", ["Dear Sir,\nI am, as ever, yours", "a, b\nc, d\ne, f\ng, h\ni", "1\n2\n3\n4,"])
def test_csv_lines_of_a_text_are_no_rows(tmp_path: Path, text: str) -> None:
    rows = read_csv(tmp_path, f'q,a\n"{text}",A\nz,B\n')
    assert [row.values for row in rows if isinstance(row, RawRow)] == [{"q": text, "a": "A"}, {"q": "z", "a": "B"}]
    assert not any(row.doubt for row in rows if isinstance(row, RawRow))


def test_csv_a_text_that_may_be_rows_is_read_and_noted(tmp_path: Path) -> None:
    path = tmp_path / "l.csv"
    path.write_text('text,label\n"where is it,a\nTV 42",b\nwhat is it,a\nwho is it,b\n')
    unlabeled = write(tmp_path / "u.jsonl", {"text": "where"})
    data = load("label", labeled=str(path), unlabeled=unlabeled)
    assert [row.question for row in data.labeled] == ["where is it,a\nTV 42", "what is it", "who is it"]
    (note,) = [note for note in data.notes if "looks like a row" in note]
    assert note.startswith(f"{path}, line 2, one quoted field goes on to line 3")


def test_csv_a_row_without_its_last_field_makes_no_row_of_its_text(tmp_path: Path) -> None:
    bad, good = read_csv(tmp_path, 'q,a\n"Hello, world\nfirst, second\nend"\nq2,a2\n')
    assert isinstance(bad, BadRow)
    assert (bad.value, good) == ("1 fields", RawRow(5, {"q": "q2", "a": "a2"}))


def test_csv_lines_that_lost_their_outer_quotes_are_not_each_read_to_the_end(tmp_path: Path) -> None:
    n = 20_000
    # a scan to the end of the file for each row would give it up
    rows = read_csv(tmp_path, "id,text,label\n" + '7","some text","lab\n' * n)
    assert len(rows) == n
    assert all(isinstance(row, BadRow) for row in rows)


def test_csv_quotes_that_nothing_closes_give_the_file_up(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"table\.csv, line \d+: so many rows open a quote"):
        read_csv(tmp_path, "text\n" + '7","some text","lab\n' * 3000)


cells = st.text(st.sampled_from('ab ",\n\u00e9'), max_size=6)


@given(st.lists(st.tuples(cells, cells), min_size=1, max_size=8), st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]))
def test_csv_well_formed_rows_come_back_whole(
    tmp_path_factory: pytest.TempPathFactory, table: list[tuple[str, str]], quoting: Any
) -> None:
    stream = io.StringIO()
    csv.writer(stream, quoting=quoting).writerows([("q", "a"), *table])
    rows = read_csv(tmp_path_factory.mktemp("csv"), stream.getvalue())
    assert [tuple(row.values.values()) for row in rows if isinstance(row, RawRow)] == table


@given(st.lists(st.sampled_from(["x,1", '"x, y",1', '"x,1', 'x,"1', '"x ""y"" z",1', "x"]), min_size=1, max_size=12))
def test_csv_every_line_is_told_about(tmp_path_factory: pytest.TempPathFactory, lines: list[str]) -> None:
    rows = read_csv(tmp_path_factory.mktemp("csv"), "\n".join(["q,a", *lines]))
    told = [row.line + i for row in rows for i in range(1 + str(getattr(row, "values", "")).count("\\n"))]
    assert told == list(range(2, len(lines) + 2))


# a table is measured once


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    def make(answers: str = "ABC", test: list[dict[str, Any]] | None = None) -> Path:
        folder = tmp_path_factory.mktemp("run")

        def rows(first: int, n: int) -> list[dict[str, Any]]:
            return [
                choice(f"case {i * 7919} {i % 11} #{'ABC'[i % 3]}", answers[i % 3]) for i in range(first, first + n)
            ]

        data = {
            "labeled": write(folder / "labeled.jsonl", *rows(0, 24)),
            "unlabeled": write(folder / "unlabeled.jsonl", *rows(1000, 48)),
            "test": write(folder / "test.jsonl", *rows(2000, 24)),
            "max_bad_fraction": 0.3,
        }
        pipeline.run(parse_config({"data": data, "output_dir": str(folder / "run"), **FAKE}), until_stage="evaluate")
        return folder / "run"

    return make


@pytest.fixture(scope="module")
def run_path(make_run: Callable[..., Path]) -> Path:
    return make_run()


def measure(run_path: Path, test: str) -> EvaluateSummary:
    return evaluate_file(str(run_path), test, reporter=SilentReporter())


def show(summary: EvaluateSummary) -> str:
    console = Console(width=200)
    with console.capture() as captured:
        console.print(summary.render())
    return captured.get()


def test_evaluate_says_once_which_rows_it_left_out(run_path: Path, tmp_path: Path) -> None:
    good = [choice(f"case {i} #A", "A") for i in range(4)]
    summary = measure(run_path, write(tmp_path / "t.jsonl", *good, choice("five #A", "nonsense")))
    assert (summary.result.n, summary.n_rejected) == (4, 1)
    text = show(summary)
    assert "1 of 5 rows cannot be used and were left out" in text
    assert text.count("line 5") == 1


def test_evaluate_counts_bad_rows_once_and_names_no_override(run_path: Path, tmp_path: Path) -> None:
    rows = [choice("one #A", "A"), choice("two #A", "nonsense"), choice("three #A", "A")]
    with pytest.raises(DataError) as caught:
        measure(run_path, write(tmp_path / "t.jsonl", *rows))
    text = str(caught.value)
    assert text.startswith("1 of 3 rows cannot be used (data.max_bad_fraction of the run or config allows 0.3)")
    assert text.count("t.jsonl") == 1
    assert "rejected.jsonl" not in text
    assert "data.max_bad_fraction=" not in text


def test_evaluate_takes_the_options_of_the_run_for_a_table_without(run_path: Path, tmp_path: Path) -> None:
    rows = [choice(f"case {i} #{'ABC'[i % 3]}", "ABC"[i % 3]) for i in range(6)]
    whole = measure(run_path, write(tmp_path / "whole.jsonl", *rows))
    plain = [{k: v for k, v in row.items() if k != "options"} for row in rows]
    plain[0]["answer"] = "yes"
    summary = measure(run_path, write(tmp_path / "plain.jsonl", *plain))
    assert (summary.result.value, summary.result.n) == (whole.result.value, 6)
    assert any("has no options; those of the run are used: yes, no, maybe" in note for note in summary.notes)


def test_evaluate_counts_from_zero_as_the_run_does(make_run: Callable[..., Path], tmp_path: Path) -> None:
    run_path = make_run(answers="012")
    rows = [choice(f"case {i} #{'BC'[i % 2]}", "12"[i % 2]) for i in range(8)]
    letters = [row | {"answer": "BC"[i % 2]} for i, row in enumerate(rows)]
    numbered, lettered = (
        measure(run_path, write(tmp_path / f"{name}.jsonl", *table))
        for name, table in (("numbers", rows), ("letters", letters))
    )
    assert numbered.result.value == lettered.result.value


# one file without some of its targets


def one_file(folder: Path, n: int, without: set[int], groups: int | None = None) -> str:
    rows = [{"text": f"alpha{i} beta{i} gamma{i}", "label": "" if i in without else f"k{i % 2}"} for i in range(n)]
    named = [row | ({} if groups is None else {"group": f"g{i // groups}"}) for i, row in enumerate(rows)]
    return write(folder / "one.jsonl", *named)


def test_one_missing_target_leaves_the_split_as_asked(tmp_path: Path) -> None:
    path = one_file(tmp_path, 1000, {77})
    data = load("label", path=path)
    assert (len(data.labeled), len(data.unlabeled), len(data.test), len(data.gold)) == (200, 600, 200, 599)
    assert {row.target for row in data.unlabeled} == {None}
    assert (
        f"{path}: 1 rows have no target: 1 are among the unlabelled rows, with 599 whose target is sealed" in data.notes
    )


def test_missing_targets_that_reach_the_share_are_the_unlabelled_rows(tmp_path: Path) -> None:
    path = one_file(tmp_path, 100, set(range(60)))
    data = load("label", path=path)
    assert (len(data.labeled), len(data.unlabeled), len(data.test), len(data.gold)) == (20, 60, 20, 0)
    assert f"{path}: 60 rows have no target: 60 are among the unlabelled rows" in data.notes


@pytest.mark.parametrize("n_without", [1, 7, 30, 59, 60, 61, 90])
def test_missing_targets_lose_no_row(tmp_path: Path, n_without: int) -> None:
    data = load("label", path=one_file(tmp_path, 100, set(range(n_without))))
    assert len(data.labeled) + len(data.unlabeled) + len(data.test) == 100
    assert len(data.unlabeled) == max(60, n_without)


def test_rows_without_target_that_are_not_drawn_are_noted(tmp_path: Path) -> None:
    path = one_file(tmp_path, 50, set(range(30)))
    data = load("label", path=path, split={"labeled": 5, "unlabeled": 20, "test": 5})
    assert f"{path}: 30 rows have no target: 20 are among the unlabelled rows, 10 were not drawn" in data.notes


def test_rows_left_out_for_their_group_are_noted(tmp_path: Path) -> None:
    path = one_file(tmp_path, 100, set(range(0, 100, 5)), groups=5)
    data = load("label", path=path)
    tested = {row.group for row in data.test}
    n_left_out = len(tested)  # one row of each group has no target
    assert (data.counts.not_drawn, n_left_out > 0) == (n_left_out, True)
    (note,) = [note for note in data.notes if "have no target" in note]
    assert f"{n_left_out} were left out, as rows of their group are in test" in note


# numbers that are options


@pytest.mark.parametrize("answers", [("2", "0"), ("0", "1")])
def test_a_target_that_is_an_option_is_no_position(tmp_path: Path, answers: tuple[str, str]) -> None:
    options = ["1", "2", "0"]
    labeled = write(tmp_path / "l.jsonl", *(choice(f"row {i}", a, options) for i, a in enumerate(answers)))
    unlabeled = write(tmp_path / "u.jsonl", choice("three", None, options))
    data = load(labeled=labeled, unlabeled=unlabeled)
    assert [row.choices["ABC".index(row.target or "")] for row in data.labeled] == list(answers)
    assert not any("count from 0" in note for note in data.notes)


def test_positions_from_zero_stay_so_beside_an_option_that_is_a_number(tmp_path: Path) -> None:
    rows = [choice("one", "0"), choice("two", "2"), choice("three", "1", ["1", "2", "3"])]
    labeled, unlabeled = write(tmp_path / "l.jsonl", *rows), write(tmp_path / "u.jsonl", choice("four", None))
    assert [row.target for row in load(labeled=labeled, unlabeled=unlabeled).labeled] == ["A", "C", "B"]


# what cannot be read twice


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "rows.csv")
    with pytest.raises(DataError, match=r"rows\.csv: is a pipe; save it to a file first"):
        read_table(str(tmp_path / "rows.csv"))


def test_process_substitution_is_refused() -> None:
    end, other = os.pipe()
    try:
        with pytest.raises(DataError, match=r"/dev/fd/\d+: is a pipe; save it"):
            read_table(f"/dev/fd/{end}")
    finally:
        os.close(end)
        os.close(other)


def test_devices_and_standard_input_are_refused() -> None:
    with pytest.raises(DataError, match=r"/dev/null: is no regular file; save it"):
        read_table("/dev/null")
    with pytest.raises(DataError, match=r"-: rows are not read from standard input; save them to a file first"):
        read_table("-")


# changed data is noticed


def fingerprint(labeled: str, unlabeled: str) -> list[Any]:
    config = parse_config({"data": {"labeled": labeled, "unlabeled": unlabeled}})
    return input_files(cast(StageContext, SimpleNamespace(config=config)))


def test_the_fingerprint_of_a_plain_file_is_its_path_and_hash(tmp_path: Path) -> None:
    path = write(tmp_path / "l.jsonl", {"a": 1})
    assert fingerprint(path, "org/name") == [0, [path, file_hash(Path(path))], ["org/name", None]]


def test_a_change_in_the_home_folder_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path / "l.jsonl", {"a": 1})
    before = fingerprint("~/l.jsonl", "org/name")
    assert before[1] == ["~/l.jsonl", file_hash(tmp_path / "l.jsonl")]
    write(tmp_path / "l.jsonl", {"a": 1}, {"a": 2})
    assert fingerprint("~/l.jsonl", "org/name") != before


@pytest.mark.parametrize("suffix", ["", ":train"])
def test_a_change_in_a_saved_dataset_is_noticed(tmp_path: Path, suffix: str) -> None:
    saved = tmp_path / "saved"
    (saved / "train").mkdir(parents=True)
    (saved / "dataset_dict.json").write_text("{}")
    (saved / "train" / "data.arrow").write_bytes(b"one")
    before = fingerprint(f"{saved}{suffix}", "org/name")
    (saved / "train" / "cache-12ab.arrow").write_bytes(b"left by the library")
    (saved / ".DS_Store").write_bytes(b"left by a file manager")
    (saved / "run" / "data").mkdir(parents=True)
    (saved / "run" / "data" / "labeled.jsonl").write_text("{}")
    assert fingerprint(f"{saved}{suffix}", "org/name") == before
    (saved / "train" / "data.arrow").write_bytes(b"other")
    after = fingerprint(f"{saved}{suffix}", "org/name")
    assert after != before
    (saved / "train" / "data.arrow").rename(saved / "train" / "renamed.arrow")
    assert fingerprint(f"{saved}{suffix}", "org/name") != after


def test_a_folder_that_is_no_dataset_is_not_hashed(tmp_path: Path) -> None:
    (tmp_path / "huge.bin").write_bytes(b"x")
    assert fingerprint(str(tmp_path), "org/name")[1] == [str(tmp_path), None]
