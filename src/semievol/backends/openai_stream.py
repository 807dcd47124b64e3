"""Keeps many requests to a server under way and hands on each answer when it comes."""

import logging
import queue
from collections.abc import Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from typing import Any, TypeVar

from semievol.backends.openai_calls import Caller

logger = logging.getLogger(__name__)

Asked = TypeVar("Asked")
Answer = TypeVar("Answer")
_END = object()


def stream_answers(
    caller: Caller,
    requests: Iterable[Asked | None],
    work: Callable[[Asked], Coroutine[Any, Any, Answer]],
    *,
    most: int,
) -> Iterator[Answer]:
    """Yield what `work` returns for each request, in the order in which it is done.

    At None in the stream an answer is taken before the stream is asked for more; with none under way this returns.

    Args:
        caller: On whose loop the work is done.
        requests: Read as far as there is room.
        work: Called here, for a coroutine that runs on the loop.
        most: Requests under way at once.

    Raises:
        BaseException: The first that any work raised; all other answers are yielded first and nothing new is begun.
        KeyboardInterrupt: In the same way, after the answers under way; a second one raises at once.
    """
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    futures: set[Future[Any]] = set()
    n_under_way = 0
    feed = iter(requests)
    stop: BaseException | None = None
    more = True
    try:
        while True:
            while more and stop is None and n_under_way < most:
                request: Any = next(feed, _END)
                if request is None:
                    break
                if request is _END:
                    more = False
                    break
                future = caller.start(work(request), answers)
                futures.add(future)
                future.add_done_callback(futures.discard)
                n_under_way += 1
            if not n_under_way:
                break
            try:
                outcome = answers.get()
            except KeyboardInterrupt as interrupt:
                if stop is not None:
                    raise
                stop = interrupt
                caller.stop_sending()
                logger.info("waiting for %d answers that are under way; Ctrl-C again gives them up", n_under_way)
                continue
            n_under_way -= 1
            if isinstance(outcome, BaseException):
                stop = stop or outcome
                caller.stop_sending()
                continue
            if stop is None or getattr(outcome, "error", None) is None:  # the next run asks again for what failed now
                yield outcome
        if stop is not None:
            raise stop
    finally:
        for future in tuple(futures):
            future.cancel()
