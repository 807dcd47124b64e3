"""Runs a comparison: every arm on every split with every seed, steps with the same inputs once.

Runs of one split share their finished steps, runs of one split and seed their row store too, so an answer is bought
once. An arm that fails is written down with its reason and the others go on. What is done is not done again, whatever
killed it.
"""

import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from semievol.arms import choose_arms
from semievol.artifacts import RunDir
from semievol.compare_plan import (
    PlannedRun,
    Setting,
    by_cell,
    choose_reference,
    fingerprint_run,
    is_done,
    plan_runs,
    plan_work,
    share_tokenizers,
    split_configs,
    split_folders,
)
from semievol.comparison import ArmRecord, ComparisonRecord, RunRecord, pending_runs, record_run, write_comparison
from semievol.config import RunConfig
from semievol.errors import ArtifactError, SemiEvolError
from semievol.pipeline import run_steps
from semievol.progress import ConsoleReporter
from semievol.sharing import SharedSteps
from semievol.stage import Reporter, SilentReporter


def compare(
    config: RunConfig | Mapping[int, RunConfig],
    arms: Sequence[str],
    *,
    seeds: Sequence[int],
    splits: Sequence[int] = (0,),
    reference: str | None = None,
    use_gold: bool = False,
    output_dir: Path,
    settings: Mapping[str, Setting] | None = None,
    sweep: dict[str, list[object]] | None = None,
    jobs: int = 1,
    reporter: Reporter | None = None,
) -> Path:
    """Run what is not done yet of a comparison and return its folder; comparison.json says how each run ended.

    Args:
        config: What all arms start from; by split where each has files of its own.
        arms: Names, or `all`.
        seeds: Of training and sampling.
        splits: Seeds of the cut and of the draws of rows.
        reference: Arm to compare with; None: `sft_matched`, or `sft`, or the first arm, whichever is there.
        use_gold: Open the sealed targets: for arms that bound what is possible, and to audit pseudo-labels.
        output_dir: Folder of the comparison; locked meanwhile.
        settings: Points of a sweep by `key=value,...`; None: the config alone.
        sweep: Values of each key of the sweep, for the record.
        jobs: Processes; each takes the runs of one split and seed.
        reporter: What a person sees; None shows nothing.

    Raises:
        ConfigError: If an arm, the reference or the splits do not fit the config; before anything runs.
        ArtifactError: If another process works on the folder.
    """
    reporter = reporter or SilentReporter()
    configs = split_configs(config, splits)
    chosen = choose_arms(arms, next(iter(configs.values())), use_gold=use_gold)
    record = ComparisonRecord(
        reference=choose_reference(reference, [arm.name for arm in chosen]),
        use_gold=use_gold,
        arms=tuple(ArmRecord(arm.name, arm.description, arm.uses_gold) for arm in chosen),
        seeds=tuple(seeds),
        splits=tuple(splits),
        sweep=sweep,
        runs=pending_runs(
            [arm.name for arm in chosen], splits=splits, seeds=seeds, settings=list(settings) if settings else ("",)
        ),
    )
    runs = plan_runs(record, chosen, configs, settings or {"": lambda c: c})
    with RunDir(output_dir).lock():
        backends = share_tokenizers()
        prints = {run.record.key: fingerprint_run(run, output_dir, backends) for run in runs}
        done = {run.record.key for run in runs if is_done(output_dir, run, prints[run.record.key])}
        record = replace(record, runs=tuple(replace(r, status="done") if r.key in done else r for r in record.runs))
        write_comparison(output_dir, record)
        for line in plan_work(output_dir, runs, prints, n_runs_done=len(done)).lines():
            reporter.note(line)
        cells = list(by_cell(run for run in runs if run.record.key not in done).values())
        if min(jobs, len(cells)) > 1:
            _run_in_processes(output_dir, cells, jobs=jobs, shown=not isinstance(reporter, SilentReporter))
            return output_dir
        for i, members in enumerate(cells, 1):
            run_cell(output_dir, members, reporter)
            left = [run for later in cells[i:] for run in later]
            if left:
                reporter.note(plan_work(output_dir, left, prints, n_runs_done=0).time_left())
    return output_dir


def run_cell(folder: Path, runs: Sequence[PlannedRun], reporter: Reporter | None = None) -> None:
    """Run the arms of one split and seed, one after another; each one's end goes into comparison.json."""
    shared = SharedSteps(folder, split_folders(folder, runs[0].record.split))
    for run in runs:
        record = run_arm(folder, run, shared, reporter or SilentReporter())
        after = record_run(folder, record)
        if reporter is not None:
            n_ended = sum(r.status != "pending" for r in after.runs)
            place = f"split {record.split}, seed {record.seed}" + (f", {record.setting}" if record.setting else "")
            reporter.note(f"{n_ended} of {len(after.runs)} runs: {record.arm}, {place}: {record.error or 'done'}")


def run_arm(folder: Path, run: PlannedRun, shared: SharedSteps, reporter: Reporter) -> RunRecord:
    """Run one arm and say how it ended; only an interruption comes through."""
    run_dir = RunDir(folder / run.record.folder, rows=rows_file(folder, run.cell))
    trace = run_dir.path / "error.txt"
    try:
        run_steps(run.config, run_dir, run.steps, reporter=ArmReporter(reporter, run.record.arm), shared=shared)
    except SemiEvolError as error:
        return replace(run.record, status="failed", error=str(error))
    except Exception as error:  # a fault of a library or of ours must not cost the other arms
        run_dir.write_text(trace.name, traceback.format_exc())
        return replace(
            run.record, status="failed", error=f"{type(error).__name__}: {error} (see {run.record.folder}/{trace.name})"
        )
    finally:
        shared.add(run_dir)
    trace.unlink(missing_ok=True)
    return replace(run.record, status="done", error=None)


def rows_file(folder: Path, cell: tuple[int, int]) -> Path:
    """The row store that the runs of a split and seed share."""
    return folder / "rows" / f"split-{cell[0]}-seed-{cell[1]}.sqlite"


class ArmReporter:
    """Shows only the steps that run, under the name of their arm."""

    def __init__(self, inner: Reporter, arm: str) -> None:
        self._inner = inner
        self._arm = arm

    def stage(self, name: str, text: str) -> None:
        """A step starts."""
        self._inner.stage(f"{self._arm} {name}", text)

    def task(self, text: str, total: int | None, unit: str) -> Callable[[int], None]:
        """Rows or steps are about to be counted."""
        return self._inner.task(text, total, unit)

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._inner.note(text)

    def done(self, name: str, text: str, seconds: float) -> None:
        """A step has ended; one that did not have to run is passed over."""
        if seconds > 0:
            self._inner.done(f"{self._arm} {name}", text, seconds)


def _run_in_processes(folder: Path, cells: Sequence[Sequence[PlannedRun]], *, jobs: int, shown: bool) -> None:
    others = set(multiprocessing.active_children())
    with _threads_for(jobs):
        pool = ProcessPoolExecutor(
            jobs,
            mp_context=multiprocessing.get_context("spawn"),
            initializer=_end_with_parent,
            initargs=(os.getpid(),),
        )
        try:
            for future in as_completed(
                [pool.submit(_run_cell_in_process, folder, members, shown) for members in cells]
            ):
                future.result()
        except BaseException as error:
            # Left alone, the pool would wait for the arms in hand and begin those in the queue.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            if isinstance(error, BrokenProcessPool):
                raise ArtifactError(
                    f"{folder}: a process of --jobs {jobs} was killed (out of memory?); what is done is kept: "
                    f"run it again, with fewer jobs"
                ) from None
            raise
        pool.shutdown()


def _run_cell_in_process(folder: Path, runs: Sequence[PlannedRun], shown: bool) -> None:
    """Bars of several processes would write over each other, so only lines are shown."""
    run_cell(folder, runs, NoteReporter(ConsoleReporter()) if shown else None)


class NoteReporter(SilentReporter):
    """Shows notes alone."""

    def __init__(self, inner: Reporter) -> None:
        self._inner = inner

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._inner.note(text)


@contextmanager
def _threads_for(jobs: int) -> Iterator[None]:
    """Share the cores among the processes that are started meanwhile."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(max(1, n_cores // jobs))))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _end_with_parent(parent: int) -> None:
    """A process whose parent was killed would go on holding run folders that a new start wants."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
