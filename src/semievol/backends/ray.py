"""Replicas of a local generator on Ray, on one machine or a cluster; shards and answers travel as files.

Plain actors and a queue of our own (`ray_pool`), not Ray Data's `map_batches`, because of what a run promises:

- Models stay loaded. Stages ask many times, and some questions hang on earlier answers; Ray Data makes an actor pool
  for each execution of a dataset, which would load the model again for each of them.
- What is batched together is fixed. Ray Data is free to cut and join blocks; a shard here is a window of rows that the
  local generator would have batched by itself, so the bytes hang neither on the number of replicas nor on who did what.
- A death costs a shard and is counted. Ray Data starts actors and repeats their tasks without end by default
  (`max_restarts=-1`, `max_task_retries=-1`), and does not say which rows it was that brought them down.

Rows are files and never Ray objects: an answered shard outlives workers, nodes and this process, a resumed run takes it
up by the name of its content, and nothing of a row is pickled.
"""

import json
import shutil
import socket
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from typing_extensions import Self

from semievol import __version__
from semievol.artifacts import content_hash
from semievol.backends.base import Tokens, Usage, open_tokens, require
from semievol.backends.ray_cluster import connect
from semievol.backends.ray_pool import ReplicaPool
from semievol.backends.ray_worker import Replica
from semievol.backends.shards import JOB, Kind, Shard, Storage, decode_answers, encode_shard, sign_folder
from semievol.config import ModelConfig, RayGeneratorConfig
from semievol.errors import ArtifactError, ConfigError, GenerationError
from semievol.types import ChoiceRequest, ChoiceScores, ModelRef, Request, Result, Sampling


def open_inner_tokens(config: RayGeneratorConfig, model: ModelConfig) -> Tokens:
    """The tokenizer of the local generator, opened here."""
    return open_tokens(config.inner, model)


class _Sent(NamedTuple):
    """A shard that was asked for."""

    name: str
    ids: list[str]


class RayGenerator:
    """Spreads requests over replicas of `config.inner`. Leaving the context ends them.

    `generate` and `score_choices` send their shards when they are called, so calls can overlap; results are taken in
    the order of the calls. Usage adds up over replicas, so model seconds may pass the time on the clock.

    Raises:
        ConfigError: If ray is not installed, the cluster cannot be reached, or a replica cannot open the model.
    """

    look_ahead = None

    def __init__(self, config: RayGeneratorConfig, model: ModelConfig, *, state_dir: Path | None = None) -> None:
        ray = require("ray", extra="ray")
        self._config, self._model = config, _portable(model)
        self._usage = Usage()
        self._folders: dict[str, str] = {}
        self._in_use: Counter[str] = Counter()
        self._delivered: list[str] = []
        with ExitStack() as stack:
            self._storage = Storage(self._place(state_dir, stack))
            self._send_job()
            self._done = {name.removesuffix(".jsonl") for name in self._storage.names("answers")}
            stack.callback(connect(ray, config, model))
            start = ray.remote(Replica).options(
                num_cpus=config.cpus_per_replica,
                num_gpus=config.gpus_per_replica,
                max_restarts=0,
                max_task_retries=0,
                scheduling_strategy="SPREAD",
            )
            self._pool = ReplicaPool(
                ray,
                lambda: start.remote(self._storage.place),
                replicas=config.replicas,
                max_attempts=config.max_attempts,
                start_timeout_seconds=config.start_timeout_seconds,
                shard_timeout_seconds=config.shard_timeout_seconds,
            )
            stack.callback(self._pool.close)
            self._abilities = self._pool.open()
            self._opened = stack.pop_all()

    @property
    def exact_choice_scores(self) -> bool:
        """As the local generator says."""
        return bool(self._abilities["exact_choice_scores"])

    @property
    def gives_logprobs(self) -> bool:
        """As the local generator says."""
        return bool(self._abilities["gives_logprobs"])

    @property
    def usage(self) -> Usage:
        """What the replicas have spent on the answers that were taken."""
        return self._usage

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Result]:
        """Send shards now; yield one Result a request, shard by shard."""
        return self._answers("generate", self._send("generate", sampling, list(requests)))

    def score_choices(self, requests: Iterable[ChoiceRequest]) -> Iterator[ChoiceScores]:
        """Send shards now; yield the exact answer distribution of each request, shard by shard."""
        return self._answers("score", self._send("score", Sampling(), list(requests)))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._opened.close()
        self._release(self._delivered)
        if not self._in_use:
            self._storage.remove_all()

    def _place(self, state_dir: Path | None, stack: ExitStack) -> str:
        """Folder of this job under the storage: the same for the same run, so that a resumed one finds its answers."""
        storage = self._config.storage
        job = content_hash(
            __version__,
            self._config.inner.model_dump(mode="json"),
            self._model.model_dump(mode="json"),
            self._signed_base(),
        )[:16]
        if storage is None and state_dir is None:
            if self._config.address is not None:
                raise ConfigError("generator.storage: set a folder or URL that all nodes of the cluster see")
            folder = tempfile.mkdtemp(prefix="semievol-ray-")
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            return f"{folder}/{job}"
        if storage is None:
            return f"{Path(state_dir or '').absolute()}/ray/{job}"
        root = storage if "://" in storage else str(Path(storage).expanduser().absolute())
        owner = uuid.uuid4().hex if state_dir is None else content_hash(socket.gethostname(), str(state_dir.absolute()))
        return f"{root.rstrip('/')}/{owner[:16]}/{job}"

    def _signed_base(self) -> dict[str, str]:
        path = Path(self._model.path)
        return {str(path): sign_folder(path, trained=False)} if path.is_absolute() and path.is_dir() else {}

    def _send_job(self) -> None:
        job = {
            "version": __version__,
            "inner": self._config.inner.model_dump(mode="json"),
            "model": self._model.model_dump(mode="json"),
            "folders": self._signed_base(),
        }
        self._write(JOB, json.dumps(job, sort_keys=True).encode())

    def _send(self, kind: Kind, sampling: Sampling, requests: Sequence[Any]) -> list[_Sent]:
        sent = []
        size = self._config.shard_rows
        for rows in (requests[at : at + size] for at in range(0, len(requests), size)):
            located = [replace(r, model=self._locate(r.model)) for r in rows]
            folders = {p: self._folders[p] for r in located for p in _paths(r.model) if p in self._folders}
            name, data = encode_shard(Shard(kind, sampling, folders, located))
            if name not in self._done and not self._in_use[name]:
                self._write(f"shards/{name}.jsonl", data)
                self._pool.submit(name, f"the shard of {len(rows)} rows from {rows[0].id} to {rows[-1].id}")
            self._in_use[name] += 1
            sent.append(_Sent(name, [r.id for r in rows]))
        return sent

    def _answers(self, kind: Kind, sent: Sequence[_Sent]) -> Iterator[Any]:
        for shard in sent:
            if shard.name not in self._done:
                self._pool.wait_for(shard.name)
                self._done.add(shard.name)
            file = f"answers/{shard.name}.jsonl"
            try:
                data = self._storage.read(file)
            except OSError as error:
                raise GenerationError(
                    f"{self._storage.place}/{file} cannot be read here: {error}; run again"
                ) from error
            usage, answers = decode_answers(kind, data, shard.ids, source=f"{self._storage.place}/{file}")
            self._usage = _add(self._usage, usage)
            yield from answers
        # Who asks for the next call's answers has stored those of the call before.
        self._release(self._delivered)
        self._delivered = [shard.name for shard in sent]

    def _write(self, name: str, data: bytes) -> None:
        try:
            self._storage.write(name, data)
        except OSError as error:
            raise ArtifactError(
                f"generator.storage: {self._storage.place} cannot be written ({error}); when it can, run again: it "
                "goes on"
            ) from error

    def _release(self, names: Sequence[str]) -> None:
        """Delete shards and answers that nobody waits for any more."""
        for name in names:
            self._in_use[name] -= 1
            if not self._in_use[name]:
                del self._in_use[name]
                self._done.discard(name)
                self._storage.remove(f"shards/{name}.jsonl")
                self._storage.remove(f"answers/{name}.jsonl")

    def _locate(self, model: ModelRef) -> ModelRef:
        """The model under paths that do not hang on the working directory; its folders are signed once."""
        base = _absolute(model.base)
        adapter = None if model.adapter is None else _absolute(model.adapter)
        for path, trained in ((base, base != self._model.path), (adapter, True)):
            if path is not None and path not in self._folders and Path(path).is_dir():
                self._folders[path] = sign_folder(Path(path), trained=trained)
        return ModelRef(base, adapter)


def _portable(model: ModelConfig) -> ModelConfig:
    """The model section as another machine can read it: absolute folders, a chat template as text."""
    template = model.chat_template
    if template is not None and "{" not in template and "\n" not in template:
        from semievol.backends.hf import read_template

        template = read_template(template)
    return model.model_copy(update={"path": _absolute(model.path), "chat_template": template})


def _absolute(path: str) -> str:
    """A folder of this machine by its whole path; a hub id stays one."""
    return str(Path(path).absolute()) if Path(path).is_dir() else path


def _paths(model: ModelRef) -> tuple[str, ...]:
    return (model.base,) if model.adapter is None else (model.base, model.adapter)


def _add(a: Usage, b: Usage) -> Usage:
    total: list[Any] = [x + y for x, y in zip(a, b, strict=True)]
    return Usage(*total)._replace(peak_memory_bytes=max(a.peak_memory_bytes, b.peak_memory_bytes))
