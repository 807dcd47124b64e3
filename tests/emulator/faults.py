"""What can go wrong, switched on by a test.

`set_faults(rate_limit=2)` strikes the next two requests, `rate_limit=0.1` one in ten (drawn from the seed and the
request's content, so the order of arrival changes nothing), `rate_limit={"times": 1, "route": "/v1/embeddings",
"skip": 3}` the fourth request of a route.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

KINDS = {
    "rate_limit": "429 with a Retry-After of `retry_after` seconds",
    "quota": "429 with the code insufficient_quota",
    "server_error": "500",
    "drop_before": "the connection drops before anything is generated: not paid",
    "drop_after": "the connection drops after the answer was generated: paid, as the API bills it, yet never seen",
    "slow": "the answer takes `slow_seconds` longer",
    "truncate": "status 200, and the JSON body ends in its middle",
    "no_logprobs": "`logprobs` is null, as from servers that ignore the parameter",
    "ignore_n": "one choice, whatever `n` says",
    "ignore_seed": "the seed is not used",
    "no_usage": "the answer says nothing of usage",
    "content_filter": "an empty answer whose finish_reason is content_filter",
    "batch_line_error": "a line of a batch ends in the error file with a 500: not paid",
    "batch_missing": "a line of a batch is in neither file",
    "batch_duplicate": "a line of a batch is in the output file twice",
    "batch_failed": "the batch fails in validation",
    "batch_expired": "the batch expires with half of its lines done; the others are in the error file",
    "batch_stuck": "the batch stays in progress",
    "job_failed": "the fine-tuning job fails while running",
    "job_stuck": "the fine-tuning job stays queued",
    "job_unknown_state": "the fine-tuning job passes through a state that no document lists",
}
SETTINGS: dict[str, tuple[float, str]] = {
    "seed": (0, "of the draws"),
    "latency_ms": (0, "milliseconds added to every answer"),
    "max_in_flight": (0, "429 for requests that come while so many are being answered; 0: no limit"),
    "retry_after": (0.02, "seconds"),
    "slow_seconds": (0.5, "seconds"),
}


@dataclass
class Fault:
    """One switch. `times`: how often at most; `rate`: share of requests; `skip`: requests let through first."""

    times: float = float("inf")
    rate: float = 1.0
    route: str = ""
    skip: int = 0


class Faults:
    """All switches; a fresh one has none on."""

    def __init__(self, **switches: Any) -> None:
        self.seed = self.max_in_flight = 0
        self.latency_ms = self.retry_after = self.slow_seconds = 0.0
        self._faults: dict[str, Fault] = {}
        self._seen: Counter[tuple[str, str]] = Counter()
        self.set(**switches)

    def set(self, **switches: Any) -> None:
        """Take the place of everything set before.

        Raises:
            ValueError: On a switch that is in neither KINDS nor SETTINGS.
        """
        unknown = set(switches) - set(KINDS) - set(SETTINGS)
        if unknown:
            raise ValueError(f"no such fault: {sorted(unknown)}; there are {sorted(KINDS)} and {sorted(SETTINGS)}")
        settings = {k: switches.get(k, default) for k, (default, _) in SETTINGS.items()}
        self.seed, self.max_in_flight = int(settings["seed"]), int(settings["max_in_flight"])
        self.latency_ms, self.retry_after = float(settings["latency_ms"]), float(settings["retry_after"])
        self.slow_seconds = float(settings["slow_seconds"])
        self._faults = {k: _fault(v) for k, v in switches.items() if k in KINDS}
        self._seen.clear()

    def strikes(self, kind: str, route: str, content: str) -> bool:
        """Whether `kind` happens to this request; counts it if so. A request sent again is drawn anew."""
        fault = self._faults.get(kind)
        if fault is None or fault.route not in route or fault.times <= 0:
            return False
        if fault.skip > 0:
            fault.skip -= 1
            return False
        self._seen[kind, content] += 1
        text = f"{self.seed}\x1f{kind}\x1f{content}\x1f{self._seen[kind, content]}"
        draw = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") / 2**64
        if draw >= fault.rate:
            return False
        fault.times -= 1
        return True


def _fault(value: Any) -> Fault:
    if isinstance(value, Mapping):
        return Fault(**value)
    if isinstance(value, bool):
        return Fault(times=float("inf") if value else 0)
    if isinstance(value, int):
        return Fault(times=value)
    return Fault(rate=value)
