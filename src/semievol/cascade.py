"""The cascade: a row that one exact answer distribution settles is not put to further configurations.

A cheap model that hands on what it is unsure of is an LLM cascade (arXiv:2305.05176, section 3). Its confidence here is
the probability of the most likely answer of a closed set under the model without demonstrations, the maximum softmax
probability (arXiv:1610.02136). Self-justification takes the confidence of every final answer from the same scores, so
the first look costs nothing that a run without a cascade would not spend later.

What it changes is measured: a share of the settled rows, drawn by seed and row id, goes through all configurations as
well. Their answers are compared and then left aside, so that an audited row is treated as any other settled one.
"""

import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from semievol import metrics
from semievol.answers import normal_form
from semievol.backends.base import Usage
from semievol.config import CascadeConfig, TaskConfig
from semievol.types import Candidates, ChoiceScores


@dataclass(frozen=True, slots=True)
class FirstLook:
    """What the exact distribution of one row says, and what follows from it."""

    candidates: Candidates
    """The most likely answer; the final candidates of a settled row."""
    max_probability: float
    """Of that answer within the closed set."""
    is_settled: bool
    is_audited: bool
    """Settled, and put to all configurations for comparison."""

    @property
    def is_asked(self) -> bool:
        """Whether all configurations answer the row."""
        return self.is_audited or not self.is_settled


class Audited(NamedTuple):
    """A settled row of the audit."""

    answer: str
    """Of the cascade."""
    candidates: Candidates
    """That it would have had without the cascade."""


@dataclass(frozen=True, slots=True)
class AuditedAnswer:
    """Both final answers of an audited row."""

    example_id: str
    cascade_answer: str
    full_answer: str | None
    """Vote or verdict over all configurations; None where it could not be parsed, so the row would have been lost."""


class Spent(NamedTuple):
    """What the rows that went through all configurations took, whenever they were answered."""

    n_rows: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


def look(candidates: Candidates, scores: ChoiceScores, config: CascadeConfig, *, seed: int) -> FirstLook:
    """Settle a row or leave it open. `seed` is that of the row's own draw for the audit."""
    probability = round(max(scores.probabilities), 6)
    is_settled = probability >= config.min_confidence
    is_audited = is_settled and random.Random(seed).random() < config.audit_fraction
    return FirstLook(replace(candidates, by_cascade=True), probability, is_settled, is_audited)


def merge_candidates(looks: Iterable[FirstLook], asked: Iterable[Candidates]) -> Iterator[Candidates]:
    """Candidates of all rows, in their order: of the first look where it settled them.

    Open rows that failed are left out. `asked` are those from all configurations, in the same order.
    """
    for one, full in _pair(looks, asked):
        if one.is_settled:
            yield one.candidates
        elif full is not None:
            yield full


def audited_candidates(looks: Iterable[FirstLook], asked: Iterable[Candidates]) -> Iterator[Audited]:
    """The audited rows, but for those whose requests failed."""
    for one, full in _pair(looks, asked):
        if one.is_audited and full is not None:
            yield Audited(str(one.candidates.answers[0]), full)


def _pair(looks: Iterable[FirstLook], asked: Iterable[Candidates]) -> Iterator[tuple[FirstLook, Candidates | None]]:
    remaining = iter(asked)
    head = next(remaining, None)
    for one in looks:
        if head is not None and head.example_id == one.candidates.example_id:
            yield one, head
            head = next(remaining, None)
        else:
            yield one, None


def count_savings(
    looks: Iterable[FirstLook], *, n_requests_a_row: int, spent: Spent, used: Usage, first_seconds: float
) -> dict[str, Any]:
    """What the cascade left out.

    Args:
        looks: At all rows.
        n_requests_a_row: That a row without the cascade takes.
        spent: On the rows that went through all configurations.
        used: By the generator for those of them that were answered now, not by a run that was killed before.
        first_seconds: In the model for the first look, as far as it was taken now.

    Returns:
        Counts, and estimates: a row left out is taken to cost what the rows that were asked cost on average. They are
        None where no row was asked.
    """
    n_rows = n_settled = n_audited = 0
    for one in looks:
        n_rows += 1
        n_settled += one.is_settled
        n_audited += one.is_audited
    n_left_out = n_settled - n_audited
    share = n_left_out / spent.n_rows if spent.n_rows else None
    tokens_now = used.prompt_tokens + used.completion_tokens
    tokens = spent.prompt_tokens + spent.completion_tokens
    seconds = None if share is None or not tokens_now else used.model_seconds / tokens_now * tokens * share
    return {
        "n_rows": n_rows,
        "n_settled": n_settled,
        "n_audited": n_audited,
        "n_requests_saved": n_left_out * n_requests_a_row,
        "prompt_tokens_saved": None if share is None else round(spent.prompt_tokens * share),
        "completion_tokens_saved": None if share is None else round(spent.completion_tokens * share),
        "model_seconds_saved": None if seconds is None else round(seconds, 3),
        "first_look_seconds": round(first_seconds, 3),
    }


def count_changes(answers: Iterable[AuditedAnswer], task: TaskConfig) -> dict[str, Any]:
    """Share of the audited rows whose final answer the cascade changed, with a 95% Wilson interval; None of none."""
    n = n_changed = 0
    for one in answers:
        n += 1
        full = one.full_answer
        n_changed += full is None or normal_form(full, task) != normal_form(one.cascade_answer, task)
    if n == 0:
        return {"n_compared": 0, "n_changed": 0, "changed_fraction": None, "ci_low": None, "ci_high": None}
    low, high = metrics.wilson_interval(n_changed, n)
    return {"n_compared": n, "n_changed": n_changed, "changed_fraction": n_changed / n, "ci_low": low, "ci_high": high}
