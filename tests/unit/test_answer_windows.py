"""Windows of rows through the store: which windows there are does not hang on how many are under way."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from semievol.answer_windows import AnswerWindows, run_ahead
from semievol.artifacts import RowStore
from semievol.errors import GenerationError
from semievol.types import Completion, Message, ModelRef, Request, Result

ADAPTER = TypeAdapter(Result)


class Batcher:
    """Answers with the company that a row was batched in; texts that end in `!` fail, and are in no batch."""

    def __init__(self) -> None:
        self.windows: list[list[str]] = []

    def compute(self, requests: Iterable[Request]) -> Iterator[Result]:
        asked = [r.messages[0].content for r in requests]
        self.windows.append(asked)
        return self._answer(list(requests), "+".join(text for text in asked if not text.endswith("!")))

    @staticmethod
    def _answer(requests: list[Request], company: str) -> Iterator[Result]:
        for r in reversed(requests):
            failed = r.messages[0].content.endswith("!")
            yield Result(r.id, error="fails") if failed else Result(r.id, (Completion(f"in {company}"),))


def answer(texts, store: RowStore, batcher, *, size: int, ahead: int) -> list[tuple[str, str]]:
    keyed = [(text, Request(f"r{i}", (Message("user", text),), ModelRef("m"))) for i, text in enumerate(texts)]
    n_advanced: list[int] = []
    windows: AnswerWindows[Result] = AnswerWindows(
        store, ADAPTER, batcher.compute, stage="test", advance=n_advanced.append, note_reused=lambda _: None
    )
    found = [(r.id, r.error or r.completions[0].text) for r in windows.answers(keyed, size=size, ahead=ahead)]
    assert sum(n_advanced) >= len(texts)
    return found


@given(
    texts=st.lists(st.sampled_from(["a", "b", "c", "d", "e!", "f", "g"]), max_size=25),
    size=st.integers(1, 6),
    ahead=st.integers(1, 5),
)
def test_answers_do_not_hang_on_how_many_windows_are_under_way(texts, size, ahead):
    with TemporaryDirectory() as folder:
        with RowStore(Path(folder) / "one.sqlite") as store:
            one = answer(texts, store, Batcher(), size=size, ahead=1)
        with RowStore(Path(folder) / "more.sqlite") as store:
            more = answer(texts, store, Batcher(), size=size, ahead=ahead)
    assert [i for i, _ in more] == [f"r{i}" for i in range(len(texts))]
    assert more == one


def test_equal_rows_of_windows_under_way_are_asked_once(tmp_path):
    batcher = Batcher()
    with RowStore(tmp_path / "rows.sqlite") as store:
        found = answer(["a", "b", "b", "c", "a", "d"], store, batcher, size=2, ahead=3)
    assert batcher.windows == [["a", "b"], ["c"], ["d"]]
    assert [text for _, text in found] == ["in a+b", "in a+b", "in a+b", "in c", "in a+b", "in d"]


def test_windows_that_were_stored_are_not_asked_again(tmp_path):
    batcher = Batcher()
    with RowStore(tmp_path / "rows.sqlite") as store:
        first = answer(["a", "b"], store, batcher, size=2, ahead=1)
        assert answer(["a", "b", "c"], store, batcher, size=2, ahead=2)[:2] == first
    assert batcher.windows == [["a", "b"], ["c"]]


def test_row_that_gets_no_answer_is_an_error(tmp_path):
    class Forgetful(Batcher):
        def compute(self, requests):
            return iter(list(super().compute(requests))[1:])

    with RowStore(tmp_path / "rows.sqlite") as store, pytest.raises(GenerationError, match="nothing for 1 rows, r1"):
        answer(["a", "b"], store, Forgetful(), size=2, ahead=1)


@pytest.mark.parametrize("n", [1, 2, 4, 9])
def test_run_ahead_keeps_the_order_and_starts_no_more_than_it_may(n):
    log = []
    for item in run_ahead(range(6), lambda i: log.append(f"start {i}") or i, n=n):
        assert sum(line.startswith("start") for line in log) <= item + n
        log.append(f"take {item}")
    assert [line for line in log if line.startswith("take")] == [f"take {i}" for i in range(6)]
    assert log[: min(n, 6)] == [f"start {i}" for i in range(min(n, 6))]
