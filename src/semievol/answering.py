"""Ask a model for the answers to rows, the same way for evaluation, prediction and confidence.

Closed answer sets (choice, label) are scored exactly where the generator can; open ones are decoded greedily. A
generator that only completes is asked for the alternatives at each token, from which `choice_reading` takes scores.
Several samples of one row can vote (self-consistency, arXiv:2203.11171).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import tee
from typing import Literal, NamedTuple

from semievol.answers import closed_set, normal_form, parse_answer
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
Ask = Callable[[Example], tuple[Message, ...]]
"""Makes the prompt of a row."""

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


class Vote(NamedTuple):
    """What several answers to one row agree on."""

    answer: str | None
    """The most frequent parsed answer; ties go to the one seen first; None if none could be parsed."""
    agreement: float
    """Share of all answers, unparsable ones too, behind `answer`, in [0, 1]."""

    @property
    def is_consensus(self) -> bool:
        """Whether every one of them is this answer."""
        return self.answer is not None and self.agreement == 1.0


def count_votes(answers: Sequence[str | None], prompts: PromptBuilder) -> Vote:
    """Find the answer with the most votes."""
    forms = [None if a is None else normal_form(a, prompts.task) for a in answers]
    parsed = [form for form in forms if form is not None]
    if not parsed:
        return Vote(None, 0.0)
    winner, n = Counter(parsed).most_common(1)[0]  # equal counts: the one seen first
    return Vote(answers[forms.index(winner)], n / len(answers))


def share_behind(answer: str, answers: Sequence[str | None], prompts: PromptBuilder) -> float:
    """Share of `answers` that are `answer`; unparsable ones count as others."""
    form = normal_form(answer, prompts.task)
    return sum(a is not None and normal_form(a, prompts.task) == form for a in answers) / len(answers)


def entropy_of_answers(answers: Sequence[str | None], prompts: PromptBuilder) -> float:
    """Shannon entropy of several answers to one row, nats; unparsable ones count as one answer."""
    counts = Counter(None if a is None else normal_form(a, prompts.task) for a in answers)
    return math.fsum(n / len(answers) * math.log(len(answers) / n) for n in counts.values())


def predict_exactly(
    examples: Iterable[Example], prompts: PromptBuilder, model: ModelRef, score: Score, *, ask: Ask | None = None
) -> Iterator[Prediction]:
    """Predictions from exact answer distributions, in the order of the rows; `score` and `target` are left empty.

    `ask` makes the prompts; None puts the question alone, as for the other two ways to predict.
    """
    asked, kept = tee(examples)
    put = ask or prompts.answer
    requests = (choice_request(e, put(e), model, prompts) for e in asked)
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
    ask: Ask | None = None,
) -> Iterator[Prediction]:
    """Predictions from greedy completions, in the order of the rows; an unparsable or failed one has answer None.

    The confidence of an answer of a closed set comes from the alternatives where they were asked for and listed.
    """
    asked, kept = tee(examples)
    put = ask or prompts.answer
    requests = (Request(e.id, put(e), model) for e in asked)
    sampling = Sampling(temperature=0.0, max_tokens=max_tokens, top_logprobs=top_logprobs)
    for example, result in zip(kept, generate(requests, sampling), strict=True):
        yield _from_completion(example, result.completions[0] if result.completions else None, prompts)


def predict_by_vote(
    examples: Iterable[Example],
    prompts: PromptBuilder,
    model: ModelRef,
    generate: Generate,
    *,
    sampling: Sampling,
    seed: Callable[[Example], int],
    ask: Ask | None = None,
) -> Iterator[Prediction]:
    """Majority answers of `sampling.n` completions, in the order of the rows.

    Unparsable samples vote for nothing; the confidence is the share of all samples behind the answer. A row without
    any parsable sample, or whose request failed, has answer None.
    """
    asked, kept = tee(examples)
    put = ask or prompts.answer
    requests = (Request(e.id, put(e), model, seed(e)) for e in asked)
    for example, result in zip(kept, generate(requests, sampling), strict=True):
        answers = [parse_answer(c.text, example, prompts.task, prompts.facts) for c in result.completions]
        vote = count_votes(answers, prompts)
        sure = None if vote.answer is None else round(vote.agreement, 6)
        yield Prediction(example.id, vote.answer, None, None, confidence=sure, group=example.group)


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
