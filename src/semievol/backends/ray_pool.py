"""A bounded number of replicas and the shards that they work on: who gets which, and what happens when one dies.

Nothing runs in the background here: whoever waits for a shard moves the work of all shards on. Each replica holds two
shards, the one that it works on and the next, so it does not idle while the driver is busy.
"""

import contextlib
import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from semievol.backends.notes import logger
from semievol.backends.ray_worker import KINDS
from semievol.errors import ConfigError, GenerationError

DEPTH = 2
"""Shards that a replica holds."""
POLL_SECONDS = 1.0
CLOSE_SECONDS = 30.0
"""Longest wait for replicas to free their devices by themselves."""


@dataclass(slots=True)
class _Task:
    """A shard on its way."""

    name: str
    label: str
    """Says to a person which rows it holds."""
    n_attempts: int = 0
    """Replicas that died or failed over it."""


@dataclass(slots=True, eq=False)
class _Replica:
    """A worker process and what it was told, in order; the first reference is the one it works on."""

    actor: Any
    node: str = "?"
    opening: Any = None
    """Reference to the loading of its model; None when it is at work."""
    tasks: deque[tuple[Any, _Task]] = field(default_factory=deque)
    at_work_since: float = 0.0
    """When it began with the first of its shards."""


class ReplicaPool:
    """Replicas and a queue. `start` makes one more replica, as an actor of Ray."""

    def __init__(
        self,
        ray: Any,
        start: Callable[[], Any],
        *,
        replicas: int,
        max_attempts: int,
        start_timeout_seconds: float,
        shard_timeout_seconds: float,
    ) -> None:
        self._ray, self._start = ray, start
        self._n_replicas = replicas
        self._max_attempts = max_attempts
        self._start_timeout_seconds = start_timeout_seconds
        self._shard_timeout_seconds = shard_timeout_seconds
        self._replicas: list[_Replica] = []
        self._queue: deque[_Task] = deque()
        self._done: set[str] = set()
        self._n_failed_starts = 0
        self._last_at_work = time.monotonic()
        self._abilities: dict[str, Any] = {}

    def open(self) -> dict[str, Any]:
        """Start all replicas and wait for the first; returns what it says of its generator.

        Raises:
            SemiEvolError: What opening the generator raised there, or if no replica can be started.
        """
        self._last_at_work = time.monotonic()
        for _ in range(self._n_replicas):
            self._add()
        while not self._abilities:
            self._step()
        return self._abilities

    def submit(self, name: str, label: str) -> None:
        """Queue a shard; replicas take it in turn."""
        self._queue.append(_Task(name, label))
        self._hand_out()

    def wait_for(self, name: str) -> None:
        """Come back when a shard that was submitted is answered.

        Raises:
            SemiEvolError: What a generator raised over a shard, or if one was given up.
        """
        while name not in self._done:
            self._step()
        self._done.discard(name)

    def close(self) -> None:
        """End all replicas; those without work free their devices first."""
        leaving = [r.actor.close.remote() for r in self._replicas if r.opening is None and not r.tasks]
        if leaving:
            with contextlib.suppress(self._ray.exceptions.RayError):
                self._ray.wait(leaving, num_returns=len(leaving), timeout=CLOSE_SECONDS)
        for replica in self._replicas:
            self._end(replica)
        self._replicas.clear()

    def _add(self) -> None:
        actor = self._start()
        self._replicas.append(_Replica(actor, opening=actor.open.remote()))

    def _step(self) -> None:
        """Wait a moment for news, and act on it."""
        references = [r.opening for r in self._replicas if r.opening is not None]
        references += [reference for r in self._replicas for reference, _ in r.tasks]
        if not references:
            raise GenerationError("generator.type: ray: no replica is left to answer; run again to go on")
        self._ray.wait(references, num_returns=1, timeout=POLL_SECONDS)
        ready, _ = self._ray.wait(references, num_returns=len(references), timeout=0)
        news = set(ready)
        for replica in list(self._replicas):
            if replica.opening in news:
                self._welcome(replica)
            while replica.tasks and replica.tasks[0][0] in news:
                if not self._settle(replica):
                    break
        self._end_hung()
        self._check_at_work()
        self._hand_out()

    def _welcome(self, replica: _Replica) -> None:
        """A replica has loaded its model, or could not."""
        try:
            answer = json.loads(self._ray.get(replica.opening))
        except self._ray.exceptions.RayError as error:
            self._n_failed_starts += 1
            self._drop(replica)
            if self._n_failed_starts >= self._max_attempts:
                raise GenerationError(
                    f"generator.type: ray: {self._n_failed_starts} replicas in a row died before they were ready; the "
                    f"last one: {_reason(error)}"
                ) from error
            logger.info("a replica died while it was loading its model, another one is started: %s", _reason(error))
            self._add()
            return
        _raise_fault(answer)
        replica.opening, replica.node = None, answer["node"]
        self._abilities = answer
        self._n_failed_starts = 0

    def _settle(self, replica: _Replica) -> bool:
        """The first shard of a replica is done; False if the replica is dead instead."""
        reference, task = replica.tasks[0]
        try:
            answer = json.loads(self._ray.get(reference))
        except self._ray.exceptions.RayError as error:
            self._bury(replica, error)
            return False
        _raise_fault(answer)
        replica.tasks.popleft()
        replica.at_work_since = time.monotonic()
        self._done.add(task.name)
        return True

    def _end_hung(self) -> None:
        """End the replicas that have been at one shard for too long."""
        limit = self._shard_timeout_seconds
        for replica in list(self._replicas):
            if replica.tasks and time.monotonic() - replica.at_work_since > limit:
                self._bury(
                    replica,
                    TimeoutError(f"it had not answered after generator.shard_timeout_seconds ({limit:g})"),
                )

    def _bury(self, replica: _Replica, error: Exception) -> None:
        """Put a lost replica's shards back in front of the queue and start another; the first one may be to blame."""
        self._drop(replica)
        tasks = [task for _, task in replica.tasks]
        guilty = tasks[0]
        guilty.n_attempts += 1
        if guilty.n_attempts >= self._max_attempts:
            raise GenerationError(
                f"{guilty.label} ended {guilty.n_attempts} replicas (generator.max_attempts), the last one on node "
                f"{replica.node}: {_reason(error)}. All finished rows are kept: run again to go on; where memory ran "
                "out, lower generator.inner.batch_tokens or generator.shard_rows"
            ) from error
        logger.info(
            "a replica on node %s is gone, another one gets %s: %s",
            replica.node,
            guilty.label,
            _reason(error),
        )
        self._queue.extendleft(reversed(tasks))
        self._add()

    def _drop(self, replica: _Replica) -> None:
        self._end(replica)
        self._replicas.remove(replica)

    def _end(self, replica: _Replica) -> None:
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._ray.kill(replica.actor, no_restart=True)

    def _check_at_work(self) -> None:
        if any(r.opening is None for r in self._replicas):
            self._last_at_work = time.monotonic()
        elif time.monotonic() - self._last_at_work > self._start_timeout_seconds:
            there = {k: v for k, v in self._ray.cluster_resources().items() if k in ("CPU", "GPU")}
            raise ConfigError(
                f"no replica was ready within generator.start_timeout_seconds ({self._start_timeout_seconds:g}): the "
                f"cluster has {there or 'no CPU or GPU'} in all, a part of it perhaps in use; lower "
                "generator.gpus_per_replica or cpus_per_replica, free nodes, or wait longer for large models"
            )

    def _hand_out(self) -> None:
        """Give the queue to the replicas that hold the least."""
        while self._queue:
            free = [r for r in self._replicas if r.opening is None and len(r.tasks) < DEPTH]
            if not free:
                return
            replica = min(free, key=lambda r: len(r.tasks))
            task = self._queue.popleft()
            if not replica.tasks:
                replica.at_work_since = time.monotonic()
            replica.tasks.append((replica.actor.answer.remote(task.name), task))


def _raise_fault(answer: dict[str, Any]) -> None:
    if "error" in answer:
        raise KINDS[answer["error"]](answer["message"])


def _reason(error: Exception) -> str:
    """One line out of Ray's many: why a process died, or the line of the exception that a call ended with."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    deaths = [line for line in lines if line.startswith("The actor is dead because")]
    return (deaths[0] if deaths else lines[-1])[:300]
