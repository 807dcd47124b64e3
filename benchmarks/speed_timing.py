"""Takes times in turns and turns them into figures: what benchmarks/speed.py prints and writes."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

Work = Callable[[], object]

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
"""cpu: seconds of this process on one core, for a machine that has other work to do; needs --threads 1."""


@dataclass(frozen=True)
class Figure:
    """One line of the table. `value` None: not measured, and `note` says why."""

    name: str
    value: float | None
    unit: str
    bound: float | None = None
    at_most: bool = False
    """Whether `bound` is the most (else the least) that is allowed."""
    note: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """Whether the bound is kept; None where nothing was measured or nothing is asked."""
        if self.value is None or self.bound is None:
            return None
        return self.value <= self.bound if self.at_most else self.value >= self.bound

    def to_json(self) -> dict[str, Any]:
        """Plain values, `reached` among them."""
        return {**asdict(self), "reached": self.reached}


@dataclass(frozen=True)
class Stopwatch:
    """Times work on the chosen clock."""

    clock: Callable[[], float]

    def seconds(self, work: Work) -> float:
        """Seconds that one call takes."""
        started = self.clock()
        work()
        return self.clock() - started

    def in_turns(self, works: Sequence[Work], repeats: int) -> list[list[float]]:
        """Seconds of each work, `repeats` times: A B A B, so that what slows the machine slows all of them."""
        times: list[list[float]] = [[] for _ in works]
        for _ in range(repeats):
            for own, work in zip(times, works, strict=True):
                own.append(self.seconds(work))
        return times


class Setting(NamedTuple):
    """How figures are measured: where, by which clock, how large and how often."""

    device: str
    watch: Stopwatch
    folder: Path
    """For models, made on the spot."""
    data: Path | None
    run: Path | None
    """A finished run whose recorded times are read."""
    scale: float
    repeats: int

    def rows(self, full: int, *, least: int = 8) -> int:
        """Rows of a figure whose full size is `full`."""
        return max(least, round(full * self.scale))


def median_ratio(over: Sequence[float], under: Sequence[float]) -> float:
    """Median of the ratios of times that were taken one after the other."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def padding_share(masks: Sequence[Sequence[Sequence[int]]]) -> float:
    """Share of columns without a token, over batches of attention masks (rows, columns), in [0, 1]."""
    cells = sum(len(row) for mask in masks for row in mask)
    return 1 - sum(sum(row) for mask in masks for row in mask) / cells
