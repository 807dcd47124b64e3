"""Steps taken over from another run folder: linked, copied where links are impossible, never a stale one."""

import os

import pytest

from semievol.artifacts import RunDir
from semievol.sharing import SharedSteps


@pytest.fixture
def source(tmp_path) -> RunDir:
    run_dir = RunDir(tmp_path / "a")
    run_dir.write_json("warmup/model", {"base": "b", "adapter": "./warmup/adapter"})
    (run_dir.path / "warmup/adapter/inner").mkdir(parents=True)
    (run_dir.path / "warmup/adapter/inner/weights").write_bytes(b"w")
    run_dir.record_stage("warmup", {"fingerprint": "f", "stats": {"n": 1}, "cost": {"seconds": 2.0}})
    return run_dir


def take_over(source: RunDir, target: RunDir, root) -> None:
    SharedSteps(root).take_over(source, target, "warmup", artifacts=["warmup/model", "warmup/not-written"])


def test_step_taken_over_has_the_same_files_and_its_cost(source, tmp_path):
    target = RunDir(tmp_path / "b")
    take_over(source, target, tmp_path)
    for name in ("warmup/model.json", "warmup/adapter/inner/weights"):
        assert (target.path / name).samefile(source.path / name)
    assert target.manifest()["warmup"] == {
        "fingerprint": "f",
        "stats": {"n": 1},
        "cost": {"seconds": 2.0},
        "shared_from": "a",
    }


def test_step_taken_over_twice_leaves_nothing_beside_it(source, tmp_path):
    """As after a kill between the links and the manifest."""
    target = RunDir(tmp_path / "b")
    for _ in range(2):
        take_over(source, target, tmp_path)
    assert sorted(p.name for p in target.path.rglob("*") if p.is_file()) == ["manifest.json", "model.json", "weights"]


def test_files_are_copied_where_links_are_impossible(source, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    target = RunDir(tmp_path / "b")
    take_over(source, target, tmp_path)
    copied = target.path / "warmup/adapter/inner/weights"
    assert copied.read_bytes() == b"w"
    assert not copied.samefile(source.path / "warmup/adapter/inner/weights")


def test_folder_of_an_older_step_is_replaced_whole(source, tmp_path):
    target = RunDir(tmp_path / "b")
    (target.path / "warmup/adapter").mkdir(parents=True)
    (target.path / "warmup/adapter/stale").write_bytes(b"s")
    take_over(source, target, tmp_path)
    assert [p.name for p in (target.path / "warmup/adapter").rglob("*")] == ["inner", "weights"]


def test_step_names_the_run_that_paid_for_it(source, tmp_path):
    second, third = RunDir(tmp_path / "b"), RunDir(tmp_path / "c")
    take_over(source, second, tmp_path)
    take_over(second, third, tmp_path)
    assert third.manifest()["warmup"]["shared_from"] == "a"


def test_step_that_has_begun_again_is_not_taken_over(source, tmp_path):
    source.forget_stages(["warmup"])
    target = RunDir(tmp_path / "b")
    assert not SharedSteps(tmp_path).take_over(source, target, "warmup", artifacts=["warmup/model"])
    assert "warmup" not in target.manifest()


def test_only_an_equal_fingerprint_that_still_stands_is_found(source, tmp_path):
    shared = SharedSteps(tmp_path, [source.path])
    assert shared.find("warmup", "f").path == source.path
    assert shared.find("warmup", "g") is None
    assert shared.find("evolve", "f") is None
    source.record_stage("warmup", {"fingerprint": "g"})
    assert shared.find("warmup", "f") is None
