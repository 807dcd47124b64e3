"""Run folders on a disk that is full or may not be written: one clear error, whoever met it first."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from semievol.artifacts import LEAST_FREE, RowStore, RunDir, clear_disk_errors, remove_folder
from semievol.errors import ArtifactError, ConfigError, DiskFullError


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_error_of_a_full_disk_names_the_place_and_the_remedy(tmp_path, error):
    place = tmp_path / "not" / "there" / "yet"
    with pytest.raises(DiskFullError) as caught, clear_disk_errors(place):
        raise error
    assert str(caught.value) == f"no space left on the disk of {place}: free some and run again; it goes on"
    assert caught.value.__cause__ is error


def test_any_error_on_a_full_disk_counts_as_one(tmp_path, monkeypatch):
    """torch.save, for one, says `unexpected pos 24896 vs 24788`."""
    usage = shutil.disk_usage(tmp_path)
    for free, expected in ((LEAST_FREE - 1, DiskFullError), (LEAST_FREE, RuntimeError)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        with pytest.raises(expected), clear_disk_errors(tmp_path):
            raise RuntimeError("unexpected pos 24896 vs 24788")
    with pytest.raises(ConfigError), clear_disk_errors(tmp_path):
        raise ConfigError("ours")


@pytest.mark.parametrize("place", ["run/notes.txt", "cache/model.safetensors", "."])
def test_file_that_may_not_be_opened_is_named(tmp_path, monkeypatch, place):
    def refuse(_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "exists", refuse)  # as in a folder that may not be searched
    with pytest.raises(ArtifactError) as caught, clear_disk_errors(tmp_path / "run"):
        raise PermissionError(errno.EACCES, "Permission denied", place)
    assert str(caught.value) == f"cannot open or write {place}: Permission denied"
    assert not isinstance(caught.value, DiskFullError)


def test_file_system_that_is_read_only_is_named_by_the_place(tmp_path):
    with pytest.raises(ArtifactError) as caught, clear_disk_errors(tmp_path):
        raise OSError(errno.EROFS, "Read-only file system")
    assert str(caught.value) == f"cannot open or write {tmp_path}: Read-only file system"


def test_missing_permission_for_what_is_no_file_comes_through(tmp_path):
    with pytest.raises(PermissionError), clear_disk_errors(tmp_path):
        raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize(
    ("error", "full", "named"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "temporary", "temporary"),
        (OSError(errno.ENOSPC, "No space left on device"), "run", "run"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "temporary", "run"),
        (OSError(errno.ENOSPC, "No space left on device", "/elsewhere/blob"), "run", "/elsewhere/blob"),
        (shutil.Error([("a", "b", "[Errno 28] No space left on device")]), "none", "run"),
    ],
)
def test_disk_that_is_full_is_named(monkeypatch, error, full, named):
    places = {"run": Path("/run-of-ours"), "temporary": Path("/temporary"), "none": None}
    monkeypatch.setattr("semievol.artifacts.is_disk_full", lambda place: place == places[full])
    monkeypatch.setattr(tempfile, "gettempdir", lambda: "/temporary")
    name = places.get(named, named)
    with pytest.raises(DiskFullError, match=f"no space left on the disk of {name}: "), clear_disk_errors(places["run"]):
        raise error


def test_full_disk_without_any_folder_for_temporary_files_is_named(tmp_path, monkeypatch):
    """`gettempdir` writes to the folders that it thinks of."""

    def refuse() -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    monkeypatch.setattr(tempfile, "gettempdir", refuse)
    with pytest.raises(DiskFullError, match=f"no space left on the disk of {tmp_path}: "), clear_disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")


def test_folder_that_cannot_be_renamed_is_removed_all_the_same(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "weights").touch()
    (folder / "fit_report.json").touch()
    monkeypatch.setattr(Path, "rename", refuse)
    unlink, order = os.unlink, []

    def note(path, **options):
        order.append(Path(path).name)
        unlink(path, **options)

    monkeypatch.setattr(os, "unlink", note)
    remove_folder(folder)
    assert list(tmp_path.iterdir()) == []
    assert order == ["fit_report.json", "weights"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_written_file_is_whole_or_absent_on_a_full_disk(tmp_path):
    (tmp_path / "notes.txt.partial").symlink_to("/dev/full")
    run_dir = RunDir(tmp_path)
    run_dir.write_text("other.txt", "before")
    with pytest.raises(DiskFullError):
        run_dir.write_text("notes.txt", "x" * 100_000)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other.txt"]


def test_row_store_on_a_full_disk_keeps_what_it_had_and_goes_on(tmp_path):
    with RowStore(tmp_path / "rows.sqlite") as store:
        store.put({"a": "1"})
        (n_pages,) = store._connection.execute("PRAGMA page_count").fetchone()
        store._connection.execute(f"PRAGMA max_page_count={n_pages}")  # sqlite then says what it says on a full disk
        with pytest.raises(DiskFullError, match=r"no space left on the disk of .*rows\.sqlite"):
            store.put({"b": "2" * 100_000})
        assert store.get(["a", "b"]) == {"a": "1"}
        store._connection.execute("PRAGMA max_page_count=1000000")
        store.put({"b": "2"})
        assert store.get(["a", "b"]) == {"a": "1", "b": "2"}
