"""How many of the nearest rows a FAISS index finds, and how long it takes: the table of docs/results.md.

    python benchmarks/index_recall.py --rows 100000 --queries 1000
    python benchmarks/index_recall.py --factories HNSW32 --parameters efSearch=64 efSearch=256

Rows and queries are drawn around random centres and brought to length 1, as embeddings of texts are; real ones may be
easier or harder. Recall is the share of the exact k nearest rows that are among those found. Seconds are CPU time of
one thread, and ratios to the exact search in the same process.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from semievol.backends.embed import ExactIndex
from semievol.backends.faiss_index import FaissIndex, require_faiss
from semievol.config import RetrieveConfig

Done = TypeVar("Done")
Floats = NDArray[np.float32]


def main() -> None:
    """Build each index, search, print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--k", type=int, default=4)
    parser.add_argument("--factories", nargs="+", default=["Flat", "HNSW32", "IVF1024,Flat"])
    parser.add_argument("--parameters", nargs="+", default=[None])
    arguments = parser.parse_args()
    require_faiss().omp_set_num_threads(1)
    rows, queries = draw_rows(arguments.rows, arguments.queries, arguments.dimension)
    ids = [f"{i:09d}" for i in range(len(rows))]
    exact_build, exact_index = _timed(lambda: ExactIndex(ids, rows))
    exact_search, exact = _timed(lambda: exact_index.search(queries, arguments.k))
    print("| index | parameters | recall | build, CPU s | search, CPU s | exact over search |\n|" + " --- |" * 6)
    print(f"| exact | | 1.000 | {exact_build:.1f} | {exact_search:.2f} | 1.0 |")
    for factory in arguments.factories:
        build, index = _timed(partial(make_index, ids, rows, factory))
        for parameters in arguments.parameters:
            if parameters is not None:
                index.set_parameters(parameters)
            search, found = _timed(partial(index.search, queries, arguments.k))
            shown = f"{factory} | {parameters or 'default'} | {recall(exact, found):.3f} | {build:.1f} | {search:.2f}"
            print(f"| {shown} | {exact_search / search:.1f} |", flush=True)


def draw_rows(n_rows: int, n_queries: int, dimension: int) -> tuple[Floats, Floats]:
    """Rows and queries (n, d) of length 1 around common centres, one for about a hundred rows."""
    generator = np.random.default_rng(0)
    centres = generator.standard_normal((max(1, n_rows // 100), dimension), dtype=np.float32)
    drawn = []
    for n in (n_rows, n_queries):
        around = centres[generator.integers(0, len(centres), n)]
        points = around + generator.standard_normal((n, dimension), dtype=np.float32)
        drawn.append(points / np.linalg.norm(points, axis=1, keepdims=True))
    return drawn[0], drawn[1]


def make_index(ids: list[str], rows: Floats, factory: str) -> FaissIndex:
    """The index as `retrieve` makes it."""
    return FaissIndex(ids, rows, RetrieveConfig(index="faiss", faiss_factory=factory))


def recall(exact: list[list[tuple[str, float]]], found: list[list[tuple[str, float]]]) -> float:
    """Share of the exact neighbours that were found, in [0, 1]."""
    hits = [len({i for i, _ in a} & {i for i, _ in b}) / len(a) for a, b in zip(exact, found, strict=True)]
    return float(np.mean(hits))


def _timed(work: Callable[[], Done]) -> tuple[float, Done]:
    start = time.process_time()
    done = work()
    return time.process_time() - start, done


if __name__ == "__main__":
    main()
