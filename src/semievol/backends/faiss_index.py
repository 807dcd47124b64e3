"""FAISS indexes for the nearest labelled rows (arXiv:2401.08281), where there are too many to compare with all of them.

`Flat` compares with all rows, as the exact search does. `HNSW32` walks a graph of neighbours and `IVF1024,Flat` looks
into the cells nearest to a query: both miss some of the nearest rows, and how many is a matter of the data and of
`retrieve.faiss_parameters` (benchmarks/index_recall.py measures it). An index is built by one thread, so that the same
rows give the same index.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol.backends.base import require
from semievol.config import RetrieveConfig
from semievol.errors import ConfigError

SPARE = 16
"""Rows asked for beyond k, so that equal similarities at the end can be ordered by id."""
PARAMETERS = {"HNSW": "efSearch=128", "IVF": "nprobe=32"}
"""How far a kind of index looks where the config does not say."""


def require_faiss() -> Any:
    """The package. Raises ConfigError with the command that installs it."""
    return require("faiss", extra="faiss")


class FaissIndex:
    """Rows of embeddings in a FAISS index of `retrieve.faiss_factory`, compared by dot product."""

    def __init__(self, ids: Sequence[str], rows: NDArray[np.float32], config: RetrieveConfig) -> None:
        """Train the index where it needs that, and add `rows` (n, d), one an id.

        Raises:
            ConfigError: If faiss is missing, or does not take the factory or the parameters of the config.
        """
        faiss = require_faiss()
        names = np.array(ids, dtype=str)
        order = np.argsort(names, kind="stable")
        self._ids = names[order]
        threads = faiss.omp_get_max_threads()
        faiss.omp_set_num_threads(1)
        try:
            self._index = faiss.index_factory(rows.shape[1], config.faiss_factory, faiss.METRIC_INNER_PRODUCT)
            ordered = np.ascontiguousarray(rows[order])
            self._index.train(ordered)
            self._index.add(ordered)
            self.set_parameters(_parameters(config))
        except RuntimeError as error:
            raise ConfigError(
                f"retrieve.faiss_factory: FAISS cannot make the index {config.faiss_factory!r} with the parameters "
                f"{config.faiss_parameters!r} over {len(names):,} labelled rows of {rows.shape[1]} numbers: "
                f"{_reason(error)}; choose another factory string, or retrieve.index: exact"
            ) from error
        finally:
            faiss.omp_set_num_threads(threads)

    def set_parameters(self, text: str) -> None:
        """Say how far to look, as `faiss.ParameterSpace` reads it; an empty text changes nothing."""
        if text:
            require_faiss().ParameterSpace().set_index_parameters(self._index, text)

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[tuple[str, float]]]:
        """For each query (m, d) up to k (id, dot product), highest first, ties by id among those that were found."""
        k = min(k, len(self._ids))
        if k == 0:
            return [[] for _ in queries]
        values, places = self._index.search(np.ascontiguousarray(queries), min(k + SPARE, len(self._ids)))
        rounded = np.round(values.astype(np.float64), 6)
        rounded[places < 0] = -np.inf  # fewer were found than asked for
        order = np.lexsort((places, -rounded), axis=1)[:, :k]
        best, similarities = np.take_along_axis(places, order, axis=1), np.take_along_axis(rounded, order, axis=1)
        return [
            [(str(self._ids[i]), float(value)) for i, value in zip(row, near, strict=True) if i >= 0]
            for row, near in zip(best, similarities, strict=True)
        ]


def _parameters(config: RetrieveConfig) -> str:
    if config.faiss_parameters is not None:
        return config.faiss_parameters
    return next((text for kind, text in PARAMETERS.items() if kind in config.faiss_factory), "")


def _reason(error: RuntimeError) -> str:
    """What FAISS says, without the place in its source."""
    return re.sub(r"^Error in .* at \S+:\d+: (Error: )?", "", str(error).strip().replace("\n", " "))
