"""The Protocols that stages are written against, and the contracts that every backend keeps (tests/contract).

- Results carry the request's id; arrival order means nothing. A request gets its n completions or an error with
the reason.
- Transient faults are retried inside the backend; what stays broken becomes a Result with `error`.
  Configuration faults (unknown model, missing package) raise before any work.
- Log-probabilities are the model's raw ones, or `logprob_kind` says otherwise.
- Sample i of a request draws from (request.seed, i) alone: order, batching and resume change nothing.
- A trainer's output folder is whole or absent, and a generator opens what came back.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from semievol.config import EmbedderConfig, GeneratorConfig, ModelConfig, RetrieveConfig, RunConfig, TrainerConfig
from semievol.errors import ConfigError
from semievol.types import ChoiceRequest, ChoiceScores, Message, ModelRef, Request, Result, Sampling, SftRow

Progress = Callable[[int], None]
"""Called with the number of units (rows or optimiser steps) done since the last call."""


class Usage(NamedTuple):
    """What a backend has spent since it was opened."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    forward_passes: int = 0
    model_seconds: float = 0.0
    peak_memory_bytes: int = 0
    requests: int = 0
    """Sent over the network, repetitions included; 0 for local backends."""
    dollars: float = 0.0
    """US dollars by the prices in use; 0 where they are unknown."""


class Tokens(Protocol):
    """Counts prompt tokens without opening the model."""

    max_length: int
    """Most tokens of prompt and completion together."""

    fingerprint: str
    """Hash of tokenizer and chat template."""

    def count_prompt(self, messages: Sequence[Message]) -> int:
        """Tokens of the rendered chat, the start of the assistant turn included."""
        ...

    def count_text(self, text: str) -> int:
        """Tokens of a completion, without special tokens."""
        ...

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as the model sees it, special tokens and all."""
        ...


class Generator(Protocol):
    """Answers prompts. A context manager; leaving it frees the device."""

    @property
    def exact_choice_scores(self) -> bool:
        """Whether `score_choices` works."""
        ...

    @property
    def gives_logprobs(self) -> bool:
        """Whether completions carry log-probabilities."""
        ...

    @property
    def look_ahead(self) -> int | None:
        """How far a stream of rows may run ahead of the first unanswered one.

        None: rows are batched together, and the stage stores a window of them whole, so that a resumed run batches as
        an undisturbed one does. A number: rows are independent, and each answer is stored when it comes; `generate` is
        then given a stream that holds None where the caller has to take an answer before there can be more. With none
        under way the generator returns.
        """
        ...

    @property
    def usage(self) -> Usage:
        """What has been spent since it was opened."""
        ...

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Result]:
        """Yield one Result a request as it is done. Finished results may be stored at once: each is final.

        A generator that spreads work over machines begins when it is called, not when the first result is asked for, so
        that several calls can be under way; their results are taken in the order of the calls.
        """
        ...

    def score_choices(self, requests: Iterable[ChoiceRequest]) -> Iterator[ChoiceScores]:
        """Yield the exact answer distribution of each request (see ChoiceScores)."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...


FIT_REPORT = "fit_report.json"
"""File of a finished training's folder that holds its `fingerprint`, and its FitReport under `report`."""


class FitReport(NamedTuple):
    """What a training did."""

    model: ModelRef
    optimizer_steps: int
    train_seconds: float
    n_rows: int
    n_tokens: int
    losses: tuple[tuple[int, float], ...]
    """(optimiser step, mean training loss in nats per completion token) as logged."""
    rendered_example: str
    """One training example; the part that carries loss stands between ⟦ and ⟧."""
    peak_memory_bytes: int = 0
    dollars: float = 0.0
    """US dollars by the prices in use, of hosted trainings; 0 where they are unknown."""
    precision: str | None = None
    """What `trainer.precision` came to on this machine, bf16 or fp32; None where a server trains."""


class Trainer(Protocol):
    """Fine-tunes."""

    def fit(
        self,
        model: ModelRef,
        train: Sequence[SftRow],
        output_dir: Path,
        *,
        config: TrainerConfig,
        seed: int,
        progress: Progress | None = None,
    ) -> FitReport:
        """Train `model` (its adapter goes on being trained where it has one) and save to `output_dir`.

        Checkpoints lie beside it in `<output_dir>.partial` and a killed training goes on from the last one. A finished
        training of the same fingerprint that lies in `output_dir` is taken as it is.
        `config` carries the stage's own learning rate, epochs and steps. The loss is the mean NLL over the tokens of
        the completions, weighted by row; rows without messages are raw text with loss on every token.

        Raises:
            TrainingError: On a NaN loss, on rows longer than `max_length`, when no token carries loss.
        """
        ...

    def count_steps(self, n_rows: int, config: TrainerConfig) -> int:
        """Optimiser steps that `fit` takes over `n_rows` rows."""
        ...

    def fingerprint(self, model: ModelRef, train: Sequence[SftRow], *, config: TrainerConfig, seed: int) -> str:
        """SHA-256 over all that the weights of such a call of `fit` depend on, hexadecimal; see `FIT_REPORT`."""
        ...


class Retriever(Protocol):
    """Finds the labelled rows nearest to a text."""

    def index(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Take the rows that `search` looks among, in the place of any before."""
        ...

    def search(self, texts: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """For each text up to k (id, similarity), most similar first, ties by id."""
        ...


class Embedder(Protocol):
    """Turns texts into rows of length 1."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Shape (n, d)."""
        ...


HOSTED = frozenset({"openai", "openai_batch"})
"""Types whose model is a name at a server."""

STREAMING = HOSTED | {"vllm"}
"""Generators whose rows are independent (see `Generator.look_ahead`)."""

STATEFUL = STREAMING | {"ray"}
"""Types that are given `state_dir`, a folder for what has to outlive a process."""

GENERATORS = {
    "transformers": "semievol.backends.transformers:TransformersGenerator",
    "vllm": "semievol.backends.vllm_generator:VllmGenerator",
    "openai": "semievol.backends.openai_generator:OpenAIGenerator",
    "openai_batch": "semievol.backends.openai_batch:OpenAIBatchGenerator",
    "ray": "semievol.backends.ray:RayGenerator",
    "fake": "semievol.backends.fake:FakeGenerator",
}
TRAINERS = {
    "trl": "semievol.backends.trl:TrlTrainer",
    "openai": "semievol.backends.openai_trainer:OpenAITrainer",
    "fake": "semievol.backends.fake:FakeTrainer",
}
RETRIEVERS = {
    "bm25": "semievol.backends.embed:Bm25Retriever",
    "sentence_transformers": "semievol.backends.embed:SentenceTransformersRetriever",
    "model": "semievol.backends.embed:ModelRetriever",
    "openai": "semievol.backends.openai_embed:OpenAIRetriever",
    "fake": "semievol.backends.fake:FakeRetriever",
}
TOKENS = {
    "transformers": "semievol.backends.tokens:TransformersTokens",
    "vllm": "semievol.backends.tokens:TransformersTokens",
    "openai": "semievol.backends.openai_tokens:OpenAITokens",
    "openai_batch": "semievol.backends.openai_tokens:OpenAITokens",
    "ray": "semievol.backends.ray:open_inner_tokens",
    "fake": "semievol.backends.fake:FakeTokens",
}


def open_generator(config: GeneratorConfig, model: ModelConfig, *, state_dir: Path | None = None) -> Generator:
    """Load the generator of `config` for the base model of `model`. Use it as a context manager.

    `state_dir` is where one that is hosted, or spread over machines, keeps what has to outlive a process (None:
    nowhere); it is made when needed.
    """
    generator: Generator = _load(GENERATORS[config.type])(config, model, **_state(config.type, state_dir))
    return generator


def open_tokens(config: GeneratorConfig, model: ModelConfig) -> Tokens:
    """Open the tokenizer alone."""
    tokens: Tokens = _load(TOKENS[config.type])(config, model)
    return tokens


def open_trainer(config: TrainerConfig, model: ModelConfig) -> Trainer:
    """Load the trainer of `config`."""
    trainer: Trainer = _load(TRAINERS[config.type])(model)
    return trainer


def open_retriever(
    config: EmbedderConfig,
    model: ModelConfig,
    *,
    state_dir: Path | None = None,
    search: RetrieveConfig | None = None,
) -> Retriever:
    """Load the retriever that belongs to the embedder of `config`; `state_dir` as for `open_generator`.

    `search` says which index holds the embeddings (None: the exact one).
    """
    retriever = _load(RETRIEVERS[config.type])(config, model, **_state(config.type, state_dir))
    if search is not None and search.index == "faiss":
        retriever.make_index = partial(_load("semievol.backends.faiss_index:FaissIndex"), config=search)
    found: Retriever = retriever
    return found


def check_packages(config: RunConfig) -> None:
    """Raise ConfigError where a package is missing that a run would only ask for in the middle."""
    if config.retrieve.index == "faiss" and config.retrieve.k > 0:
        _load("semievol.backends.faiss_index:require_faiss")()


def _state(backend: str, state_dir: Path | None) -> dict[str, Any]:
    return {"state_dir": state_dir} if backend in STATEFUL else {}


def _load(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)


def require(module: str, *, extra: str) -> Any:
    """Import an optional package. Raises ConfigError with the command that installs it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        if error.name != module.partition(".")[0]:
            raise
        raise ConfigError(f"{module} is not installed: pip install 'semievol[{extra}]'") from error
