"""The order of the stages, and how a run starts, resumes and ends.

    data -> warmup -> [retrieve -> propagate -> justify -> select -> evolve] x rounds -> control -> evaluate -> report

A step is skipped when the manifest holds its fingerprint: a hash of the code version, of the config sections it depends
on and of the fingerprints of the steps whose artifacts it reads.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from semievol import __version__
from semievol.artifacts import STATE, RunDir, content_hash
from semievol.backends.base import HOSTED
from semievol.backends.notes import hosted_notes
from semievol.config import RunConfig, Section
from semievol.errors import ConfigError
from semievol.stage import ROUND_STAGES, Backends, Reporter, SilentReporter, Stage, StageContext
from semievol.stages import control, data, evaluate, evolve, justify, propagate, report, retrieve, select, warmup

STAGES: tuple[Stage, ...] = (
    data.STAGE,
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


def plan_steps(config: RunConfig) -> list[Step]:
    """All steps of a run, in order."""
    before = [Step(s, 1) for s in STAGES[:2]]
    repeated = [Step(s, r) for r in range(1, config.rounds + 1) for s in STAGES if s.name in ROUND_STAGES]
    after = [Step(s, config.rounds) for s in STAGES if s.name in ("control", "evaluate", "report")]
    return [s for s in (*before, *repeated, *after) if s.stage.name != "control" or config.control.enabled]


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
    steps = plan_steps(config)
    with run_dir.lock():
        run_dir.write_text("config.resolved.json", config.model_dump_json(indent=2) + "\n")
        if from_stage is not None:
            run_dir.forget_stages([s.name for s in steps[find_step(steps, from_stage) :]])
        last = len(steps) - 1 if until_stage is None else find_step(steps, until_stage)
        backends = Backends(config, state_dir=run_dir.path / STATE)
        shown = reporter or SilentReporter()
        try:
            with hosted_notes(shown.note):
                _run_steps(config, run_dir, backends, shown, steps[: last + 1])
        finally:
            backends.close()
    return run_dir


def find_step(steps: Sequence[Step], name: str) -> int:
    """Place of a step by its name, or of the first one of a stage. Raises ConfigError with the names there are."""
    for i, step in enumerate(steps):
        if name in (step.name, step.stage.name):
            return i
    raise ConfigError(f"no stage {name!r} in this run; stages: {', '.join(s.name for s in steps)}")


def _run_steps(
    config: RunConfig, run_dir: RunDir, backends: Backends, reporter: Reporter, steps: Sequence[Step]
) -> None:
    fingerprints: dict[str, str] = {}
    for i, step in enumerate(steps):
        ctx = StageContext(config, run_dir, step.stage, backends, reporter, step.round)
        done = [s for s in steps[:i] if set(s.stage.writes) & set(step.stage.reads)]
        fingerprint = _fingerprint(ctx, [fingerprints[s.name] for s in done])
        fingerprints[step.name] = fingerprint
        entry = run_dir.manifest().get(step.name)
        if entry is not None and entry["fingerprint"] == fingerprint:
            reporter.done(step.name, "done before", 0.0)
            continue
        if config.generator.type in HOSTED and step.stage.name not in ("data", "report"):
            _check_server(ctx)
        _run_step(ctx, step, fingerprint)


def _check_server(ctx: StageContext) -> None:
    """Ask a server what it gives before anything is paid for. Raises ConfigError if the selection needs more."""
    config = ctx.config
    if not ctx.backends.generator.gives_logprobs and config.select.signal in LOGPROB_SIGNALS:
        raise ConfigError(
            f"select.signal: {config.select.signal} needs log-probabilities, which {config.model.path} gives none of "
            "here; set select.signal: agreement or sample_entropy (of the sampled answers)"
        )


def _run_step(ctx: StageContext, step: Step, fingerprint: str) -> None:
    ctx.run_dir.forget_stages([step.name])
    ctx.reporter.stage(step.name, (step.stage.run.__doc__ or "").strip())
    before, start = ctx.backends.usage, time.perf_counter()
    stats = step.stage.run(ctx)
    after, seconds = ctx.backends.usage, time.perf_counter() - start
    cost = {
        "seconds": round(seconds, 3),
        "model_seconds": round(after.model_seconds - before.model_seconds + stats.get("train_seconds", 0.0), 3),
        "prompt_tokens": after.prompt_tokens - before.prompt_tokens,
        "completion_tokens": after.completion_tokens - before.completion_tokens,
        "forward_passes": after.forward_passes - before.forward_passes,
        "requests": after.requests - before.requests,
        "dollars": round(after.dollars - before.dollars + stats.get("train_dollars", 0.0), 6),
        "train_tokens": stats.get("n_tokens", 0),
        "peak_memory_bytes": max(after.peak_memory_bytes, stats.get("peak_memory_bytes", 0)),
    }
    ctx.run_dir.record_stage(step.name, {"fingerprint": fingerprint, "stats": stats, "cost": cost})
    ctx.reporter.done(step.name, _sentence(stats), seconds)


def _fingerprint(ctx: StageContext, upstream: Sequence[str]) -> str:
    dumped = ctx.config.model_dump(mode="json")
    sections = {name: _lasting(dumped[name], getattr(ctx.config, name)) for name in ctx.stage.sections}
    tokens = ctx.backends.tokens.fingerprint if "model" in sections else None
    extra = ctx.stage.fingerprint_extra(ctx) if ctx.stage.fingerprint_extra else None
    return content_hash(__version__, ctx.stage.name, ctx.round, sections, tokens, extra, list(upstream))


def _lasting(dumped: Any, section: Any) -> Any:
    """A dumped section without the keys that change no result."""
    operational = section.operational if isinstance(section, Section) else ()
    return {k: v for k, v in dumped.items() if k not in operational} if operational else dumped


def _sentence(stats: dict[str, Any]) -> str:
    shown = {k.removeprefix("n_"): v for k, v in stats.items() if isinstance(v, int | float | str) and k not in _SILENT}
    return ", ".join(
        f"{k.replace('_', ' ')} {v:,.4g}" if isinstance(v, float) else f"{k.replace('_', ' ')} {v}"
        for k, v in shown.items()
    )


_SILENT = ("train_seconds", "peak_memory_bytes", "rendered_example", "train_dollars")
