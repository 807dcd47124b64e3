"""What stands behind the routes: an Engine answers chats, embeds texts and fine-tunes.

FakeEngine needs no torch. It answers as the package's own fake generator does: where the question carries its truth
(`where is my parcel? #B`), it is right with its model's accuracy. tests/emulator/causal.py serves a real causal LM.
"""

import hashlib
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

from semievol.backends.fake import FakeGenerator, FakeRetriever, FakeTokens
from semievol.config import FakeEmbedderConfig, FakeGeneratorConfig, ModelConfig
from semievol.types import Message, ModelRef, Request, Sampling
from tests.emulator.errors import wrong_value

CONTEXT_LENGTH = 128_000


@dataclass(frozen=True)
class ServedModel:
    """One entry of /v1/models."""

    id: str
    accuracy: float = 0.6
    """Of the fake engine: share of marked questions that it answers right."""
    dimension: int = 0
    """Length of an embedding; 0: a chat model."""
    reasoning: bool = False
    """Reasoning models refuse temperature, top_p, logprobs and max_tokens, as the API's do."""
    tunable: bool = False
    shutdown_date: str | None = None
    parent: str | None = None
    """What an `ft:` model was tuned from."""


DEFAULT_MODELS = (
    ServedModel("gpt-4o-mini-2024-07-18", 0.6, tunable=True, shutdown_date="2027-01-14"),
    ServedModel("gpt-4.1-mini-2025-04-14", 0.7, tunable=True, shutdown_date="2027-01-14"),
    ServedModel("gpt-6-luna", 0.8, reasoning=True),
    ServedModel("text-embedding-3-small", dimension=1536),
    ServedModel("text-embedding-3-large", dimension=3072),
)
ALIASES = {"gpt-4o-mini": "gpt-4o-mini-2024-07-18", "gpt-4.1-mini": "gpt-4.1-mini-2025-04-14"}


class Chat(NamedTuple):
    """One checked request for completions."""

    messages: tuple[Message, ...]
    n: int
    temperature: float
    top_p: float
    max_tokens: int | None
    seed: int
    top_logprobs: int
    stop: tuple[str, ...]
    logit_bias: Mapping[int, float]


class Token(NamedTuple):
    """A generated token; log-probabilities in nats, before temperature and top_p."""

    text: str
    logprob: float
    top: tuple[tuple[str, float], ...] = ()


class Answer(NamedTuple):
    """One completion. Its text is its tokens' texts in a row."""

    tokens: tuple[Token, ...]
    finish_reason: str

    @property
    def text(self) -> str:
        """What the message says."""
        return "".join(t.text for t in self.tokens)


class Training(NamedTuple):
    """What a fine-tuning job asks for."""

    parent: ServedModel
    model_id: str
    chats: Sequence[Sequence[Mapping[str, object]]]
    n_epochs: int
    batch_size: int
    learning_rate_multiplier: float
    seed: int
    halted: threading.Event
    """Set when the job is cancelled; what was trained so far is thrown away."""


class Trained(NamedTuple):
    """What came of it; losses are (step, mean loss in nats per assistant token)."""

    model: ServedModel
    losses: tuple[tuple[int, float], ...]
    n_tokens: int
    checkpoints: tuple[tuple[int, ServedModel], ...] = ()
    """(step, model) at the end of each epoch; they are served too."""


class Engine(Protocol):
    """Everything that the routes need to know of models."""

    blocking: bool
    """Whether calls take long enough to need a thread of their own."""

    def models(self) -> Mapping[str, ServedModel]:
        """What is served, by id."""
        ...

    def complete(self, model: ServedModel, chat: Chat) -> tuple[list[Answer], int]:
        """The n answers and the number of prompt tokens."""
        ...

    def embed(self, model: ServedModel, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """One vector of length 1 a text, and the number of tokens."""
        ...

    def train(self, training: Training) -> Trained:
        """Fine-tune, and serve the new model from now on. Raises InterruptedError once `halted` is set."""
        ...

    def forget(self) -> None:
        """Drop what was fine-tuned."""
        ...


class FakeEngine:
    """Deterministic answers from hashes of prompt, seed and sample."""

    blocking = False

    def __init__(self, models: Sequence[ServedModel] = DEFAULT_MODELS) -> None:
        self._base = {m.id: m for m in models}
        self._served = dict(self._base)
        self._tokens = FakeTokens(FakeGeneratorConfig(), ModelConfig(max_length=CONTEXT_LENGTH))

    def models(self) -> Mapping[str, ServedModel]:
        """What is served, by id."""
        return self._served

    def complete(self, model: ServedModel, chat: Chat) -> tuple[list[Answer], int]:
        """Answers of one or a few words; a token is a word and the space before it."""
        if chat.logit_bias:
            raise wrong_value("logit_bias", "The fake engine has no logits; start the emulator with --engine causal.")
        config = FakeGeneratorConfig(accuracy=model.accuracy)
        generator = FakeGenerator(config, ModelConfig(max_length=CONTEXT_LENGTH))
        sampling = Sampling(chat.n, chat.temperature, chat.top_p, chat.max_tokens or 1024)
        request = Request("0", chat.messages, ModelRef(model.id), chat.seed)
        (result,) = generator.generate([request], sampling)
        if result.error is not None:
            message = f"This model's maximum context length is {CONTEXT_LENGTH} tokens. {result.error}"
            raise wrong_value("messages", message, "context_length_exceeded")
        answers = []
        for completion in result.completions:
            words = completion.text.split()
            tokens = [
                _token(i, w, lp, chat.top_logprobs)
                for i, (w, lp) in enumerate(zip(words, completion.token_logprobs, strict=False))
            ]
            answers.append(cut_at_stop(Answer(tuple(tokens), completion.finish_reason), chat.stop))
        return answers, result.n_prompt_tokens

    def embed(self, model: ServedModel, texts: Sequence[str]) -> tuple[list[list[float]], int]:
        """Hashed bags of words, so texts that share words are near each other."""
        retriever = FakeRetriever(FakeEmbedderConfig(dimension=model.dimension), ModelConfig())
        return retriever.embed(texts).tolist(), sum(max(1, self._tokens.count_text(t)) for t in texts)

    def train(self, training: Training) -> Trained:
        """Each of the first three epochs takes away a fifth of the wrong answers."""
        n_steps = math.ceil(len(training.chats) / training.batch_size)
        checkpoints = []
        for epoch in range(1, training.n_epochs + 1):
            accuracy = 1 - (1 - training.parent.accuracy) * 0.8 ** min(epoch, 3)
            name = f"{training.model_id}:ckpt-step-{epoch * n_steps}"
            checkpoints.append(
                (epoch * n_steps, replace(training.parent, id=name, accuracy=accuracy, parent=training.parent.id))
            )
        model = replace(checkpoints[-1][1], id=training.model_id)
        self._served |= {m.id: m for m in (model, *(m for _, m in checkpoints))}
        losses = tuple((step, round(2 / (1 + step), 4)) for step in range(1, n_steps * training.n_epochs + 1))
        n_tokens = sum(self._tokens.count_text(str(m.get("content"))) for chat in training.chats for m in chat)
        return Trained(model, losses, n_tokens * training.n_epochs, tuple(checkpoints))

    def forget(self) -> None:
        """Drop what was fine-tuned."""
        self._served = dict(self._base)


def cut_at_stop(answer: Answer, stop: Sequence[str]) -> Answer:
    """Keep the tokens that end before the first stop sequence begins."""
    starts = [at for s in stop if (at := answer.text.find(s)) >= 0]
    if not starts:
        return answer
    kept, length = [], 0
    for token in answer.tokens:
        if (room := min(starts) - length) <= 0:
            break
        kept.append(token._replace(text=token.text[:room]))
        length += len(token.text)
    return Answer(tuple(kept), "stop")


def _token(position: int, word: str, logprob: float, n_top: int) -> Token:
    """The word itself leads; letters or made-up words share what it leaves, each half of the one before."""
    text = f" {word}" if position else word
    if not n_top:
        return Token(text, logprob)
    pool = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c != word] if len(word) == 1 else _neighbours(word)
    rest = math.log(max(1e-9, -math.expm1(logprob)))
    others = [(f" {w}" if position else w, round(rest - (i + 1) * math.log(2), 6)) for i, w in enumerate(pool)]
    top = sorted([(text, logprob), *others], key=lambda t: -t[1])[:n_top]
    return Token(text, logprob, tuple(top))


def _neighbours(word: str) -> list[str]:
    return [hashlib.blake2b(f"{word}{i}".encode(), digest_size=2).hexdigest() for i in range(20)]
