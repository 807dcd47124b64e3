"""Puts rows with targets to a model and scores its answers, for every stage that measures one."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from semievol.answering import (
    Ask,
    answers_exactly,
    max_tokens,
    predict_by_vote,
    predict_exactly,
    predict_greedily,
    wanted_top_logprobs,
)
from semievol.answers import score_answer
from semievol.config import TaskConfig
from semievol.errors import DataError
from semievol.stage import StageContext
from semievol.types import Example, ModelRef, Prediction, Sampling


def predict_rows(
    ctx: StageContext, model: ModelRef, rows: Sequence[Example], *, text: str, ask: Ask | None = None
) -> Iterator[Prediction]:
    """Answer and score the rows, in order: exactly over closed sets, else greedily (`evaluate.answer_with`).

    Targets are used for the score alone: neither `ask`, which makes the prompts, nor the model sees them.

    Raises:
        DataError: If a row has no target.
    """
    config, prompts, asked = ctx.config, ctx.prompts(), [replace(e, target=None) for e in rows]
    if answers_exactly(config, config.evaluate.answer_with, ctx.backends.generator.exact_choice_scores):
        score = partial(ctx.score_choices, total=len(rows), text=text)
        predictions = predict_exactly(asked, prompts, model, score, ask=ask)
    else:
        generate = partial(ctx.generate, total=len(rows), text=text)
        n_tokens = max_tokens(config, config.evaluate.max_tokens)
        top = wanted_top_logprobs(config, ctx.backends.generator)
        predictions = predict_greedily(asked, prompts, model, generate, max_tokens=n_tokens, top_logprobs=top, ask=ask)
    yield from _score(predictions, rows, config.task)


def predict_rows_by_vote(
    ctx: StageContext,
    model: ModelRef,
    rows: Sequence[Example],
    *,
    text: str,
    n_samples: int,
    temperature: float,
    ask: Ask | None = None,
) -> Iterator[Prediction]:
    """Answer each row by the majority of sampled completions (arXiv:2203.11171) and score it, in order.

    Raises:
        DataError: If a row has no target.
    """
    config = ctx.config
    predictions = predict_by_vote(
        [replace(e, target=None) for e in rows],
        ctx.prompts(),
        model,
        partial(ctx.generate, total=len(rows), text=text),
        sampling=Sampling(n_samples, temperature, max_tokens=max_tokens(config, config.evaluate.max_tokens)),
        seed=lambda e: ctx.seed("vote", e.id),
        ask=ask,
    )
    yield from _score(predictions, rows, config.task)


def score_prediction(prediction: Prediction, target: str | None, example: Example, task: TaskConfig) -> Prediction:
    """Put the target and the score beside an answer. Raises DataError if the row has no target."""
    if target is None:
        raise DataError(f"evaluate: test row {prediction.example_id} has no target")
    return replace(prediction, target=target, score=score_answer(prediction.answer, target, example, task))


def _score(predictions: Iterator[Prediction], rows: Sequence[Example], task: TaskConfig) -> Iterator[Prediction]:
    return (score_prediction(p, e.target, e, task) for p, e in zip(predictions, rows, strict=True))
