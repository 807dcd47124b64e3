"""Generates with any server that speaks the OpenAI chat protocol.

Requests are independent, many are under way at once, and each answer is handed on when it comes. A server that gives
one completion to a request is asked n times. Chat APIs cannot score a given text: `choice_reading` tells what the
listed alternatives of a greedy completion say about a closed set.
"""

from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

from typing_extensions import Self

from semievol.backends.base import Usage
from semievol.backends.openai_adapters import ServedNames
from semievol.backends.openai_budget import Budget
from semievol.backends.openai_calls import Caller, Cost, RowFault, describe
from semievol.backends.openai_chat import Abilities, chat_body, read_answer
from semievol.backends.openai_probe import probe
from semievol.backends.openai_stream import stream_answers
from semievol.backends.openai_tokens import most_tokens
from semievol.config import ChatGeneratorConfig, ModelConfig
from semievol.errors import ConfigError, GenerationError
from semievol.prices import AS_OF, price_of
from semievol.types import ChoiceRequest, ChoiceScores, Completion, ModelRef, Request, Result, Sampling

CHAT = "/chat/completions"
LOOK_AHEAD = 4096


class OpenAIGenerator:
    """Answers from a server; `model.path` and the names of trained models are what requests name.

    Raises:
        ConfigError: If the key, the package or a price that a limit needs is missing; on entering, if the server
            refuses the key or the model, or gives no log-probabilities where they are required.
        GenerationError: On entering, if the server does not answer.
    """

    exact_choice_scores = False
    look_ahead = LOOK_AHEAD

    def __init__(self, config: ChatGeneratorConfig, model: ModelConfig, *, state_dir: Path | None = None) -> None:
        self._config, self._path, self._state_dir = config, model.path, state_dir
        self._model = config.model or model.path
        if config.max_cost is not None and price_of(model.path, config.prices) is None:
            raise ConfigError(
                f"generator.max_cost cannot be kept: no price of {model.path} is known (table of {AS_OF}); set "
                "generator.prices: {input: ..., output: ...} in US dollars for a million tokens"
            )
        name = describe(config, self._model)
        self._budget = Budget(config.max_requests, config.max_cost, state_dir, name=name)
        self._dollars_before = self._budget.dollars
        self._caller = Caller(config, self._budget)
        self._names = ServedNames(config, model.path, self._caller)
        self._abilities: Abilities | None = None
        self._prompt_tokens = self._completion_tokens = 0

    @property
    def abilities(self) -> Abilities:
        """What the server does; asks it if nobody has."""
        if self._abilities is None:
            cost = self._cost(self._model, most_prompt=200, most_output=20)
            self._abilities = probe(self._config, self._model, self._caller, cost, self._state_dir)
        return self._abilities

    @property
    def gives_logprobs(self) -> bool:
        """Whether completions carry log-probabilities."""
        return self.abilities.logprobs

    @property
    def usage(self) -> Usage:
        """What has been spent since the generator was opened; time is the server's and not counted."""
        return Usage(
            prompt_tokens=self._prompt_tokens,
            completion_tokens=self._completion_tokens,
            requests=self._caller.n_requests,
            dollars=self._budget.dollars - self._dollars_before,
        )

    def generate(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Result]:
        """Yield results in the order in which they come.

        Raises:
            SemiEvolError: If no request can succeed, or the budget is spent; all that was answered is yielded first.
            KeyboardInterrupt: In the same way, after the answers under way; a second one raises at once.
        """
        abilities = self.abilities

        def work(request: Request) -> Coroutine[Any, Any, Result]:
            named = replace(request, model=ModelRef(self._names.name_of(request.model)))
            return self._answer(named, sampling, abilities)

        yield from stream_answers(self._caller, requests, work, most=2 * self._config.max_concurrency)

    def score_choices(self, requests: Iterable[ChoiceRequest]) -> Iterator[ChoiceScores]:
        """Not to be had from a chat API: raises GenerationError for the first request."""
        for request in requests:
            raise GenerationError(
                f"{request.id}: {describe(self._config, self._model)} cannot score given texts; "
                "propagate.answer_with: samples asks for completions"
            )
        yield from ()

    def __enter__(self) -> Self:
        self._abilities = self.abilities
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._caller.__exit__(kind, value, traceback)

    async def _answer(self, request: Request, sampling: Sampling, abilities: Abilities) -> Result:
        """All n completions of a request; what a server leaves out is asked for again."""
        completions: list[Completion] = []
        n_prompt = n_completion = 0
        try:
            while len(completions) < sampling.n:
                n = sampling.n - len(completions) if abilities.n else 1
                first = len(completions)
                body = chat_body(request, sampling, abilities, self._config.extra_body, n=n, first=first)
                cost = self._cost(
                    request.model.base, most_prompt=most_tokens(request.messages), most_output=n * sampling.max_tokens
                )
                read = partial(read_answer, kind=abilities.logprob_kind)
                answer = await self._caller.post(CHAT, body, request.model.base, cost, read)
                self._prompt_tokens += answer.n_prompt_tokens
                self._completion_tokens += answer.n_completion_tokens
                n_prompt, n_completion = answer.n_prompt_tokens, n_completion + answer.n_completion_tokens
                if not answer.completions:
                    return Result(request.id, error=answer.refusal or "the answer holds no text")
                completions += answer.completions[: sampling.n - len(completions)]
        except RowFault as fault:
            return Result(request.id, error=str(fault))
        if self._config.logprobs == "require" and not all(c.token_logprobs for c in completions):
            return Result(request.id, error="the answer came without log-probabilities (generator.logprobs: require)")
        return Result(request.id, tuple(completions), None, n_prompt, n_completion)

    def _cost(self, model: str, *, most_prompt: int, most_output: int) -> Cost:
        """By the price of `model.path`, or of what is fine-tuned from it: names at a server may be anything."""
        price = price_of(self._path, self._config.prices, tuned=model not in (self._model, self._path))
        if price is None:
            return Cost()
        most = (most_prompt * price.input + most_output * price.output) / 1e6
        return Cost(most, price.input / 1e6, price.output / 1e6)
