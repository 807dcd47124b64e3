"""Times a few steps of the real model on real rows, to say how long a run will take."""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from semievol.answering import choice_request
from semievol.backends.base import Generator, open_generator, open_trainer
from semievol.config import RunConfig
from semievol.costs import StagePlan, answer_limit
from semievol.prompts import PromptBuilder
from semievol.sft import build_sft_rows, stage_trainer_config
from semievol.types import Example, ModelRef, Request, Sampling

N_SCORED = 32
N_SAMPLED = 16
N_STEPS = 4
RANGE = (0.6, 1.6)
"""Around the extrapolation: rows differ in length, and the batches of a full run are fuller than the timed ones."""


class Speed(NamedTuple):
    """Seconds that the model took on this machine; None where nothing of the kind is done."""

    load_seconds: float
    score_seconds: float | None
    """A prompt token of an exact distribution."""
    sample_seconds: float | None
    """A sampled answer."""
    train_seconds: float | None
    """A training row."""


class StageSeconds(NamedTuple):
    """How long a stage will take."""

    stage: str
    low: float
    high: float


def measure_speed(
    config: RunConfig, prompts: PromptBuilder, labeled: Sequence[Example], rows: Sequence[Example]
) -> Speed:
    """Score 32 rows, sample 16, train four steps in a temporary folder.

    Raises:
        SemiEvolError: Whatever the backends raise: it would stop the run too.
    """
    start = time.perf_counter()
    with open_generator(config.generator, config.model) as generator:
        load = time.perf_counter() - start
        score = _time_scores(config, prompts, generator, spread(rows, N_SCORED))
        sample = _time_samples(config, prompts, generator, spread(rows, N_SAMPLED))
    return Speed(load, score, sample, _time_training(config, prompts, labeled))


def spread(rows: Sequence[Example], n: int) -> list[Example]:
    """Up to `n` rows, evenly spaced."""
    return [rows[i * len(rows) // n] for i in range(n)] if len(rows) > n else list(rows)


def _time_scores(
    config: RunConfig, prompts: PromptBuilder, generator: Generator, rows: Sequence[Example]
) -> float | None:
    if config.task.type not in ("choice", "label") or not generator.exact_choice_scores:
        return None
    model = ModelRef(config.model.path)
    requests = [choice_request(row, prompts.answer(row), model, prompts) for row in rows]
    list(generator.score_choices(requests[:4]))  # the first batch warms up
    before, start = generator.usage.prompt_tokens, time.perf_counter()
    list(generator.score_choices(requests))
    seconds = time.perf_counter() - start
    return seconds / max(1, generator.usage.prompt_tokens - before)


def _time_samples(config: RunConfig, prompts: PromptBuilder, generator: Generator, rows: Sequence[Example]) -> float:
    model = ModelRef(config.model.path)
    requests = [Request(row.id, prompts.answer(row), model, seed=i) for i, row in enumerate(rows)]
    sampling = Sampling(1, config.propagate.temperature, config.propagate.top_p, answer_limit(config))
    list(generator.generate(requests[:2], sampling))
    start = time.perf_counter()
    list(generator.generate(requests, sampling))
    return (time.perf_counter() - start) / len(rows)


def _time_training(config: RunConfig, prompts: PromptBuilder, labeled: Sequence[Example]) -> float | None:
    if config.trainer.type != "trl":
        return None
    settings = stage_trainer_config(config.trainer, config.warmup, max_steps=N_STEPS)
    settings = settings.model_copy(update={"eval_fraction": 0.0, "report_to": (), "save_steps": 10**6})
    batch = config.trainer.rows_a_step
    rows = build_sft_rows(spread(labeled, batch * N_STEPS), prompts)
    trainer = open_trainer(config.trainer, config.model)
    stamps: list[float] = []
    with tempfile.TemporaryDirectory(prefix="semievol-check-") as folder:
        report = trainer.fit(
            ModelRef(config.model.path),
            rows,
            Path(folder) / "adapter",
            config=settings,
            seed=config.seed,
            progress=lambda _: stamps.append(time.perf_counter()),
        )
    if len(stamps) == N_STEPS:  # the first step warms up
        return (stamps[-1] - stamps[0]) / ((N_STEPS - 1) * batch)
    return report.train_seconds / (N_STEPS * batch)


def stage_seconds(plans: Sequence[StagePlan], speed: Speed, rows_a_step: int) -> list[StageSeconds]:
    """Seconds of each stage that uses the model, low and high.

    The low end of a stage whose rows are "at most" takes half of them.
    """
    found = []
    for plan in plans:
        seconds = plan.optimizer_steps * rows_a_step * (speed.train_seconds or 0.0)
        seconds += plan.n_sampled * (speed.sample_seconds or 0.0)
        if plan.n_scored:
            share = plan.n_scored / (plan.n_scored + plan.n_sampled)
            seconds += plan.prompt_tokens * share * (speed.score_seconds or 0.0)
        load = speed.load_seconds if plan.optimizer_steps or plan.n_scored or plan.n_sampled else 0.0
        low = seconds * RANGE[0] * (0.5 if plan.at_most else 1.0) + load
        found.append(StageSeconds(plan.stage, round(low, 2), round(seconds * RANGE[1] + load, 2)))
    return found


def to_json(speed: Speed, stages: Sequence[StageSeconds]) -> dict[str, Any]:
    """Plain values, with the total."""
    return {
        **speed._asdict(),
        "stages": [s._asdict() for s in stages],
        "total_low": round(sum(s.low for s in stages), 2),
        "total_high": round(sum(s.high for s in stages), 2),
    }
