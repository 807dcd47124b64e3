"""In-weight propagation: fine-tune the base on the labelled rows.

Reads   data/labeled, with `adapt.enabled` adapt/model
Writes  warmup/model, warmup/training

Gives M_warm of the paper (arXiv:2410.14745, section 3.2), which is also the SFT arm of every comparison.
"""

from semievol.config import RunConfig
from semievol.sft import build_sft_rows, fit_stage, stage_trainer_config
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import Example


def run(ctx: StageContext) -> StageStats:
    """Train and store M_warm."""
    config = stage_trainer_config(ctx.config.trainer, ctx.config.warmup)
    rows = build_sft_rows(ctx.read("data/labeled", Example), ctx.prompts())
    model = ctx.read_model("adapt/model") if ctx.config.adapt.enabled else ctx.base_model
    return fit_stage(ctx, model, rows, config)


def unused_models(config: RunConfig) -> tuple[str, ...]:
    """The adapted model, where training starts from the base."""
    return () if config.adapt.enabled else ("adapt/model",)


STAGE = Stage(
    "warmup",
    reads=("data/labeled", "data/task", "adapt/model"),
    writes=("warmup/model", "warmup/training"),
    sections=("task", "model", "trainer", "warmup", "seed"),
    run=run,
    unused=unused_models,
)
