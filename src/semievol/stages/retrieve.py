"""In-context propagation: find the nearest labelled rows of every unlabelled one.

Reads   data/labeled, data/unlabeled
Writes  retrieve/demonstrations

The question's text alone is compared, as in the paper (arXiv:2410.14745, section 3.2). A row is never shown itself or a
row with the same text; ties are broken by id, so the result does not depend on the order of the file.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

from semievol.backends.base import Retriever
from semievol.pools import LABELED_READS, count_unlabeled, labeled_pool, unlabeled_pool
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import Demonstrations, Example

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


def _comparable(example: Example) -> str:
    return " ".join(f"{example.question} {example.context or ''}".casefold().split())


def run(ctx: StageContext) -> StageStats:
    """Index the labelled rows and look up every unlabelled one."""
    k = ctx.config.retrieve.k
    labeled = labeled_pool(ctx)
    if k == 0:
        found: Iterator[Demonstrations] = (Demonstrations(e.id, (), ()) for e in unlabeled_pool(ctx))
    else:
        found = retrieve(labeled, unlabeled_pool(ctx), ctx.backends.retriever(), k=k)
    advance = ctx.reporter.task("nearest labelled rows", count_unlabeled(ctx), "rows")
    n = ctx.write("retrieve/demonstrations", _counted(found, advance), Demonstrations)
    return {"n_rows": n, "n_labeled": len(labeled), "k": k}


def _counted(rows: Iterator[Demonstrations], advance: Callable[[int], None]) -> Iterator[Demonstrations]:
    for row in rows:
        advance(1)
        yield row


STAGE = Stage(
    "retrieve",
    reads=LABELED_READS,
    writes=("retrieve/demonstrations",),
    sections=("retrieve", "embedder", "model", "seed"),
    run=run,
)
