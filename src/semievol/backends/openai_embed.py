"""Embeddings from a server that speaks the OpenAI protocol, for retrieval. Each text is paid for once in a run."""

import base64
import queue
import sqlite3
import weakref
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol.artifacts import content_hash
from semievol.backends.embed import EmbeddingRetriever
from semievol.backends.openai_budget import Budget
from semievol.backends.openai_calls import Caller, Cost, RowFault, describe
from semievol.backends.openai_client import MalformedAnswer, address
from semievol.config import ModelConfig, OpenAIEmbedderConfig
from semievol.errors import GenerationError

EMBEDDINGS = "embeddings.sqlite"
LOOKED_UP = 500
"""Texts that are looked up at once."""


class OpenAIRetriever(EmbeddingRetriever):
    """Cosine similarity of a server's embeddings.

    Raises:
        ConfigError: If the key or the package is missing.
    """

    def __init__(self, config: OpenAIEmbedderConfig, model: ModelConfig, *, state_dir: Path | None = None) -> None:
        super().__init__()
        self._config = config
        self._cache = EmbeddingCache(state_dir)
        # The generator's limits are about its own requests, so nothing is written to the run's ledger.
        self._caller = Caller(config, Budget(None, None, None))
        weakref.finalize(self, self._caller.__exit__, None, None, None)

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Rows of length 1, shape (n, d); an empty text has no direction and is embedded as a space.

        Raises:
            GenerationError: If a text cannot be embedded.
            ConfigError: If the server refuses the key or the model.
        """
        asked = [text.strip() or " " for text in texts]
        keys = [content_hash(address(self._config), self._config.model, self._config.dimensions, t) for t in asked]
        found = self._cache.get(keys)
        missing = {k: t for k, t in zip(keys, asked, strict=True) if k not in found}
        if missing:
            self._ask(missing, found)
        rows = np.stack([found[k] for k in keys])
        lengths = np.linalg.norm(rows, axis=1, keepdims=True)
        normalised: NDArray[np.float32] = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
        return normalised

    def _ask(self, missing: dict[str, str], found: dict[str, NDArray[np.float32]]) -> None:
        """Embed texts batch by batch; each batch is stored when it comes."""
        pairs, size = list(missing.items()), self._config.batch_size
        batches = [dict(pairs[at : at + size]) for at in range(0, len(pairs), size)]
        answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for batch in batches:
            self._caller.start(self._embed_batch(batch), answers)
        stop: BaseException | None = None
        for _ in batches:
            outcome = answers.get()
            if isinstance(outcome, BaseException):
                stop = stop or outcome
                self._caller.stop_sending()
                continue
            self._cache.put(outcome)
            found |= outcome
        if isinstance(stop, RowFault):
            raise GenerationError(f"{describe(self._config, self._config.model)}: texts were not embedded: {stop}")
        if stop is not None:
            raise stop

    async def _embed_batch(self, batch: dict[str, str]) -> dict[str, NDArray[np.float32]]:
        body: dict[str, Any] = {
            "model": self._config.model,
            "input": list(batch.values()),
            "encoding_format": "base64",
        }
        if self._config.dimensions is not None:
            body["dimensions"] = self._config.dimensions
        read = partial(read_embeddings, n=len(batch))
        rows = await self._caller.post("/embeddings", body, self._config.model, Cost(), read)
        return dict(zip(batch, rows, strict=True))


def read_embeddings(payload: dict[str, Any], *, n: int) -> list[NDArray[np.float32]]:
    """The n rows of a response in the order of the texts; servers send base64 or, not knowing it, lists.

    Raises:
        MalformedAnswer: If they are not n rows of one length.
    """
    try:
        entries = sorted(payload["data"], key=lambda entry: int(entry["index"]))
        rows = [_row(entry["embedding"]) for entry in entries]
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedAnswer(f"the answer holds no embeddings: {error}") from error
    if len(rows) != n or len({row.shape for row in rows}) != 1:
        raise MalformedAnswer(f"{n} embeddings of one length were asked for, {len(rows)} came")
    return rows


def _row(value: Any) -> NDArray[np.float32]:
    if isinstance(value, str):
        return np.frombuffer(base64.b64decode(value), dtype="<f4").astype(np.float32)
    return np.array(value, dtype=np.float32)


class EmbeddingCache:
    """Embeddings by the hash of what was asked. `state_dir` None: they are kept in memory."""

    def __init__(self, state_dir: Path | None) -> None:
        if state_dir is not None:
            state_dir.mkdir(parents=True, exist_ok=True)
        self._connection = sqlite3.connect(":memory:" if state_dir is None else state_dir / EMBEDDINGS)
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=NORMAL")
        self._connection.execute("CREATE TABLE IF NOT EXISTS embeddings (key TEXT PRIMARY KEY, row BLOB NOT NULL)")

    def get(self, keys: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Rows of those keys that are there."""
        found: dict[str, NDArray[np.float32]] = {}
        for at in range(0, len(keys), LOOKED_UP):
            block = list(dict.fromkeys(keys[at : at + LOOKED_UP]))
            marks = ",".join("?" * len(block))
            rows = self._connection.execute(f"SELECT key, row FROM embeddings WHERE key IN ({marks})", block)
            found |= {key: np.frombuffer(row, dtype=np.float32) for key, row in rows}
        return found

    def put(self, rows: dict[str, NDArray[np.float32]]) -> None:
        """Add rows."""
        with self._connection:
            self._connection.executemany(
                "INSERT OR REPLACE INTO embeddings VALUES (?, ?)", [(k, row.tobytes()) for k, row in rows.items()]
            )
