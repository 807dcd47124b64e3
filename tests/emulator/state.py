"""What the server remembers: counters, files, batches, jobs."""

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Mapping
from typing import Any

from tests.emulator.engine import ALIASES, Engine, ServedModel
from tests.emulator.errors import unknown_model
from tests.emulator.faults import Faults

REQUESTS_KEPT = 2000


class Counters:
    """What was asked for and what was paid."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.statuses: Counter[str] = Counter()
        self.paid: Counter[str] = Counter()
        self.trainings: Counter[str] = Counter()
        self.tokens: Counter[str] = Counter()
        self.in_flight = self.max_in_flight = 0
        self.log: deque[dict[str, Any]] = deque(maxlen=REQUESTS_KEPT)

    def pay(self, body: Mapping[str, Any], usage: Mapping[str, Any]) -> None:
        """Count an answer that the API would bill."""
        self.paid[content_hash(body)] += 1
        self.tokens["prompt"] += usage["prompt_tokens"]
        self.tokens["completion"] += usage.get("completion_tokens", 0)

    def as_json(self) -> dict[str, Any]:
        """For the admin route."""
        return {
            "requests": dict(self.requests),
            "statuses": dict(self.statuses),
            "paid": dict(self.paid),
            "trainings": dict(self.trainings),
            "tokens": {kind: self.tokens[kind] for kind in ("prompt", "completion", "training")},
            "max_in_flight": self.max_in_flight,
        }


class State:
    """Everything that `reset` wipes, and the engine."""

    def __init__(self, engine: Engine, faults: Faults) -> None:
        self.engine = engine
        self.faults = faults
        self.counters = Counters()
        self.files: dict[str, tuple[dict[str, Any], bytes]] = {}
        self.batches: dict[str, Any] = {}
        self.jobs: dict[str, Any] = {}
        self.seen_prompts: set[str] = set()
        self._n_ids = 0
        self.started = int(time.time())

    def reset(self) -> None:
        """As a fresh server: no fault, no file, no job, no tuned model, all counters at 0."""
        for at_work in (*self.batches.values(), *self.jobs.values()):
            at_work.halt()
        self.engine.forget()
        self.faults.set()
        fresh = State(self.engine, self.faults)
        self.__dict__.update(fresh.__dict__)

    def new_id(self, prefix: str) -> str:
        """`file-...`, `batch_...`; the same in every run that makes the same requests in order."""
        self._n_ids += 1
        return prefix + hashlib.blake2b(f"{prefix}{self._n_ids}".encode(), digest_size=12).hexdigest()

    def model(self, name: str) -> ServedModel:
        """By id or alias. Raises ApiError 404."""
        served = self.engine.models().get(ALIASES.get(name, name))
        if served is None:
            raise unknown_model(name)
        return served


def content_hash(body: Mapping[str, Any]) -> str:
    """The same for two request bodies that say the same."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:24]


def now() -> int:
    """Seconds since 1970."""
    return int(time.time())
