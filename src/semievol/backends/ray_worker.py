"""One replica of a local generator, run by Ray in a process of its own; it takes shards by name and stores the answers.

What Ray carries is names and JSON text. Faults that a local generator would raise come back by kind and message, so the
run stops with the same sentence; any other fault counts against the shard, which another replica gets.
"""

import json
import socket
from collections.abc import Mapping
from typing import Any

from semievol import __version__, errors
from semievol.backends.base import Generator, Usage, open_generator
from semievol.backends.shards import JOB, Shard, Storage, check_folders, decode_shard, encode_answers
from semievol.config import ModelConfig, RayGeneratorConfig
from semievol.errors import ConfigError, SemiEvolError

KINDS: dict[str, type[SemiEvolError]] = {
    kind.__name__: kind
    for kind in (errors.ConfigError, errors.DataError, errors.GenerationError, errors.ArtifactError, SemiEvolError)
}


class Replica:
    """Opens the generator of the job that lies at a place, and answers shards of it."""

    def __init__(self, place: str) -> None:
        self._place = place
        self._node = socket.gethostname()
        self._generator: Generator | None = None
        self._seen: set[tuple[str, str]] = set()
        """Model folders that were compared already, and their signatures."""

    def open(self) -> str:
        """Load the model. Returns JSON: what it can do, or the fault."""
        try:
            storage = Storage(self._place)
            job = self._read_job(storage)
            self._check(job["folders"])
            config = RayGeneratorConfig.model_validate({"inner": job["inner"]}).inner
            self._storage = storage
            self._generator = open_generator(config, ModelConfig.model_validate(job["model"])).__enter__()
        except SemiEvolError as error:
            return _fault(error)
        return json.dumps(
            {
                "exact_choice_scores": self._generator.exact_choice_scores,
                "gives_logprobs": self._generator.gives_logprobs,
                "node": self._node,
            }
        )

    def answer(self, name: str) -> str:
        """Answer the shard `name` and store the answers. Returns JSON: the number of rows, or the fault."""
        assert self._generator is not None
        try:
            shard = decode_shard(self._storage.read(f"shards/{name}.jsonl"))
            self._check(shard.folders)
            before = self._generator.usage
            answers = self._ask(self._generator, shard)
        except SemiEvolError as error:
            return _fault(error)
        spent = _difference(self._generator.usage, before)
        self._storage.write(f"answers/{name}.jsonl", encode_answers(shard.kind, spent, answers))
        return json.dumps({"n_rows": len(answers)})

    def close(self) -> None:
        """Free the device."""
        if self._generator is not None:
            generator, self._generator = self._generator, None
            generator.__exit__(None, None, None)

    @staticmethod
    def _ask(generator: Generator, shard: Shard) -> list[Any]:
        requests: Any = shard.requests
        if shard.kind == "score":
            return list(generator.score_choices(requests))
        return list(generator.generate(requests, shard.sampling))

    def _read_job(self, storage: Storage) -> dict[str, Any]:
        try:
            job: dict[str, Any] = json.loads(storage.read(JOB))
        except OSError as error:
            raise ConfigError(
                f"node {self._node} does not see {self._place}/{JOB} ({error}): set generator.storage to a folder or "
                "URL that all nodes see"
            ) from error
        if job["version"] != __version__:
            raise ConfigError(
                f"node {self._node} has semievol {__version__}, and the run has {job['version']}: install the same one"
            )
        return job

    def _check(self, folders: Mapping[str, str]) -> None:
        check_folders(dict(folders.items() - self._seen), node=self._node)
        self._seen |= folders.items()


def _fault(error: SemiEvolError) -> str:
    kind = type(error).__name__
    return json.dumps({"error": kind if kind in KINDS else "SemiEvolError", "message": str(error)})


def _difference(now: Usage, before: Usage) -> Usage:
    """What was spent between; the peak of memory is that of the process."""
    spent: list[Any] = [a - b for a, b in zip(now, before, strict=True)]
    return Usage(*spent)._replace(peak_memory_bytes=now.peak_memory_bytes)
