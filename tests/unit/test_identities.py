"""What lies under a path, by content."""

import os

import pytest

from semievol import identities
from semievol.identities import weights_identity


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(identities.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(identities, "REMEMBERED_BYTES", 10)
    identities._hash.cache_clear()


def make_model(folder, weights: bytes = b"weights of a model"):
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(weights)
    return folder


def test_a_name_of_no_folder_has_no_content():
    assert weights_identity("org/model") is None


def test_copies_are_the_same_model(tmp_path):
    first = weights_identity(str(make_model(tmp_path / "a")))
    assert first is not None
    assert first == weights_identity(str(make_model(tmp_path / "b")))


def test_other_weights_of_the_same_size_in_the_same_place_are_another_model(tmp_path):
    folder = make_model(tmp_path / "a")
    before = weights_identity(str(folder))
    file = folder / "model.safetensors"
    file.write_bytes(b"weights of b model")
    os.utime(file, ns=(1, 1))
    assert weights_identity(str(folder)) != before


def test_digests_of_large_files_are_remembered_between_processes(tmp_path, monkeypatch):
    folder = make_model(tmp_path / "a")
    found = weights_identity(str(folder))
    identities._hash.cache_clear()  # as in a new process
    read = []
    monkeypatch.setattr(identities, "file_hash", lambda path: read.append(path.name) or "0" * 64)
    weights_identity(str(folder))
    assert read == ["config.json"]
    assert found is not None


def test_a_cache_that_cannot_be_written_costs_time_alone(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(identities.CACHE_VARIABLE, str(tmp_path / "file"))
    assert weights_identity(str(make_model(tmp_path / "a"))) is not None
