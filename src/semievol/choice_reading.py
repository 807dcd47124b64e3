"""Reads the distribution over a closed set of answers off one greedy completion with its `top_logprobs`.

A chat API cannot be asked how likely a given text is. But if the model begins its answer with the start that all
answers share ("Answer:"), then the alternatives listed at the next token are what the exact score is: the
log-probability of the token in which the answers differ, given the prompt and the shared start. That holds for answers
that differ in one token each, as letters do; the others have no score here, and nothing is made up for them.

A model that writes in lower case alone ("answer: b"), as uncased ones do, is read in lower case: each answer then has
the likeliest of the listed tokens that say it.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from semievol.types import Completion


class ChoiceReading(NamedTuple):
    """Log-probability of each answer at the token in which they differ; None where it is not listed."""

    logprobs: tuple[float | None, ...]
    prefix_logprob: float
    """Of the shared start."""

    @property
    def is_exact(self) -> bool:
        """Whether every answer has a score."""
        return all(x is not None for x in self.logprobs)

    @property
    def probabilities(self) -> tuple[float, ...] | None:
        """The distribution over the set (it sums to 1); None if an answer has no score."""
        found = [x for x in self.logprobs if x is not None]
        if len(found) < len(self.logprobs) or not found:
            return None
        weights = [math.exp(x - max(found)) for x in found]
        return tuple(w / math.fsum(weights) for w in weights)

    @property
    def entropy(self) -> float | None:
        """Shannon entropy of `probabilities`, nats."""
        p = self.probabilities
        return None if p is None else -math.fsum(x * math.log(x) for x in p if x > 0)


def read_choices(completion: Completion, completions: Sequence[str]) -> ChoiceReading | None:
    """What a greedy completion says about each of the texts `completions`, which differ.

    None if it has no `top_logprobs`, or does not begin with the start that all of the texts share.
    """
    if not completion.top_logprobs:
        return None
    rows = list(zip(completion.tokens, completion.token_logprobs, completion.top_logprobs, strict=True))
    reading = _read(rows, completions)
    lowered = [text.lower() for text in completions]
    if reading is not None or len(set(lowered)) < len(lowered):
        return reading
    return _read([(t.lower(), lp, tuple((o.lower(), x) for o, x in listed)) for t, lp, listed in rows], lowered)


def _read(
    rows: Sequence[tuple[str, float, tuple[tuple[str, float], ...]]], completions: Sequence[str]
) -> ChoiceReading | None:
    """`rows`: each token with its log-probability and the alternatives, likeliest first."""
    shared = _shared_start(completions)
    text, prefix_logprob = "", 0.0
    for token, logprob, listed in rows:
        if shared.startswith(text + token):
            text, prefix_logprob = text + token, prefix_logprob + logprob
            continue
        known = {**dict(reversed(listed)), token: logprob}
        scores = tuple(_score(c, text, completions, known) for c in completions)
        return ChoiceReading(scores, prefix_logprob) if any(s is not None for s in scores) else None
    return None


def _shared_start(texts: Sequence[str]) -> str:
    """The longest text that all of `texts` begin with: the first and the last in order decide."""
    first, last = min(texts), max(texts)
    n = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[:n]


def _score(answer: str, start: str, answers: Sequence[str], known: dict[str, float]) -> float | None:
    """The listed log-probability of the rest of `answer`, if that is one token and the start of no other answer."""
    rest = answer[len(start) :]
    if not rest or any(a != answer and a[len(start) :].startswith(rest) for a in answers):
        return None
    return known.get(rest)
