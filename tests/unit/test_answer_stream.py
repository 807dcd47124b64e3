"""Rows through the store: each asked once, stored at once, handed on in order, with a bounded look-ahead."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from semievol.answer_stream import AnswerStream
from semievol.artifacts import RowStore
from semievol.errors import GenerationError
from semievol.types import Completion, Message, ModelRef, Request, Result

ADAPTER = TypeAdapter(Result)


class Server:
    """Takes up to `width` requests and answers in an order of its own."""

    def __init__(self, width: int, seed: int) -> None:
        self.asked: list[str] = []
        self.most_waiting = 0
        self._width, self._random = width, random.Random(seed)

    def compute(self, requests: Iterable[Request | None]) -> Iterator[Result]:
        feed, taken = iter(requests), []
        more = True
        while True:
            while more and len(taken) < self._width:
                request = next(feed, "end")
                if request == "end":
                    more = False
                elif request is None:
                    if not taken:
                        return
                    break
                else:
                    self.asked.append(request.messages[0].content)
                    taken.append(request)
            if not taken:
                return
            request = taken.pop(self._random.randrange(len(taken)))
            yield Result(request.id, (Completion(f"to {request.messages[0].content}"),))


def keyed(texts: Iterable[str]) -> Iterator[tuple[str, Request]]:
    for i, text in enumerate(texts):
        yield text, Request(f"r{i}", (Message("user", text),), ModelRef("m"))


def answers(texts, server: Server, store: RowStore, look_ahead: int) -> list[tuple[str, str]]:
    stream: AnswerStream[Result] = AnswerStream(keyed(texts), store, ADAPTER, lambda _: None, look_ahead=look_ahead)
    return [(r.id, r.completions[0].text) for r in stream.answers(server.compute, "test")]


@given(
    texts=st.lists(st.sampled_from("abcdefghij"), max_size=40),
    stored=st.sets(st.sampled_from("abcdefghij")),
    width=st.integers(1, 6),
    look_ahead=st.integers(1, 12),
    seed=st.integers(0, 9),
)
def test_each_row_is_answered_in_order_and_each_content_asked_once(texts, stored, width, look_ahead, seed):
    with TemporaryDirectory() as folder, RowStore(Path(folder) / "rows.sqlite") as store:
        store.put({t: ADAPTER.dump_json(Result("x", (Completion(f"to {t}"),))).decode() for t in stored})
        server = Server(width, seed)
        found = answers(texts, server, store, look_ahead)
        assert found == [(f"r{i}", f"to {t}") for i, t in enumerate(texts)]
        assert sorted(server.asked) == sorted(set(texts) - stored)
        assert set(store.get(sorted(set(texts)))) == set(texts)


def test_answer_is_stored_before_the_next_one_is_taken(tmp_path):
    with RowStore(tmp_path / "rows.sqlite") as store:
        seen: list[int] = []

        def compute(requests):
            for n, request in enumerate(requests):
                seen.append(len(store.get(list("abc"))))
                assert seen[-1] == n
                yield Result(request.id, (Completion("x"),))

        stream: AnswerStream[Result] = AnswerStream(keyed("abc"), store, ADAPTER, lambda _: None, look_ahead=9)
        assert len(list(stream.answers(compute, "test"))) == 3


def test_row_that_hangs_holds_back_no_more_than_the_look_ahead(tmp_path):
    n_asked = []

    def compute(requests):
        """Answers all but the first until the stream pauses, then the first."""
        feed = iter(requests)
        first, n = next(feed), 1
        for request in feed:
            if request is None:
                break
            n += 1
            yield Result(request.id, (Completion("x"),))
        n_asked.append(n)
        yield Result(first.id, (Completion("x"),))

    texts = [f"text {i}" for i in range(100)]
    with RowStore(tmp_path / "rows.sqlite") as store:
        stream: AnswerStream[Result] = AnswerStream(keyed(texts), store, ADAPTER, lambda _: None, look_ahead=8)
        assert len(list(stream.answers(compute, "test"))) == 100
    assert max(n_asked) == 8


def test_failed_row_is_handed_on_and_not_stored(tmp_path):
    with RowStore(tmp_path / "rows.sqlite") as store:

        def compute(requests):
            yield from (Result(r.id, error="refused") for r in requests)

        stream: AnswerStream[Result] = AnswerStream(keyed("ab"), store, ADAPTER, lambda _: None, look_ahead=9)
        assert [r.error for r in stream.answers(compute, "test")] == ["refused", "refused"]
        assert store.get(["a", "b"]) == {}


def test_row_that_the_generator_swallows_is_an_error(tmp_path):
    def compute(requests):
        yield from (Result(r.id, (Completion("x"),)) for r in list(requests)[:1])

    with RowStore(tmp_path / "rows.sqlite") as store:
        stream: AnswerStream[Result] = AnswerStream(keyed("ab"), store, ADAPTER, lambda _: None, look_ahead=9)
        with pytest.raises(GenerationError, match="returned nothing for 1 rows, r1 first"):
            list(stream.answers(compute, "test"))
