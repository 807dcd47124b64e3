"""Shards of requests and their answers as JSONL files in a folder or an object store (fsspec), each whole or absent.

    job.json                what a replica opens: generator and model section, version, folders that it must see
    shards/NAME.jsonl       line 1: what is asked, sampling, folders of the models; then one request a line
    answers/NAME.jsonl      line 1: what was spent; then one answer a line, with the id of its request

The name of a shard is the hash of what is in it, so an answer that is there is the answer to these rows.
"""

import contextlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from semievol.artifacts import content_hash, folder_hash, record_adapter
from semievol.backends.base import Usage, require
from semievol.errors import ConfigError, GenerationError
from semievol.types import ChoiceRequest, ChoiceScores, Request, Result, Sampling

Kind = Literal["generate", "score"]
REQUESTS: dict[str, type] = {"generate": Request, "score": ChoiceRequest}
ANSWERS: dict[str, type] = {"generate": Result, "score": ChoiceScores}

JOB = "job.json"


class Shard(NamedTuple):
    """Requests that one replica answers together."""

    kind: Kind
    sampling: Sampling
    """Of no meaning where `kind` is score."""
    folders: Mapping[str, str]
    """Folders of the models and their signature, which a replica compares with what it sees there."""
    requests: Sequence[Request] | Sequence[ChoiceRequest]


class Storage:
    """Files under one folder or URL. Every node that is handed the same place sees the same files."""

    def __init__(self, place: str) -> None:
        """Raises ConfigError if nothing installed knows how to open such a URL."""
        fsspec = require("fsspec", extra="ray")
        self.place = place.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.place)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"generator.storage: {place} cannot be opened: {error}") from error
        protocol = self._files.protocol
        self._is_local = "file" in ((protocol,) if isinstance(protocol, str) else protocol)

    def read(self, name: str) -> bytes:
        """The bytes of a file. Raises OSError if it is not there."""
        data: bytes = self._files.cat_file(f"{self._root}/{name}")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file, whole or not at all; one that is there is replaced."""
        path = f"{self._root}/{name}"
        if not self._is_local:
            self._files.pipe_file(path, data)  # object stores show an upload when it is complete
            return
        partial = Path(f"{path}.{uuid.uuid4().hex}.partial")
        partial.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as stream:
                stream.write(data)
                stream.flush()
                os.fsync(stream.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise

    def names(self, folder: str) -> set[str]:
        """Names of the files in a folder of the place; none if there is no such folder."""
        self._files.invalidate_cache()
        try:
            found = self._files.ls(f"{self._root}/{folder}", detail=False)
        except FileNotFoundError:
            return set()
        return {str(path).rpartition("/")[2] for path in found}

    def remove(self, name: str) -> None:
        """Delete a file if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")

    def remove_all(self) -> None:
        """Delete the place with all that is in it."""
        self._files.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(self._root, recursive=True)


def encode_shard(shard: Shard) -> tuple[str, bytes]:
    """Name and bytes of a shard."""
    adapter = record_adapter(REQUESTS[shard.kind])
    head = {"kind": shard.kind, "sampling": asdict(shard.sampling), "folders": dict(shard.folders)}
    data = b"".join(line + b"\n" for line in (_dump(head), *(adapter.dump_json(r) for r in shard.requests)))
    return content_hash(data.decode()), data


def decode_shard(data: bytes) -> Shard:
    """Read what `encode_shard` wrote."""
    first, *lines = data.splitlines()
    head = json.loads(first)
    adapter = record_adapter(REQUESTS[head["kind"]])
    requests = [adapter.validate_json(line) for line in lines]
    return Shard(head["kind"], Sampling(**head["sampling"]), head["folders"], requests)


def encode_answers(kind: Kind, usage: Usage, answers: Iterable[Result | ChoiceScores]) -> bytes:
    """Bytes of the answers to a shard, and of what they cost."""
    adapter = record_adapter(ANSWERS[kind])
    return b"".join(line + b"\n" for line in (_dump(usage._asdict()), *(adapter.dump_json(a) for a in answers)))


def decode_answers(kind: Kind, data: bytes, ids: Sequence[str], *, source: str) -> tuple[Usage, list[Any]]:
    """Read what `encode_answers` wrote: what was spent, and one answer for each of `ids`.

    Raises:
        GenerationError: If the file `source` is damaged, or does not hold each row once.
    """
    adapter = record_adapter(ANSWERS[kind])
    try:
        first, *lines = data.splitlines()
        usage = Usage(**json.loads(first))
        answers = [adapter.validate_json(line) for line in lines]
    except (ValueError, TypeError, ValidationError) as error:
        raise GenerationError(f"{source} is damaged; delete it and run again") from error
    if sorted(a.id for a in answers) != sorted(ids):
        raise GenerationError(
            f"{source} holds {len(answers)} answers, not those of its {len(ids)} rows, {ids[0]} first; delete "
            "it and run again"
        )
    return usage, answers


def sign_folder(path: Path, *, trained: bool) -> str:
    """What a model folder holds: content of a trained one, which another training replaces; else names and sizes."""
    if trained:
        return f"content {folder_hash(path)}"
    files = sorted((p.name, p.stat().st_size) for p in path.iterdir() if p.suffix in (".safetensors", ".json"))
    return f"sizes {content_hash(files)}"


def check_folders(folders: Mapping[str, str], *, node: str) -> None:
    """Compare the model folders that the run uses with what this node sees.

    Raises:
        ConfigError: If a folder is not there, or holds something else.
    """
    for path, signature in folders.items():
        if not Path(path).is_dir():
            raise ConfigError(
                f"node {node} does not see the model folder {path}: put it on storage that all nodes share, under the "
                "same path (trained models lie in output_dir), or give the base as a hub id"
            )
        if sign_folder(Path(path), trained=signature.startswith("content ")) != signature:
            raise ConfigError(
                f"node {node} sees another model in {path} than the run: it is no storage that both share, or an "
                "old copy"
            )


def _dump(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
