"""The order of the stages, and how a run starts, resumes and ends.

    data -> warmup -> [retrieve -> propagate -> justify -> select -> evolve] x rounds -> control -> evaluate -> report

With `adapt.enabled` adapt comes before warmup.
A step is skipped when the manifest holds its fingerprint: a hash of the code version, of the config sections it depends
on and of the fingerprints of the steps whose artifacts it reads.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple

from semievol import __version__
from semievol.artifacts import CONFIG, DROPPED, MANIFEST, STATE, RunDir, clear_disk_errors, content_hash
from semievol.backends.base import HOSTED, check_packages
from semievol.backends.host_memory import restart_peak
from semievol.backends.notes import hosted_notes
from semievol.comparison import comparison_of
from semievol.config import RunConfig, Section, local_generator
from semievol.errors import ArtifactError, ConfigError, DiskFullError, SemiEvolError
from semievol.sft import TRAINED_IN
from semievol.sharing import SharedSteps
from semievol.stage import (
    ROUND_STAGES,
    Backends,
    Reporter,
    SilentReporter,
    Stage,
    StageContext,
    embedder_identity,
    name_and_content,
)
from semievol.stages import adapt, control, data, evaluate, evolve, justify, propagate, report, retrieve, select, warmup
from semievol.tables import locate_source
from semievol.versions import package_versions

STAGES: tuple[Stage, ...] = (
    data.STAGE,
    adapt.STAGE,
    warmup.STAGE,
    retrieve.STAGE,
    propagate.STAGE,
    justify.STAGE,
    select.STAGE,
    evolve.STAGE,
    control.STAGE,
    evaluate.STAGE,
    report.STAGE,
)


LOOSE = ("results.json", "report.html")
"""Files of a finished run that lie in its folder itself."""
LOGPROB_SIGNALS = ("mean_nll", "entropy", "max_probability")
"""Values of `select.signal` that come from log-probabilities."""


class Step(NamedTuple):
    """One stage in one round."""

    stage: Stage
    round: int

    @property
    def name(self) -> str:
        """`stage`, or `round-R/stage` for the stages that a round repeats."""
        return f"round-{self.round}/{self.stage.name}" if self.stage.name in ROUND_STAGES else self.stage.name

    def files(self, run_dir: RunDir) -> list[Path]:
        """What the step may write, beside models."""
        folder = f"round-{self.round}/" if self.stage.name in ROUND_STAGES else ""
        names = [f"{folder}{name}" for name in self.stage.writes]
        return [run_dir.file(name, suffix) for name in names for suffix in (".json", ".jsonl")]


def plan_steps(config: RunConfig) -> list[Step]:
    """All steps of a run, in order."""
    before = [Step(s, 1) for s in STAGES if s.name in ("data", "adapt", "warmup")]
    repeated = [Step(s, r) for r in range(1, config.rounds + 1) for s in STAGES if s.name in ROUND_STAGES]
    after = [Step(s, config.rounds) for s in STAGES if s.name in ("control", "evaluate", "report")]
    left_out = {name for name, section in (("adapt", config.adapt), ("control", config.control)) if not section.enabled}
    return [s for s in (*before, *repeated, *after) if s.stage.name not in left_out]


def run(
    config: RunConfig,
    *,
    reporter: Reporter | None = None,
    from_stage: str | None = None,
    until_stage: str | None = None,
) -> RunDir:
    """Run what is not done yet and return the run folder.

    Args:
        config: What to run; its `output_dir` is the run folder.
        reporter: What a person sees; None shows nothing.
        from_stage: Run this stage and all after it again, even if they are done (`round-2/select` names a round's
        stage).
        until_stage: Stop after this stage.

    Raises:
        SemiEvolError: Whatever a stage raises; what is finished stays, and calling again goes on.
    """
    run_dir = RunDir(Path(config.output_dir))
    _refuse_part_of_comparison(run_dir.path)
    steps = plan_steps(config)
    again = [] if from_stage is None else steps[find_step(steps, from_stage) :]
    last = steps[-1] if until_stage is None else steps[find_step(steps, until_stage)]
    run_steps(config, run_dir, steps, reporter=reporter, again=[s.name for s in again], until=last)
    return run_dir


def redraw(config: RunConfig, run_dir: RunDir, *, reporter: Reporter | None = None) -> None:
    """Draw the report of a finished run again from what its folder holds; nothing else runs, whatever has changed.

    Args:
        config: The one in the folder; its `output_dir` has no say.
        run_dir: The folder, wherever it is now.
        reporter: What a person sees; None shows nothing.

    Raises:
        ArtifactError: If the run is not finished, or is a part of a comparison.
    """
    _refuse_part_of_comparison(run_dir.path)
    *before, last = plan_steps(config)
    manifest = run_dir.manifest()
    missing = [step.name for step in before if step.name not in manifest]
    if missing:
        raise ArtifactError(
            f"{run_dir.path} has no report to draw, as these stages are not done: {', '.join(missing)}. `semievol run` "
            "with the config of the run goes on with it"
        )
    fingerprint = manifest.get(last.name, {}).get("fingerprint", "")
    with run_dir.lock():
        ctx = StageContext(config, run_dir, last.stage, Backends(config), reporter or SilentReporter(), last.round)
        run_dir.forget_stages([last.name])
        _run_step(ctx, last, fingerprint)


def _refuse_part_of_comparison(path: Path) -> None:
    """In the folder of an arm the stages that the arm lacks would run, and count as its own."""
    whole = comparison_of(path)
    if whole is not None:
        raise ArtifactError(
            f"{path} is one run of the comparison in {whole}: `semievol report {whole}` draws its report, and the "
            "`semievol compare` or `sweep` that began it goes on with it"
        )


def run_steps(
    config: RunConfig,
    run_dir: RunDir,
    steps: Sequence[Step],
    *,
    reporter: Reporter | None = None,
    shared: SharedSteps | None = None,
    again: Sequence[str] = (),
    until: Step | None = None,
) -> None:
    """Run those of `steps` that are not done yet; each reads what the ones before it wrote.

    Args:
        config: What to run; its `output_dir` has no say.
        run_dir: The folder, which is locked meanwhile.
        steps: In order.
        reporter: What a person sees; None shows nothing.
        shared: Finished steps of other folders: one with the same fingerprint is taken over in the place of a run.
        again: Names of steps that run even if they are done; they count as not done from the start.
        until: The last one that runs; None: all do. Later ones that are not done under `config` are forgotten.

    Raises:
        SemiEvolError: Whatever a stage raises, and what it raised in another folder of `shared`.
    """
    check_packages(config)
    refuse_foreign_files(config, run_dir)
    with run_dir.lock():
        backends = Backends(config, state_dir=run_dir.path / STATE)
        shown = reporter or SilentReporter()
        try:
            with hosted_notes(shown.note), clear_disk_errors(run_dir.path):
                _run_locked(config, run_dir, backends, shown, steps, shared, again, until)
        finally:
            backends.close()


def refuse_foreign_files(config: RunConfig, run_dir: RunDir) -> None:
    """Raises ConfigError if the run would write over a data file or files of another tool, or cannot see its folder."""
    ours = {run_dir.path / name for name in (*LOOSE, MANIFEST)}
    for step in plan_steps(config):
        ours.update(step.files(run_dir))
    resolved = {path.resolve() for path in ours}
    for key in ("path", "labeled", "unlabeled", "test"):
        source = getattr(config.data, key)
        if source is not None and locate_source(source)[1].resolve() in resolved:
            raise ConfigError(f"data.{key}: the run would write over {source}; set another output_dir")
    try:
        if (run_dir.path / CONFIG).is_file():
            return
        foreign = sorted(path.relative_to(run_dir.path).as_posix() for path in ours if path.exists())
    except OSError as error:
        raise ConfigError(
            f"output_dir: {run_dir.path} cannot be used ({error.strerror}); name another folder"
        ) from error
    if foreign:
        raise ConfigError(
            f"output_dir: {run_dir.path} is not the folder of a run, and holds files that a run would write over: "
            f"{', '.join(foreign)}; name another folder"
        )


class _Start:
    """What happens once, before a run changes anything in its folder."""

    def __init__(self, config: RunConfig, run_dir: RunDir, steps: Sequence[Step], left: Collection[str]) -> None:
        self._config, self._run_dir, self._left = config, run_dir, left
        self._names = {step.name for step in steps}
        self._is_done = False

    def __call__(self) -> None:
        """Store the config, and forget the steps that will run: none of them counts under settings of another run.

        Nor do steps that this run does not have, such as those of further rounds.
        """
        if self._is_done:
            return
        self._is_done = True
        if self._left:
            foreign = self._run_dir.manifest().keys() - self._names
            self._run_dir.forget_stages([*self._left, *foreign])
        if "report" in self._left:
            for name in LOOSE:
                (self._run_dir.path / name).unlink(missing_ok=True)
        self._run_dir.write_text(CONFIG, self._config.model_dump_json(indent=2) + "\n")


def find_step(steps: Sequence[Step], name: str) -> int:
    """Place of a step by its name, or of the first one of a stage. Raises ConfigError with the names there are."""
    for i, step in enumerate(steps):
        if name in (step.name, step.stage.name):
            return i
    raise ConfigError(f"no stage {name!r} in this run; stages: {', '.join(s.name for s in steps)}")


def _run_locked(
    config: RunConfig,
    run_dir: RunDir,
    backends: Backends,
    reporter: Reporter,
    steps: Sequence[Step],
    shared: SharedSteps | None,
    again: Sequence[str],
    until: Step | None,
) -> None:
    forget_lost(run_dir, steps)
    fingerprints = fingerprint_steps(config, run_dir, backends, steps)
    left = steps_to_run(config, run_dir, steps, fingerprints) | set(again)
    start = _Start(config, run_dir, steps, left)
    if again or not (run_dir.path / CONFIG).is_file():
        start()
    due = steps if until is None else steps[: steps.index(until) + 1]
    stages = {step.stage.name for step in due}
    for step in due:
        fingerprint = fingerprints[step.name]
        if step.name not in left:
            reporter.done(step.name, "done before", 0.0)
            continue
        ctx = StageContext(config, run_dir, step.stage, backends, reporter, step.round, shared, begin=start)
        if config.generator.type in HOSTED and step.stage.name not in ("data", "report"):
            _check_server(ctx, selects="select" in stages)
        if config.embedder.type in HOSTED and step.stage.name in ("adapt", "warmup") and "retrieve" in stages:
            backends.retriever().index(["probe"], ["Is anybody there?"])  # fails here, before a training is paid for
        if shared is None:
            _run_step(ctx, step, fingerprint)
        else:
            _run_or_take_over(ctx, step, fingerprint, shared)
    start()  # settings without effect on what is done are stored too


def forget_lost(run_dir: RunDir, steps: Sequence[Step]) -> None:
    """Steps of which no artifact is in the folder any more count as not done."""
    known = run_dir.manifest()
    done = [step for step in steps if step.name in known]
    run_dir.forget_stages([step.name for step in done if not any(path.exists() for path in step.files(run_dir))])


def steps_to_run(
    config: RunConfig, run_dir: RunDir, steps: Sequence[Step], fingerprints: Mapping[str, str]
) -> set[str]:
    """Names of the steps that are not done, and of those whose model was deleted and is read by one of them."""
    manifest = run_dir.manifest()
    left: set[str] = set()
    asked_for: set[str] = set()
    for step in reversed(steps):
        entry = manifest.get(step.name, {})
        is_lacking = DROPPED in entry and f"{step.stage.name}/model" in asked_for
        if is_lacking or entry.get("fingerprint") != fingerprints[step.name]:
            left.add(step.name)
            asked_for.update(step.stage.reads_of(config))
    return left


def fingerprint_steps(config: RunConfig, run_dir: RunDir, backends: Backends, steps: Sequence[Step]) -> dict[str, str]:
    """Fingerprint of each step by name, known before any of them has run."""
    found: dict[str, str] = {}
    for i, step in enumerate(steps):
        ctx = StageContext(config, run_dir, step.stage, backends, SilentReporter(), step.round)
        done = [s for s in steps[:i] if set(s.stage.writes) & set(step.stage.reads_of(config))]
        found[step.name] = _fingerprint(ctx, [found[s.name] for s in done])
    return found


def _run_or_take_over(ctx: StageContext, step: Step, fingerprint: str, shared: SharedSteps) -> None:
    source = shared.find(step.name, fingerprint)
    if source is not None:
        ctx.begin()
        places = [ctx.artifact(name) for name in step.stage.writes]
        if shared.take_over(source, ctx.run_dir, step.name, artifacts=places):
            ctx.reporter.done(step.name, f"shared with {source.path}", 0.0)
            return
    error = shared.failure(step.name, fingerprint)
    if error is not None:
        raise SemiEvolError(error)
    try:
        _run_step(ctx, step, fingerprint)
    except DiskFullError:
        raise  # no fault of the step
    except SemiEvolError as fault:
        shared.note_failure(step.name, fingerprint, f"{step.name}: {fault}")
        raise


def _check_server(ctx: StageContext, *, selects: bool) -> None:
    """Ask a server what it gives before anything is paid for. Raises ConfigError if the selection needs more."""
    config = ctx.config
    if ctx.backends.generator.gives_logprobs or not selects:
        return
    if config.select.signal in LOGPROB_SIGNALS:
        raise ConfigError(
            f"select.signal: {config.select.signal} needs log-probabilities, which {config.model.path} gives none of "
            "here; set select.signal: agreement or sample_entropy (of the sampled answers)"
        )
    if config.select.min_confidence is not None:
        raise ConfigError(
            f"select.min_confidence needs log-probabilities, which {config.model.path} gives none of here; leave it "
            "out, or use select.min_agreement"
        )


def _run_step(ctx: StageContext, step: Step, fingerprint: str) -> None:
    ctx.reporter.stage(step.name, (step.stage.run.__doc__ or "").strip())
    restart_peak()
    before, start = ctx.backends.usage, time.perf_counter()
    with clear_disk_errors(ctx.run_dir.path):
        stats = step.stage.run(ctx)
    after, seconds = ctx.backends.usage, time.perf_counter() - start
    train_seconds, train_tokens = stats.get("train_seconds", 0.0), stats.get("n_tokens", 0)
    is_reused = TRAINED_IN in stats
    own_seconds = seconds - ctx.waited_seconds
    if not is_reused:
        own_seconds = max(own_seconds, train_seconds)  # part of a training may have been done before a restart
    cost = {
        "seconds": round(own_seconds, 3),
        "model_seconds": round(after.model_seconds - before.model_seconds + (0 if is_reused else train_seconds), 3),
        "prompt_tokens": after.prompt_tokens - before.prompt_tokens,
        "completion_tokens": after.completion_tokens - before.completion_tokens,
        "forward_passes": after.forward_passes - before.forward_passes,
        "requests": after.requests - before.requests,
        "dollars": round(after.dollars - before.dollars + (0 if is_reused else stats.get("train_dollars", 0.0)), 6),
        "train_tokens": 0 if is_reused else train_tokens,
        "reused_prompt_tokens": ctx.reused.prompt_tokens,
        "reused_completion_tokens": ctx.reused.completion_tokens,
        **({f"reused_{key}": round(train_seconds, 3) for key in ("seconds", "model_seconds")} if is_reused else {}),
        **({"reused_train_tokens": train_tokens} if is_reused else {}),
        "peak_memory_bytes": max(after.peak_memory_bytes, stats.get("peak_memory_bytes", 0)),
    }
    entry = {"fingerprint": fingerprint, "stats": stats, "cost": cost}
    if cost["model_seconds"]:
        entry["versions"] = package_versions() | _device(ctx.config)
    ctx.run_dir.record_stage(step.name, entry)
    ctx.reporter.done(step.name, _sentence(stats), seconds)


def _device(config: RunConfig) -> dict[str, str]:
    """Type of the device of this machine's models; nothing where all of them are elsewhere."""
    if local_generator(config.generator).type != "transformers" and config.trainer.type != "trl":
        return {}
    from semievol.backends.hf import resolve_device_type  # by now the libraries behind it are loaded

    return {"device": resolve_device_type(config.model)}


def _fingerprint(ctx: StageContext, upstream: Sequence[str]) -> str:
    dumped = ctx.config.model_dump(mode="json")
    sections = {}
    for name in ctx.stage.sections:
        section = reduce(getattr, name.split("."), ctx.config)
        lasting = section.lasting() if isinstance(section, Section) else reduce(getitem, name.split("."), dumped)
        sections[name] = lasting
    tokens = ctx.backends.tokens.fingerprint if "model" in sections else None
    weights = [
        name_and_content(ctx.config.model.path, ctx.config) if "model" in sections else None,
        embedder_identity(ctx.config) if "embedder" in sections else None,
    ]
    extra = ctx.stage.fingerprint_extra(ctx) if ctx.stage.fingerprint_extra else None
    return content_hash(__version__, ctx.stage.name, ctx.round, sections, tokens, weights, extra, list(upstream))


def _sentence(stats: dict[str, Any]) -> str:
    shown = {k.removeprefix("n_"): v for k, v in stats.items() if isinstance(v, int | float | str) and k not in _SILENT}
    return ", ".join(
        f"{k.replace('_', ' ')} {v:,.4g}" if isinstance(v, float) else f"{k.replace('_', ' ')} {v}"
        for k, v in shown.items()
    )


_SILENT = ("train_seconds", "peak_memory_bytes", "rendered_example", "train_dollars")
