"""Generates through the Batch API: many requests in one file, answered within a day at half the price.

Requests are collected up to `generator.window` and go out in as many batches as the limits ask for, one model each; all
are waited for side by side. Lines that failed in passing, expired or are missing go out again. A run that was killed
waits for the batches that it finds written down, and sends nothing twice.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from semievol.backends.base import Usage
from semievol.backends.notes import logger
from semievol.backends.openai_batch_files import Line, Outcome, best_outcomes, chat_url, make_line, split_lines
from semievol.backends.openai_batches import (
    BatchRecord,
    BatchRecords,
    failure_of,
    find_batch,
    read_results,
    submit,
    wait_for_batches,
)
from semievol.backends.openai_calls import Cost, describe
from semievol.backends.openai_chat import Abilities, Answer, chat_body, read_answer
from semievol.backends.openai_client import MalformedAnswer, address, redact
from semievol.backends.openai_generator import OpenAIGenerator
from semievol.backends.openai_server import Server, open_server
from semievol.backends.openai_tokens import most_tokens
from semievol.config import ModelConfig, OpenAIBatchGeneratorConfig
from semievol.errors import ConfigError, GenerationError
from semievol.prices import BATCH_SHARE
from semievol.types import Completion, ModelRef, Request, Result, Sampling

if TYPE_CHECKING:
    from openai.types import Batch


@dataclass
class Asked:
    """A request on its way."""

    request: Request
    n: int
    samples: dict[int, Completion] = field(default_factory=dict)
    n_prompt_tokens: int = 0
    n_completion_tokens: int = 0
    failures: Counter[int] = field(default_factory=Counter)
    """First sample of a line -> times that the line came to nothing."""
    error: str = ""
    """Of the last failure."""
    is_refused: bool = False

    @property
    def missing(self) -> list[int]:
        """Numbers of the samples that are still wanted."""
        return [i for i in range(self.n) if i not in self.samples]

    def fail(self, first: int, error: str, *, is_refused: bool) -> None:
        """The line of sample `first` came to nothing."""
        self.failures[first] += 1
        self.error, self.is_refused = error, self.is_refused or is_refused

    @property
    def n_failures(self) -> int:
        """Times that the same line came to nothing."""
        return max(self.failures.values(), default=0)


@dataclass(frozen=True)
class Part:
    """What one line asks for: samples `first`, `first + 1`, ... of a request."""

    asked: Asked
    line: Line
    first: int
    n: int


class OpenAIBatchGenerator(OpenAIGenerator):
    """As OpenAIGenerator, but answers come from batches. Their prices are half of the table's."""

    def __init__(
        self,
        config: OpenAIBatchGeneratorConfig,
        model: ModelConfig,
        *,
        state_dir: Path | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(config, model, state_dir=state_dir)
        self._settings, self._sleep = config, sleep
        self.look_ahead = config.window
        self._records = BatchRecords(state_dir)
        self._finished: list[BatchRecord] = []
        self._n_lines = 0
        self._reserved: dict[str, tuple[int, Cost]] = {}
        """Custom id -> reservation of the budget, and the prices it was made at."""

    @property
    def usage(self) -> Usage:
        """What has been spent since it was opened; each line of a batch is a request."""
        spent = super().usage
        return spent._replace(requests=spent.requests + self._n_lines)

    def generate(self, requests: Iterable[Request | None], sampling: Sampling) -> Iterator[Result]:
        """Yield results window by window, in any order.

        Raises:
            ConfigError: If a request names a local adapter, or the server refuses key or model.
            GenerationError: If batches do not end in time or are cancelled, or the budget is spent; what was answered
                is yielded first.
        """
        feed, abilities = iter(requests), self.abilities
        while True:
            window: list[Request] = []
            for request in feed:
                if request is None:
                    break
                window.append(request)
                if len(window) >= self._settings.window:
                    break
            self._forget_finished()
            if not window:
                return
            yield from self._answer_window(window, sampling, abilities)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._forget_finished()
        super().__exit__(kind, value, traceback)

    def _answer_window(self, window: list[Request], sampling: Sampling, abilities: Abilities) -> Iterator[Result]:
        asked = [self._ask(request, sampling.n) for request in window]
        known = [r for r in self._records.read() if r.base_url == address(self._config)]
        used: dict[str, BatchRecord] = {}
        with open_server(self._settings, sleep=self._sleep) as server:
            while asked:
                parts = _parts([p for a in asked for p in self._parts_of(a, sampling, abilities)])
                fresh = [r for r in known if r.name not in used and not parts.keys().isdisjoint(r.custom_ids)]
                records = [found for r in fresh if (found := self._taken_up(server, r)) is not None]
                covered = {i for r in records for i in r.custom_ids}
                missing = {i: p for i, p in parts.items() if i not in covered}
                records += self._submit(server, missing, sampling, any_under_way=bool(records))
                used |= {r.name: r for r in records}
                stop = self._collect(server, records, parts, abilities, old={r.name for r in fresh})
                done = [a for a in asked if not a.missing or self._is_lost(a)]
                asked = [a for a in asked if a.missing and not self._is_lost(a)]
                for i, one in enumerate(done, 1):
                    if i == len(done) and not asked:
                        self._finished += used.values()
                    yield self._result(one)
                if stop is not None and asked:
                    raise GenerationError(stop)
                if asked:
                    server.sleep(self._settings.poll_seconds)  # what failed in passing needs time to pass

    def _forget_finished(self) -> None:
        """Remove the records whose answers were all handed on. The caller may never ask for more than the last one."""
        while self._finished:
            self._records.remove(self._finished.pop())

    def _ask(self, request: Request, n: int) -> Asked:
        if request.model.adapter is not None:
            raise ConfigError(
                f"{request.id}: {describe(self._config, self._model)} serves models by name and cannot open the "
                f"adapter {request.model.adapter}; use a trainer that leaves its model at the server (trainer.type: "
                "openai)"
            )
        return Asked(replace(request, model=ModelRef(self._names.name_of(request.model))), n)

    def _parts_of(self, asked: Asked, sampling: Sampling, abilities: Abilities) -> Iterator[Part]:
        """The lines that ask for what is missing: one where the server gives n completions, else one a sample."""
        missing = asked.missing
        wanted = [(missing[0], len(missing))] if abilities.n else [(i, 1) for i in missing]
        for first, n in wanted:
            body = chat_body(asked.request, sampling, abilities, self._config.extra_body, n=n, first=first)
            # Without a seed in the body, other samples must still be other lines.
            salt = (asked.request.seed, first) if sampling.temperature > 0 else ()
            yield Part(asked, make_line(body, *salt, url=chat_url(self._config)), first, n)

    def _taken_up(self, server: Server, record: BatchRecord) -> BatchRecord | None:
        """A record of an earlier process with the id of its batch; None, and forgotten, if it was never created."""
        if record.batch is None:
            batch = find_batch(server, record)
            if batch is None:
                self._records.remove(record)
                return None
            record = self._records.write(replace(record, batch=batch.id, status=str(batch.status)))
        logger.info("waiting for batch %s of an earlier try", record.batch)
        return record

    def _submit(
        self, server: Server, parts: Mapping[str, list[Part]], sampling: Sampling, *, any_under_way: bool
    ) -> list[BatchRecord]:
        """Send the lines, one model a batch, within the limits of the API and what the budget allows for now."""
        by_model: dict[str, list[Line]] = defaultdict(list)
        for custom_id, (part, *_) in parts.items():
            cost = self._batch_cost(part.asked.request, part.n * sampling.max_tokens)
            try:
                reservation = self._budget.try_reserve(cost.most)
            except GenerationError:
                if by_model or any_under_way:
                    break  # what fits is sent; the rest is asked for again, and refused, when this is done
                raise
            if reservation is None:
                break
            self._reserved[custom_id] = reservation, cost
            by_model[part.asked.request.model.base].append(part.line)
        limits = {"max_lines": self._settings.max_requests_per_batch, "max_bytes": self._settings.max_file_bytes}
        records = []
        for model, lines in by_model.items():
            for file_lines in split_lines(lines, **limits):
                records.append(submit(server, file_lines, model, self._records))
                self._n_lines += len(file_lines)
        return records

    def _collect(
        self,
        server: Server,
        records: Sequence[BatchRecord],
        parts: Mapping[str, list[Part]],
        abilities: Abilities,
        *,
        old: set[str],
    ) -> str | None:
        """Wait, and note what came of each line; returns why the work cannot go on, if it cannot."""
        late: list[str] = []
        cancelled: list[str] = []
        deadline = self._settings.deadline_hours * 3600
        ended = wait_for_batches(server, records, poll_seconds=self._settings.poll_seconds, deadline_seconds=deadline)
        for record, batch in ended:
            if batch is None:
                late.append(str(record.batch))
                continue
            self._note(server, record, batch, parts, abilities)
            if batch.status == "cancelled" and record.name not in old:
                cancelled.append(batch.id)
        if late:
            return (
                f"batches have not ended after {self._settings.deadline_hours:.2g} hours of waiting: "
                f"{', '.join(late)}. They go on on the server: run again to wait for them, raise "
                "generator.deadline_hours to wait longer, or stop them with `semievol cancel RUN`"
            )
        if cancelled:
            return f"batches were cancelled: {', '.join(cancelled)}; run again to send what they left out"
        return None

    def _note(
        self,
        server: Server,
        record: BatchRecord,
        batch: "Batch",
        parts: Mapping[str, list[Part]],
        abilities: Abilities,
    ) -> None:
        """Hand the outcomes of one ended batch to the requests that wait for them."""
        outcomes = best_outcomes(read_results(server, batch, record.model))
        whole = failure_of(batch) if batch.status == "failed" else "the batch left this request out"
        if batch.status == "failed":
            logger.info(whole)
        for custom_id in record.custom_ids:
            outcome = outcomes.get(custom_id) or Outcome(custom_id, "transient", {}, whole)
            self._settle(outcome)
            if custom_id not in parts:  # of rows that were answered and stored before
                continue
            found, error = _read(outcome, abilities)
            error = redact(error, self._config)
            if found is not None:
                self._prompt_tokens += found.n_prompt_tokens
                self._completion_tokens += found.n_completion_tokens
            for part in parts[custom_id]:
                _apply(part, outcome, found, error)

    def _settle(self, outcome: Outcome) -> None:
        """Charge what a line did cost; one that failed is not billed."""
        reservation, cost = self._reserved.pop(outcome.custom_id, (None, Cost()))
        if reservation is not None:
            spent = cost.of(outcome.body.get("usage")) if outcome.kind == "answered" else 0.0
            self._budget.settle(reservation, spent)

    def _is_lost(self, asked: Asked) -> bool:
        return bool(asked.missing) and (asked.is_refused or asked.n_failures >= self._settings.max_attempts)

    def _result(self, asked: Asked) -> Result:
        if asked.missing:
            tries = "" if asked.is_refused else f" (given up after {asked.n_failures} batches)"
            return Result(asked.request.id, error=f"{asked.error}{tries}")
        completions = tuple(asked.samples[i] for i in range(asked.n))
        if self._config.logprobs == "require" and not all(c.token_logprobs for c in completions):
            text = "the answer came without log-probabilities (generator.logprobs: require)"
            return Result(asked.request.id, error=text)
        return Result(asked.request.id, completions, None, asked.n_prompt_tokens, asked.n_completion_tokens)

    def _batch_cost(self, request: Request, most_output: int) -> Cost:
        cost = self._cost(request.model.base, most_prompt=most_tokens(request.messages), most_output=most_output)
        return Cost(*(BATCH_SHARE * x for x in cost))


def _parts(parts: Iterable[Part]) -> dict[str, list[Part]]:
    """By custom id: equal requests share a line."""
    found: dict[str, list[Part]] = defaultdict(list)
    for part in parts:
        found[part.line.custom_id].append(part)
    return dict(found)


def _read(outcome: Outcome, abilities: Abilities) -> tuple[Answer | None, str]:
    """The answer of a line, or None and why there is none."""
    if outcome.kind != "answered":
        return None, outcome.error
    try:
        answer = read_answer(outcome.body, abilities.logprob_kind)
    except MalformedAnswer as error:
        return None, str(error)
    return answer, answer.refusal or "the answer holds no text"


def _apply(part: Part, outcome: Outcome, found: Answer | None, error: str) -> None:
    """Hand what a line brought to the request that asked for it."""
    asked = part.asked
    if found is None or not found.completions:
        asked.fail(part.first, error, is_refused=outcome.kind == "permanent" or found is not None)
        return
    asked.n_prompt_tokens = found.n_prompt_tokens
    asked.n_completion_tokens += found.n_completion_tokens
    for i, completion in enumerate(found.completions[: part.n]):
        asked.samples[part.first + i] = completion
    if len(found.completions) < part.n:
        asked.fail(part.first, f"{len(found.completions)} of {part.n} completions came", is_refused=False)
