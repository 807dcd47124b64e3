"""Answers rows window by window through the row store: a window is batched together and stored together.

For generators that batch rows. Batches are cut inside a window and a window is stored whole, so a resumed run batches
as an undisturbed one does and gets the same bits. Several windows may be under way at once, where a generator spreads
them over machines; which windows there are does not depend on how many.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from pydantic import TypeAdapter

from semievol.answer_stream import Answer, with_id
from semievol.artifacts import RowStore
from semievol.errors import GenerationError

Item = TypeVar("Item")
Started = TypeVar("Started")


def cut_windows(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items in order, the last one as long as it comes out."""
    source = iter(items)
    while window := list(islice(source, size)):
        yield window


def run_ahead(items: Iterable[Item], start: Callable[[Item], Started], *, n: int) -> Iterator[Started]:
    """Yield `start(item)` of each item in order, the next n - 1 of them started before."""
    under_way: deque[Started] = deque()
    for item in items:
        under_way.append(start(item))
        if len(under_way) == n:
            yield under_way.popleft()
    while under_way:
        yield under_way.popleft()


@dataclass(slots=True)
class _Window(Generic[Answer]):
    """Rows whose answers are stored together."""

    rows: list[tuple[str, Any]]
    """(key, request); equal rows have equal keys."""
    done: dict[str, Answer]
    asked: dict[str, Any]
    """Key -> request of the rows that `answers` answers."""
    answers: Iterator[Answer]


class AnswerWindows(Generic[Answer]):
    """One pass over `(key, request)` pairs; the key stands for the content of the request."""

    def __init__(
        self,
        store: RowStore,
        adapter: TypeAdapter[Any],
        compute: Callable[[Iterable[Any]], Iterator[Answer]],
        *,
        stage: str,
        advance: Callable[[int], None],
        note_reused: Callable[[Answer], None],
    ) -> None:
        """`compute` may begin with the work when it is called, or when its first answer is asked for."""
        self._store, self._adapter = store, adapter
        self._compute: Callable[[Iterable[Any]], Iterator[Answer]] = compute
        self._stage, self._advance = stage, advance
        self._note_reused: Callable[[Answer], None] = note_reused
        self._under_way: set[str] = set()
        """Keys that a window has asked for and that are not stored yet."""
        self._failed: dict[str, Answer] = {}
        """Answers that are not stored: an equal row in a later window shares the failure, and is not asked again."""

    def answers(self, keyed: Iterable[tuple[str, Any]], *, size: int, ahead: int) -> Iterator[Answer]:
        """Yield one answer a row, in the order of the rows, with up to `ahead` windows of `size` rows under way.

        Raises:
            GenerationError: If the generator comes back without the answer to a row that it took.
        """
        for window in run_ahead(cut_windows(keyed, size), self._start, n=ahead):
            found = self._finish(window)
            for key, request in window.rows:
                yield with_id(found[key], request.id)

    def _start(self, rows: list[tuple[str, Any]]) -> _Window[Answer]:
        done = self._look_up([key for key, _ in rows])
        done |= {key: self._failed[key] for key, _ in rows if key in self._failed}
        asked = {key: r for key, r in rows if key not in done and key not in self._under_way}
        self._advance(len(rows) - len(asked))
        self._under_way |= asked.keys()
        return _Window(rows, done, asked, self._ask(asked))

    def _finish(self, window: _Window[Answer]) -> dict[str, Answer]:
        found = window.done | self._take(window.asked, window.answers)
        late = {key: request for key, request in window.rows if key not in found}
        if late:  # asked for by a window before this one
            found |= self._look_up(list(late))
            found |= {key: self._failed[key] for key in late if key in self._failed}
        self._under_way -= window.asked.keys()
        return found

    def _ask(self, asked: Mapping[str, Any]) -> Iterator[Answer]:
        return self._compute(list(asked.values())) if asked else iter(())

    def _take(self, asked: Mapping[str, Any], answers: Iterator[Answer]) -> dict[str, Answer]:
        if not asked:
            return {}
        by_id = {request.id: key for key, request in asked.items()}
        found: dict[str, Answer] = {}
        for answer in answers:
            found[by_id[answer.id]] = answer
            self._advance(1)
        lost = [request.id for key, request in asked.items() if key not in found]
        if lost:
            raise GenerationError(
                f"{self._stage}: the generator returned nothing for {len(lost)} rows, {lost[0]} first"
            )
        whole = {key: a for key, a in found.items() if getattr(a, "error", None) is None}
        self._failed |= {key: a for key, a in found.items() if key not in whole}
        self._store.put({key: self._adapter.dump_json(a).decode() for key, a in whole.items()})
        return found

    def _look_up(self, keys: list[str]) -> dict[str, Answer]:
        found: dict[str, Answer] = {k: self._adapter.validate_json(v) for k, v in self._store.get(keys).items()}
        for answer in found.values():
            self._note_reused(answer)
        return found
