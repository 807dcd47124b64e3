"""Task-adaptive pretraining: go on with language modelling on the questions of the task, labelled or not.

Reads   data/labeled, data/unlabeled
Writes  adapt/model, adapt/training

The loss is on every token of the question and of its context, never on an answer (Gururangan et al., arXiv:2004.10964).
The warm-up then starts from these weights: after full fine-tuning from the new model, with LoRA it goes on training the
same adapter, so both together have the rank of one. Evolution from the base starts from the base as it was.
"""

from semievol.sft import LazySftRows, build_text_row, fit_stage, stage_trainer_config
from semievol.spool import Joined, RecordFile
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import Example


def run(ctx: StageContext) -> StageStats:
    """Train on the text of L and U and store the model."""
    config = stage_trainer_config(ctx.config.trainer, ctx.config.adapt)
    examples = Joined(*(RecordFile(ctx.path(name), Example) for name in ("data/labeled", "data/unlabeled")))
    return fit_stage(ctx, ctx.base_model, LazySftRows(examples, build_text_row), config)


STAGE = Stage(
    "adapt",
    reads=("data/labeled", "data/unlabeled"),
    writes=("adapt/model", "adapt/training"),
    sections=("model", "trainer", "adapt", "seed"),
    run=run,
)
