"""Local generation with transformers: bases stay in memory, LoRA adapters switched on top, exact raw log-probabilities.

Requests are taken in windows, grouped by model, put beside those that start like them and cut into batches of
`batch_tokens`, so the same requests in the same order make the same batches. A sample depends on its request's seed and
its number alone.
"""

import contextlib
import gc
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar

import torch
from typing_extensions import Self

from semievol.answer_windows import cut_windows
from semievol.backends.base import Usage
from semievol.backends.choice_tries import ChoiceTries, make_completion
from semievol.backends.decoding import CausalLm, Sample, draw_uniforms
from semievol.backends.hf import (
    add_adapter,
    open_model,
    open_tokenizer,
    quiet_loading,
    render_prompt,
    resolve_device,
    resolve_max_length,
    stop_ids,
)
from semievol.backends.host_memory import peak_bytes
from semievol.backends.tries import Trie, TrieRow
from semievol.config import ModelConfig, TransformersGeneratorConfig
from semievol.errors import GenerationError
from semievol.types import ChoiceRequest, ChoiceScores, ModelRef, Request, Result, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

logger = logging.getLogger(__name__)

WINDOW = 4096
"""Requests in memory at once."""

AnyRequest = TypeVar("AnyRequest", Request, ChoiceRequest)
Item = TypeVar("Item")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class _Prompt:
    """A tokenised request with its place in the call."""

    request: Request
    ids: list[int]


@dataclass(frozen=True, slots=True)
class _Scored:
    request: ChoiceRequest
    ids: list[int]
    trie: Trie


class _LoadedBase:
    """A base in memory and the adapters that were put on it."""

    def __init__(self, model: "PreTrainedModel", lm: CausalLm) -> None:
        self.lm = lm
        self._model = model
        self._names: dict[str, str] = {}
        self._last: str | None = None

    @contextlib.contextmanager
    def adapted(self, adapter: str | None) -> Iterator[None]:
        """Within, the model is the base with `adapter` alone (None: the bare base)."""
        if adapter != self._last:
            self.lm.forget_prefix()
            self._last = adapter
        if adapter is None:
            with self._model.disable_adapter() if self._names else contextlib.nullcontext():
                yield
            return
        if adapter not in self._names:
            name = f"adapter-{len(self._names)}"
            self._model = add_adapter(self._model, adapter, name=name).eval()
            self._names[adapter] = name
        self._model.set_adapter(self._names[adapter])
        yield


class TransformersGenerator:
    """Answers prompts with a causal LM in this process. Leaving the context frees the device.

    Raises:
        ConfigError: If the model of the config cannot be opened or has no chat template.
    """

    exact_choice_scores = True
    gives_logprobs = True
    look_ahead = None

    def __init__(self, config: TransformersGeneratorConfig, model: ModelConfig) -> None:
        if config.threads is not None:
            torch.set_num_threads(config.threads)
        quiet_loading()
        self._config = model
        self._tokenizer = open_tokenizer(model)
        self._max_length = resolve_max_length(model)
        self._tries = ChoiceTries(self._tokenizer, max_length=self._max_length)
        self._batch_tokens = config.batch_tokens
        self._usage = Usage()
        self._max_loaded = config.max_loaded_models
        self._bases: dict[str, _LoadedBase] = {}
        self._load(model.path)

    @property
    def usage(self) -> Usage:
        """What has been spent since the generator was opened; the peak of memory since `restart_peak`."""
        return self._usage._replace(peak_memory_bytes=peak_bytes(str(resolve_device(self._config))))

    def generate(self, requests: Iterable[Request], sampling: Sampling) -> Iterator[Result]:
        """Yield one Result a request as it is done; prompts that share a start come together, the longest first."""
        longest = self._max_length - sampling.max_tokens
        for group in _windows(requests):
            prompts = [_Prompt(r, ids) for r, ids in zip(group, self._encode_prompts(group), strict=True)]
            for prompt in prompts:
                if len(prompt.ids) > longest:
                    reason = (
                        f"the prompt has {len(prompt.ids)} tokens, and only {longest} fit with max_tokens "
                        f"{sampling.max_tokens} into model.max_length {self._max_length}"
                    )
                    yield Result(prompt.request.id, error=reason, n_prompt_tokens=len(prompt.ids))
            fitting = [p for p in prompts if len(p.ids) <= longest]
            yield from self._run(
                fitting,
                model=group[0].model,
                cost=lambda p: (len(p.ids) + sampling.max_tokens) * sampling.n,
                prompt=lambda p: p.ids,
                work=lambda lm, batch: self._sample(lm, batch, sampling),
                fail=_out_of_memory,
            )

    def score_choices(self, requests: Iterable[ChoiceRequest]) -> Iterator[ChoiceScores]:
        """Yield the exact answer distribution of each request (see ChoiceScores).

        Raises:
            GenerationError: If prompt and completions are longer than the model can hold.
            DataError: If two completions of a request have the same tokens.
        """
        for group in _windows(requests):
            prompts = zip(group, self._encode_prompts(group), strict=True)
            scored = [_Scored(r, ids, self._tries.build(r, ids)) for r, ids in prompts]
            yield from self._run(
                scored,
                model=group[0].model,
                cost=lambda s: len(s.ids) + len(s.trie.tokens),
                prompt=lambda s: s.ids,
                work=self._score,
                fail=_cannot_score,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    def _sample(self, lm: CausalLm, batch: Sequence[_Prompt], sampling: Sampling) -> list[Result]:
        samples = [
            [Sample(draw_uniforms(p.request.seed, i, sampling.max_tokens)) for i in range(sampling.n)] for p in batch
        ]
        lm.sample([p.ids for p in batch], samples, temperature=sampling.temperature, top_p=sampling.top_p)
        return [self._result(prompt, own) for prompt, own in zip(batch, samples, strict=True)]

    def _result(self, prompt: _Prompt, samples: Sequence[Sample]) -> Result:
        completions = tuple(
            make_completion(self._tokenizer, s.tokens, s.logprobs, stopped=s.stopped, has_stop_token=s.stopped)
            for s in samples
        )
        n_tokens = sum(len(s.tokens) for s in samples)
        self._count(prompt_tokens=len(prompt.ids), completion_tokens=n_tokens)
        return Result(prompt.request.id, completions, None, len(prompt.ids), n_tokens)

    def _score(self, lm: CausalLm, batch: Sequence[_Scored]) -> list[ChoiceScores]:
        rows: list[tuple[int, TrieRow]] = [(at, row) for at, s in enumerate(batch) for row in lm.rows_of(s.ids, s.trie)]
        asked: list[list[tuple[int, int]]] = []
        for at, row in rows:
            place = {n: i for i, n in enumerate(row.nodes)} | {-1: -1}
            steps = dict.fromkeys(itertools.chain(batch[at].trie.prefix, *batch[at].trie.paths))
            asked.append([(place[node], token) for node, token in steps if node in place])
        found: list[dict[tuple[int, int], float]] = [{} for _ in batch]
        for (at, row), queries, values in zip(rows, asked, lm.score([r for _, r in rows], asked), strict=True):
            numbers = (*row.nodes, -1)
            found[at] |= {(numbers[place], token): x for (place, token), x in zip(queries, values, strict=True)}
        return [self._scores(s, logprobs) for s, logprobs in zip(batch, found, strict=True)]

    def _scores(self, scored: _Scored, logprobs: dict[tuple[int, int], float]) -> ChoiceScores:
        trie = scored.trie
        self._count(prompt_tokens=len(scored.ids), completion_tokens=0)
        return ChoiceScores(
            id=scored.request.id,
            logprobs=tuple(round(sum(logprobs[step] for step in path), 6) for path in trie.paths),
            n_tokens=tuple(len(path) for path in trie.paths),
            prefix_logprob=round(sum(logprobs[step] for step in trie.prefix), 6),
            n_prompt_tokens=len(scored.ids),
        )

    def _encode_prompts(self, requests: Sequence[Request] | Sequence[ChoiceRequest]) -> list[list[int]]:
        texts = [render_prompt(self._tokenizer, r.messages) for r in requests]
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        return ids

    def _run(
        self,
        items: Sequence[Item],
        *,
        model: ModelRef,
        cost: Callable[[Item], int],
        prompt: Callable[[Item], list[int]],
        work: Callable[[CausalLm, Sequence[Item]], list[Answer]],
        fail: Callable[[Item], Answer],
    ) -> Iterator[Answer]:
        """Put `items` through `work` in batches; a batch that does not fit into memory is halved, the budget too."""
        lm = self._load(model.base).lm
        lm.forget_prefix()
        waiting = deque(items[i] for i in lm.arrange([prompt(item) for item in items]))
        while waiting:
            batch = self._take(waiting, cost)
            try:
                with self._using(model) as lm:
                    answers = work(lm, batch)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _is_out_of_memory(error):
                    raise
                answers = None
            if answers is not None:
                yield from answers
                continue
            _free_memory()
            if len(self._bases) > 1:
                self._drop(next(iter(self._bases)))
                waiting.extendleft(reversed(batch))
                continue
            if len(batch) == 1:
                yield fail(batch[0])
                continue
            self._batch_tokens = max(1, max(map(cost, batch)) * len(batch) // 2)
            logger.warning("out of memory at %d rows: batches are now %d tokens", len(batch), self._batch_tokens)
            waiting.extendleft(reversed(batch))

    def _take(self, waiting: deque[Item], cost: Callable[[Item], int]) -> list[Item]:
        """The next batch, at least one item: as many as fit where each takes as much as the longest."""
        batch = [waiting.popleft()]
        most = cost(batch[0])
        while waiting and (len(batch) + 1) * max(most, cost(waiting[0])) <= self._batch_tokens:
            batch.append(waiting.popleft())
            most = max(most, cost(batch[-1]))
        return batch

    @contextlib.contextmanager
    def _using(self, ref: ModelRef) -> Iterator[CausalLm]:
        """The model of `ref`, its adapter on and every other off, on the clock."""
        loaded = self._load(ref.base)
        started, passes = time.perf_counter(), loaded.lm.forward_passes
        with loaded.adapted(ref.adapter):
            try:
                yield loaded.lm
            finally:
                self._usage = self._usage._replace(
                    forward_passes=self._usage.forward_passes + loaded.lm.forward_passes - passes,
                    model_seconds=self._usage.model_seconds + time.perf_counter() - started,
                )

    def _load(self, base: str) -> "_LoadedBase":
        """The base, opened if it is not; the one that was used longest ago makes room."""
        loaded = self._bases.pop(base, None)
        if loaded is None:
            while len(self._bases) >= self._max_loaded:
                self._drop(next(iter(self._bases)))
            loaded = self._open(base)
        self._bases[base] = loaded  # last: used just now
        return loaded

    def _drop(self, base: str) -> None:
        del self._bases[base]
        _free_memory()

    def _open(self, base: str) -> "_LoadedBase":
        opened = open_model(self._config, ModelRef(base))
        lm = CausalLm(opened, pad_id=self._tokenizer.pad_token_id, stop_ids=stop_ids(self._tokenizer, opened))
        return _LoadedBase(opened, lm)

    def _close(self) -> None:
        self._bases.clear()
        _free_memory()

    def _count(self, *, prompt_tokens: int, completion_tokens: int) -> None:
        self._usage = self._usage._replace(
            prompt_tokens=self._usage.prompt_tokens + prompt_tokens,
            completion_tokens=self._usage.completion_tokens + completion_tokens,
        )


def _windows(requests: Iterable[AnyRequest]) -> Iterator[list[AnyRequest]]:
    """Groups of requests to one model, out of WINDOW requests at a time, in the order of their first request."""
    for window in cut_windows(requests, WINDOW):
        groups: dict[ModelRef, list[AnyRequest]] = {}
        for request in window:
            groups.setdefault(request.model, []).append(request)
        yield from groups.values()


def _out_of_memory(prompt: _Prompt) -> Result:
    reason = f"out of memory with this prompt of {len(prompt.ids)} tokens alone in a batch"
    return Result(prompt.request.id, error=reason, n_prompt_tokens=len(prompt.ids))


def _cannot_score(scored: _Scored) -> ChoiceScores:
    raise GenerationError(
        f"row {scored.request.id}: out of memory with this prompt of {len(scored.ids)} tokens alone in a batch; "
        "use a smaller model or model.dtype bfloat16"
    )


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator: can't allocate memory" in str(error)


def _free_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
