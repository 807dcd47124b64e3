"""Keys and values of what prompts start with, and the cutting and joining of the rows of a forward pass."""

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import pad

from semievol.backends.shared_starts import StartGroup

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel


CACHE_NAMES = ("cache", "past_key_values")
"""What transformers calls the key-value cache, in the arguments of a forward pass and in what it returns: from 5.24 on,
and before."""


def find_cache_name(known: Collection[str]) -> str | None:
    """The name of the cache among the parameters of a forward pass, or in what it returned; None: no cache."""
    return next((name for name in CACHE_NAMES if name in known), None)


class SharedPrefix:
    """Keys and values of tokens that all prompts start with; per layer (1, heads, tokens, d)."""

    def __init__(self, ids: Sequence[int], cache: "Cache") -> None:
        self.ids = list(ids)
        self._layers = [(layer.keys, layer.values) for layer in cache.layers]

    def expand(self, n_rows: int) -> "Cache":
        """A new cache that shows the prefix to `n_rows` rows."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for index, (keys, values) in enumerate(self._layers):
            cache.update(keys, values, index)
            layer = cache.layers[index]
            layer.keys, layer.values = layer.keys.expand(n_rows, -1, -1, -1), layer.values.expand(n_rows, -1, -1, -1)
        return cache


class Starts:
    """What is run before the rows of a batch: the start that all share and, behind it, those that some share.

    `n_tokens[i]` tokens of row i are done; `group[i]` is the place of its own start in the cache, -1 for none.
    """

    def __init__(self, prefix: SharedPrefix | None, n_rows: int) -> None:
        n_prefix = len(prefix.ids) if prefix else 0
        self._prefix = prefix
        self._cache: Cache | None = None
        self._mask = np.ones((0, n_prefix), dtype=np.int64)
        self.n_tokens = [n_prefix] * n_rows
        self.group = [-1] * n_rows

    def add(self, groups: Sequence[StartGroup], cache: "Cache", mask: NDArray[np.int64]) -> None:
        """The starts of `groups`, with the prefix before each: cache and mask (groups, columns) of their rows."""
        self._cache, self._mask = cache, mask
        for place, group in enumerate(groups):
            for row in group.prompts:
                self.n_tokens[row], self.group[row] = group.n_tokens, place

    def show(self, rows: Sequence[int]) -> "tuple[Cache | None, NDArray[np.int64]]":
        """A new cache and the mask of what stands before `rows`, all of which have a start of their own or none has."""
        from transformers import DynamicCache

        if self._cache is None or self.group[rows[0]] < 0:
            cache = self._prefix.expand(len(rows)) if self._prefix else None
            return cache, np.ones((len(rows), self.n_tokens[rows[0]]), dtype=np.int64)
        places = [self.group[row] for row in rows]
        index = torch.tensor(places, device=self._cache.layers[0].keys.device)
        shown = DynamicCache()
        for number, layer in enumerate(self._cache.layers):
            shown.update(layer.keys[index], layer.values[index], number)
        return shown, self._mask[places]


def cut_rows(lengths: Sequence[int], max_columns: int | None, *, max_rows: int | None = None) -> list[slice]:
    """Runs of neighbouring rows: at most `max_rows`, and rows x longest row at most `max_columns`, or one row."""
    if not lengths:
        return []
    parts: list[slice] = []
    start, longest = 0, 0
    for at, length in enumerate(lengths):
        longest = max(longest, length)
        n_rows = at - start + 1
        wide = max_columns is not None and n_rows * longest > max_columns
        full = wide or (max_rows is not None and n_rows > max_rows)
        if full and at > start:
            parts.append(slice(start, at))
            start, longest = at, length
    return [*parts, slice(start, len(lengths))]


def join_caches(caches: "Sequence[Cache]") -> "Cache":
    """One cache of the rows of all `caches`, each row at the right end of its columns; layer by layer, to save memory.

    `caches` are emptied. What stands to the left of a row has to be masked.
    """
    from transformers import DynamicCache

    joined = DynamicCache()
    for index, layers in enumerate(zip(*(cache.layers for cache in caches), strict=True)):
        width = max(layer.keys.shape[2] for layer in layers)
        keys, values = (
            torch.cat([pad(state, (0, 0, width - state.shape[2], 0)) for state in states])
            for states in ([layer.keys for layer in layers], [layer.values for layer in layers])
        )
        joined.update(keys, values, index)
        for layer in layers:
            layer.keys = layer.values = None
    return joined


def has_full_attention(model: "PreTrainedModel") -> bool:
    """Whether every layer attends to all tokens before it, through an attention that takes a mask of our own."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    if model.config._attn_implementation not in ("sdpa", "eager"):
        return False
    return all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)
