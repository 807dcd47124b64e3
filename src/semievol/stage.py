"""What a stage is, and what it is given: typed artifacts, backends, requests answered through the row store.

A stage reads artifacts that earlier stages wrote and writes its own. Names are `stage/artifact`; those of the stages
that a round repeats lie under `round-R/`. A stage may read what it declares and nothing else: the sealed targets of
the unlabelled rows are out of reach for every stage that does not name them.
"""

import hashlib
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter

from semievol.answer_stream import Answer, AnswerStream
from semievol.answer_windows import AnswerWindows
from semievol.artifacts import RunDir, content_hash, folder_hash
from semievol.backends.base import (
    STREAMING,
    Generator,
    Retriever,
    Tokens,
    Trainer,
    Usage,
    open_generator,
    open_retriever,
    open_tokens,
    open_trainer,
)
from semievol.config import LARGEST_SHARD, RayGeneratorConfig, RunConfig, answer_settings
from semievol.errors import ArtifactError, GenerationError
from semievol.identities import weights_identity
from semievol.prompts import PromptBuilder
from semievol.sharing import SharedSteps
from semievol.spool import Spool
from semievol.types import ChoiceRequest, ChoiceScores, Message, ModelRef, Request, Result, Sampling, TaskFacts

Record = TypeVar("Record")
StageStats = dict[str, Any]
"""Plain JSON values: counts n_x, shares x_fraction, times x_seconds."""

ROUND_STAGES = ("retrieve", "propagate", "justify", "select", "oracle_select", "oracle_full", "evolve")
WINDOW = LARGEST_SHARD
"""Requests that are batched together and stored together. Batches are cut inside a window and a window is stored whole,
so a resumed run batches as an undisturbed one does and gets the same bits."""


class Reporter(Protocol):
    """Shows a person what goes on."""

    def stage(self, name: str, text: str) -> None:
        """A stage starts."""
        ...

    def task(self, text: str, total: int | None, unit: str) -> Callable[[int], None]:
        """Rows or steps are about to be counted; call the result with how many more are done."""
        ...

    def note(self, text: str) -> None:
        """Something worth a line."""
        ...

    def done(self, name: str, text: str, seconds: float) -> None:
        """A stage has ended."""
        ...


class SilentReporter:
    """Shows nothing."""

    def stage(self, name: str, text: str) -> None:
        """Nothing."""

    def task(self, text: str, total: int | None, unit: str) -> Callable[[int], None]:
        """Nothing."""
        return lambda _: None

    def note(self, text: str) -> None:
        """Nothing."""

    def done(self, name: str, text: str, seconds: float) -> None:
        """Nothing."""


class Backends:
    """Opens the configured backends when they are first asked for and keeps one generator for all stages."""

    def __init__(self, config: RunConfig, *, state_dir: Path | None = None) -> None:
        self.config = config
        self._state_dir = state_dir
        self._generator: Generator | None = None
        self._tokens: Tokens | None = None
        self._closed = Usage()

    @property
    def generator(self) -> Generator:
        """The generator, opened once and kept until `close`."""
        if self._generator is None:
            config = self.config
            self._generator = open_generator(config.generator, config.model, state_dir=self._state_dir).__enter__()
        return self._generator

    @property
    def look_ahead(self) -> int | None:
        """Of the generator (see `Generator.look_ahead`); a local one need not be opened for it."""
        return self.generator.look_ahead if self.config.generator.type in STREAMING else None

    @property
    def windows(self) -> int:
        """Windows of requests that may be under way at once: two shards a replica, and one window for a late shard."""
        generator = self.config.generator
        if not isinstance(generator, RayGeneratorConfig):
            return 1
        return math.ceil(2 * generator.replicas * generator.shard_rows / WINDOW) + 1

    @property
    def tokens(self) -> Tokens:
        """The tokenizer."""
        if self._tokens is None:
            self._tokens = open_tokens(self.config.generator, self.config.model)
        return self._tokens

    def trainer(self) -> Trainer:
        """A trainer; the generator is closed first, so that the device's memory is free."""
        self.close()
        return open_trainer(self.config.trainer, self.config.model)

    def retriever(self) -> Retriever:
        """A retriever with an empty index."""
        config = self.config
        return open_retriever(config.embedder, config.model, state_dir=self._state_dir, search=config.retrieve)

    @property
    def usage(self) -> Usage:
        """What all generators of this object have spent."""
        return self._closed if self._generator is None else _add(self._closed, self._generator.usage)

    def close(self) -> None:
        """Free the device."""
        if self._generator is not None:
            self._closed = self.usage
            generator, self._generator = self._generator, None
            generator.__exit__(None, None, None)


@dataclass(frozen=True)
class Stage:
    """One step of the pipeline."""

    name: str
    reads: tuple[str, ...]
    """Artifacts it may open, as `stage/artifact`."""
    writes: tuple[str, ...]
    sections: tuple[str, ...]
    """Config sections, or dotted keys, that its result depends on; a change of them runs it again."""
    run: Callable[["StageContext"], StageStats]
    fingerprint_extra: Callable[["StageContext"], Any] | None = None
    """What else the result depends on, such as the bytes of input files."""
    unused: Callable[[RunConfig], Collection[str]] | None = None
    """Those of `reads` that a run of this config does not open. None: it opens all of them."""

    def reads_of(self, config: RunConfig) -> tuple[str, ...]:
        """Artifacts that a run of `config` opens: the stages that write them have to come before."""
        unused = () if self.unused is None else self.unused(config)
        return tuple(name for name in self.reads if name not in unused)


@dataclass
class StageContext:
    """What a stage is given."""

    config: RunConfig
    run_dir: RunDir
    stage: Stage
    backends: Backends
    reporter: Reporter
    round: int = 1
    shared: SharedSteps | None = None
    """What other run folders have finished; None for a run of its own."""
    reused: Usage = field(default_factory=Usage)
    """What the answers that the row store already had cost when they were made."""
    begin: Callable[[], None] = lambda: None
    """Called before anything of the run folder changes; until then a run that fails leaves it as it was."""
    waited_seconds: float = 0.0
    """Time in which the stage did nothing but wait for another process."""
    _model_keys: dict[ModelRef, str] = field(default_factory=dict)

    def artifact(self, name: str, *, round: int | None = None) -> str:
        """Place of `stage/artifact` in the run folder, without suffix."""
        folder = name.partition("/")[0]
        return f"round-{round or self.round}/{name}" if folder in ROUND_STAGES else name

    def read(self, name: str, kind: type[Record], *, round: int | None = None) -> Iterator[Record]:
        """Stream an artifact that the stage declares. Raises ArtifactError for any other."""
        self._check(name, self.stage.reads_of(self.config))
        return self.run_dir.read_records(self.artifact(name, round=round), kind)

    def path(self, name: str, *, round: int | None = None) -> Path:
        """Place of a JSONL artifact that the stage declares."""
        self._check(name, self.stage.reads_of(self.config))
        return self.run_dir.file(self.artifact(name, round=round))

    def count(self, name: str, *, round: int | None = None) -> int:
        """Number of records of an artifact that the stage declares, without parsing them."""
        return self.run_dir.count_records(self.artifact(name, round=round))

    def spool(self, kind: type[Record]) -> Spool[Record]:
        """Records that wait on the disk of the run folder until the stage writes them."""
        return Spool(kind, folder=self.run_dir.path)

    def read_json(self, name: str, *, round: int | None = None) -> Any:
        """Read a JSON artifact that the stage declares."""
        self._check(name, self.stage.reads_of(self.config))
        return self.run_dir.read_json(self.artifact(name, round=round))

    def write(self, name: str, records: Iterable[object], kind: type) -> int:
        """Write an artifact of the stage, atomically; returns the number of records."""
        self._check(name, self.stage.writes)
        self.begin()
        return self.run_dir.write_records(self.artifact(name), records, kind)

    def write_json(self, name: str, value: Any) -> None:
        """Write a JSON artifact of the stage, atomically."""
        self._check(name, self.stage.writes)
        self.begin()
        self.run_dir.write_json(self.artifact(name), value)

    def read_model(self, name: str, *, round: int | None = None) -> ModelRef:
        """The model that an earlier stage trained (artifact `stage/model`)."""
        stored = self.read_json(name, round=round)
        return ModelRef(
            base=self._inside(stored["base"]), adapter=stored["adapter"] and self._inside(stored["adapter"])
        )

    def write_model(self, name: str, model: ModelRef) -> None:
        """Store a reference to a model; folders inside the run folder are stored relative to it, so it can be moved."""
        adapter = None if model.adapter is None else self._outside(model.adapter)
        self.write_json(name, {"base": self._outside(model.base), "adapter": adapter})

    @property
    def base_model(self) -> ModelRef:
        """The untrained base."""
        return ModelRef(self.config.model.path)

    def warm_model(self) -> ModelRef:
        """M_warm: the warm-up model in the first round, the previous round's evolved model afterwards."""
        return (
            self.read_model("warmup/model")
            if self.round == 1
            else self.read_model("evolve/model", round=self.round - 1)
        )

    def prompts(self) -> PromptBuilder:
        """The prompt builder of the run's task."""
        return PromptBuilder(self.config.task, self.facts())

    def facts(self) -> TaskFacts:
        """What the data stage found out about the task."""
        facts: TaskFacts = TypeAdapter(TaskFacts).validate_python(self.read_json("data/task"))
        return facts

    def seed(self, *parts: str | int) -> int:
        """A 63-bit seed from the run's seed, the stage, the round and `parts`."""
        text = json.dumps([self.config.seed, self.stage.name, self.round, *parts])
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1

    def generate(self, requests: Iterable[Request], sampling: Sampling, *, total: int, text: str) -> Iterator[Result]:
        """Answer `total` requests through the row store, in their order.

        Raises:
            GenerationError: If a larger share than `propagate.max_failed_fraction` fails; the message quotes a reason.
        """
        n_failed, plain_sampling = 0, asdict(sampling)

        def content(request: Request) -> Any:
            return ["generate", plain_turns(request.messages), plain_sampling, request.seed]

        def compute(window: Iterable[Request]) -> Iterator[Result]:
            return self.backends.generator.generate(window, sampling)

        for result in self._stored(requests, content, compute, Result, self.reporter.task(text, total, "rows")):
            if result.error is not None:
                n_failed += 1
                self._check_failed(n_failed, total, result)
            yield result

    def score_choices(self, requests: Iterable[ChoiceRequest], *, total: int, text: str) -> Iterator[ChoiceScores]:
        """Exact answer distributions of `total` requests through the row store, in their order."""

        def content(request: ChoiceRequest) -> Any:
            return ["score", plain_turns(request.messages), request.completions]

        def compute(window: Iterable[ChoiceRequest]) -> Iterator[ChoiceScores]:
            return self.backends.generator.score_choices(window)

        return self._stored(requests, content, compute, ChoiceScores, self.reporter.task(text, total, "rows"))

    def _stored(
        self,
        requests: Iterable[Any],
        content: Callable[[Any], Any],
        compute: Callable[[Iterable[Any]], Iterator[Answer]],
        kind: type[Answer],
        advance: Callable[[int], None],
    ) -> Iterator[Answer]:
        adapter = TypeAdapter(kind)
        keyed = ((content_hash(self.model_key(r.model), content(r)), r) for r in requests)
        with self.run_dir.rows() as store:
            if self.backends.look_ahead is not None:
                stream: AnswerStream[Answer] = AnswerStream(
                    keyed, store, adapter, advance, look_ahead=self.backends.look_ahead
                )
                yield from stream.answers(compute, self.stage.name)
                return
            windows: AnswerWindows[Answer] = AnswerWindows(
                store, adapter, compute, stage=self.stage.name, advance=advance, note_reused=self._note_reused
            )
            yield from windows.answers(keyed, size=WINDOW, ahead=self.backends.windows)

    def _note_reused(self, answer: Result | ChoiceScores) -> None:
        n_written = answer.n_completion_tokens if isinstance(answer, Result) else 0
        self.reused = _add(self.reused, Usage(answer.n_prompt_tokens, n_written, 1))

    def _check_failed(self, n_failed: int, total: int, last: Result) -> None:
        if n_failed > math.floor(self.config.propagate.max_failed_fraction * total):
            raise GenerationError(
                f"{self.stage.name}: {n_failed} of {total} requests failed, more than propagate.max_failed_fraction "
                f"({self.config.propagate.max_failed_fraction}) allows; the last one, {last.id}: {last.error}"
            )

    def model_key(self, model: ModelRef) -> str:
        """Identity of a model by content: base name with revision and template, and the hash of a trained folder."""
        if model not in self._model_keys:
            adapter = None if model.adapter is None else folder_hash(Path(model.adapter))
            trained = model.base != self.config.model.path and Path(model.base).is_dir()
            base = folder_hash(Path(model.base)) if trained else name_and_content(model.base, self.config)
            made_by = [self.config.model.dtype, *answer_settings(self.config.generator)]
            self._model_keys[model] = content_hash(base, adapter, self.backends.tokens.fingerprint, made_by)
        return self._model_keys[model]

    def _check(self, name: str, allowed: tuple[str, ...]) -> None:
        if name not in allowed:
            raise ArtifactError(f"stage {self.stage.name} does not declare {name}; it may use {', '.join(allowed)}")

    def _outside(self, path: str) -> str:
        inside = Path(path).is_absolute() and Path(path).is_relative_to(self.run_dir.path.resolve())
        return f"./{Path(path).relative_to(self.run_dir.path.resolve())}" if inside else path

    def _inside(self, path: str) -> str:
        return str(self.run_dir.path.resolve() / path) if path.startswith("./") else path


def name_and_content(base: str, config: RunConfig) -> list[str | None]:
    """A base, or a model that a server trained, by name and revision and, of a local folder, by content."""
    return [base, config.model.revision, weights_identity(base)]


def embedder_identity(config: RunConfig) -> str | None:
    """The content of the embedder's model where it is a local folder."""
    embedder = config.embedder
    return weights_identity(embedder.model) if embedder.type == "sentence_transformers" else None


def plain_turns(messages: Iterable[Message]) -> list[dict[str, str]]:
    """Chat turns as JSON holds them."""
    return [{"role": m.role, "content": m.content} for m in messages]


def _add(a: Usage, b: Usage) -> Usage:
    return Usage(
        a.prompt_tokens + b.prompt_tokens,
        a.completion_tokens + b.completion_tokens,
        a.forward_passes + b.forward_passes,
        a.model_seconds + b.model_seconds,
        max(a.peak_memory_bytes, b.peak_memory_bytes),
        a.requests + b.requests,
        a.dollars + b.dollars,
    )
