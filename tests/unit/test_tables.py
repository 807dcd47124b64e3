import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from semievol.errors import DataError
from semievol.tables import read_table
from semievol.types import BadRow, RawRow


def write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def read(path: Path, content: str | bytes) -> list[RawRow | BadRow]:
    return list(read_table(write(path, content)))


def test_read_table_csv_gives_lines_and_values(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.csv", "q, a\none,1\ntwo,2\n")
    assert rows == [RawRow(2, {"q": "one", "a": "1"}), RawRow(3, {"q": "two", "a": "2"})]


def test_read_table_csv_line_is_where_a_quoted_record_starts(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.csv", 'q,a\n"one\nmore\n",1\n\ntwo,2\n')
    assert [row.line for row in rows] == [2, 6]
    assert rows[0].values["q"] == "one\nmore\n"


def test_read_table_csv_accepts_bom_and_crlf(tmp_path: Path) -> None:
    assert read(tmp_path / "a.csv", b"\xef\xbb\xbfq,a\r\none,1\r\n") == [RawRow(2, {"q": "one", "a": "1"})]


def test_read_table_csv_undecodable_line_is_one_bad_row(tmp_path: Path) -> None:
    good, bad, last = read(tmp_path / "a.csv", b"q,a\none,1\ncaf\xe9,2\nthree,3\n")
    assert (good.line, last.line) == (2, 4)
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.field, bad.value, bad.reason) == (3, "q", "caf\\xe9", "not UTF-8 text")


def test_read_table_csv_nul_byte_is_a_bad_row(tmp_path: Path) -> None:
    bad, good = read(tmp_path / "a.csv", b"q,a\non\0e,1\ntwo,2\n")
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.field, bad.reason) == (2, "q", "a NUL byte")
    assert isinstance(good, RawRow)


@pytest.mark.parametrize(("line", "n"), [("one", 1), ("one,1,extra", 3)])
def test_read_table_csv_uneven_row_is_bad(tmp_path: Path, line: str, n: int) -> None:
    bad, good = read(tmp_path / "a.csv", f"q,a\n{line}\ntwo,2\n")
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.field, bad.value) == (2, "row", f"{n} fields")
    assert good == RawRow(3, {"q": "two", "a": "2"})


def test_read_table_csv_unclosed_quote_is_named_by_its_first_line(tmp_path: Path) -> None:
    good, bad, last = read(tmp_path / "a.csv", 'q,a\none,1\n"two,2\nthree,3\n')
    assert (good, last) == (RawRow(2, {"q": "one", "a": "1"}), RawRow(4, {"q": "three", "a": "3"}))
    assert isinstance(bad, BadRow)
    assert bad.line == 3
    assert "unclosed quote at line 3" in bad.reason


def test_read_table_csv_accepts_huge_fields(tmp_path: Path) -> None:
    (row,) = read(tmp_path / "a.csv", f"q,a\n{'x' * 300_000},1\n")
    assert len(row.values["q"]) == 300_000


@pytest.mark.parametrize(("name", "text"), [("a.tsv", "q\ta\none\t1\n"), ("a.csv", "q;a\none;1\n")])
def test_read_table_csv_other_delimiters(tmp_path: Path, name: str, text: str) -> None:
    assert read(tmp_path / name, text) == [RawRow(2, {"q": "one", "a": "1"})]


def test_read_table_csv_repeated_column_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="column 'q' stands twice"):
        read(tmp_path / "a.csv", "q,q\n1,2\n")


@pytest.mark.parametrize("content", ["", "\n\n", "q,a\n"])
def test_read_table_without_rows_raises(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match=r"a\.csv: (is empty|has no rows)"):
        read(tmp_path / "a.csv", content)


def test_read_table_utf16_raises_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"UTF-16 text; save it as UTF-8"):
        read(tmp_path / "a.csv", "q,a\n1,2\n".encode("utf-16"))


def test_read_table_missing_file_suggests_a_near_name(tmp_path: Path) -> None:
    write(tmp_path / "labeled.csv", "q\n1\n")
    with pytest.raises(DataError, match=r"no such file; did you mean .*labeled\.csv"):
        list(read_table(str(tmp_path / "labelled.csv")))


def test_read_table_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the folder .*nowhere is not there either"):
        list(read_table(str(tmp_path / "nowhere" / "a.csv")))


def test_read_table_jsonl_skips_blank_lines(tmp_path: Path) -> None:
    rows = read(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"q": "one"}\n\n{"q": "two"}\n')
    assert rows == [RawRow(1, {"q": "one"}), RawRow(3, {"q": "two"})]


def test_read_table_jsonl_faults_are_bad_rows(tmp_path: Path) -> None:
    lines = [b'{"q": 1}', b'{"q": }', b"[1]", b'{"q": "\xff"}', b"[" * 100_000]
    good, *bad = read(tmp_path / "a.jsonl", b"\n".join(lines))
    assert isinstance(good, RawRow)
    assert all(isinstance(row, BadRow) for row in bad)
    assert [row.line for row in bad] == [2, 3, 4, 5]
    assert "column 7" in bad[0].reason
    assert "not an object" in bad[1].reason
    assert "not UTF-8 text at byte 8" in bad[2].reason


def test_read_table_json_array(tmp_path: Path) -> None:
    assert read(tmp_path / "a.json", json.dumps([{"q": "one"}, {"q": "two"}])) == [
        RawRow(1, {"q": "one"}),
        RawRow(2, {"q": "two"}),
    ]


def test_read_table_unknown_ending_is_sniffed(tmp_path: Path) -> None:
    assert read(tmp_path / "a.data", '{"q": "one"}\n') == [RawRow(1, {"q": "one"})]
    assert read(tmp_path / "b.data", "q,a\none,1\n") == [RawRow(2, {"q": "one", "a": "1"})]


def test_read_table_unknown_format_lists_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no known format; formats: CSV"):
        read(tmp_path / "a.docx", b"PK\x03\x04\0\0, things")


def test_read_table_parquet_over_several_batches(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"q": [f"q{i}" for i in range(3000)], "options": [["a", "b"]] * 3000}), path)
    rows = list(read_table(str(path)))
    assert len(rows) == 3000
    assert rows[2999] == RawRow(3000, {"q": "q2999", "options": ["a", "b"]})


def test_read_table_parquet_undecodable_cell_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    broken = pa.array([b"one", b"caf\xe9", b"three"]).view(pa.string())
    pq.write_table(pa.table({"q": broken}), path)
    first, bad, last = read_table(str(path))
    assert (first, last) == (RawRow(1, {"q": "one"}), RawRow(3, {"q": "three"}))
    assert isinstance(bad, BadRow)
    assert (bad.line, bad.field, bad.value) == (2, "q", "caf\\xe9")


def test_read_table_broken_parquet_raises(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a Parquet file"):
        read(tmp_path / "a.parquet", b"PAR1 but nothing else")


def test_read_table_saved_dataset_turns_class_labels_into_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    rows = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [1, 0, -1]}, features=features)
    datasets.DatasetDict({"train": rows}).save_to_disk(str(tmp_path / "saved"))
    assert [row.values["label"] for row in read_table(str(tmp_path / "saved"))] == ["yes", "no", None]
    assert len(list(read_table(f"{tmp_path / 'saved'}:train", hub_split="test"))) == 3
    with pytest.raises(DataError, match=r"no split 'trian'; did you mean .*saved:train"):
        list(read_table(f"{tmp_path / 'saved'}:trian"))


def test_read_table_plain_folder_lists_its_tables(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", "q\n1\n")
    with pytest.raises(DataError, match=r"give one of its files: a\.csv"):
        list(read_table(str(tmp_path)))
