"""Which part of a comparison may run next: several processes work on one split and seed without changing its result.

A run has two parts. The first ends with its last step that puts questions other runs may put as well (pseudo-labels,
and test rows to the base or the warm model); what comes after it trains and measures a model of the run's own. First
parts of one split and seed run one after another, in the order of the plan, so no question is put twice and every
answer is computed among the same others however many processes there are. A step that several runs need is left to
the first of them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from semievol.compare_plan import Key, PlannedRun
from semievol.pipeline import Step

ASKING = ("propagate", "justify", "distill")
"""Stages that ask models which other runs may ask, too."""
SHARED_MODELS = ("base", "warm")
"""Values of `measure.model` that stand for such models."""

StepPrint = tuple[str, str]
"""Name and fingerprint of a step."""


class Part(NamedTuple):
    """Steps of a run that run in one go."""

    run: PlannedRun
    steps: tuple[Step, ...]
    """All steps up to the end of this part; those of earlier parts are done by then."""
    is_last: bool
    asks: bool
    """Whether it puts questions that other runs may put as well."""


def share_warm_model(runs: Iterable[PlannedRun], prints: Mapping[Key, Mapping[str, str]]) -> set[Key]:
    """Keys of the runs whose warm-up another run has, too; TAPT, for one, leads to a warm model of its own."""
    found: dict[tuple[int, str], list[Key]] = defaultdict(list)
    for run in runs:
        if "warmup" in prints[run.record.key]:
            found[run.record.split, prints[run.record.key]["warmup"]].append(run.record.key)
    return {key for keys in found.values() if len(keys) > 1 for key in keys}


class Schedule:
    """Hands out the parts of runs, and learns which are done. Not for several threads."""

    def __init__(
        self,
        runs: Sequence[PlannedRun],
        prints: Mapping[Key, Mapping[str, str]],
        finished: Mapping[int, Iterable[StepPrint]],
        *,
        jobs: int = 1,
    ) -> None:
        """`finished` holds, by split, the steps that some run folder of the split has; `jobs` parts are in hand."""
        self._runs = list(runs)
        self._prints = prints
        self._jobs = jobs
        self._share_warm = share_warm_model(runs, prints)
        self._finished = {split: set(steps) for split, steps in finished.items()}
        self._working: dict[Key, Part] = {}

    @property
    def left(self) -> list[PlannedRun]:
        """Runs that have not ended."""
        return list(self._runs)

    def next(self) -> Part | None:
        """A part that may run now, and counts as being worked on from here on; None if all have to wait.

        While nothing is worked on it is a part of the first run, unless all have ended. Else, within as many splits and
        seeds as there are jobs and one more, questions go first: the next ones wait for them, and trainings fill the
        gaps.
        """
        candidates = range(len(self._runs)) if self._working else range(min(1, len(self._runs)))
        ready = [part for i in candidates if (part := self._ready(i)) is not None]
        if not ready:
            return None
        working = [part.run.cell for part in self._working.values()]
        near = list(dict.fromkeys(run.cell for run in self._runs))[: self._jobs + 1]
        # The first of equals: the order of the plan.
        part = min(ready, key=lambda p: (p.run.cell not in near, not p.asks, working.count(p.run.cell)))
        self._working[part.run.record.key] = part
        return part

    def end(self, part: Part, *, finished: Iterable[StepPrint], is_over: bool) -> None:
        """A part has ended; `finished` are the steps that its run folder holds now, `is_over` ends the run."""
        del self._working[part.run.record.key]
        self._finished.setdefault(part.run.record.split, set()).update(finished)
        if is_over:
            self._runs = [run for run in self._runs if run.record.key != part.run.record.key]

    def _ready(self, i: int) -> Part | None:
        run = self._runs[i]
        if run.record.key in self._working:
            return None
        part = self._next_part(run)
        needed = self._missing(run, part.steps)
        for earlier in self._runs[:i]:
            if earlier.record.split != run.record.split:
                continue
            if needed & self._missing(earlier, earlier.steps):
                return None
            if part.asks and earlier.cell == run.cell and self._n_asking_steps(earlier):
                return None
        return part

    def _next_part(self, run: PlannedRun) -> Part:
        n_asking = self._n_asking_steps(run)
        n_steps = n_asking or len(run.steps)
        return Part(run, run.steps[:n_steps], is_last=n_steps == len(run.steps), asks=n_asking > 0)

    def _n_asking_steps(self, run: PlannedRun) -> int:
        """Steps up to the last missing one that asks a shared model; 0 if there is none."""
        missing = self._missing(run, run.steps)
        asking = [n for n, s in enumerate(run.steps, 1) if self._print(run, s) in missing and self._asks(run, s)]
        return asking[-1] if asking else 0

    def _asks(self, run: PlannedRun, step: Step) -> bool:
        return asks_shared_model(run, step, share_warm=run.record.key in self._share_warm)

    def _missing(self, run: PlannedRun, steps: Iterable[Step]) -> set[StepPrint]:
        return {self._print(run, step) for step in steps} - self._finished.get(run.record.split, set())

    def _print(self, run: PlannedRun, step: Step) -> StepPrint:
        return step.name, self._prints[run.record.key][step.name]


def asks_shared_model(run: PlannedRun, step: Step, *, share_warm: bool) -> bool:
    """Whether a step puts questions that other runs of the split and seed may put as well.

    `share_warm` says whether another run has the same warm-up.
    """
    if step.stage.name == "measure":
        return run.config.measure.model in (SHARED_MODELS if share_warm else SHARED_MODELS[:1])
    return step.stage.name in ASKING
