"""Which labelled rows are shown with a row, and how many of them fit into its prompt.

The question's text alone is compared, as in the paper (arXiv:2410.14745, section 3.2). A row is never shown itself or a
row with the same text; ties are broken by id, so the result does not depend on the order of the file.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache

import numpy as np

from semievol.answer_windows import cut_windows
from semievol.backends.base import Retriever, Tokens
from semievol.errors import ArtifactError
from semievol.prompts import PromptBuilder
from semievol.spool import DiskSequence
from semievol.types import Demonstrations, Example, Message

BLOCK = 1024
"""Rows that are embedded and searched at a time."""


class Questions(DiskSequence[str]):
    """The texts that are compared."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def _get(self, position: int) -> str:
        return self._rows[position].question


class ById:
    """Looks rows up by their id: 16 bytes of memory a row, and the last few thousand rows."""

    def __init__(self, rows: Sequence[Example]) -> None:
        self._rows = rows
        hashes = np.fromiter((_hash_id(row.id) for row in rows), dtype=np.uint64, count=len(rows))
        self._places = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._places]
        self.get = lru_cache(maxsize=4096)(self._find)

    def _find(self, row_id: str) -> Example:
        """The row of this id.

        Raises:
            ArtifactError: If there is none.
        """
        value = np.uint64(_hash_id(row_id))
        for at in range(int(np.searchsorted(self._hashes, value)), len(self._hashes)):
            if self._hashes[at] != value:
                break
            row = self._rows[int(self._places[at])]
            if row.id == row_id:
                return row
        raise ArtifactError(f"row {row_id} is not among the labelled rows; run the stages again from data")


def retrieve(
    labeled: Sequence[Example], unlabeled: Iterable[Example], retriever: Retriever, *, k: int
) -> Iterator[Demonstrations]:
    """Yield up to `k` nearest labelled rows of each unlabelled row, nearest first, in the order of `unlabeled`."""
    retriever.index([e.id for e in labeled], Questions(labeled))
    by_id = ById(labeled)

    @lru_cache(maxsize=4096)
    def text(row_id: str) -> str:
        return _comparable(by_id.get(row_id))

    for block in cut_windows(unlabeled, BLOCK):
        found = retriever.search([e.question for e in block], k + 1)
        for example, neighbours in zip(block, found, strict=True):
            own = _comparable(example)
            others = [(i, s) for i, s in neighbours if i != example.id and text(i) != own][:k]
            yield Demonstrations(example.id, tuple(i for i, _ in others), tuple(s for _, s in others))


def fit_demonstrations(
    example: Example, demonstrations: Sequence[Example], prompts: PromptBuilder, tokens: Tokens, *, limit: int
) -> tuple[tuple[Message, ...], int]:
    """The prompt with as many of the nearest demonstrations as fit into `limit` tokens, and how many were left out."""
    for n in range(len(demonstrations), 0, -1):
        messages = prompts.answer(example, demonstrations[:n])
        if tokens.count_prompt(messages) <= limit:
            return messages, len(demonstrations) - n
    return prompts.answer(example), len(demonstrations)


def _comparable(example: Example) -> str:
    return " ".join(f"{example.question} {example.context or ''}".casefold().split())


def _hash_id(row_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(row_id.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "little")
