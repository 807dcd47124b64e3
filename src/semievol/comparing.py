"""Runs a comparison: every arm on every split with every seed, steps with the same inputs once.

Runs of one split share their finished steps, runs of one split and seed their row store too, so an answer is bought
once. An arm that fails is written down with its reason and the others go on. What is done is not done again, whatever
killed it.
"""

import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from semievol.arms import ARMS, CONTROL_OF, MATCHED, Arm, choose_arms, choose_controls, find_arm, plan_arm
from semievol.artifacts import CONFIG, MANIFEST, RunDir, remove_folder
from semievol.compare_models import drop_models
from semievol.compare_plan import (
    LIGHT,
    Key,
    PlannedRun,
    Setting,
    base_config,
    choose_reference,
    find_fixed,
    fingerprint_run,
    finished_steps,
    guess_seconds,
    is_done,
    models_line,
    plan_runs,
    plan_work,
    price_work,
    refuse_equal_splits,
    run_folders,
    share_tokenizers,
    split_configs,
)
from semievol.compare_schedule import Part, Schedule
from semievol.comparison import (
    ArmRecord,
    ComparisonRecord,
    RunRecord,
    can_join,
    changed_keys,
    is_comparison,
    join_records,
    pending_runs,
    read_comparison,
    record_run,
    write_comparison,
)
from semievol.config import RunConfig
from semievol.confirming import refuse_cost
from semievol.errors import ConfigError, DiskFullError, SemiEvolError
from semievol.loading import LoadedData, load_examples
from semievol.pipeline import forget_lost, run_steps
from semievol.progress import ConsoleReporter
from semievol.report_text import plural
from semievol.sharing import LOCKS, Failures, SharedSteps
from semievol.stage import Backends, Reporter, SilentReporter
from semievol.summary import read_run_config


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
    keep_models: bool = True,
    time_steps: bool = False,
    plan_only: bool = False,
    show_plan: Callable[[dict[str, Any]], None] | None = None,
    confirmed: bool = True,
    reporter: Reporter | None = None,
) -> Path:
    """Run what is not done yet of a comparison and return its folder; comparison.json says how each run ended.

    Finished runs of an earlier call with the same config stay in the comparison, whatever this one asks for.

    Args:
        config: What all arms start from; by split where each has files of its own.
        arms: Names, or `all`.
        seeds: Of training and sampling.
        splits: Seeds of the cut and of the draws of rows.
        reference: Arm to compare with; None: the one that an earlier call named, else `sft_matched`, `sft` or the first
            arm, whichever is there.
        use_gold: Open the sealed targets: for arms that bound what is possible, and to audit pseudo-labels.
        output_dir: Folder of the comparison; locked meanwhile.
        settings: Points of a sweep by `key=value,...`; None: the config alone.
        sweep: Values of each key of the sweep, for the record.
        jobs: Processes; they share the runs of all splits and seeds, with the results of one alone up to rounding (on
            a CPU each has a share of the threads).
        keep_models: Whether trained models stay; else each is deleted when no run of its split needs it any more.
        time_steps: Whether to time a few steps of the model first, where nothing that the folder holds tells how long
            the work will take.
        plan_only: Whether to stop after the plan, and run nothing.
        show_plan: Gets the plan as plain values (`WorkPlan.to_json`).
        confirmed: Whether it may cost more than `generator.confirm_above_cost`.
        reporter: What a person sees; None shows nothing.

    Raises:
        ConfigError: If an arm, the reference or the splits do not fit the config; before anything runs.
        ArtifactError: If another process works on the folder.
        DiskFullError: If there is no space left; what is done stays, and calling again goes on.
    """
    reporter = reporter or SilentReporter()
    _refuse_foreign_files(output_dir)
    configs = split_configs(config, splits)
    first = next(iter(configs.values()))
    points = {name: apply(first) for name, apply in settings.items()} if settings else {"": first}
    if isinstance(config, RunConfig):
        refuse_equal_splits(points, len(splits))
    loaded: dict[int, LoadedData] = {}
    if use_gold:
        split = next(iter(configs))
        loaded[split] = load_examples(first)
        use_gold = _find_gold(loaded[split], arms, note=reporter.note)
    chosen = _fit_points(
        choose_arms(arms, first, use_gold=use_gold, note=reporter.note), points, asked=arms, note=reporter.note
    )
    backends = share_tokenizers()
    record = ComparisonRecord(
        reference=chosen[0].name,
        use_gold=use_gold,
        arms=(),
        seeds=tuple(seeds),
        splits=tuple(splits),
        sweep=sweep,
        runs=pending_runs([arm.name for arm in chosen], splits=splits, seeds=seeds, settings=list(points)),
        config=base_config(config),
    )
    staying = _find_staying(record, output_dir, backends)
    asked = reference or _find_earlier_reference(output_dir)
    compared_with = _choose_reference(asked, is_wanted=reference is not None, runs=[*record.runs, *staying])
    if compared_with == MATCHED:
        controls, further = _plan_controls(record, chosen, points, staying)
        if controls:
            names = ", ".join(arm.name.partition(CONTROL_OF)[2] for arm in controls)
            n = plural(len(further), "further run")
            reporter.note(f"{n} of SFT on the labelled rows, for as many steps as {names}; equal trainings run once")
        chosen += controls
        record = replace(record, runs=(*record.runs, *further))
    record = replace(
        record,
        reference=compared_with,
        arms=tuple(ArmRecord(arm.name, arm.description, arm.uses_gold) for arm in chosen),
    )
    runs = plan_runs(record, chosen, configs, settings or {"": lambda c: c})
    for line in find_fixed(runs, sweep or {}):
        reporter.note(line)
    with RunDir(output_dir).lock():
        for run in runs:
            forget_lost(RunDir(output_dir / run.record.folder), run.steps)
        prints = {run.record.key: fingerprint_run(run, output_dir, backends) for run in runs}
        _check_rows(configs, runs, prints, output_dir, loaded=loaded)
        loaded.clear()
        done = {run.record.key for run in runs if is_done(output_dir, run, prints[run.record.key])}
        record = replace(record, runs=tuple(replace(r, status="done") if r.key in done else r for r in record.runs))
        plan = plan_work(output_dir, runs, prints, n_runs_done=len(done), jobs=jobs)
        guesses: dict[str, float] = {}
        if time_steps and set(plan.unmeasured) - set(LIGHT):
            guesses = guess_seconds(first)
            plan = plan_work(output_dir, runs, prints, n_runs_done=len(done), jobs=jobs, guesses=guesses)
        models = models_line(plan, output_dir, jobs=jobs, keep_models=keep_models)
        for line in filter(None, (*plan.lines(), models)):
            reporter.note(line)
        price = price_work(plan)
        if price is not None:
            reporter.note(price.line())
        if show_plan is not None:
            show_plan(plan.to_json(price))
        whole = _with_earlier(record, output_dir, staying=staying, reporter=reporter, backends=backends)
        if reference is None and whole.reference == asked:
            reporter.note(f"compared with {asked}, as in an earlier call; --reference names another arm")
        if plan_only:
            return output_dir
        if price is not None and not confirmed:
            refuse_cost(first, price.low, price.high, what="this comparison")
        write_comparison(output_dir, whole)
        left = [run for run in runs if run.record.key not in done]
        finished = {split: finished_steps(output_dir, split) for split in splits}
        schedule = Schedule(left, prints, finished, jobs=max(1, min(jobs, len(left))))
        work = _Work(output_dir, schedule, prints, reporter, jobs, keep_models, guesses)
        if not keep_models:
            for split in whole.splits:
                work.drop_models(whole, split)
        if jobs > 1 and left:  # a single run has a process of its own, too, as it may be killed for its memory
            _run_in_processes(work)
        else:
            _run_in_this_process(work)
        remove_folder(output_dir / LOCKS)
    return output_dir


def _fit_points(
    chosen: Sequence[Arm], points: Mapping[str, RunConfig], *, asked: Sequence[str], note: Callable[[str], None]
) -> list[Arm]:
    """The arms that can be made at every point; `note` gets why others of `all` are left out.

    Raises:
        ConfigError: If one that was asked for by name cannot.
    """
    fitting = []
    for arm in chosen:
        lacking = next(((name, why) for name, point in points.items() if (why := arm.misfit(point))), None)
        if lacking is None:
            fitting.append(arm)
        elif "all" in asked:
            note(f"{arm.name} is left out: at {lacking[0]} {lacking[1]}")
        else:
            raise ConfigError(f"arm {arm.name} does not fit {lacking[0]}: {lacking[1]}; leave one of the two out")
    return fitting


def _choose_reference(asked: str | None, *, is_wanted: bool, runs: Sequence[RunRecord]) -> str:
    """The arm that all are compared with, of those in `runs`; `asked` has to be there if this call wants it."""
    found = {run.arm for run in runs}
    names = [name for name in ARMS if name in found]  # controls are none of them
    return choose_reference(asked if is_wanted or asked in names else None, names)


def _plan_controls(
    record: ComparisonRecord, chosen: Sequence[Arm], points: Mapping[str, RunConfig], staying: Sequence[RunRecord]
) -> tuple[list[Arm], list[RunRecord]]:
    """Controls that arms need at one of the points, and their runs: wherever the arm has one, now or from before."""
    names = {arm.name for arm in chosen}
    cells = {(run.split, run.seed, run.setting) for run in record.runs}
    before = [run for run in staying if (run.split, run.seed, run.setting) in cells and CONTROL_OF not in run.arm]
    needed: dict[str, Arm] = {}
    for name, point in points.items():
        there = {run.arm: find_arm(run.arm) for run in before if run.setting == name and run.arm not in names}
        needed |= {arm.name: arm for arm in choose_controls([*chosen, *there.values()], point)}
    keys = {run.key for run in (*record.runs, *before)}
    runs = pending_runs(list(needed), splits=record.splits, seeds=record.seeds, settings=list(points))
    further = [r for r in runs if (r.arm.partition(CONTROL_OF)[2], r.split, r.seed, r.setting) in keys]
    return list(needed.values()), further


FOREIGN = ("results.json", "compare.html", "report.html", "tables", "figures", MANIFEST, CONFIG)
"""What a folder that holds no comparison must not hold: a report would be drawn over it."""


def _refuse_foreign_files(folder: Path) -> None:
    """Raises ConfigError if the comparison would write over files that are not of one, such as those of a run."""
    if is_comparison(folder):
        return
    found = [name for name in FOREIGN if (folder / name).exists()]
    if found:
        raise ConfigError(
            f"--output-dir {folder}: it is not the folder of a comparison, and holds {', '.join(found)}, which a "
            "comparison would write over; name another folder"
        )


def _check_rows(
    configs: Mapping[int, RunConfig],
    runs: Sequence[PlannedRun],
    prints: Mapping[Key, Mapping[str, str]],
    folder: Path,
    *,
    loaded: Mapping[int, LoadedData],
) -> None:
    """Find faults of the data before anything is spent; of splits whose rows no run of the folder has loaded yet.

    Rows in `loaded`, by split, are not read again.

    Raises:
        ConfigError: If there are no test rows.
        DataError: As `load_examples`.
    """
    for split, config in configs.items():
        known = {print_ for name, print_ in finished_steps(folder, split) if name == "data"}
        if {prints[run.record.key]["data"] for run in runs if run.record.split == split} <= known:
            continue
        rows = loaded[split] if split in loaded else load_examples(config)
        if not rows.test:
            raise ConfigError(
                "a comparison measures its arms on test rows, and there are none: set data.test, or data.split.test"
            )


def _find_earlier_reference(folder: Path) -> str | None:
    """The arm that an earlier call of the comparison named as its reference; None if it left the choice to us."""
    if not is_comparison(folder):
        return None
    earlier = read_comparison(folder)
    chosen = choose_reference(None, [arm.name for arm in earlier.arms])
    return None if earlier.reference == chosen else earlier.reference


def _find_gold(loaded: LoadedData, arms: Sequence[str], *, note: Callable[[str], None]) -> bool:
    """Whether there are sealed targets to open. Raises ConfigError if there are none, and an arm needs them."""
    if loaded.gold:
        return True
    named = [name for name in arms if name in ARMS and ARMS[name].uses_gold]
    if named:
        raise ConfigError(
            f"{', '.join(named)}: these arms read the targets of the unlabelled rows, but no unlabelled row has one; "
            "leave them out, and --use-gold with them"
        )
    note("--use-gold: no unlabelled row has a target, so the oracle arms and the audits of pseudo-labels are left out")
    return False


def _find_staying(record: ComparisonRecord, folder: Path, backends: Callable[[RunConfig], Backends]) -> list[RunRecord]:
    """Runs of an earlier call, finished or failed, that stay in the comparison beside those of the record."""
    if not is_comparison(folder):
        return []
    earlier = read_comparison(folder)
    known = {run.key for run in record.runs}
    others = [run for run in earlier.runs if run.status != "pending" and run.key not in known]
    return [run for run in others if _is_current(folder, run, backends)] if can_join(record, earlier) else []


def _with_earlier(
    record: ComparisonRecord,
    folder: Path,
    *,
    staying: Sequence[RunRecord],
    reporter: Reporter,
    backends: Callable[[RunConfig], Backends],
) -> ComparisonRecord:
    """The record with what the folder held before, as far as it fits (`staying`); what does not is named."""
    if not is_comparison(folder):
        return record
    earlier = read_comparison(folder)
    known = {run.key for run in record.runs}
    others = [run for run in earlier.runs if run.status == "done" and run.key not in known]
    fits = can_join(record, earlier)
    if fits and earlier.use_gold and any(run.status == "done" for run in record.runs):
        record = replace(record, use_gold=True)  # what they opened stays opened: their audits are there
    kept = [run for run in staying if run.key not in known]
    finished = [run for run in kept if run.status == "done"]
    if len(finished) < len(others):
        why = _reason_to_leave(record, earlier)
        n_left = plural(len(others) - len(finished), "finished run")
        reporter.note(f"no longer in the comparison: {n_left} of an earlier call, because {why}. The folders stay")
    open_keys = {run.key for run in record.runs if run.status != "done"}
    before = [run for run in earlier.runs if run.status == "done" and run.key in open_keys]
    again = [run for run in before if not (fits and _is_current(folder, run, backends))]
    if again:
        n_again, why = plural(len(again), "finished run"), _reason_to_leave(record, earlier)
        reporter.note(f"run again in their place: {n_again} of an earlier call, because {why}")
    if not kept:
        return record
    counts = {"finished": len(finished), "failed": len(kept) - len(finished)}
    counted = [plural(n, f"{word} run") for word, n in counts.items() if n]
    reporter.note(f"still in the comparison: {' and '.join(counted)} of an earlier call")
    joined = join_records(record, earlier, kept)
    places = list(ARMS)
    arms = sorted(joined.arms, key=lambda arm: places.index(arm.name) if arm.name in places else len(places))
    return replace(joined, arms=tuple(arms))


def _is_current(folder: Path, run: RunRecord, backends: Callable[[RunConfig], Backends]) -> bool:
    """Whether a run is what its own config, data files and this version would give; a failed one as far as it went."""
    try:
        config = read_run_config(folder / run.folder)
        steps = plan_arm(find_arm(run.arm), config, use_gold=False)
        planned = PlannedRun(run, config, tuple(steps))
        prints = fingerprint_run(planned, folder, backends)
        if run.status == "failed":
            manifest = RunDir(folder / run.folder).manifest()
            return all(manifest[name]["fingerprint"] == prints[name] for name in manifest if name in prints)
        return is_done(folder, planned, prints)
    except (SemiEvolError, KeyError):  # a key, a file or an arm that is no more
        return False


def _reason_to_leave(record: ComparisonRecord, earlier: ComparisonRecord) -> str:
    changed = changed_keys(record.config or {}, earlier.config) if earlier.config is not None else ["config"]
    if changed:
        return f"their config is another one (other: {', '.join(changed[:5])}); another --output-dir keeps both"
    if not can_join(record, earlier):  # then it is the sweep
        before = f"a sweep over {', '.join(earlier.sweep)}" if earlier.sweep else "no sweep"
        return f"they belong to {before}; another --output-dir keeps both"
    return "they were made from other data files or by another version of semievol"


@dataclass(frozen=True, slots=True)
class _Work:
    """What is left of a comparison, and how it is done."""

    folder: Path
    schedule: Schedule
    prints: Mapping[Key, Mapping[str, str]]
    """Fingerprint of each step of each run."""
    reporter: Reporter
    jobs: int
    """As asked for, however few runs are left: the number of threads of each follows from it."""
    keep_models: bool
    guesses: Mapping[str, float]
    """Seconds of stages that had not run in the folder."""

    def end(self, part: Part, record: RunRecord) -> None:
        """Tell the schedule, and if the run has ended comparison.json and the person, too."""
        manifest = RunDir(self.folder / record.folder).manifest()
        finished = [(name, entry["fingerprint"]) for name, entry in manifest.items()]
        self.schedule.end(part, finished=finished, is_over=record.status != "pending")
        if record.status == "pending":
            return
        after = record_run(self.folder, record)
        if not self.keep_models:
            self.drop_models(after, record.split)
        n_ended = sum(r.status != "pending" for r in after.runs)
        ended = f"{record.arm}, {_place(record)}: {record.error or 'done'}"
        self.reporter.note(f"{n_ended} of {len(after.runs)} runs: {ended}{self._time_left()}")

    def drop_models(self, record: ComparisonRecord, split: int) -> None:
        """Delete the models of the finished runs of a split that no run needs any more."""
        left = [run for run in self.schedule.left if run.record.split == split]
        needed = {print_ for run in left for print_ in self.prints[run.record.key].items()}
        done = [self.folder / r.folder for r in record.runs if r.split == split and r.status == "done"]
        drop_models(done, needed=needed)

    def _time_left(self) -> str:
        if not self.schedule.left:
            return ""
        runs = self.schedule.left
        jobs = min(self.jobs, len(runs))
        left = plan_work(self.folder, runs, self.prints, n_runs_done=0, jobs=jobs, guesses=self.guesses)
        return "" if left.unmeasured or not left.left else f"; {left.time_left()}"


def _run_in_this_process(work: _Work) -> None:
    failures: Failures = {}
    while (part := work.schedule.next()) is not None:
        work.end(part, run_part(work.folder, part, failures, work.reporter))


def run_part(folder: Path, part: Part, failures: Failures, reporter: Reporter) -> RunRecord:
    """Run the steps of a part that no other run of the split has done; an interruption and a full disk come through.

    Args:
        folder: Of the comparison.
        part: Its run and steps.
        failures: Why steps failed in other runs, by name and fingerprint; what fails here is added.
        reporter: What a person sees.

    Returns:
        How the run ended; `pending` if it goes on with another part.
    """
    run = part.run
    shared = SharedSteps(folder, run_folders(folder, run.record.split), failures)
    run_dir = RunDir(folder / run.record.folder, rows=rows_file(folder, run.cell))
    trace = run_dir.path / "error.txt"
    try:
        run_steps(run.config, run_dir, part.steps, reporter=ArmReporter(reporter, run.record.arm), shared=shared)
    except DiskFullError:
        raise  # no fault of the arm, and the next one would meet it as well
    except SemiEvolError as error:
        return replace(run.record, status="failed", error=str(error))
    except Exception as error:  # a fault of a library or of ours must not cost the other arms
        run_dir.write_text(trace.name, traceback.format_exc())
        return replace(
            run.record, status="failed", error=f"{type(error).__name__}: {error} (see {run.record.folder}/{trace.name})"
        )
    trace.unlink(missing_ok=True)
    return replace(run.record, status="done" if part.is_last else "pending", error=None)


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


def _run_in_processes(work: _Work) -> None:
    others = set(multiprocessing.active_children())
    failures: Failures = {}
    shown = not isinstance(work.reporter, SilentReporter)
    working: dict[Future[tuple[RunRecord, Failures]], Part] = {}
    unsent: list[Part] = []  # a pool that had just broken did not take them
    suspects: list[Part] = []  # in hand when a process was killed: each runs alone until it has ended

    def next_part() -> Part | None:
        if suspects:
            return None if working else suspects[0]
        return unsent.pop(0) if unsent else work.schedule.next()

    def end(part: Part, record: RunRecord) -> None:
        if part in suspects:
            suspects.remove(part)
        work.end(part, record)

    with _threads_for(work.jobs):
        pool = _open_pool(work.jobs)
        try:
            while True:
                try:
                    while len(working) < work.jobs and (part := next_part()) is not None:
                        try:
                            with _interrupts_held():  # Ctrl-C is for this process, which then ends the others
                                future = pool.submit(_run_part_in_process, work.folder, part, dict(failures), shown)
                        except BrokenProcessPool:
                            if part not in suspects:
                                unsent.append(part)
                            raise
                        working[future] = part
                    if not working:
                        break
                    for future in wait(working, return_when=FIRST_COMPLETED).done:
                        record, failed = future.result()
                        failures.update(failed)
                        end(working.pop(future), record)
                except BrokenProcessPool:
                    in_hand = list(working.values())
                    working.clear()
                    pool.shutdown(cancel_futures=True)
                    pool = _open_pool(work.jobs)
                    if len(in_hand) == 1:
                        end(in_hand[0], replace(in_hand[0].run.record, status="failed", error=KILLED))
                    elif in_hand:  # one of them was killed, and took the others along
                        work.reporter.note(f"a process of --jobs {work.jobs} was killed; its parts run one at a time")
                        suspects += in_hand
        except BaseException:
            # Left alone, the pool would wait for the parts in hand.
            pool.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            raise
        pool.shutdown()


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Processes that start within get no Ctrl-C, which a terminal sends to all; this one gets it at the end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


KILLED = "its process was killed, while no other one worked (out of memory?)"


def _open_pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        jobs,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_end_with_parent,
        initargs=(os.getpid(),),
    )


def _run_part_in_process(folder: Path, part: Part, failures: Failures, shown: bool) -> tuple[RunRecord, Failures]:
    reporter = LineReporter(ConsoleReporter(), _place(part.run.record)) if shown else SilentReporter()
    return run_part(folder, part, failures, reporter), failures


class LineReporter(SilentReporter):
    """Shows notes and finished steps, and says of which run; bars of several processes would overwrite each other."""

    def __init__(self, inner: Reporter, place: str) -> None:
        self._inner = inner
        self._place = place

    def note(self, text: str) -> None:
        """Something worth a line."""
        self._inner.note(f"{self._place}: {text}")

    def done(self, name: str, text: str, seconds: float) -> None:
        """A step has ended."""
        self._inner.done(f"{name} ({self._place})", text, seconds)


def _place(record: RunRecord) -> str:
    return f"split {record.split}, seed {record.seed}" + (f", {record.setting}" if record.setting else "")


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
