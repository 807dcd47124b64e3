"""Retrievers: which indexed texts are nearest to a text, by words (BM25) or by embeddings.

Neighbours are exact, found in blocks of bounded memory. Equal similarities are ordered by id, so the result does not
depend on the order of the index.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol.backends.base import require
from semievol.config import Bm25EmbedderConfig, ModelConfig, ModelEmbedderConfig, SentenceTransformersEmbedderConfig
from semievol.errors import ConfigError, DataError

BLOCK_CELLS = 16_000_000
"""Similarities in memory at once: 64 MB of float32."""


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


class EmbeddingRetriever(ABC):
    """Cosine similarity of what the subclass makes of a text."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._rows: NDArray[np.float32] | None = None

    def index(self, ids: Sequence[str], texts: Sequence[str]) -> None:
        """Take the place of what was indexed before.

        Raises:
            DataError: If an id stands twice.
        """
        _check_ids(ids)
        self._ids, self._rows = list(ids), self.embed(texts) if ids else None

    def search(self, texts: Sequence[str], k: int) -> list[list[tuple[str, float]]]:
        """For each text up to k (id, cosine), most similar first, ties by id."""
        if not texts or self._rows is None:
            return [[] for _ in texts]
        return nearest(self._embed_queries(texts), self._rows, self._ids, k)

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


def nearest(
    queries: NDArray[np.float32], rows: NDArray[np.float32], ids: Sequence[str], k: int
) -> list[list[tuple[str, float]]]:
    """For each query up to k (id, dot product), highest first, ties by id. Exact; memory bounded by BLOCK_CELLS.

    Args:
        queries: (m, d).
        rows: (n, d), one an id.
        ids: n of them.
        k: Neighbours of a query at most.
    """
    order = np.argsort(np.array(ids, dtype=str), kind="stable")
    names, sorted_rows = np.array(ids, dtype=str)[order], rows[order]
    size = max(1, BLOCK_CELLS // max(1, len(names)))
    return [
        _top(similarities, names, k)
        for at in range(0, len(queries), size)
        for similarities in queries[at : at + size] @ sorted_rows.T
    ]


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
