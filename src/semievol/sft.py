"""Turns records into the rows that a Trainer takes, and trains for the stages that do."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack

from semievol.config import StageTrainingConfig, TrainerConfig
from semievol.errors import DataError
from semievol.prompts import PromptBuilder
from semievol.spool import DiskSequence
from semievol.stage import StageContext, StageStats
from semievol.types import Example, ModelRef, SftRow, SoftTarget

TRAINED_IN = "trained_in"
"""Key in the stats of a step whose training another step of the comparison did: that step, from the root."""
_UNSTABLE = ("train_seconds", "peak_memory_bytes", "train_dollars", TRAINED_IN)


def build_sft_rows(examples: Iterable[Example], builder: PromptBuilder) -> list[SftRow]:
    """One row an example, in their order: the plain prompt and the text that stands for its target.

    Raises:
        DataError: If an example has no target.
    """
    return [build_sft_row(example, builder) for example in examples]


def build_sft_row(example: Example, builder: PromptBuilder) -> SftRow:
    """The plain prompt and the text that stands for its target. Raises DataError if the example has none."""
    if example.target is None:
        raise DataError(f"row {example.id} has no target and cannot be trained on")
    return SftRow(example.id, builder.answer(example), builder.completion(example.target, example))


class LazySftRows(DiskSequence[SftRow]):
    """One row an example, made when it is asked for: the prompts of a large pool are never all held."""

    def __init__(self, examples: Sequence[Example], make: Callable[[Example], SftRow]) -> None:
        self._examples, self._make = examples, make

    def __len__(self) -> int:
        return len(self._examples)

    def _get(self, position: int) -> SftRow:
        return self._make(self._examples[position])


def build_text_row(example: Example) -> SftRow:
    """A row of raw text: the context, where there is one, and the question."""
    return SftRow(example.id, (), "\n\n".join(filter(None, (example.context, example.question))))


def build_soft_rows(example: Example, target: SoftTarget, builder: PromptBuilder) -> list[SftRow]:
    """One row for each answer of a soft target, weighted by its probability: together a soft cross-entropy."""
    messages = builder.answer(example)
    return [
        SftRow(f"{example.id}/{answer}", messages, builder.completion(answer, example), probability)
        for answer, probability in zip(target.answers, target.probabilities, strict=True)
    ]


def stage_trainer_config(
    trainer: TrainerConfig, overrides: StageTrainingConfig, *, max_steps: int | None = None
) -> TrainerConfig:
    """The trainer's section with the stage's own learning rate, epochs and steps; None takes the trainer's value.

    `max_steps` goes before both, for a training that has to be as long as another.
    """
    values = overrides.model_dump(include=set(StageTrainingConfig.model_fields), exclude_none=True)
    if "num_train_epochs" in values:
        values["max_steps"] = None
    if max_steps is not None:
        values["max_steps"] = max_steps
    return trainer.model_copy(update=values)


def fit_stage(ctx: StageContext, model: ModelRef, rows: Sequence[SftRow], config: TrainerConfig) -> StageStats:
    """Train for a stage: the model to `<stage>/adapter`, its reference and what the training did to artifacts.

    A training that another step of the comparison has done, whatever its rows came from, is taken over; the stats name
    that step under `trained_in`.
    """
    trainer = ctx.backends.trainer()
    n_steps = trainer.count_steps(len(rows), config)
    output_dir = ctx.run_dir.path.resolve() / ctx.artifact(f"{ctx.stage.name}/adapter")
    advance = ctx.reporter.task(f"fine-tuning on {len(rows):,} rows", n_steps, "steps")
    seed = ctx.config.seed
    ctx.begin()
    with ExitStack() as held:
        trained_in = None
        if ctx.shared is not None:
            fingerprint = trainer.fingerprint(model, rows, config=config, seed=seed)
            found = held.enter_context(ctx.shared.hold_training(fingerprint, output_dir, note=ctx.reporter.note))
            trained_in, ctx.waited_seconds = found
        report = trainer.fit(model, rows, output_dir, config=config, seed=seed, progress=advance)
    ctx.write_model(f"{ctx.stage.name}/model", report.model)
    stats: StageStats = {
        "n_rows": report.n_rows,
        "optimizer_steps": report.optimizer_steps,
        "n_tokens": report.n_tokens,
        "train_seconds": report.train_seconds,
        "peak_memory_bytes": report.peak_memory_bytes,
        "train_dollars": report.dollars,
        "last_loss": report.losses[-1][1] if report.losses else None,
    }
    if report.precision is not None:
        stats["precision"] = report.precision
    if trained_in is not None:
        stats[TRAINED_IN] = trained_in
    deterministic = {k: v for k, v in stats.items() if k not in _UNSTABLE}
    training = deterministic | {"losses": [list(x) for x in report.losses], "rendered_example": report.rendered_example}
    ctx.write_json(f"{ctx.stage.name}/training", training)
    return stats
