"""Generates with a `vllm serve` of its own, asked through the client of the hosted backends.

Why a server and no engine in this process: the memory comes back for certain only when its process ends, vLLM pins
other versions of torch and transformers and may need another interpreter, and what a run needs around it (many requests
under way, repetition, each answer stored when it comes) is there for servers already. Prompts go as token ids made by
the code that training uses, so what the model sees is what it was trained on.

The server is started for the first request and ended on leaving. Adapters are loaded into it, so base and trained model
answer from one load; a model with weights of its own takes the place of the one that is served.
"""

import itertools
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from typing_extensions import Self

from semievol.backends.base import Usage, require
from semievol.backends.openai_calls import RowFault
from semievol.backends.openai_stream import stream_answers
from semievol.backends.vllm_prompts import PromptIds, Scored
from semievol.backends.vllm_requests import GREEDY_BELOW, read_samples, read_scores, sampling_body, scoring_body
from semievol.backends.vllm_server import VllmServer, check_vllm
from semievol.backends.vllm_service import VllmService
from semievol.config import ModelConfig, VllmGeneratorConfig
from semievol.errors import GenerationError
from semievol.types import ChoiceRequest, ChoiceScores, Request, Result, Sampling

LOOK_AHEAD = 16_384
"""Rows in memory at most; with whole fine-tuned models the server changes its model about once for so many."""

Asked = TypeVar("Asked", Request, ChoiceRequest)
Answer = TypeVar("Answer")


class VllmGenerator:
    """Answers prompts with vLLM. Leaving the context ends the server and so frees the device.

    Raises:
        ConfigError: If the tokenizer cannot be opened or has no chat template; on entering, if a package is missing.
    """

    exact_choice_scores = True
    gives_logprobs = True
    look_ahead = LOOK_AHEAD

    def __init__(self, config: VllmGeneratorConfig, model: ModelConfig, *, state_dir: Path | None = None) -> None:
        self._config, self._model = config, model
        self._prompts = PromptIds(model)
        server = VllmServer(config, model, max_length=self._prompts.max_length, log_dir=state_dir)
        self._service = VllmService(config, server)
        self._usage = Usage()

    @property
    def usage(self) -> Usage:
        """What has been spent since it was opened; the time is that in which requests were under way."""
        return self._usage._replace(requests=self._service.n_requests)

    def generate(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Result]:
        """Yield results in the order in which they come.

        Raises:
            GenerationError: If the server does not come up, or has crashed too often; all that was answered is yielded
                first.
        """
        return self._run(requests, lambda request, name: self._sample(request, name, sampling))

    def score_choices(self, requests: Iterable[ChoiceRequest | None]) -> Iterator[ChoiceScores]:
        """Yield the exact answer distribution of each request (see ChoiceScores), in the order in which they come.

        Raises:
            GenerationError: As `generate`; or if prompt and completions are longer than the model can hold.
            DataError: If two completions of a request have the same tokens.
        """
        return self._run(requests, lambda request, name: self._score(request, name, self._prompts.plan(request)))

    def __enter__(self) -> Self:
        require("openai", extra="vllm")
        check_vllm(self._config, self._model)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._service.close()

    def _run(
        self, requests: Iterable[Asked | None], work: Callable[[Asked, str], Coroutine[Any, Any, Answer]]
    ) -> Iterator[Answer]:
        """Answer `requests`, one base after the other: what asks another one waits until none is under way."""
        feed = iter(requests)
        later: deque[Asked] = deque()
        first = next(feed, None)
        while first is not None:
            self._service.serve(first.model.base)
            waiting, later = later, deque()
            same = _of_base(first.model.base, itertools.chain([first], waiting, feed), later)
            started = time.perf_counter()
            try:
                yield from stream_answers(
                    self._service.caller,
                    same,
                    lambda request: work(request, self._service.name_of(request.model)),
                    most=2 * self._config.max_concurrency,
                )
            finally:
                seconds = self._usage.model_seconds + time.perf_counter() - started
                self._usage = self._usage._replace(model_seconds=seconds)
            first = later.popleft() if later else next(feed, None)

    def _sample(self, request: Request, name: str, sampling: Sampling) -> Coroutine[Any, Any, Result]:
        ids = self._prompts.encode(request.messages)
        return self._answer(request, name, sampling, ids)

    async def _answer(self, request: Request, name: str, sampling: Sampling, ids: list[int]) -> Result:
        longest = self._prompts.max_length - sampling.max_tokens
        if len(ids) > longest:
            reason = (
                f"the prompt has {len(ids)} tokens, and only {longest} fit with max_tokens {sampling.max_tokens} into "
                f"model.max_length {self._prompts.max_length}"
            )
            return Result(request.id, error=reason, n_prompt_tokens=len(ids))
        stops = self._prompts.stop_ids(request.model.base)
        body = sampling_body(name, ids, sampling, seed=request.seed, stop_ids=stops)
        try:
            drawn = await self._service.post(body, partial(read_samples, n=body["n"]))
        except RowFault as fault:
            return Result(request.id, error=str(fault), n_prompt_tokens=len(ids))
        self._count(len(ids), sum(len(d.tokens) for d in drawn))
        if sampling.temperature < GREEDY_BELOW:
            drawn = drawn * sampling.n
        completions = tuple(self._prompts.completion(d, stops) for d in drawn)
        return Result(request.id, completions, None, len(ids), sum(len(d.tokens) for d in drawn))

    async def _score(self, request: ChoiceRequest, name: str, scored: Scored) -> ChoiceScores:
        found: dict[tuple[int, int], float] = {}
        try:
            for questions in scored.requests:
                body = scoring_body(name, scored.ids, questions)
                found |= await self._service.post(body, partial(read_scores, questions=questions))
        except RowFault as fault:
            raise GenerationError(f"row {request.id} cannot be scored: {fault}") from fault
        self._count(len(scored.ids), 0)
        trie = scored.trie
        return ChoiceScores(
            id=request.id,
            logprobs=tuple(round(sum(found[step] for step in path), 6) for path in trie.paths),
            n_tokens=tuple(len(path) for path in trie.paths),
            prefix_logprob=round(sum(found[step] for step in trie.prefix), 6),
            n_prompt_tokens=len(scored.ids),
        )

    def _count(self, n_prompt: int, n_completion: int) -> None:
        self._usage = self._usage._replace(
            prompt_tokens=self._usage.prompt_tokens + n_prompt,
            completion_tokens=self._usage.completion_tokens + n_completion,
        )


def _of_base(base: str, requests: Iterable[Asked | None], later: deque[Asked]) -> Iterator[Asked | None]:
    """Those of `requests` that ask `base`, and the pauses; the others are put into `later`."""
    for request in requests:
        if request is None or request.model.base == base:
            yield request
        else:
            later.append(request)
