"""The control: labelled rows alone, with as many optimiser steps as the evolved model took.

Reads   data/labeled, evolve/training (or distill/training), with `evolve.init: warm` warmup/model
Writes  control/model, control/training

Without it a gain of the evolved model could be a gain of training longer. It starts from the same weights as evolve and
uses the same learning rate.
"""

from typing import Any

from semievol.config import RunConfig, StageTrainingConfig
from semievol.sft import build_sft_rows, fit_stage, stage_trainer_config
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import Example


def run(ctx: StageContext) -> StageStats:
    """Train on L for the number of steps that evolve took."""
    name = ctx.config.control.steps_of
    settings: StageTrainingConfig = ctx.config.evolve
    if name == "distill":
        settings, rounds = ctx.config.distill, [1]
    else:  # from the base every round trains afresh and the last one counts; from the warm model the rounds add up
        last = ctx.config.rounds
        rounds = [last] if starts_from_base(ctx.config) else [*range(1, last + 1)]
    steps = sum(int(ctx.read_json(f"{name}/training", round=r)["optimizer_steps"]) for r in rounds)
    config = stage_trainer_config(ctx.config.trainer, settings, max_steps=steps)
    model = ctx.base_model if starts_from_base(ctx.config) else ctx.read_model("warmup/model")
    return fit_stage(ctx, model, build_sft_rows(ctx.read("data/labeled", Example), ctx.prompts()), config)


def starts_from_base(config: RunConfig) -> bool:
    """Whether the training that is matched trains the base afresh."""
    return config.control.steps_of == "distill" or config.evolve.init == "base"


def unused_artifacts(config: RunConfig) -> tuple[str, ...]:
    """Trained models that training does not start from, and the training that is not matched."""
    models = ("warmup/model",) if starts_from_base(config) else ()
    return (*models, "evolve/training" if config.control.steps_of == "distill" else "distill/training")


def matched_settings(ctx: StageContext) -> dict[str, Any] | None:
    """The section `distill` where its training is the one that is matched."""
    return ctx.config.distill.lasting() if ctx.config.control.steps_of == "distill" else None


STAGE = Stage(
    "control",
    reads=("data/labeled", "data/task", "evolve/training", "distill/training", "warmup/model"),
    writes=("control/model", "control/training"),
    sections=("task", "model", "trainer", "evolve", "control", "seed"),
    run=run,
    fingerprint_extra=matched_settings,
    unused=unused_artifacts,
)
