"""The control: labelled rows alone, with as many optimiser steps as the evolved model took.

Reads   data/labeled, evolve/training, with `evolve.init: warm` warmup/model
Writes  control/model, control/training

Without it a gain of the evolved model could be a gain of training longer. It starts from the same weights as evolve and
uses the same learning rate.
"""

from semievol.config import RunConfig
from semievol.sft import build_sft_rows, fit_stage, stage_trainer_config
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import Example


def run(ctx: StageContext) -> StageStats:
    """Train on L for the number of steps that evolve took."""
    # From the base every round trains afresh and the last one counts; from the warm model the rounds add up.
    last = ctx.config.rounds
    rounds = [last] if ctx.config.evolve.init == "base" else range(1, last + 1)
    steps = sum(int(ctx.read_json("evolve/training", round=r)["optimizer_steps"]) for r in rounds)
    config = stage_trainer_config(ctx.config.trainer, ctx.config.evolve, max_steps=steps)
    model = ctx.base_model if ctx.config.evolve.init == "base" else ctx.read_model("warmup/model")
    return fit_stage(ctx, model, build_sft_rows(ctx.read("data/labeled", Example), ctx.prompts()), config)


def unused_models(config: RunConfig) -> tuple[str, ...]:
    """Trained models that training does not start from."""
    return () if config.evolve.init == "warm" else ("warmup/model",)


STAGE = Stage(
    "control",
    reads=("data/labeled", "data/task", "evolve/training", "warmup/model"),
    writes=("control/model", "control/training"),
    sections=("task", "model", "trainer", "evolve", "control", "seed"),
    run=run,
    unused=unused_models,
)
