"""Steps taken over from another run folder: linked, copied where links are impossible, never a stale one."""

import json
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from semievol.artifacts import RunDir, remove_folder
from semievol.sharing import HeldTraining, SharedSteps, _is_trained


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


def write_training(folder: Path, fingerprint: str, weights: bytes = b"w") -> None:
    folder.mkdir(parents=True)
    (folder / "fit_report.json").write_text(json.dumps({"fingerprint": fingerprint}))
    (folder / "weights").write_bytes(weights)


def hold(root: Path, fingerprint: str, folder: Path, notes: list[str] | None = None):
    return SharedSteps(root).hold_training(fingerprint, folder, note=(notes if notes is not None else []).append)


def test_training_of_another_step_is_linked_and_the_step_named(tmp_path):
    write_training(tmp_path / "a/round-1/evolve/adapter", "f")
    target = tmp_path / "b/control/adapter"
    write_training(target, "old", b"stale")
    with hold(tmp_path, "f", target) as found:
        assert found.trained_in == "a/round-1/evolve"
        assert (target / "weights").samefile(tmp_path / "a/round-1/evolve/adapter/weights")
        assert sorted(p.name for p in target.iterdir()) == ["fit_report.json", "weights"]
    with hold(tmp_path, "f", target) as found:  # as after a kill before the step was noted as done
        assert found.trained_in == "a/round-1/evolve"
    remove_folder(target)
    write_training(target, "g")
    with hold(tmp_path, "g", target) as found:
        assert found.trained_in is None
    with hold(tmp_path, "h", tmp_path / "b/control/adapter"):
        pass
    assert [p.name for p in target.parent.iterdir()] == ["adapter"]


def test_training_that_is_not_finished_elsewhere_is_left_to_the_caller(tmp_path):
    write_training(tmp_path / "a/evolve/adapter", "f")
    (tmp_path / "a/control/adapter").mkdir(parents=True)
    (tmp_path / "a/control/adapter/fit_report.json").write_text("{")
    for fingerprint, folder in (("g", "b/evolve/adapter"), ("f", "a/evolve/adapter")):  # another one; its own
        with hold(tmp_path, fingerprint, tmp_path / folder) as found:
            assert found.trained_in is None
    assert not (tmp_path / "b/evolve/adapter").exists()


def test_training_that_goes_while_it_is_linked_is_not_taken_over(tmp_path, monkeypatch):
    source = tmp_path / "a/evolve/adapter"
    write_training(source, "f")
    link = os.link

    def link_and_delete(old, new):
        link(old, new)
        remove_folder(source)

    monkeypatch.setattr(os, "link", link_and_delete)
    with hold(tmp_path, "f", tmp_path / "b/evolve/adapter") as found:
        assert found.trained_in is None
    assert list((tmp_path / "b/evolve").iterdir()) == []


def test_folders_that_other_processes_add_and_remove_are_passed_over(tmp_path, monkeypatch):
    write_training(tmp_path / "a/warmup/adapter.partial/final/adapter", "f")
    write_training(tmp_path / "b/evolve/adapter", "other")
    write_training(tmp_path / "b/gone/deep/adapter", "f")
    write_training(tmp_path / "c/evolve/adapter", "f")

    def is_trained(folder: Path, fingerprint: str) -> bool:
        if folder == tmp_path / "b/evolve/adapter":
            shutil.rmtree(tmp_path / "b/gone")
        return _is_trained(folder, fingerprint)

    monkeypatch.setattr("semievol.sharing._is_trained", is_trained)
    with hold(tmp_path, "f", tmp_path / "d/evolve/adapter") as found:
        assert found.trained_in == "c/evolve"
    assert not (tmp_path / "b/gone").exists()


def test_training_in_hand_is_waited_for(tmp_path):
    notes: list[str] = []
    found: list[HeldTraining] = []

    def second() -> None:
        with hold(tmp_path, "f", tmp_path / "b/evolve/adapter", notes) as held:
            found.append(held)

    thread = threading.Thread(target=second)
    with hold(tmp_path, "f", tmp_path / "a/evolve/adapter") as first:
        thread.start()
        began = time.perf_counter()
        while not notes:
            thread.join(0.01)
            assert thread.is_alive()
        write_training(tmp_path / "a/evolve/adapter", "f")
        time.sleep(0.1)
    thread.join()
    took = time.perf_counter() - began
    assert notes == ["another process has the same training in hand; waiting for it"]
    assert [held.trained_in for held in found] == ["a/evolve"]
    assert first.waited_seconds < 0.1 < found[0].waited_seconds < took + 0.1
