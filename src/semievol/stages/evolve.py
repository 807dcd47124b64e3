"""Evolution: fine-tune afresh on the labelled rows and the selected pseudo-labels.

Reads   data/labeled, data/unlabeled, select/kept (or that of the oracle in `evolve.kept_by`), with
        `evolve.init: warm` warmup/model
Writes  evolve/model, evolve/training

The paper starts from M_base and trains on both (arXiv:2410.14745, Eq. 9); the released code goes on from the warm-up
adapter with the pseudo-labels alone. `evolve.init` and `evolve.train_on` choose.
"""

from functools import partial

from semievol.config import RunConfig
from semievol.errors import DataError
from semievol.pools import SELECTING, LabeledPool, other_selections
from semievol.sft import LazySftRows, build_sft_row, fit_stage, stage_trainer_config
from semievol.stage import Stage, StageContext, StageStats

KEPT = tuple(f"{name}/kept" for name in SELECTING)


def training_examples(ctx: StageContext) -> LabeledPool:
    """L (where the config asks for it) and everything kept up to and with this round; L alone where nothing was.

    Raises:
        DataError: If neither gives a row.
    """
    with_labeled = ctx.config.evolve.train_on == "labeled+selected"
    examples = LabeledPool(ctx, before_round=ctx.round + 1, with_labeled=with_labeled)
    if not examples:
        raise DataError(
            "evolve: no pseudo-label was kept, and evolve.train_on: selected leaves the labelled rows out; "
            "lower select.min_confidence or select.min_agreement, or set evolve.train_on: labeled+selected"
        )
    return examples


def run(ctx: StageContext) -> StageStats:
    """Train and store the evolved model."""
    config = stage_trainer_config(ctx.config.trainer, ctx.config.evolve)
    model = ctx.base_model if ctx.config.evolve.init == "base" else ctx.warm_model()
    make = partial(build_sft_row, builder=ctx.prompts())
    return fit_stage(ctx, model, LazySftRows(training_examples(ctx), make), config)


def unused_artifacts(config: RunConfig) -> tuple[str, ...]:
    """Trained models that training does not start from, and what other stages than `evolve.kept_by` kept."""
    models = () if config.evolve.init == "warm" else ("warmup/model", "evolve/model")
    return (*models, *other_selections(config, KEPT))


STAGE = Stage(
    "evolve",
    reads=("data/labeled", "data/unlabeled", "data/task", *KEPT, "warmup/model", "evolve/model"),
    writes=("evolve/model", "evolve/training"),
    sections=("task", "model", "trainer", "evolve", "seed"),
    run=run,
    unused=unused_artifacts,
)
