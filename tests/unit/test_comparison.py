"""The record of a comparison: what is written comes back, and folders do not collide."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.comparison import (
    ArmRecord,
    ComparisonRecord,
    is_comparison,
    pending_runs,
    read_comparison,
    record_run,
    setting_folder,
    write_comparison,
)
from semievol.errors import ArtifactError


def make_record(**changes) -> ComparisonRecord:
    values = {
        "reference": "sft",
        "use_gold": False,
        "arms": (ArmRecord("sft", "labelled rows alone", False), ArmRecord("semievol", "the method", False)),
        "seeds": (0, 1),
        "splits": (0,),
        "sweep": None,
        "runs": pending_runs(["sft", "semievol"], splits=[0], seeds=[0, 1]),
    }
    return ComparisonRecord(**(values | changes))


def test_written_record_comes_back(tmp_path):
    record = make_record(sweep={"n": [1, 2]})
    write_comparison(tmp_path, record)
    assert is_comparison(tmp_path)
    assert read_comparison(tmp_path) == record


def test_record_names_runs_as_the_schema_says(tmp_path):
    write_comparison(tmp_path, make_record())
    stored = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    before_runs = ["schema_version", "reference", "use_gold", "arms", "seeds", "splits", "sweep"]
    assert list(stored) == [*before_runs, "runs", "config"]
    assert stored["runs"][3] == {
        "arm": "semievol",
        "split": 0,
        "seed": 1,
        "setting": "",
        "status": "pending",
        "error": None,
        "folder": "split-0/seed-1/semievol",
    }


def test_record_run_changes_that_run_alone(tmp_path):
    record = make_record()
    write_comparison(tmp_path, record)
    last = record.runs[-1]
    after = record_run(tmp_path, type(last)(*last.key, "failed", "NaN loss", last.folder))
    assert [r.status for r in after.runs] == ["pending", "pending", "pending", "failed"]
    assert [r.error for r in read_comparison(tmp_path).failed] == ["NaN loss"]


def test_runs_of_a_seed_stand_together():
    runs = pending_runs(["a", "b"], splits=[0, 1], seeds=[5], settings=["n=1", "n=2"])
    assert [r.folder for r in runs[:4]] == [f"n={n}/split-0/seed-5/{arm}" for n in (1, 2) for arm in "ab"]
    assert len(runs) == 8


def test_folder_without_record_is_no_comparison(tmp_path):
    with pytest.raises(ArtifactError, match=r"not the folder of a comparison"):
        read_comparison(tmp_path)


def test_record_of_another_schema_is_refused(tmp_path):
    write_comparison(tmp_path, make_record(schema_version=99))
    with pytest.raises(ArtifactError, match="schema version 99"):
        read_comparison(tmp_path)


@given(st.lists(st.text(max_size=120), unique=True, min_size=2, max_size=4))
def test_settings_get_folders_of_their_own(settings):
    folders = [setting_folder(s) for s in settings]
    assert len(set(folders)) == len(settings)
    assert not any("/" in f or "\0" in f or len(f) > 110 for f in folders)
