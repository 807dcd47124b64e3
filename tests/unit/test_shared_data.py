"""Loads real public data, never committed, from a folder of data beside the checkout, where there is one."""

from collections import Counter
from pathlib import Path

import pytest

from semievol.config import parse_config
from semievol.loading import LoadedData, load_examples
from semievol.tables import read_table
from semievol.types import RawRow

DATA = Path(__file__).parents[3] / "shared" / "data"

pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="there is no folder of data beside the checkout")


def load(task: str, **data: str) -> LoadedData:
    paths = {
        key: str(DATA / value) if key in ("path", "labeled", "unlabeled", "test") else value
        for key, value in data.items()
    }
    loaded = load_examples(parse_config({"task": {"type": task}, "data": paths}))
    counts = loaded.counts
    assert counts.read == counts.rejected + counts.duplicate + counts.not_drawn + counts.kept
    assert all(row.target is None and not row.metadata for row in loaded.unlabeled)
    return loaded


def load_release(name: str, *, unlabeled: str = "unlabeled.csv", duplicates: str = "keep") -> LoadedData:
    folder = f"semievol/{name}"
    files = {"labeled": f"{folder}/labeled.csv", "unlabeled": f"{folder}/{unlabeled}", "test": f"{folder}/test.csv"}
    return load("choice", duplicates=duplicates, **files)


def sizes(data: LoadedData) -> tuple[int, int, int]:
    return len(data.labeled), len(data.unlabeled), len(data.test)


def n_exact(data: LoadedData) -> Counter[tuple[str | None, str | None]]:
    return Counter((d.split, d.of_split) for d in data.duplicates if d.similarity == 1)


def test_fpb() -> None:
    data = load_release("fpb")
    assert sizes(data) == (452, 1359, 453)
    assert len(data.gold) == 1359
    assert data.facts.shared_choices == ("negative", "neutral", "positive")


def test_arc_digit_answers_are_read_as_letters() -> None:
    data = load_release("arc")
    assert sizes(data) == (518, 1554, 518)
    assert len(data.gold) == 1554
    assert any("unlabeled.csv: 26 digit answers read as letters" in note for note in data.notes)


def test_mmlu_rows_that_stand_in_test_leave_the_training_side() -> None:
    data = load_release("mmlu", duplicates="drop")
    found = n_exact(data)
    assert found["labeled", "test"] >= 9
    assert found["unlabeled", "test"] >= 22
    assert len(data.test) == 2809
    assert data.counts.read == 14042
    assert data.counts.rejected == 0
    assert data.counts.duplicate == len(data.duplicates)
    assert sum("options that are NaN" in note for note in data.notes) == 3


def test_mmlu_pro_rows_that_stand_in_test(tmp_path: Path) -> None:
    unlabeled = tmp_path / "unlabeled.csv"
    unlabeled.write_text('question,options\nWhat is this?,"[""a"", ""b""]"\n')
    files = {"labeled": "semievol/mmlu_pro/labeled.csv", "test": "semievol/mmlu_pro/test.csv"}
    data = load("choice", duplicates="keep", unlabeled=str(unlabeled), **files)
    assert (len(data.labeled), len(data.test)) == (2406, 2407)
    assert n_exact(data)["labeled", "test"] >= 19
    assert {len(row.choices) for row in data.labeled} == set(range(3, 11))


def test_pubmedqa() -> None:
    data = load_release("pubmedqa")
    assert sizes(data) == (200, 600, 200)
    assert data.facts.shared_choices == ("No", "Maybe", "Yes")
    assert data.duplicates == ()


def test_usmle() -> None:
    data = load_release("usmle", unlabeled="unlabeled_partial.csv")
    assert sizes(data) == (2290, 2051, 2291)
    assert {len(row.choices) for row in data.test} == {4}


def test_banking77_labels() -> None:
    data = load("label", labeled="banking77/train.csv", unlabeled="banking77/test.csv", duplicates="keep")
    assert sizes(data) == (10003, 3080, 0)
    assert len(data.facts.labels) == 77
    assert len(data.gold) == 3080


def test_banking77_one_file_is_cut_by_class() -> None:
    data = load("label", path="banking77/train.csv")
    assert len(data.facts.labels) == len(data.target_counts["test"]) == 77
    assert len(data.labeled) == pytest.approx(0.2 * data.counts.kept, abs=1)


def test_gsm8k_targets_are_numbers() -> None:
    data = load("number", path="gsm8k/test.jsonl")
    assert data.counts.read == 1319
    assert data.counts.rejected == 0
    assert all(float(row.target or "x") is not None for row in data.labeled)


def test_every_row_of_the_pretraining_tasks_can_be_read() -> None:
    rows = [row for path in sorted((DATA / "pretrain_tasks").glob("*.jsonl")) for row in read_table(str(path))]
    assert len(rows) == 46_856
    assert all(isinstance(row, RawRow) for row in rows)
