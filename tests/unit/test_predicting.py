"""New rows answered by the model of a run, and a model measured on a table."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from semievol import pipeline
from semievol.answered import open_writer
from semievol.config import parse_config
from semievol.errors import ArtifactError, ConfigError, DataError
from semievol.evaluating import evaluate_file
from semievol.predicting import PredictSummary, predict_file
from semievol.stage import SilentReporter

FAKE: dict[str, Any] = {"generator": {"type": "fake"}, "trainer": {"type": "fake"}, "embedder": {"type": "fake"}}
TOPICS = ["card", "refund", "parcel", "order", "invoice", "street", "phone", "garden", "window", "letter", "engine"]
OPTIONS = ["yes", "no", "maybe"]


def question(i: int) -> str:
    words = [TOPICS[(i * (j + 3) + j) % len(TOPICS)] for j in range(6)]
    return f"{' '.join(words)} case {i * 7919} #{'ABC'[i % 3]}"


def rows(n: int, *, first: int = 0, target: bool = True) -> list[dict[str, Any]]:
    found = []
    for i in range(first, first + n):
        row = {"key": i, "question": question(i), "options": OPTIONS, "gold": "ABC"[i % 3]}
        found.append(row if target else {k: v for k, v in row.items() if k != "gold"})
    return found


def write_jsonl(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def run_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predicting")
    data: dict[str, Any] = {
        "labeled": str(write_jsonl(folder / "labeled.jsonl", rows(24))),
        "unlabeled": str(write_jsonl(folder / "unlabeled.jsonl", rows(48, first=1000))),
        "test": str(write_jsonl(folder / "test.jsonl", rows(24, first=2000))),
        "columns": {"target": "gold"},
    }
    config = parse_config({"data": data, "output_dir": str(folder / "run"), **FAKE})
    pipeline.run(config, until_stage="evaluate")
    return folder / "run"


def predict(run_path: Path, source: Path, output: Path, abstain_below: float | None = None) -> PredictSummary:
    return predict_file(run_path, str(source), output, abstain_below=abstain_below, reporter=SilentReporter())


def test_every_row_comes_back_in_order_with_its_columns(run_path: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "new.jsonl", rows(700, first=5000, target=False))
    summary = predict(run_path, source, tmp_path / "out.jsonl")
    found = read_jsonl(tmp_path / "out.jsonl")
    assert [row["key"] for row in found] == list(range(5000, 5700))
    assert summary.n_rows == summary.n_answered == 700
    assert found[0]["options"] == OPTIONS
    assert all(row["answer_text"] == OPTIONS["ABC".index(row["answer"])] for row in found)
    assert all(0 <= row["confidence"] <= 1 and row["entropy"] >= 0 for row in found)


def test_the_evolved_model_of_the_run_answers(run_path: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "new.jsonl", rows(24, first=2000, target=False))
    predict(run_path, source, tmp_path / "out.jsonl")
    stored = [json.loads(x) for x in (run_path / "evaluate/predictions_semievol.jsonl").read_text().splitlines()]
    assert [row["answer"] for row in read_jsonl(tmp_path / "out.jsonl")] == [row["answer"] for row in stored]


@pytest.mark.parametrize("ending", ["csv", "tsv", "parquet"])
def test_formats_hold_the_same_answers(run_path: Path, tmp_path: Path, ending: str) -> None:
    source = write_jsonl(tmp_path / "new.jsonl", rows(6, first=5000, target=False))
    predict(run_path, source, tmp_path / "out.jsonl")
    predict(run_path, source, tmp_path / f"out.{ending}")
    wanted = [row["answer"] for row in read_jsonl(tmp_path / "out.jsonl")]
    if ending == "parquet":
        import pyarrow.parquet as pq

        table = pq.read_table(tmp_path / "out.parquet").to_pylist()
        assert table[0]["options"] == OPTIONS
    else:
        with (tmp_path / f"out.{ending}").open(newline="") as stream:
            table = list(csv.DictReader(stream, delimiter="\t" if ending == "tsv" else ","))
        assert json.loads(table[0]["options"]) == OPTIONS
    assert [row["answer"] for row in table] == wanted


def test_unsure_answers_are_left_empty_and_counted(run_path: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "new.jsonl", rows(60, first=5000, target=False))
    summary = predict(run_path, source, tmp_path / "out.jsonl", abstain_below=0.8)
    found = read_jsonl(tmp_path / "out.jsonl")
    unsure = [row for row in found if row["confidence"] < 0.8]
    assert 0 < len(unsure) < 60
    assert summary.n_abstained == len(unsure)
    assert all(row["answer"] is None and row["abstained"] is True for row in unsure)
    assert summary.n_answered + summary.n_abstained == 60


def test_rows_that_cannot_be_read_are_kept_with_the_reason(run_path: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "new.jsonl", rows(2, first=5000, target=False))
    source.write_text(source.read_text() + 'broken\n{"key": 9, "question": "", "options": ["yes", "no"]}\n')
    summary = predict(run_path, source, tmp_path / "out.jsonl")
    found = read_jsonl(tmp_path / "out.jsonl")
    assert (summary.n_rows, summary.n_failed) == (4, 2)
    assert "line 3" in found[2]["error"]
    assert "the question is missing" in found[3]["error"]
    assert found[3]["key"] == 9


def test_a_prompt_that_is_too_long_is_kept_with_the_reason(run_path: Path, tmp_path: Path) -> None:
    long = {"question": "word " * 5000, "options": OPTIONS}
    source = write_jsonl(tmp_path / "new.jsonl", [long, *rows(1, first=5000, target=False)])
    summary = predict(run_path, source, tmp_path / "out.jsonl")
    assert (summary.n_failed, summary.n_answered) == (1, 1)
    assert "tokens" in read_jsonl(tmp_path / "out.jsonl")[0]["error"]


def test_columns_of_our_names_are_not_overwritten(run_path: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "new.jsonl", [row | {"answer": "mine"} for row in rows(3, target=False)])
    predict(run_path, source, tmp_path / "out.jsonl")
    found = read_jsonl(tmp_path / "out.jsonl")
    assert all(row["answer"] == "mine" and row["predicted_answer"] in "ABC" for row in found)
    assert "predicted_confidence" in found[0]
    assert "confidence" not in found[0]


def test_options_of_the_run_serve_a_table_without(run_path: Path, tmp_path: Path) -> None:
    source = tmp_path / "new.csv"
    source.write_text(f"question\n{question(5000)}\n{question(5001)}\n")
    predict(run_path, source, tmp_path / "out.jsonl")
    assert all(row["answer_text"] in OPTIONS for row in read_jsonl(tmp_path / "out.jsonl"))


def test_the_input_is_never_overwritten(run_path: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "new.jsonl", rows(2))
    before = source.read_bytes()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match="input itself"):
        predict(run_path, source, tmp_path / "folder" / ".." / "new.jsonl")
    assert source.read_bytes() == before


def test_columns_of_our_prefixed_names_are_not_overwritten_either(run_path: Path, tmp_path: Path) -> None:
    mine = {"answer": "mine", "predicted_answer": "too", "predicted_confidence": 7, "predicted_2_error": "also"}
    source = write_jsonl(tmp_path / "new.jsonl", [row | mine for row in rows(3, target=False)])
    predict(run_path, source, tmp_path / "out.jsonl")
    found = read_jsonl(tmp_path / "out.jsonl")
    assert all({name: row[name] for name in mine} == mine for row in found)
    assert all(row["predicted_3_answer"] in "ABC" and 0 <= row["predicted_3_confidence"] <= 1 for row in found)


def predict_parquet(run_path: Path, folder: Path, records: list[dict[str, Any]]) -> Any:
    import pyarrow.parquet as pq

    predict(run_path, write_jsonl(folder / "new.jsonl", records), folder / "out.parquet")
    return pq.read_table(folder / "out.parquet")


def test_parquet_keeps_the_types_of_a_parquet_input(run_path: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    late = [None if i < 600 else i for i in range(1100)]
    columns = {
        "question": [question(i) for i in range(1100)],
        "options": [OPTIONS] * 1100,
        "late": pa.array(late, pa.int32()),
        "never": pa.array([None] * 1100, pa.float32()),
        "kind": pa.array(["a"] * 1100).dictionary_encode(),
    }
    source = pa.table(columns)
    pq.write_table(source, tmp_path / "new.parquet")
    predict(run_path, tmp_path / "new.parquet", tmp_path / "out.parquet")
    found = pq.read_table(tmp_path / "out.parquet")
    assert found["late"].to_pylist() == late
    assert [found.schema.field(name).type for name in columns] == [source.schema.field(name).type for name in columns]
    assert set(found["answer"].to_pylist()) <= set("ABC")


@pytest.mark.parametrize(
    ("early", "late", "written"),
    [
        (None, 7, (None, 7)),
        (1, 2.5, (1.0, 2.5)),
        (1, "x", ("1", "x")),
        (True, "x", ("true", "x")),
        (3, ["a"], ("3", '["a"]')),
        ([], ["a"], ([], ["a"])),
        ({"a": 1}, {"b": "x"}, ({"a": 1, "b": None}, {"a": None, "b": "x"})),
        ({"a": 1}, {"a": "x"}, ('{"a": 1}', '{"a": "x"}')),
        (2**60 + 1, 2.5, (str(2**60 + 1), "2.5")),
        ([2**60 + 1], [1.5], (f"[{2**60 + 1}]", "[1.5]")),
        ({"a": [1]}, {"a": [1, None]}, ({"a": [1]}, {"a": [1, None]})),
        (1, 2**70, ("1", str(2**70))),
        ("x", "\ud800", ("x", "\\ud800")),
        ({}, {}, ("{}", "{}")),
    ],
)
def test_parquet_takes_a_column_that_changes_late(
    run_path: Path, tmp_path: Path, early: Any, late: Any, written: tuple[Any, Any]
) -> None:
    records = [row | {"extra": early if i < 600 else late} for i, row in enumerate(rows(700, target=False))]
    found = predict_parquet(run_path, tmp_path, records)["extra"].to_pylist()
    assert (found[0], found[-1]) == written
    assert found == [written[0]] * 600 + [written[1]] * 100


def test_parquet_takes_a_column_that_starts_late(run_path: Path, tmp_path: Path) -> None:
    records = rows(700, target=False)
    records[650]["extra"] = 5
    found = predict_parquet(run_path, tmp_path, records)["extra"].to_pylist()
    assert found == [None] * 650 + [5] + [None] * 49


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_a_failure_leaves_the_old_output(tmp_path: Path, ending: str) -> None:
    output = tmp_path / f"out.{ending}"
    output.write_text("old")

    def write() -> None:
        with open_writer(output, {"answer": str}) as writer:
            writer.write([{"answer": "A"}])
            raise DataError("stop")

    with pytest.raises(DataError, match="stop"):
        write()
    assert output.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == [output.name]


@pytest.mark.parametrize("name", ["new.jsonl/out.csv", f"{'x' * 300}.csv"])
def test_a_place_that_cannot_be_written_is_an_error(run_path: Path, tmp_path: Path, name: str) -> None:
    source = write_jsonl(tmp_path / "new.jsonl", rows(1))
    with pytest.raises(ConfigError, match=r"cannot be written \(.*\); name another place"):
        predict(run_path, source, tmp_path / name)


def test_an_unknown_ending_is_an_error(run_path: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\.parquet"):
        predict(run_path, write_jsonl(tmp_path / "new.jsonl", rows(1)), tmp_path / "out.xlsx")


def test_a_run_without_its_model_is_an_error(run_path: Path, tmp_path: Path) -> None:
    import shutil

    copied = tmp_path / "run"
    shutil.copytree(run_path, copied)
    manifest = json.loads((copied / "manifest.json").read_text())
    del manifest["round-1/evolve"]
    (copied / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match="round-1/evolve is not done"):
        predict(copied, write_jsonl(tmp_path / "new.jsonl", rows(1)), tmp_path / "out.csv")


def test_the_summary_is_json_and_text(run_path: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "new.jsonl", rows(5, target=False))
    summary = predict(run_path, source, tmp_path / "out.csv", abstain_below=0.5)
    assert json.loads(json.dumps(summary.to_json()))["n_rows"] == 5
    console = Console(width=120)
    with console.capture() as captured:
        console.print(summary.render())
    assert "of 5 rows answered" in captured.get()


def test_a_run_measured_on_its_test_file_gives_the_same_number(run_path: Path) -> None:
    summary = evaluate_file(str(run_path), str(run_path.parent / "test.jsonl"), reporter=SilentReporter())
    metrics = json.loads((run_path / "evaluate/results.json").read_text())["metrics"]
    stored = next(m for m in metrics if m["model"] == "semievol")
    measured = (summary.result.value, summary.result.ci_low, summary.result.ci_high, summary.result.n)
    assert measured == (stored["value"], stored["ci_low"], stored["ci_high"], 24)
    assert summary.n_seen == 0
    assert summary.calibration is not None


def test_rows_that_the_run_knows_are_pointed_out(run_path: Path) -> None:
    summary = evaluate_file(str(run_path), str(run_path.parent / "labeled.jsonl"), reporter=SilentReporter())
    assert summary.n_seen == 24
    assert any("stand among" in note for note in summary.notes)


def test_a_model_needs_a_config(run_path: Path) -> None:
    with pytest.raises(ConfigError, match="--config"):
        evaluate_file("org/model", str(run_path.parent / "test.jsonl"), reporter=SilentReporter())


def test_a_model_is_measured_with_a_config(run_path: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text((run_path / "config.resolved.json").read_text())
    test = str(run_path.parent / "test.jsonl")
    summary = evaluate_file("org/model", test, config=config, reporter=SilentReporter())
    metrics = json.loads((run_path / "evaluate/results.json").read_text())["metrics"]
    assert summary.result.value == next(m["value"] for m in metrics if m["model"] == "base")


def test_a_test_row_without_target_is_an_error(run_path: Path, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "test.jsonl", [*rows(3), {**rows(1)[0], "gold": None}])
    with pytest.raises(DataError, match="the target is missing"):
        evaluate_file(str(run_path), str(source), reporter=SilentReporter())
