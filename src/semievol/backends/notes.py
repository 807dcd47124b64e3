"""What hosted work says while it is waited for: states of jobs and batches, their events, what is taken up again.

It goes through the logger `semievol.hosted`, so a Python program shows or keeps it as it does with any other logger.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

logger = logging.getLogger("semievol.hosted")


class _Handler(logging.Handler):
    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        self._note(record.getMessage())


@contextmanager
def hosted_notes(note: Callable[[str], None]) -> Iterator[None]:
    """Hand each line to `note` until the end."""
    handler, level = _Handler(note), logger.level
    logger.addHandler(handler)
    logger.setLevel(min(logging.INFO, logger.level or logging.INFO))
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
