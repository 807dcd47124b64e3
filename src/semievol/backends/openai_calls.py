"""Sends requests to one endpoint: many at once, repeated after passing faults, never over the budget.

An event loop in a thread of its own does the work, so that callers stay synchronous. The number under way follows the
server (additive increase, multiplicative decrease, as in TCP): it halves when the server says that it is busy or does
not answer in time, and grows by one for each round of answers. What the server asks to wait is waited by all.
"""

import asyncio
import json
import queue
import random
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from concurrent.futures import Future, TimeoutError
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

from typing_extensions import Self

from semievol.backends.openai_budget import Budget
from semievol.backends.openai_client import Fault, MalformedAnswer, address, classify, to_exception
from semievol.backends.openai_posting import Poster
from semievol.config import EndpointConfig
from semievol.errors import SemiEvolError

T = TypeVar("T")

FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.25, 30.0
UNREACHABLE_SECONDS = 15.0
"""Longest time for a server that refuses connections and has answered nothing yet: it is not there."""
SMOOTHING = 0.1
"""Weight of the newest answer in the mean time of an answer."""
TIMER_SECONDS = 0.002
"""By which timers of an event loop may be late: starts catch up by so much."""


class RowFault(Exception):
    """One request will never be answered; the others may."""


class Cost(NamedTuple):
    """US dollars by which a call is charged."""

    most: float = 0.0
    """What it may cost at worst; set aside before it is sent."""
    input_price: float = 0.0
    """A prompt token."""
    output_price: float = 0.0
    """A completion token."""

    def of(self, usage: Mapping[str, Any] | None) -> float:
        """By the tokens that the server counted; the most there can be where it counted none."""
        if not isinstance(usage, Mapping) or not usage:
            return self.most
        prompt, completion = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
        return prompt * self.input_price + completion * self.output_price


class ConcurrencyLimit:
    """How many requests may be under way, and how close together they start. Used from one event loop.

    Requests that start together are answered together, and then wait for one another here. So starts keep half of the
    distance that they would have if they were spread evenly over the time of an answer.
    """

    def __init__(self, most: int) -> None:
        self.limit = float(most)
        self._most = float(most)
        self._n = 0
        self._waiters: deque[asyncio.Future[None]] = deque()
        self._resume_at = 0.0
        self._decreased_at = 0.0
        self._answer_seconds = 0.0
        """Smoothed; 0 while none has come."""
        self._next_at = 0.0
        """When the next one may start."""
        self._is_wake_planned = False

    async def acquire(self) -> None:
        """Wait for a place, first come first served."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.append(waiter)
        self._wake()
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Give the place back."""
        self._n -= 1
        self._wake()

    def answered(self, seconds: float) -> None:
        """The server keeps up, after `seconds`: one more for each round of answers."""
        self.limit = min(self._most, self.limit + 1 / self.limit)
        self._answer_seconds += SMOOTHING * (seconds - self._answer_seconds) if self._answer_seconds else seconds

    def throttled(self, started_at: float, wait_seconds: float | None) -> None:
        """The server does not: half as many, once for all that were under way together."""
        now = time.monotonic()
        if started_at >= self._decreased_at:
            self.limit, self._decreased_at = max(1.0, self.limit / 2), now
        if wait_seconds:
            self._resume_at = max(self._resume_at, now + min(wait_seconds, LONGEST_WAIT_SECONDS))

    def _wake(self) -> None:
        now = time.monotonic()
        while self._waiters and self._n < int(self.limit):
            if self._waiters[0].done():
                self._waiters.popleft()
                continue
            if now < max(self._resume_at, self._next_at):
                self._plan_wake(max(self._resume_at, self._next_at) - now)
                return
            self._n += 1
            self._next_at = max(self._next_at, now - TIMER_SECONDS) + self._answer_seconds / self.limit / 2
            self._waiters.popleft().set_result(None)

    def _plan_wake(self, seconds: float) -> None:
        if not self._is_wake_planned:
            self._is_wake_planned = True
            asyncio.get_running_loop().call_later(seconds, self._wake_as_planned)

    def _wake_as_planned(self) -> None:
        self._is_wake_planned = False
        self._wake()


class Caller:
    """Calls one endpoint. A context manager; leaving it cancels what is under way.

    Args:
        config: The endpoint.
        budget: What may be spent.
        key: Of an endpoint of this process's own. None: the key that the config names.
        recover: Awaited after each passing fault, to bring back an endpoint that is gone; returns the seconds that it
            took, by which the deadline of the request moves. What it raises ends the request.
    """

    def __init__(
        self,
        config: EndpointConfig,
        budget: Budget,
        *,
        key: str | None = None,
        recover: Callable[[], Awaitable[float]] | None = None,
    ) -> None:
        self.config, self.budget = config, budget
        self.n_requests = 0
        self._recover = recover
        self._poster = Poster(config, key=key)
        self._limit = ConcurrencyLimit(config.max_concurrency)
        self._stopping = self._is_there = False
        self._random = random.Random()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="semievol-openai", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._thread.is_alive():
            with suppress(TimeoutError):  # what is left open ends with the thread
                asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(timeout=5)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=5)
            self._loop.close()
            self.budget.close()

    async def _end(self) -> None:
        """Cancel what is under way, so that what it may have cost is written down, and close all connections."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._poster.close()

    def move(self, config: EndpointConfig) -> None:
        """From now on the endpoint is found at the address of `config`, by requests that are repeated too."""
        self.config = config
        self._poster.move(config)

    def start(self, work: Coroutine[Any, Any, Any], answers: "queue.SimpleQueue[Any]") -> "Future[Any]":
        """Begin `work`; what it returns or raises is put into `answers`."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        future.add_done_callback(
            lambda done: None if done.cancelled() else answers.put(done.exception() or done.result())
        )
        return future

    def wait(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Run `work` to its end."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def stop_sending(self) -> None:
        """The work is given up: what is under way may end, and nothing more is sent."""
        self._stopping = True

    async def list_models(self) -> set[str]:
        """Names of the models that the endpoint serves."""
        return {model.id async for model in self._poster.client.models.list()}

    async def load_adapter(self, name: str, path: str) -> None:
        """Ask vLLM to serve the LoRA adapter in `path`, a folder that it sees, as `name`."""
        import httpx2

        body = {"lora_name": name, "lora_path": path}
        await self._poster.client.post("/load_lora_adapter", body=body, cast_to=httpx2.Response)

    async def post(
        self, path: str, body: Mapping[str, Any], model: str, cost: Cost, read: Callable[[dict[str, Any]], T]
    ) -> T:
        """What `read` makes of the JSON answer to one request; where it raises MalformedAnswer the request is repeated.

        Raises:
            RowFault: If the server refuses this request for good, or did not answer within `timeout_seconds`.
            SemiEvolError: If no request can succeed, or the budget allows none.
        """
        await self._limit.acquire()
        try:
            if self._stopping:
                raise RowFault("not sent, as the work stops")
            return await self._repeat(path, body, model, cost, read)
        finally:
            self._limit.release()

    async def _repeat(
        self, path: str, body: Mapping[str, Any], model: str, cost: Cost, read: Callable[[dict[str, Any]], T]
    ) -> T:
        """Try until it is answered. A request that waits to be sent again gives its place to others."""
        start, seconds = time.monotonic(), self.config.timeout_seconds
        end = start + seconds
        attempt = 0
        while True:
            outcome = await self._try(path, body, model, cost, end, read)
            if not isinstance(outcome, Fault):
                return outcome
            attempt += 1
            if outcome.kind == "configuration":
                raise to_exception(outcome)
            if outcome.kind == "permanent":
                raise RowFault(outcome.text)
            if self._recover is not None:
                end += await self._recover()
            backoff = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
            wait = self._random.uniform(backoff / 2, backoff)
            if outcome.retry_after_seconds is not None:
                wait = outcome.retry_after_seconds * self._random.uniform(1.0, 1.25)
            self._is_there |= not outcome.refused
            patience = f"within timeout_seconds: {seconds:g}"
            if not self._is_there and self._recover is None:
                end, patience = min(end, start + UNREACHABLE_SECONDS), "of a server that has not answered so far"
            if self._stopping or time.monotonic() + wait >= end:
                tries = "1 try" if attempt == 1 else f"{attempt} tries"
                why = (
                    "and no more, as the work stops" if self._stopping else f"{patience}, the next one in {wait:.0f} s"
                )
                raise RowFault(f"given up after {tries} {why}: {outcome.text}")
            self._limit.release()
            try:
                await asyncio.sleep(wait)
            finally:
                await asyncio.shield(self._limit.acquire())

    async def _try(
        self,
        path: str,
        body: Mapping[str, Any],
        model: str,
        cost: Cost,
        end: float,
        read: Callable[[dict[str, Any]], T],
    ) -> "T | Fault":
        """One attempt: what was read, or what went wrong."""
        import anyio

        reservation = await self.budget.reserve(cost.most)
        started_at = time.monotonic()
        self.n_requests += 1
        # Half of what is left, so that a connection that hangs leaves time for another try.
        seconds = max(0.1, (end - started_at) / 2)
        spent = cost.most
        try:
            with anyio.fail_after(seconds):
                answer = _read_json(await self._poster.post(path, body, model, seconds))
            spent = cost.of(answer.get("usage"))
            found = read(answer)
            self._is_there = True
            self._limit.answered(time.monotonic() - started_at)
            return found
        except (SemiEvolError, asyncio.CancelledError):
            raise
        except Exception as error:
            fault = classify(error, self.config, model)
            if not fault.may_be_billed:
                spent = 0.0
            if fault.throttles:
                self._limit.throttled(started_at, fault.retry_after_seconds)
            return fault
        finally:
            self.budget.settle(reservation, spent)


def _read_json(response: Any) -> dict[str, Any]:
    """Raises MalformedAnswer for a body that is no JSON object."""
    try:
        answer = json.loads(response.content)
    except ValueError:
        raise MalformedAnswer(f"the answer from {response.url.host} is not whole JSON") from None
    if not isinstance(answer, dict):
        raise MalformedAnswer(f"the answer from {response.url.host} is no JSON object")
    return answer


def describe(config: EndpointConfig, model: str) -> str:
    """Model and address, for messages."""
    return f"{model} at {address(config)}"
