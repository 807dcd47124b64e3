"""Which labelled rows are shown with a row, and how many of them fit into its prompt.

The question's text alone is compared, as in the paper (arXiv:2410.14745, section 3.2). A row is never shown itself or a
row with the same text; ties are broken by id, so the result does not depend on the order of the file.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

from semievol.backends.base import Retriever, Tokens
from semievol.prompts import PromptBuilder
from semievol.types import Demonstrations, Example, Message

BLOCK = 1024
"""Rows that are embedded and searched at a time."""


def retrieve(
    labeled: Sequence[Example], unlabeled: Iterable[Example], retriever: Retriever, *, k: int
) -> Iterator[Demonstrations]:
    """Yield up to `k` nearest labelled rows of each unlabelled row, nearest first, in the order of `unlabeled`."""
    retriever.index([e.id for e in labeled], [e.question for e in labeled])
    text = {e.id: _comparable(e) for e in labeled}
    rows = iter(unlabeled)
    while block := list(islice(rows, BLOCK)):
        found = retriever.search([e.question for e in block], k + 1)
        for example, neighbours in zip(block, found, strict=True):
            others = [(i, s) for i, s in neighbours if i != example.id and text[i] != _comparable(example)][:k]
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
