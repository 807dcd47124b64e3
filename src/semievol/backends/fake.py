"""Backends without a model that keep the same contracts, for tests of everything above them. They never import torch.

The truth of a row can be read off its question: the last `#X` mark of the final user turn ("where is my parcel? #B").
Answers, scores and noise come from hashes, so they are the same on every machine.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from typing_extensions import Self

from semievol.artifacts import remove_folder
from semievol.backends.base import FIT_REPORT, FitReport, Progress, Usage
from semievol.backends.embed import EmbeddingRetriever
from semievol.config import FakeEmbedderConfig, FakeGeneratorConfig, ModelConfig, TrainerConfig
from semievol.errors import TrainingError
from semievol.types import ChoiceRequest, ChoiceScores, Completion, Message, ModelRef, Request, Result, Sampling, SftRow

MAX_LENGTH = 4096
ROWS_PER_STEP = 8
MOST_LOSSES = 2000
"""Losses that the fake training logs at most, or one in so many steps."""
ROWS_A_BLOCK = 4096
ADAPTER_FILE = "fake_adapter.json"

_TRUTH = re.compile(r"#([^\s#.,;:?!]+)")
_OPTION = re.compile(r"^([A-Z]{1,2})\. ", re.MULTILINE)
_LABELS = re.compile(r"^Labels: (.+)$", re.MULTILINE)


class FakeTokens:
    """A token is a word; a turn costs two more."""

    max_length = MAX_LENGTH

    def __init__(self, config: FakeGeneratorConfig, model: ModelConfig) -> None:
        self.max_length = model.max_length or MAX_LENGTH
        self.fingerprint = hashlib.sha256(f"fake/{model.path}/{model.chat_template}".encode()).hexdigest()

    def count_prompt(self, messages: Sequence[Message]) -> int:
        """Words of all turns, two more a turn, and two for the start of the answer."""
        return _count_prompt(messages)

    def count_text(self, text: str) -> int:
        """Words of `text`."""
        return len(text.split())

    def render(self, messages: Sequence[Message]) -> str:
        """The turns under their roles, and the start of the answer."""
        return _render(messages)


class FakeGenerator:
    """Right with the probability `config.accuracy`; better with an adapter and with demonstrations.

    Whether it knows a row hangs on the row; above temperature 0 one sample in ten slips, by its seed.
    """

    exact_choice_scores = True
    gives_logprobs = True
    look_ahead = None

    def __init__(self, config: FakeGeneratorConfig, model: ModelConfig) -> None:
        self._accuracy = config.accuracy
        self._max_length = model.max_length or MAX_LENGTH
        self._usage = Usage()

    @property
    def usage(self) -> Usage:
        """What has been spent since the generator was opened; no time and no memory."""
        return self._usage

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Result]:
        """Yield one Result a request, in the order given."""
        for request in requests:
            n_prompt = _count_prompt(request.messages)
            if n_prompt > self._max_length - sampling.max_tokens:
                reason = f"the prompt has {n_prompt} tokens, which do not fit into model.max_length {self._max_length}"
                yield Result(request.id, error=reason, n_prompt_tokens=n_prompt)
                continue
            completions = tuple(self._complete(request, i, sampling) for i in range(sampling.n))
            n_tokens = sum(len(c.token_logprobs) for c in completions)
            self._count(n_prompt, n_tokens)
            yield Result(request.id, completions, None, n_prompt, n_tokens)

    def score_choices(self, requests: Iterable[ChoiceRequest]) -> Iterator[ChoiceScores]:
        """Yield a distribution whose top is the answer that `generate` gives most often."""
        for request in requests:
            n_prompt = _count_prompt(request.messages)
            self._count(n_prompt, 0)
            yield self._score(request, n_prompt)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        pass

    def _complete(self, request: Request, sample: int, sampling: Sampling) -> Completion:
        question = request.messages[-1].content
        options = _options(question)
        truth = _truth(question)
        slip = 0.0 if sampling.temperature == 0 else _uniform("slip", _render(request.messages), request.seed, sample)
        skill = self._skill(request.messages, request.model)
        right = truth is not None and slip < 0.9 and self._knows(question, skill)
        noise = _uniform("noise", question, 0 if sampling.temperature == 0 else request.seed, sample)
        answer = truth if right else _pick([o for o in options if o != truth] or options, noise)
        words = f"Answer: {answer}".split()[: sampling.max_tokens]
        nll = (0.05 if right else 0.4) * (0.5 + _uniform("nll", question, answer))
        stopped = len(words) < sampling.max_tokens
        n_tokens = len(words) + stopped
        return Completion(" ".join(words), (round(-nll, 6),) * n_tokens, "raw", "stop" if stopped else "length")

    def _score(self, request: ChoiceRequest, n_prompt: int) -> ChoiceScores:
        question = request.messages[-1].content
        truth = _truth(question)
        right = [i for i, c in enumerate(request.completions) if truth is not None and c.split()[-1:] == [truth]]
        if not right:
            right = [i for i, c in enumerate(request.completions) if truth is not None and c.endswith(truth)]
        skill = self._skill(request.messages, request.model)
        knows = bool(right) and self._knows(question, skill)
        others = [i for i in range(len(request.completions)) if i not in right]
        noise = _uniform("noise", question, 0, 0)
        top = right[0] if knows or not others else others[int(noise * len(others))]
        sure = (0.7 if knows else 0.4) + 0.25 * _uniform("sure", question, _adapter_identity(request.model.adapter))
        weights = [0.1 + _uniform("weight", question, c) for c in request.completions]
        rest = math.fsum(w for i, w in enumerate(weights) if i != top) or 1.0
        inside = 0.98
        p = [inside * (sure if i == top else (1 - sure) * w / rest) for i, w in enumerate(weights)]
        logprobs = tuple(round(math.log(x), 6) for x in p)
        return ChoiceScores(request.id, logprobs, (1,) * len(p), round(math.log(0.95), 6), n_prompt)

    def _skill(self, messages: Sequence[Message], model: ModelRef) -> float:
        missing = 1 - self._accuracy
        if model.adapter is not None:
            missing *= 0.7
        if messages[-1].content.count("\nAnswer: "):
            missing *= 0.8
        return 1 - missing

    @staticmethod
    def _knows(question: str, skill: float) -> bool:
        """One draw a row, so a better model knows all that a worse one knows."""
        return _uniform("knows", question.rpartition("Question: ")[2].partition("\n")[0]) < skill

    def _count(self, prompt_tokens: int, completion_tokens: int) -> None:
        spent = self._usage
        self._usage = Usage(
            spent.prompt_tokens + prompt_tokens, spent.completion_tokens + completion_tokens, spent.forward_passes + 1
        )


class FakeRetriever(EmbeddingRetriever):
    """Cosine similarity of hashed bags of words."""

    def __init__(self, config: FakeEmbedderConfig, model: ModelConfig) -> None:
        super().__init__()
        self._dimension = config.dimension

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Rows of length 1, shape (n, dimension); the row of a text without words is zero."""
        rows = np.zeros((len(texts), self._dimension), dtype=np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in re.findall(r"\w+", text.lower()):
                row[_hash("word", word) % self._dimension] += 1
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        np.divide(rows, norms, out=rows, where=norms > 0)
        return rows


class FakeTrainer:
    """Writes down what it saw as an adapter folder."""

    def __init__(self, model: ModelConfig) -> None:
        self._model = model

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
        """Write the adapter folder, whole or not at all; losses fall from 2 nats.

        Raises:
            TrainingError: If there is no row to train on.
        """
        if not train:
            raise TrainingError(f"{output_dir.name}: there are no rows to train on")
        n_steps = self.count_steps(len(train), config)
        fingerprint = self.fingerprint(model, train, config=config, seed=seed)
        report = output_dir / FIT_REPORT
        found = json.loads(report.read_text(encoding="utf-8")) if report.exists() else {}
        if found.get("fingerprint") != fingerprint:
            partial = output_dir.with_name(output_dir.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            n_tokens = _write_adapter(partial / ADAPTER_FILE, self._head(model, len(train), config, seed), train)
            found = {"fingerprint": fingerprint, "n_tokens": n_tokens}
            (partial / FIT_REPORT).write_text(json.dumps(found), encoding="utf-8")
            remove_folder(output_dir)
            partial.replace(output_dir)
        if progress is not None:
            for _ in range(n_steps):
                progress(1)
        return FitReport(
            model=ModelRef(model.base, str(output_dir)),
            optimizer_steps=n_steps,
            train_seconds=0.0,
            n_rows=len(train),
            n_tokens=found["n_tokens"],
            losses=tuple((i, round(2 / (1 + i), 6)) for i in range(1, n_steps + 1, 1 + n_steps // MOST_LOSSES)),
            rendered_example=f"{_render(train[0].messages) if train[0].messages else ''}⟦{train[0].completion}⟧",
        )

    def fingerprint(self, model: ModelRef, train: Sequence[SftRow], *, config: TrainerConfig, seed: int) -> str:
        """SHA-256 over what stands in the adapter folder."""
        digest = hashlib.sha256(json.dumps(self._head(model, len(train), config, seed), sort_keys=True).encode())
        for row in train:
            digest.update(json.dumps([row.id, row.completion, row.weight]).encode())
        return digest.hexdigest()

    def _head(self, model: ModelRef, n_rows: int, config: TrainerConfig, seed: int) -> dict[str, Any]:
        n_steps = self.count_steps(n_rows, config)
        return {"base": model.base, "init": _adapter_identity(model.adapter), "seed": seed, "steps": n_steps}

    def count_steps(self, n_rows: int, config: TrainerConfig) -> int:
        """`max_steps`, or as many steps of eight rows as the epochs hold."""
        if config.max_steps is not None:
            return config.max_steps
        return math.ceil(math.ceil(n_rows / ROWS_PER_STEP) * float(config.num_train_epochs))


def _write_adapter(path: Path, head: dict[str, Any], train: Sequence[SftRow]) -> int:
    """Write JSON with sorted keys, row by row; returns the number of words with loss."""
    ids: list[NDArray[np.bytes_]] = []
    block: list[bytes] = []
    weights: dict[str, float] = {}
    n_tokens = 0
    for row in train:
        block.append(row.id.encode())
        if len(block) == ROWS_A_BLOCK:
            ids.append(np.array(block))
            block.clear()
        n_tokens += len(row.completion.split())
        if row.weight != 1.0:
            weights[row.id] = row.weight
    order = np.argsort(np.concatenate([*ids, np.array(block, dtype=bytes)]), kind="stable")  # as JSON sorts its keys
    ids.clear()
    before, after = json.dumps(
        head | {"rows": None} | ({"weights": weights} if weights else {}), indent=1, sort_keys=True
    ).split('"rows": null')
    with path.open("w", encoding="utf-8") as stream:
        stream.write(f'{before}"rows": {{')
        for i, place in enumerate(order.tolist()):
            row = train[place]
            stream.write(f"{',' if i else ''}\n  {json.dumps(row.id)}: {json.dumps(row.completion)}")
        stream.write(f"\n }}{after}")
    return n_tokens


def _render(messages: Sequence[Message]) -> str:
    return "".join(f"<{m.role}>\n{m.content}\n" for m in messages) + "<assistant>\n"


def _count_prompt(messages: Sequence[Message]) -> int:
    return sum(len(m.content.split()) + 2 for m in messages) + 2


def _truth(question: str) -> str | None:
    """The last `#X` mark before any proposed answers."""
    marks = _TRUTH.findall(question.partition("\n\nProposed answers:")[0])
    return marks[-1].replace("_", " ") if marks else None


def _options(question: str) -> list[str]:
    """Letters or labels that the prompt lists, in order and each once; four letters where it lists none."""
    if listed := _LABELS.search(question):
        return [label.strip() for label in listed[1].split(",")]
    return list(dict.fromkeys(_OPTION.findall(question))) or list("ABCD")


def _pick(options: Sequence[str], uniform: float) -> str:
    return options[int(uniform * len(options))]


def _adapter_identity(adapter: str | None) -> str | None:
    """Hash of what an adapter holds, so that it is the same wherever its folder lies; its name if there is none."""
    if adapter is None:
        return None
    file = Path(adapter) / ADAPTER_FILE
    return _file_digest(file, file.stat().st_mtime_ns) if file.is_file() else adapter


@lru_cache(maxsize=64)
def _file_digest(file: Path, modified: int) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _hash(*parts: object) -> int:
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def _uniform(*parts: object) -> float:
    """A number in [0, 1) that hangs on `parts` alone."""
    return _hash(*parts) / 2**64
