"""The records that stages and backends exchange.

All are frozen and check their own invariants, so a record that exists is a record that makes sense.
Log-probabilities and likelihoods are in nats.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

from semievol.errors import DataError

Role = Literal["system", "user", "assistant"]
SplitName = Literal["labeled", "unlabeled", "test"]
LogprobKind = Literal["raw", "processed", "none"]
"""raw: of the model itself; processed: after temperature or top-p; none: the backend gives none."""
LabelSource = Literal["consensus", "justified", "majority", "cascade", "gold"]
"""What settled a pseudo-label."""

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@lru_cache(maxsize=1024)
def choice_letter(index: int) -> str:
    """Name of the option at `index`: A..Z, then AA, AB, ... as in a spreadsheet."""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = LETTERS[rest] + letters
    return letters


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat, as tokenizers and chat endpoints take it."""

    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Example:
    """One row of the task. `target` is None exactly when the row is unlabelled."""

    id: str
    question: str
    context: str | None = None
    choices: tuple[str, ...] = ()
    """Options of a `choice` row, in the order shown; empty for the other answer types."""
    target: str | None = None
    """Normal form of the right answer: the letter for `choice`, the label text for `label`."""
    group: str | None = None
    """Rows of one document, customer or category; splits and intervals keep them together."""
    history: tuple[Message, ...] = ()
    """Turns before the question, of rows that came as chat `messages`."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.id:
            raise DataError("an example has an empty id: give every row one or leave the id column out")
        if not self.question.strip():
            raise DataError(f"row {self.id}: the question is empty")


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What the data say about the task, found once at load and the same for every split."""

    labels: tuple[str, ...] = ()
    """The fixed answer set of a `label` task, in the order shown; empty for the other answer types."""
    shared_choices: tuple[str, ...] = ()
    """The options of a `choice` task whose rows all have the same ones; they are then shown once, at the top."""


@dataclass(frozen=True, slots=True)
class ModelRef:
    """What a Trainer returns and a Generator opens: a base (hub id, folder, API name) and a LoRA folder or None."""

    base: str
    adapter: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt for one model. `id` is unique in a call and comes back with the result."""

    id: str
    messages: tuple[Message, ...]
    model: ModelRef
    seed: int = 0
    """Of this request alone; sample i of n draws from (seed, i), so order and batching change nothing."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How completions are drawn. `temperature` 0 is greedy."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 64
    top_logprobs: int = 0
    """Alternatives wanted at each token, of backends without exact choice scores; others give none."""


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated text.

    `token_logprobs` has one entry a generated token; local backends include the stop token, OpenAI's protocol does not
    give it.
    """

    text: str
    token_logprobs: tuple[float, ...] = ()
    logprob_kind: LogprobKind = "none"
    finish_reason: Literal["stop", "length"] = "stop"
    tokens: tuple[str, ...] = ()
    """Text of each token; only where `top_logprobs` were wanted and given."""
    top_logprobs: tuple[tuple[tuple[str, float], ...], ...] = ()
    """(token, log-probability) of the likeliest tokens at each position, likeliest first."""

    @property
    def mean_nll(self) -> float:
        """Mean negative log-likelihood of the tokens, nats per token; NaN where there are none."""
        if not self.token_logprobs:
            return math.nan
        return -math.fsum(self.token_logprobs) / len(self.token_logprobs)


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to a Request: n completions, or none and the reason."""

    id: str
    completions: tuple[Completion, ...] = ()
    error: str | None = None
    n_prompt_tokens: int = 0
    n_completion_tokens: int = 0

    def __post_init__(self) -> None:
        if bool(self.completions) == (self.error is not None):
            raise DataError(f"result {self.id}: has to carry completions or an error, exactly one of them")


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """Ask how likely each of `completions` is after the prompt. They must differ and not be empty."""

    id: str
    messages: tuple[Message, ...]
    model: ModelRef
    completions: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ChoiceScores:
    """Exact answer distribution of one prompt over a closed set of completions.

    A score is the log-probability of the tokens in which the completions differ, given the prompt and the tokens
    that all of them share at their start ("Answer:"), and with the stop token where one completion is the start of
    another.
    """

    id: str
    logprobs: tuple[float, ...]
    n_tokens: tuple[int, ...]
    """Number of tokens that each score covers; `-logprobs[i] / n_tokens[i]` is a mean NLL."""
    prefix_logprob: float = 0.0
    """Log-probability of the shared start; low when the model would not have answered in this format."""
    n_prompt_tokens: int = 0

    @property
    def off_set_mass(self) -> float:
        """Probability that lies on none of the completions, in [0, 1]."""
        return min(1.0, max(0.0, 1.0 - math.fsum(math.exp(x) for x in self.logprobs)))

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The scores as a distribution over the set (they sum to 1)."""
        top = max(self.logprobs)
        weights = [math.exp(x - top) for x in self.logprobs]
        total = math.fsum(weights)
        return tuple(w / total for w in weights)

    @property
    def entropy(self) -> float:
        """Shannon entropy of `probabilities`, nats."""
        return -math.fsum(p * math.log(p) for p in self.probabilities if p > 0)


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """Nearest labelled rows of one row, nearest first, with their similarity."""

    example_id: str
    demonstration_ids: tuple[str, ...]
    similarities: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Candidates:
    """What the configurations answered to one unlabelled row. `answers[i]` comes from `completions[i]`."""

    example_id: str
    completions: tuple[Completion, ...]
    answers: tuple[str | None, ...]
    config_names: tuple[str, ...]
    n_demonstrations_dropped: int = 0
    """Demonstrations left out, over all configurations, because the prompt was too long."""
    by_cascade: bool = False
    """Whether one exact distribution settled the row (`propagate.cascade`), so that nothing else was asked."""

    def __post_init__(self) -> None:
        if not len(self.completions) == len(self.answers) == len(self.config_names):
            raise DataError(f"candidates of {self.example_id}: completions, answers and config_names differ in length")


@dataclass(frozen=True, slots=True)
class PseudoLabel:
    """The final answer to one unlabelled row and how sure the model is of it."""

    example_id: str
    answer: str
    completion: str
    """Text that a model is trained to give for `answer`."""
    source: LabelSource
    """cascade: settled by one exact distribution, agreement 1; gold: the sealed target, in an oracle, agreement 1."""
    agreement: float
    """Share of the configurations that gave `answer`, in [0, 1]."""
    mean_nll: float | None = None
    """Mean NLL of `completion`, nats per token (the paper's H, arXiv:2410.14745 Eq. 6)."""
    entropy: float | None = None
    """Entropy of the exact answer distribution, nats; None where answers are not a closed set."""
    max_probability: float | None = None
    sample_entropy: float | None = None
    """Entropy of the answers that the configurations gave, nats; an unparsable one is an answer of its own."""
    justify_nll: float | None = None
    """Mean NLL of the final answer under the justification prompt, of rows that were justified."""
    justification: str | None = None
    """What the model wrote under the justification prompt."""
    round: int = 1


@dataclass(frozen=True, slots=True)
class SoftTarget:
    """A teacher's distribution over the answers to one unlabelled row; `probabilities` sum to 1."""

    example_id: str
    answers: tuple[str, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.answers or len(self.answers) != len(self.probabilities):
            raise DataError(f"soft target of {self.example_id}: every answer needs one probability")


@dataclass(frozen=True, slots=True)
class Dropped:
    """An unlabelled row that did not become training data, and why."""

    example_id: str
    stage: str
    reason: str
    detail: str = ""
    round: int = 1


@dataclass(frozen=True, slots=True)
class Gold:
    """A sealed target; only the audit reads these."""

    example_id: str
    target: str


@dataclass(frozen=True, slots=True)
class AuditedRow:
    """An unlabelled row whose sealed target the audit has opened, and whether its pseudo-label was right."""

    example_id: str
    target: str
    is_right: bool | None
    """None where the row got no pseudo-label."""


@dataclass(frozen=True, slots=True)
class SftRow:
    """One training example: the prompt as chat turns and the completion that carries the loss.

    Without messages it is raw text: the loss is on all tokens of the completion and on the end-of-text token behind it.
    """

    id: str
    messages: tuple[Message, ...]
    completion: str
    weight: float = 1.0
    """Factor of the loss of this row's tokens, above 0. The rows (x, c) of all answers c to one prompt x, weighted by
    p_c, add up to the soft cross-entropy sum_c p_c * -log P(c | x)."""

    def __post_init__(self) -> None:
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise DataError(f"training row {self.id}: weight {self.weight} has to be a number above 0")


@dataclass(frozen=True, slots=True)
class Prediction:
    """One evaluated row. `correct` is 1.0 or 0.0, or a share for graded metrics such as token F1."""

    example_id: str
    answer: str | None
    target: str | None
    score: float | None
    confidence: float | None = None
    """Probability of the answer: within the closed set, else exp of the mean token log-probability."""
    entropy: float | None = None
    mean_nll: float | None = None
    group: str | None = None


@dataclass(frozen=True, slots=True)
class EvalResult:
    """A measured value with its interval; `value`, `ci_low` and `ci_high` lie in [0, 1]."""

    model: str
    split: str
    metric: str
    value: float
    ci_low: float
    ci_high: float
    n: int
    n_unparsed: int = 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Paired difference a - b on the same rows, as `metrics.paired_difference` gives it."""

    a: str
    b: str
    metric: str
    difference: float
    ci_low: float
    ci_high: float
    p_value: float
    n: int
    n_differing: int
    """Rows whose scores are not the same."""
    detectable: float | None
    """True difference that rows like these would show four times in five."""


class RawRow(NamedTuple):
    """One row as it stands in the source."""

    line: int
    """1-based: the physical line on which the record starts (text formats, header included), else the row number."""
    values: dict[str, Any]
    doubt: str = ""
    """Why the row may be read wrongly; empty where nothing speaks for it."""


class BadRow(NamedTuple):
    """One row that could not be read."""

    line: int
    field: str
    value: str
    reason: str
    remedy: str
