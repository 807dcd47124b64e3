"""Ask a model for the answers to rows, the same way for evaluation, prediction and confidence.

Closed answer sets (choice, label) are scored exactly where the generator can; open ones are decoded greedily. A
generator that only completes is asked for the alternatives at each token, from which `choice_reading` takes scores.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import tee
from typing import Literal, NamedTuple

from semievol.answers import closed_set, parse_answer
from semievol.backends.base import Generator
from semievol.choice_reading import read_choices
from semievol.config import RunConfig
from semievol.prompts import PromptBuilder
from semievol.types import (
    ChoiceRequest,
    ChoiceScores,
    Completion,
    Example,
    Message,
    ModelRef,
    Prediction,
    Request,
    Result,
    Sampling,
)

Score = Callable[[Iterable[ChoiceRequest]], Iterator[ChoiceScores]]
Generate = Callable[[Iterable[Request], Sampling], Iterator[Result]]

MAX_TOKENS = {"choice": 16, "label": 32, "number": 32, "span": 64, "text": 512}
"""Most tokens of a completion, where the config gives no number."""


def max_tokens(config: RunConfig, configured: int | None) -> int:
    """The configured number of tokens, or the default of the answer type."""
    return configured or MAX_TOKENS[config.task.type]


def answers_exactly(config: RunConfig, mode: Literal["auto", "greedy"], exact_choice_scores: bool) -> bool:
    """Whether answers come from exact scores: a closed set, a generator that can, and no wish for completions."""
    return mode == "auto" and config.task.type in ("choice", "label") and exact_choice_scores


TOP_LOGPROBS = 20
"""Alternatives asked for at each token: the most that chat APIs list."""


def wanted_top_logprobs(config: RunConfig, generator: Generator) -> int:
    """Alternatives to ask for with a greedy completion: some for closed sets that cannot be scored exactly."""
    closed = config.task.type in ("choice", "label")
    return TOP_LOGPROBS if closed and generator.gives_logprobs and not generator.exact_choice_scores else 0


def choice_request(
    example: Example,
    messages: tuple[Message, ...],
    model: ModelRef,
    prompts: PromptBuilder,
    *,
    request_id: str | None = None,
) -> ChoiceRequest:
    """Ask for the distribution over the closed set of `example`."""
    answers = closed_set(example, prompts.task, prompts.facts)
    return ChoiceRequest(
        id=request_id or example.id,
        messages=messages,
        model=model,
        completions=tuple(prompts.completion(answer, example) for answer in answers),
    )


def best_answer(scores: ChoiceScores, answers: Sequence[str]) -> tuple[str, int]:
    """The most likely answer and its place; ties go to the earlier one."""
    index = max(range(len(answers)), key=lambda i: (scores.logprobs[i], -i))
    return answers[index], index


def predict_exactly(
    examples: Iterable[Example], prompts: PromptBuilder, model: ModelRef, score: Score
) -> Iterator[Prediction]:
    """Predictions from exact answer distributions, in the order of the rows; `score` and `target` are left empty."""
    asked, kept = tee(examples)
    requests = (choice_request(e, prompts.answer(e), model, prompts) for e in asked)
    for example, scores in zip(kept, score(requests), strict=True):
        answer, index = best_answer(scores, closed_set(example, prompts.task, prompts.facts))
        yield Prediction(
            example_id=example.id,
            answer=answer,
            target=None,
            score=None,
            confidence=round(scores.probabilities[index], 6),
            entropy=round(scores.entropy, 6),
            mean_nll=round(-scores.logprobs[index] / scores.n_tokens[index], 6),
            group=example.group,
        )


def predict_greedily(
    examples: Iterable[Example],
    prompts: PromptBuilder,
    model: ModelRef,
    generate: Generate,
    *,
    max_tokens: int,
    top_logprobs: int = 0,
) -> Iterator[Prediction]:
    """Predictions from greedy completions, in the order of the rows; an unparsable or failed one has answer None.

    The confidence of an answer of a closed set comes from the alternatives where they were asked for and listed.
    """
    asked, kept = tee(examples)
    requests = (Request(e.id, prompts.answer(e), model) for e in asked)
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, top_logprobs=top_logprobs)
    for example, result in zip(kept, generate(requests, sampling), strict=True):
        yield _from_completion(example, result.completions[0] if result.completions else None, prompts)


def _from_completion(example: Example, completion: Completion | None, prompts: PromptBuilder) -> Prediction:
    if completion is None:
        return Prediction(example.id, None, None, None, group=example.group)
    answer = parse_answer(completion.text, example, prompts.task, prompts.facts)
    nll = completion.mean_nll if completion.token_logprobs else None
    confidence = None if nll is None else math.exp(-nll)
    entropy = None
    if answer is not None and (score := read_score(example, answer, completion, prompts)) is not None:
        nll, entropy = score.nll, score.entropy
        confidence = math.exp(-nll) if score.probability is None else score.probability
    return Prediction(
        example_id=example.id,
        answer=answer,
        target=None,
        score=None,
        confidence=None if confidence is None else round(confidence, 6),
        entropy=None if entropy is None else round(entropy, 6),
        mean_nll=None if nll is None else round(nll, 6),
        group=example.group,
    )


class AnswerScore(NamedTuple):
    """What the alternatives of a greedy completion say about one answer of a closed set."""

    nll: float
    """Of the token in which the answers differ, nats."""
    probability: float | None
    """Within the closed set; None where an answer of the set is not listed."""
    entropy: float | None


def read_score(example: Example, answer: str, completion: Completion, prompts: PromptBuilder) -> AnswerScore | None:
    """Read the score of `answer` off a greedy completion to the row; None where it is not to be had."""
    if not completion.top_logprobs:
        return None
    answers = closed_set(example, prompts.task, prompts.facts)
    reading = read_choices(completion, [prompts.completion(a, example) for a in answers])
    if reading is None or answer not in answers:
        return None
    place = answers.index(answer)
    logprob, probabilities = reading.logprobs[place], reading.probabilities
    if logprob is None:
        return None
    return AnswerScore(-logprob, None if probabilities is None else probabilities[place], reading.entropy)
