"""In-context propagation: find the nearest labelled rows of every unlabelled one.

Reads   data/labeled, data/unlabeled
Writes  retrieve/demonstrations

Rounds after the first also look among the pseudo-labelled rows that were kept (see demonstrations.py and pools.py).
"""

from collections.abc import Callable, Iterator

from semievol.demonstrations import retrieve
from semievol.pools import LABELED_READS, count_unlabeled, labeled_pool, unlabeled_pool
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import Demonstrations


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
    sections=("retrieve", "embedder", "model"),
    run=run,
)
