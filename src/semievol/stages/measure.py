"""Measure one model on the test rows, for the arms of a comparison.

Reads   data/test, the one model that `measure.model` names, and with `measure.k` data/labeled
Writes  measure/predictions

The rows are put as evaluate puts them, so the predictions of a model are the same in both. Two ways to spend more at
inference are here alone: the nearest labelled rows as demonstrations, and the majority of sampled answers
(self-consistency, arXiv:2203.11171).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from semievol.answering import max_tokens
from semievol.config import RunConfig
from semievol.demonstrations import fit_demonstrations, retrieve
from semievol.scoring import predict_rows, predict_rows_by_vote
from semievol.stage import Stage, StageContext, StageStats, embedder_identity
from semievol.types import Example, Message, ModelRef, Prediction

ARTIFACTS = {
    "adapted": "adapt/model",
    "warm": "warmup/model",
    "control": "control/model",
    "evolved": "evolve/model",
    "distilled": "distill/model",
}
"""Where the models lie that `measure.model` names; `base` is the untrained one."""


def model_to_measure(ctx: StageContext) -> ModelRef:
    """The model that `measure.model` names; of the evolved ones that of the last round."""
    name = ctx.config.measure.model
    return ctx.base_model if name == "base" else ctx.read_model(ARTIFACTS[name], round=ctx.config.rounds)


class FewShotPrompt(NamedTuple):
    """A prompt with demonstrations, and how many were left out because it would have been too long."""

    messages: tuple[Message, ...]
    n_dropped: int


def prompts_with_demonstrations(ctx: StageContext, rows: Sequence[Example], *, k: int) -> dict[str, FewShotPrompt]:
    """Prompt of each row, by its id, with up to `k` of the nearest labelled rows."""
    labeled = list(ctx.read("data/labeled", Example))
    prompts, tokens, by_id = ctx.prompts(), ctx.backends.tokens, {e.id: e for e in labeled}
    limit = tokens.max_length - max_tokens(ctx.config, ctx.config.evaluate.max_tokens)
    found = retrieve(labeled, rows, ctx.backends.retriever(), k=k)
    return {
        row.id: FewShotPrompt(*fit_demonstrations(row, [by_id[i] for i in ids], prompts, tokens, limit=limit))
        for row, ids in ((row, near.demonstration_ids) for row, near in zip(rows, found, strict=True))
    }


def run(ctx: StageContext) -> StageStats:
    """Predict and write."""
    config, model = ctx.config.measure, model_to_measure(ctx)
    rows = list(ctx.read("data/test", Example))
    text = f"test rows, {config.model}"
    shown = prompts_with_demonstrations(ctx, rows, k=config.k) if config.k else {}
    ask = (lambda example: shown[example.id].messages) if shown else None
    if config.n_samples > 1:
        found = predict_rows_by_vote(
            ctx, model, rows, text=text, n_samples=config.n_samples, temperature=config.temperature, ask=ask
        )
    else:
        found = predict_rows(ctx, model, rows, text=text, ask=ask)
    predictions = list(found)
    ctx.write("measure/predictions", predictions, Prediction)
    if not rows:
        ctx.reporter.note("no test rows: nothing to measure (data.test or data.split.test gives some)")
    return {
        "model": config.model,
        "n_rows": len(rows),
        "n_unparsed": sum(p.answer is None for p in predictions),
        "n_demonstrations_dropped": sum(prompt.n_dropped for prompt in shown.values()),
    }


def other_artifacts(config: RunConfig) -> tuple[str, ...]:
    """Models that are not measured, and the labelled rows where none are shown."""
    models = (name for model, name in ARTIFACTS.items() if model != config.measure.model)
    return (*models, *(() if config.measure.k else ("data/labeled",)))


def settings_in_use(ctx: StageContext) -> Any:
    """Embedder and index for demonstrations, rounds for the last one's model, and the seed for samples."""
    config = ctx.config
    index = {key: value for key, value in config.retrieve.lasting().items() if key != "k"}
    return [
        [config.embedder.lasting(), embedder_identity(config), index] if config.measure.k else None,
        config.rounds if config.measure.model == "evolved" else None,
        config.seed if config.measure.n_samples > 1 else None,
    ]


STAGE = Stage(
    "measure",
    reads=("data/test", "data/labeled", "data/task", *ARTIFACTS.values()),
    writes=("measure/predictions",),
    sections=("task", "model", "generator", "measure", "evaluate"),
    run=run,
    fingerprint_extra=settings_in_use,
    unused=other_artifacts,
)
