"""Keeps count of requests and dollars, over all processes of a run, and stops before a limit is passed.

The most that a request may cost is set aside before it is sent and written down, so that a run killed in the middle
counts what was under way as spent. The ledger is an append-only file of the run folder.
"""

import asyncio
import json
from pathlib import Path
from typing import IO

from semievol.errors import GenerationError

LEDGER = "spent.jsonl"


class Budget:
    """What may be spent and what has been. `reserve` and `settle` are called from one event loop.

    Args:
        max_requests: Most requests in all. None: no limit.
        max_dollars: Most US dollars in all. None: no limit.
        state_dir: Folder of the ledger. None: nothing outlives the process.
        now: Name of this spending in messages, such as a model and its address.
    """

    def __init__(
        self, max_requests: int | None, max_dollars: float | None, state_dir: Path | None, *, name: str = ""
    ) -> None:
        self._max_requests, self._max_dollars, self._name = max_requests, max_dollars, name
        self._path = None if state_dir is None else state_dir / LEDGER
        self._file: IO[bytes] | None = None
        self.n_requests, self.dollars = (0, 0.0) if self._path is None else read_ledger(self._path)
        self._open: dict[int, float] = {}
        self._freed: asyncio.Event | None = None
        self._next = 0

    async def reserve(self, dollars: float) -> int:
        """Set aside the most that a request may cost; waits for others to end if it does not fit beside them.

        Raises:
            GenerationError: If a limit would be passed.
        """
        while (reservation := self.try_reserve(dollars)) is None:
            self._freed = self._freed or asyncio.Event()
            await self._freed.wait()
        return reservation

    def try_reserve(self, dollars: float) -> int | None:
        """As `reserve`, but None where it would have to wait for others to end."""
        if not self._fits(dollars):
            if not self._open or self._out_of_requests():
                raise GenerationError(self._message())
            return None
        self._next += 1
        self._open[self._next] = dollars
        self.n_requests += 1
        self._write({"id": self._next, "most": dollars})
        return self._next

    def settle(self, reservation: int, dollars: float) -> None:
        """What the request did cost."""
        del self._open[reservation]
        self.dollars += dollars
        self._write({"id": reservation, "spent": dollars})
        if self._freed is not None:
            self._freed.set()
            self._freed = None

    def close(self) -> None:
        """Close the ledger."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _out_of_requests(self) -> bool:
        return self._max_requests is not None and self.n_requests >= self._max_requests

    def _fits(self, dollars: float) -> bool:
        if self._out_of_requests():
            return False
        return self._max_dollars is None or self.dollars + sum(self._open.values()) + dollars <= self._max_dollars

    def _message(self) -> str:
        if self._out_of_requests():
            limit = f"generator.max_requests: {self._max_requests} is reached"
        else:
            limit = (
                f"${self.dollars:.4f} are spent and one more request may pass generator.max_cost: {self._max_dollars:g}"
            )
        return f"{self._name}: {limit}; all answers are kept. Raise it and run again to go on"

    def _write(self, entry: dict[str, float]) -> None:
        if self._path is None:
            return
        if self._file is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._path.open("ab", buffering=0)
            self._file.write(b'\n{"id": 0}\n')  # a killed process may have left half a line
        self._file.write(json.dumps(entry, separators=(",", ":")).encode() + b"\n")


def read_ledger(path: Path) -> tuple[int, float]:
    """Requests and dollars of a ledger; what was set aside and never settled counts as spent."""
    n_requests, dollars = 0, 0.0
    under_way: dict[int, float] = {}
    if not path.exists():
        return 0, 0.0
    with path.open("rb") as stream:
        for line in stream:
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if entry["id"] == 0:  # a new process
                dollars += sum(under_way.values())
                under_way.clear()
            elif "most" in entry:
                n_requests += 1
                under_way[entry["id"]] = entry["most"]
            elif under_way.pop(entry["id"], None) is not None:
                dollars += entry["spent"]
    return n_requests, dollars + sum(under_way.values())
