"""Answers a stream of independent rows through the row store: each answer is stored when it comes, and none is lost.

For generators whose rows do not influence each other, such as an API that is paid by the request. Requests go out as
long as the generator takes them, answers come back in any order and are handed on in the order of the rows. Between the
first unanswered row and the last one asked lie at most `look_ahead` rows, so memory stays flat.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from semievol.artifacts import RowStore
from semievol.errors import GenerationError
from semievol.types import ChoiceScores, Result

Answer = TypeVar("Answer", Result, ChoiceScores)

BLOCK = 256
"""Rows that are looked up in the store at once."""


class AnswerStream(Generic[Answer]):
    """One pass over `(key, request)` pairs; the key stands for the content of the request."""

    def __init__(
        self,
        keyed: Iterator[tuple[str, Any]],
        store: RowStore,
        adapter: TypeAdapter[Any],
        advance: Callable[[int], None],
        *,
        look_ahead: int,
    ) -> None:
        self._keyed, self._store, self._adapter, self._advance = keyed, store, adapter, advance
        self._look_ahead = look_ahead
        self._block: deque[tuple[str, Any]] = deque()
        self._stored: dict[str, str] = {}
        self._waiting: deque[tuple[str, str]] = deque()
        """(key, request id) in the order of the rows."""
        self._asked: dict[str, str] = {}
        """Request id -> key, of those that are under way."""
        self._done: dict[str, Answer] = {}
        self._uses: dict[str, int] = {}
        """Rows in `_waiting` that want the answer to a key: equal rows are asked once."""
        self._is_exhausted = False

    def answers(self, compute: Callable[[Iterable[Any]], Iterator[Answer]], stage: str) -> Iterator[Answer]:
        """Yield one answer a row, in the order of the rows.

        Raises:
            GenerationError: If the generator comes back without the answer to a row that it took.
        """
        while not self._is_exhausted or self._waiting:
            for answer in compute(self._feed()):
                self._take(answer)
                yield from self._ready()
            if self._asked:
                raise GenerationError(
                    f"{stage}: the generator returned nothing for {len(self._asked)} rows, {next(iter(self._asked))} "
                    "first"
                )
            yield from self._ready()

    def _feed(self) -> Iterator[Any]:
        """Requests that nobody has answered; None where an answer has to be taken first."""
        while True:
            if len(self._waiting) >= self._look_ahead:
                if not self._asked:
                    return
                yield None
                continue
            pair = self._next()
            if pair is None:
                return
            key, request = pair
            self._waiting.append((key, request.id))
            known = key in self._uses
            self._uses[key] = self._uses.get(key, 0) + 1
            if known:
                self._advance(1)
            elif value := self._stored.get(key) or self._store.get([key]).get(key):
                # The second look finds what an equal row of this block has brought since.
                self._done[key] = self._adapter.validate_json(value)
                self._advance(1)
            else:
                self._asked[request.id] = key
                yield request

    def _next(self) -> tuple[str, Any] | None:
        if not self._block:
            self._block.extend(islice(self._keyed, BLOCK))
            self._stored = self._store.get([key for key, _ in self._block])
            if not self._block:
                self._is_exhausted = True
                return None
        return self._block.popleft()

    def _take(self, answer: Answer) -> None:
        key = self._asked.pop(answer.id)
        if getattr(answer, "error", None) is None:
            self._store.put({key: self._adapter.dump_json(answer).decode()})
        self._done[key] = answer
        self._advance(1)

    def _ready(self) -> Iterator[Answer]:
        while self._waiting and self._waiting[0][0] in self._done:
            key, request_id = self._waiting.popleft()
            answer = self._done[key]
            self._uses[key] -= 1
            if not self._uses[key]:
                del self._uses[key], self._done[key]
            yield with_id(answer, request_id)


def with_id(answer: Answer, request_id: str) -> Answer:
    """Rows are stored by content, so an equal request of another row brings that row's id."""
    return answer if answer.id == request_id else replace(answer, id=request_id)
