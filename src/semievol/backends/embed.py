"""Retrievers: which indexed texts are nearest to a text, by words (BM25) or by embeddings.

Neighbours are exact, found in blocks of bounded memory. Equal similarities are ordered by id, so the result does not
depend on the order of the index.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from semievol.backends.base import require
from semievol.config import Bm25EmbedderConfig, ModelConfig, ModelEmbedderConfig, SentenceTransformersEmbedderConfig
from semievol.errors import ConfigError, DataError

BLOCK_CELLS = 16_000_000
"""Similarities in memory at once: 64 MB of float32."""
SORTED_CELLS = 1_000_000
"""Similarities that are ranked at once: a few arrays of 8 MB."""
EMBED_BLOCK = 8192
"""Texts that are embedded at a time for an index."""


class Bm25Retriever:
    """BM25 over lower-cased words.

    A text that shares no word with the index has no nearest row: it gets the k first ids with similarity 0.
    """

    def __init__(self, config: Bm25EmbedderConfig, model: ModelConfig) -> None:
        self._bm25 = require("bm25s", extra="embed")
        self._ids: NDArray[np.str_] = np.array([], dtype=str)
        self._scorer: Any = None

    def index(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Take the place of what was indexed before.

        Raises:
            DataError: If an id stands twice.
        """
        _check_ids(ids)
        order = np.argsort(np.array(ids, dtype=str), kind="stable")
        self._ids = np.array(ids, dtype=str)[order]
        tokens = self._tokenize([texts[i] for i in order])
        self._scorer = None
        if any(tokens):
            self._scorer = self._bm25.BM25(backend="numpy")
            self._scorer.index(tokens, show_progress=False)

    def search(self, texts: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """For each text up to k (id, BM25 score), highest first, ties by id."""
        return [_top(self._scores(words), self._ids, k) for words in self._tokenize(texts)]

    def _scores(self, words: list[str]) -> NDArray[np.float32]:
        known = [] if self._scorer is None else [w for w in words if w in self._scorer.vocab_dict]
        if not known:
            return np.zeros(len(self._ids), dtype=np.float32)
        scores: NDArray[np.float32] = self._scorer.get_scores(known)
        return scores

    def _tokenize(self, texts: Sequence[str]) -> list[list[str]]:
        tokens: list[list[str]] = self._bm25.tokenize(
            list(texts), token_pattern=r"(?u)\b\w+\b", stopwords=None, return_ids=False, show_progress=False
        )
        return tokens


class SearchIndex(Protocol):
    """Finds the rows of embeddings nearest to a query."""

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[tuple[str, float]]]:
        """For each query (m, d) up to k (id, dot product), highest first, ties by id."""
        ...


class EmbeddingRetriever(ABC):
    """Cosine similarity of what the subclass makes of a text."""

    make_index: Callable[[Sequence[str], NDArray[np.float32]], "SearchIndex"]
    """Makes the index of ids and their rows (n, d)."""

    def __init__(self) -> None:
        self.make_index = ExactIndex
        self._index: SearchIndex | None = None

    def index(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Take the place of what was indexed before.

        Raises:
            DataError: If an id stands twice.
        """
        _check_ids(ids)
        self._index = self.make_index(ids, _embed_blocks(texts, self.embed)) if ids else None

    def search(self, texts: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """For each text up to k (id, cosine), most similar first, ties by id."""
        if not texts or self._index is None:
            return [[] for _ in texts]
        return self._index.search(self._embed_queries(texts), k)

    @abstractmethod
    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Rows of length 1, shape (n, d)."""

    def _embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        return self.embed(texts)


class SentenceTransformersRetriever(EmbeddingRetriever):
    """Any sentence-transformers model, with its own prompts for documents and queries.

    Raises:
        ConfigError: If the package is missing or the model cannot be opened.
    """

    def __init__(self, config: SentenceTransformersEmbedderConfig, model: ModelConfig) -> None:
        super().__init__()
        package = require("sentence_transformers", extra="embed")
        path = config.model
        if path == "minilm":
            from semievol.demo.pocket import minilm_dir

            path = str(minilm_dir())
        device = None if model.device == "auto" else model.device
        try:
            self._model = package.SentenceTransformer(path, device=device, trust_remote_code=False)
        except (OSError, ValueError) as error:
            raise ConfigError(f"embedder.model: {path} cannot be opened: {error}") from error
        self._settings: dict[str, Any] = {
            "batch_size": config.batch_size,
            "normalize_embeddings": True,
            "convert_to_numpy": True,
            "show_progress_bar": False,
        }

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Rows of length 1, shape (n, d)."""
        rows: NDArray[np.float32] = self._model.encode_document(list(texts), **self._settings)
        return rows

    def _embed_queries(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = self._model.encode_query(list(texts), **self._settings)
        return rows


class ModelRetriever(EmbeddingRetriever):
    """Mean of the base model's last hidden states over the tokens of a text.

    Raises:
        ConfigError: If the model cannot be opened.
    """

    def __init__(self, config: ModelEmbedderConfig, model: ModelConfig) -> None:
        from semievol.backends.hf import open_model, open_tokenizer, resolve_max_length
        from semievol.types import ModelRef

        super().__init__()
        self._tokenizer = open_tokenizer(model)
        self._model = open_model(model, ModelRef(model.path)).base_model
        self._max_length = resolve_max_length(model)
        self._batch_size = config.batch_size

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Rows of length 1, shape (n, d)."""
        order = sorted(range(len(texts)), key=lambda i: len(texts[i]), reverse=True)
        blocks = [
            self._embed_block([texts[i] for i in order[at : at + self._batch_size]])
            for at in range(0, len(order), self._batch_size)
        ]
        rows = np.concatenate(blocks)
        back = np.empty_like(rows)
        back[order] = rows
        return back

    def _embed_block(self, texts: Sequence[str]) -> NDArray[np.float32]:
        import torch

        with torch.inference_mode():
            batch = self._tokenizer(
                list(texts),
                padding=True,
                padding_side="right",
                truncation=True,
                max_length=self._max_length,
                return_tensors="pt",
            )
            mask = batch["attention_mask"].to(self._model.device)
            ids = batch["input_ids"].to(self._model.device)
            states = self._model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state.float()
            weights = mask[..., None].float()
            means = (states * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1)
            rows: NDArray[np.float32] = torch.nn.functional.normalize(means, dim=-1).cpu().numpy()
        return rows


def _embed_blocks(texts: Sequence[str], embed: Callable[[Sequence[str]], NDArray[np.float32]]) -> NDArray[np.float32]:
    """Embeddings (n, d) of texts that are read block by block."""
    rows: NDArray[np.float32] | None = None
    for at in range(0, len(texts), EMBED_BLOCK):
        block = embed(list(texts[at : at + EMBED_BLOCK]))
        if rows is None:
            rows = np.empty((len(texts), block.shape[1]), dtype=np.float32)
        rows[at : at + len(block)] = block
    return np.empty((0, 0), dtype=np.float32) if rows is None else rows


class ExactIndex:
    """Rows of embeddings, compared one by one with every query: exact, in blocks of bounded memory."""

    def __init__(self, ids: Sequence[str], rows: NDArray[np.float32]) -> None:
        """Hold `rows` (n, d), one an id."""
        names = np.array(ids, dtype=str)
        order = np.argsort(names, kind="stable")
        self._ids, self._rows = names[order], rows[order]

    def search(self, queries: NDArray[np.float32], k: int) -> list[list[tuple[str, float]]]:
        """For each query (m, d) up to k (id, dot product), highest first, ties by id."""
        k = min(k, len(self._ids))
        if k == 0:
            return [[] for _ in queries]
        size, part = (max(1, cells // len(self._ids)) for cells in (BLOCK_CELLS, SORTED_CELLS))
        found: list[list[tuple[str, float]]] = []
        for at in range(0, len(queries), size):
            similarities = queries[at : at + size] @ self._rows.T
            for start in range(0, len(similarities), part):
                found += self._top(similarities[start : start + part], k)
        return found

    def _top(self, similarities: NDArray[np.float32], k: int) -> list[list[tuple[str, float]]]:
        """The k highest of each row (m, n). Rounded first: ties are made, not lost; then the first id wins."""
        rounded = np.round(similarities.astype(np.float64), 6)
        n = rounded.shape[1]
        ranks = np.rint(rounded * -1e6).astype(np.int64) * n + np.arange(n)  # no two are equal
        best = np.argpartition(ranks, k - 1, axis=1)[:, :k] if k < n else np.tile(np.arange(n), (len(ranks), 1))
        best = np.take_along_axis(best, np.argsort(np.take_along_axis(ranks, best, axis=1), axis=1), axis=1)
        names, values = self._ids[best].tolist(), np.take_along_axis(rounded, best, axis=1).tolist()
        return [list(zip(*pair, strict=True)) for pair in zip(names, values, strict=True)]


def _top(similarities: NDArray[np.float32], ids: NDArray[np.str_], k: int) -> list[tuple[str, float]]:
    """The k highest; `ids` are sorted, so a stable order breaks ties by id. Rounded first: ties are made, not lost."""
    k = min(k, len(ids))
    if k == 0:
        return []
    rounded = np.round(similarities.astype(np.float64), 6)
    threshold = np.partition(rounded, len(rounded) - k)[len(rounded) - k]
    candidates = np.flatnonzero(rounded >= threshold)
    best = candidates[np.argsort(-rounded[candidates], kind="stable")[:k]]
    return [(str(ids[i]), float(rounded[i])) for i in best]


def _check_ids(ids: Sequence[str]) -> None:
    if len(set(ids)) < len(ids):
        twice = sorted({i for i in ids if list(ids).count(i) > 1})[:3] if len(ids) < 10_000 else []
        raise DataError(f"the retrieval index got an id twice: {', '.join(twice)}")
