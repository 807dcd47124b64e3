"""Config, storage and shard files of `generator: ray`; nothing here needs Ray."""

import subprocess
import sys

import pytest

from semievol.artifacts import RunDir
from semievol.backends.base import Usage
from semievol.backends.shards import Shard, Storage, decode_answers, decode_shard, encode_answers, encode_shard
from semievol.config import LARGEST_SHARD, parse_config
from semievol.errors import ConfigError, GenerationError
from semievol.pipeline import fingerprint_steps, plan_steps
from semievol.stage import WINDOW, Backends
from semievol.types import ChoiceRequest, Completion, Message, ModelRef, Request, Result, Sampling

ROWS = {"labeled": "labeled.csv", "unlabeled": "unlabeled.csv"}


def config(**generator):
    backends = {"trainer": {"type": "fake"}, "embedder": {"type": "fake"}, "model": {"path": "fake-model"}}
    return parse_config({"data": ROWS, "generator": generator, **backends})


def ray(**settings):
    return config(type="ray", inner={"type": "fake"}, **settings)


def fingerprint(run_config, tmp_path) -> str:
    for path in ROWS.values():
        (tmp_path / path).write_text("id,question,a,answer\n1,x,y,A\n", encoding="utf-8")
    steps = [s for s in plan_steps(run_config) if s.stage.name != "data"]
    return fingerprint_steps(run_config, RunDir(tmp_path / "run"), Backends(run_config), steps)["round-1/propagate"]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"replicas": 64, "gpus_per_replica": 1, "cpus_per_replica": 4, "address": "auto", "storage": "s3://bucket/run"},
        {"max_attempts": 9, "start_timeout_seconds": 5, "shard_timeout_seconds": 5, "shard_rows": WINDOW},
    ],
)
def test_fingerprint_is_that_of_the_inner_generator(settings, tmp_path):
    assert fingerprint(ray(**settings), tmp_path) == fingerprint(config(type="fake"), tmp_path)


def test_fingerprint_has_what_changes_a_result(tmp_path):
    assert fingerprint(ray(shard_rows=100), tmp_path) != fingerprint(ray(), tmp_path)
    other = config(type="ray", inner={"type": "fake", "accuracy": 0.6})
    assert fingerprint(other, tmp_path) != fingerprint(ray(), tmp_path)


def test_largest_shard_is_the_window_of_a_stage():
    assert LARGEST_SHARD == WINDOW == ray().generator.shard_rows


@pytest.mark.parametrize(
    ("settings", "windows"),
    [
        ({}, 3),
        ({"replicas": 8}, 17),
        ({"replicas": 8, "shard_rows": 32}, 2),
        ({"replicas": 100, "shard_rows": 128}, 51),
    ],
)
def test_windows_under_way_keep_all_replicas_busy(settings, windows):
    assert Backends(ray(**settings)).windows == windows
    assert Backends(config(type="fake")).windows == 1


@pytest.mark.parametrize(
    "address", [None, "auto", "head:6379", "10.0.0.1:6379", "ray://head.cluster:10001", "[::1]:6379"]
)
def test_addresses_that_ray_takes(address):
    assert ray(address=address).generator.address == address


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"address": "head"}, r"generator\.address: .*HOST:6379"),
        ({"address": "http://head:8265"}, r"generator\.address"),
        ({"replicas": 0}, r"generator\.replicas"),
        ({"shard_rows": 513}, r"generator\.shard_rows"),
        ({"storage": "s3://key:secret@bucket/x"}, r"generator\.storage: .*no user, key"),
        ({"storage": " "}, r"generator\.storage"),
        ({"replica": 2}, r"unknown key generator\.replica; did you mean replicas"),
        ({"inner": {"type": "openai"}}, r"generator\.inner"),
        (
            {"inner": {"type": "transformers", "batch_token": 1}},
            r"generator\.inner\.batch_token; did you mean batch_tokens",
        ),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, match):
    with pytest.raises(ConfigError, match=match):
        parse_config({"data": ROWS, "generator": {"type": "ray", "inner": {"type": "fake"}} | settings})


@pytest.mark.parametrize(("device", "match"), [("cuda:1", "names one device"), ("cuda", "gpus_per_replica above 0")])
def test_devices_are_handed_out_by_ray(device, match):
    with pytest.raises(ConfigError, match=match):
        parse_config({"data": ROWS, "model": {"device": device}, "generator": {"type": "ray"}})


def test_check_does_not_import_ray(tmp_path):
    rows = "\n".join(f'{i},what {i}? #A,"[""x"", ""y""]",A' for i in range(4))
    for name in ("labeled", "unlabeled"):
        (tmp_path / f"{name}.csv").write_text(f"id,question,options,answer\n{rows}\n", encoding="utf-8")
    (tmp_path / "config.yaml").write_text(
        f"data: {{labeled: {tmp_path}/labeled.csv, unlabeled: {tmp_path}/unlabeled.csv, duplicates: keep}}\n"
        f"output_dir: {tmp_path}/run\nmodel: {{path: fake-model}}\n"
        "generator: {type: ray, inner: {type: fake}, address: auto}\ntrainer: {type: fake}\nembedder: {type: fake}\n",
        encoding="utf-8",
    )
    code = (
        "import sys; from pathlib import Path; from semievol.checking import check_run; "
        "from semievol.config import load_config; found = check_run(load_config(Path(sys.argv[1]))); "
        "print(found.faults, 'ray' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "config.yaml")], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[] False"


@pytest.mark.parametrize("kind", ["folder", "file URL", "object store"])
def test_storage_writes_reads_lists_and_removes(kind, tmp_path):
    place = {
        "folder": str(tmp_path / "a"),
        "file URL": (tmp_path / "a").as_uri(),
        "object store": f"memory://{tmp_path}",
    }
    storage = Storage(place[kind])
    assert storage.names("shards") == set()
    storage.write("shards/x.jsonl", b"1")
    storage.write("shards/x.jsonl", b"2")
    storage.write("shards/y.jsonl", b"3")
    assert storage.read("shards/x.jsonl") == b"2"
    assert Storage(place[kind]).names("shards") == {"x.jsonl", "y.jsonl"}
    storage.remove("shards/x.jsonl")
    storage.remove("shards/x.jsonl")
    assert storage.names("shards") == {"y.jsonl"}
    with pytest.raises(OSError, match=r"x\.jsonl"):
        storage.read("shards/x.jsonl")
    storage.remove_all()
    storage.remove_all()
    assert storage.names("shards") == set()


def test_storage_leaves_no_part_of_a_file_behind(tmp_path, monkeypatch):
    import os

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        Storage(str(tmp_path)).write("shards/x.jsonl", b"1")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


REQUESTS = [
    Request("r\n1", (Message("user", "what\u2028is it?\n"),), ModelRef("m", "/a"), seed=2**62),
    Request("b", (), ModelRef("m")),
]


def test_shards_come_back_as_they_went_out():
    shard = Shard("generate", Sampling(n=3, temperature=0.7), {"/a": "content 1"}, REQUESTS)
    name, data = encode_shard(shard)
    assert decode_shard(data) == shard
    assert encode_shard(shard)[0] == name != encode_shard(shard._replace(folders={"/a": "content 2"}))[0]
    asked = [ChoiceRequest("c", (Message("user", "x"),), ModelRef("m"), ("A", "B"))]
    scored = Shard("score", Sampling(), {}, asked)
    assert decode_shard(encode_shard(scored)[1]) == scored


def test_answers_come_back_as_they_went_out():
    results = [Result("b", error="no"), Result("a", (Completion("x", (-0.1234567890123, -1e-300), "raw"),), None, 3, 2)]
    data = encode_answers("generate", Usage(3, 2, 1, 0.25), results)
    assert decode_answers("generate", data, ["a", "b"], source="f") == (Usage(3, 2, 1, 0.25), results)


@pytest.mark.parametrize("ids", [["a"], ["a", "b", "c"], ["a", "a"]])
def test_answers_to_other_rows_are_refused(ids):
    data = encode_answers("generate", Usage(), [Result("a", error="no"), Result("b", error="no")])
    with pytest.raises(GenerationError, match="f holds 2 answers, not those of its"):
        decode_answers("generate", data, ids, source="f")
