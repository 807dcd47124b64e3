"""The forward passes under the transformers generator: batched sampling and exact scoring with a key-value cache.

Three things save most of the work, and none changes a probability:

- The tokens that all prompts of a batch start with (instruction, labels, options) are run once, and behind them those
  that some share (demonstrations); their keys and values are shown to every row.
- Samples of one prompt that have drawn the same tokens so far are one row; it splits where they part.
- The completions of a closed set are scored in one pass over prompt and trie: every trie node stands behind the prompt
  in the same row, sees the prompt and its own ancestors alone, and has the position of its depth.

Rows end at the same column (left padding), so what is asked of a row lies in its last columns. Models with sliding or
linear attention layers run without the first and the third. The prompts of a batch are run a few at a time, those of
like length together, and all of them together from the first new token on.
"""

import hashlib
import inspect
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from semievol.backends.caches import (
    CACHE_NAMES,
    SharedPrefix,
    Starts,
    cut_rows,
    find_cache_name,
    has_full_attention,
    join_caches,
)
from semievol.backends.last_layer import LastLayer
from semievol.backends.shared_starts import MIN_SHARED_START, group_by_start
from semievol.backends.tries import Trie, TrieRow, common_length, cut_trie, find_ancestors, find_positions
from semievol.errors import ConfigError

if TYPE_CHECKING:
    from transformers import Cache, PreTrainedModel

MAX_COLUMNS = {"cpu": 1024}
"""Columns (rows x longest row) of one pass over prompts, by device. On a CPU a matrix product is at its fastest from
some hundred columns on; more of them push the activations out of the cache, and pad short rows to the length of long
ones."""
GPU_COLUMNS = 16384
"""The same on any other device."""

LOGITS_BYTES = 256 * 2**20
"""Logits of one scoring pass at most; the trie of a large label set is cut to fit."""


@dataclass(slots=True)
class Sample:
    """One completion in the making: its token ids and their raw log-probabilities."""

    uniforms: NDArray[np.float64]
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False


class CausalLm:
    """A causal language model in eval mode, run on padded batches. Counts its forward passes."""

    def __init__(self, model: "PreTrainedModel", *, pad_id: int, stop_ids: frozenset[int]) -> None:
        accepted = inspect.signature(model.forward).parameters
        self._model = model
        self._pad_id = pad_id
        self._stop_ids = stop_ids
        self._takes_positions = "position_ids" in accepted
        self._keeps_logits = "logits_to_keep" in accepted
        self._cache_name = find_cache_name(accepted) or CACHE_NAMES[0]
        self._attention = model.config._attn_implementation
        self._full_attention = self._takes_positions and has_full_attention(model)
        self._last_layer = LastLayer(model)
        self._prefix: SharedPrefix | None = None
        self.forward_passes = 0

    @property
    def vocab_size(self) -> int:
        """Entries of the vocabulary, over which log-probabilities are normalised."""
        return int(self._model.get_output_embeddings().weight.shape[0])

    def arrange(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """Places of `prompts` in the order in which they make good batches.

        Those that share a start stand together, the longest first; without sharing, all of them by length.
        """
        if self._full_attention:
            return [i for group in group_by_start(prompts, skip=_shared_by_all(prompts)) for i in group.prompts]
        return sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))

    def forget_prefix(self) -> None:
        """Drop the shared prefix: a call must not depend on the ones before it, nor on another adapter's weights."""
        self._prefix = None

    @torch.inference_mode()
    def sample(
        self, prompts: Sequence[Sequence[int]], samples: Sequence[Sequence[Sample]], *, temperature: float, top_p: float
    ) -> None:
        """Fill `samples[i]`, the completions of `prompts[i]`; each ends with a stop token or with its uniforms.

        Sample s draws its t-th token by inverse CDF from `s.uniforms[t]` over the vocabulary in the order of its ids.
        """
        starts = self._run_starts(prompts)
        parts = self._passes([len(p) for p in prompts], starts)
        logits, cache, columns = self._run(prompts, parts, starts)
        order = [i for part in parts for i in part]
        mask = torch.from_numpy(columns).to(self._model.device)
        positions = torch.tensor([[len(prompts[i]) - 1] for i in order], device=mask.device)
        rows = [list(samples[i]) for i in order]
        while True:
            tokens = self._draw(logits[:, -1], rows, temperature, top_p)
            parents, rows = self._split(rows, tokens)
            if not rows:
                return
            if parents != list(range(len(mask))):
                index = torch.tensor(parents, device=mask.device)
                cache.reorder_cache(index)
                mask, positions = mask[index], positions[index]
            ids = torch.tensor([[row[0].tokens[-1]] for row in rows], device=mask.device)
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
            positions = positions + 1
            logits, cache = self._forward(ids, mask, positions, cache, keep=1)

    @torch.inference_mode()
    def score(self, rows: Sequence[TrieRow], queries: Sequence[Sequence[tuple[int, int]]]) -> list[list[float]]:
        """Log-probabilities of `queries[i]`: (place in `rows[i].tokens` or -1, next token) pairs."""
        keep = 1 + max(len(row.tokens) for row in rows)
        max_rows = max(1, LOGITS_BYTES // (4 * self.vocab_size * keep))
        starts = self._run_starts([row.prompt for row in rows])
        found: list[list[float]] = [[] for _ in rows]
        for part in self._passes([row.length for row in rows], starts, max_rows=max_rows):
            for i, values in zip(part, self._score(rows, queries, part, starts), strict=True):
                found[i] = values
        return found

    def _score(
        self,
        rows: Sequence[TrieRow],
        queries: Sequence[Sequence[tuple[int, int]]],
        part: Sequence[int],
        starts: Starts,
    ) -> list[list[float]]:
        """What `queries` ask of the rows `part`, in one pass."""
        own = [rows[i] for i in part]
        done = [starts.n_tokens[i] for i in part]
        cache, before = starts.show(part)
        suffixes = [[*row.prompt[n:], *row.tokens] for row, n in zip(own, done, strict=True)]
        ids, mask, positions = self._left_pad(suffixes, done, before)
        keep = 1 + max(len(row.tokens) for row in own)
        attention = torch.from_numpy(mask)
        if any(row.parents != tuple(range(-1, len(row.parents) - 1)) for row in own):  # not all tries are chains
            attention, positions = self._trie_mask(own, mask, ids.shape[1]), _trie_positions(own, positions, done)
        seen = attention.to(ids.device)
        logits, _ = self._forward(ids, seen, positions, cache, keep=keep, use_cache=cache is not None)
        # The column before the first node predicts what place -1 asks for.
        asked = [
            [(keep - len(row.tokens) + at, token) for at, token in queries[i]] for i, row in zip(part, own, strict=True)
        ]
        return _read(logits, asked)

    def rows_of(self, prompt: Sequence[int], trie: Trie) -> list[TrieRow]:
        """`trie` behind `prompt` in as few rows as the model and LOGITS_BYTES allow."""
        max_nodes = LOGITS_BYTES // (4 * self.vocab_size) if self._full_attention else 0
        return [
            TrieRow(prompt, tuple(trie.tokens[n] for n in nodes), parents, nodes)
            for nodes, parents in cut_trie(trie, max_nodes)
        ]

    def _run(
        self, prompts: Sequence[Sequence[int]], parts: Sequence[Sequence[int]], starts: Starts
    ) -> "tuple[Tensor, Cache, NDArray[np.int64]]":
        """Logits of the last column (rows, 1, vocab), cache and mask of the prompts in `parts`, a pass each."""
        runs = []
        for part in parts:
            done = [starts.n_tokens[i] for i in part]
            cache, before = starts.show(part)
            ids, mask, positions = self._left_pad(
                [prompts[i][n:] for i, n in zip(part, done, strict=True)], done, before
            )
            shown = torch.from_numpy(mask).to(ids.device)
            runs.append((*self._forward(ids, shown, positions, cache, keep=1), mask))
        if len(runs) == 1:
            return runs[0]
        width = max(mask.shape[1] for _, _, mask in runs)
        masks = [np.pad(mask, ((0, 0), (width - mask.shape[1], 0))) for _, _, mask in runs]
        return torch.cat([logits for logits, _, _ in runs]), join_caches([c for _, c, _ in runs]), np.concatenate(masks)

    def _run_starts(self, prompts: Sequence[Sequence[int]]) -> Starts:
        """Run what all or some of `prompts` start with; at least one token of each is left for its row."""
        prefix = self._shared_prefix(prompts)
        starts = Starts(prefix, len(prompts))
        if not self._full_attention:
            return starts
        n_prefix = len(prefix.ids) if prefix else 0
        groups = [g for g in group_by_start(prompts, skip=n_prefix) if len(g.prompts) > 1 and g.n_tokens > n_prefix]
        if groups:
            shared = [prompts[g.prompts[0]][: g.n_tokens] for g in groups]
            before = Starts(prefix, len(shared))
            parts = self._passes([len(ids) for ids in shared], before)
            _, cache, mask = self._run(shared, parts, before)
            starts.add([groups[at] for part in parts for at in part], cache, mask)
        return starts

    def _passes(self, lengths: Sequence[int], starts: Starts, *, max_rows: int | None = None) -> list[list[int]]:
        """Places of the rows that share a pass: those of like length, apart from those without a start of their own."""
        if not self._full_attention:
            return [[*range(len(lengths))[part]] for part in cut_rows(lengths, None, max_rows=max_rows)]
        left = [length - n for length, n in zip(lengths, starts.n_tokens, strict=True)]
        max_columns = MAX_COLUMNS.get(self._model.device.type, GPU_COLUMNS)
        passes = []
        for alone in (False, True):
            rows = sorted((i for i, at in enumerate(starts.group) if (at < 0) == alone), key=lambda i: -left[i])
            passes += [rows[part] for part in cut_rows([left[i] for i in rows], max_columns, max_rows=max_rows)]
        return passes

    def _forward(
        self, ids: Tensor, mask: Tensor, positions: Tensor, cache: "Cache | None", *, keep: int, use_cache: bool = True
    ) -> "tuple[Tensor, Cache]":
        """Logits of the last `keep` columns, (rows, keep, vocab), and the cache."""
        arguments: dict[str, Any] = {"input_ids": ids, "attention_mask": mask, "use_cache": use_cache}
        if cache is not None:
            arguments[self._cache_name] = cache
        if self._takes_positions:
            arguments["position_ids"] = positions
        if self._keeps_logits:
            arguments["logits_to_keep"] = keep
        with self._last_layer.only(keep) if keep < ids.shape[1] else nullcontext():
            out = self._model(**arguments)
        self.forward_passes += 1
        state = getattr(out, self._cache_name, None)
        if use_cache and state is None:
            raise ConfigError(
                f"model.path: {type(self._model).__name__} keeps no key-value cache, which is not supported"
            )
        return out.logits[:, -keep:], state

    def _left_pad(
        self, suffixes: Sequence[Sequence[int]], done: Sequence[int], before: NDArray[np.int64]
    ) -> tuple[Tensor, NDArray[np.int64], Tensor]:
        """Ids and positions (rows, columns) and the mask (rows, before + columns) of rows that end at one column.

        The mask stays on the host, where a trie is written into it.

        `done[i]` tokens of row i stand before its suffix, in columns of the mask `before`.
        """
        width = max(map(len, suffixes))
        ids = np.full((len(suffixes), width), self._pad_id, dtype=np.int64)
        own, positions = np.zeros_like(ids), np.zeros_like(ids)
        for at, (suffix, start) in enumerate(zip(suffixes, done, strict=True)):
            ids[at, width - len(suffix) :] = suffix
            own[at, width - len(suffix) :] = 1
            positions[at, width - len(suffix) :] = np.arange(start, start + len(suffix))
        device = self._model.device
        return (
            torch.from_numpy(ids).to(device),
            np.concatenate([before, own], axis=1),
            torch.from_numpy(positions).to(device),
        )

    def _shared_prefix(self, prompts: Sequence[Sequence[int]]) -> SharedPrefix | None:
        """The start that all `prompts` share, run through the model; at least one token of each is left for its row."""
        if not self._full_attention or len(prompts) < 2:
            return None
        length = _shared_by_all(prompts)
        last = self._prefix
        if (
            last is not None
            and prompts[0][: len(last.ids)] == last.ids
            and 0 <= length - len(last.ids) < MIN_SHARED_START
        ):
            return last
        if length < MIN_SHARED_START:
            return None
        ids, mask, positions = self._left_pad([prompts[0][:length]], [0], np.ones((1, 0), dtype=np.int64))
        _, cache = self._forward(ids, torch.from_numpy(mask).to(ids.device), positions, None, keep=1)
        self._prefix = SharedPrefix(prompts[0][:length], cache)
        return self._prefix

    def _draw(self, logits: Tensor, rows: list[list[Sample]], temperature: float, top_p: float) -> list[list[int]]:
        """The next token of every sample; notes its raw log-probability and whether it stops the sample."""
        raw = logits.float()
        width = max(map(len, rows))
        if temperature == 0:
            drawn = raw.argmax(dim=-1, keepdim=True).expand(-1, width)
        else:
            uniforms = np.zeros((len(rows), width))
            for at, row in enumerate(rows):
                uniforms[at, : len(row)] = [s.uniforms[len(s.tokens)] for s in row]
            drawn = _inverse_cdf(raw, torch.from_numpy(uniforms).to(raw.device), temperature, top_p)
        logprobs = (raw.gather(1, drawn) - raw.logsumexp(dim=-1, keepdim=True)).tolist()
        tokens: list[list[int]] = drawn.tolist()
        for row, row_tokens, row_logprobs in zip(rows, tokens, logprobs, strict=True):
            for sample, token, logprob in zip(row, row_tokens, row_logprobs, strict=False):
                sample.tokens.append(token)
                sample.logprobs.append(logprob)
                sample.stopped = token in self._stop_ids
        return tokens

    @staticmethod
    def _split(rows: list[list[Sample]], tokens: list[list[int]]) -> tuple[list[int], list[list[Sample]]]:
        """The rows that go on, one for each distinct next token, and the row that each comes from."""
        parents: list[int] = []
        going_on: list[list[Sample]] = []
        for at, (row, row_tokens) in enumerate(zip(rows, tokens, strict=True)):
            by_token: dict[int, list[Sample]] = {}
            for sample, token in zip(row, row_tokens, strict=False):
                if not sample.stopped and len(sample.tokens) < len(sample.uniforms):
                    by_token.setdefault(token, []).append(sample)
            parents += [at] * len(by_token)
            going_on += by_token.values()
        return parents, going_on

    def _trie_mask(self, rows: Sequence[TrieRow], mask: NDArray[np.int64], width: int) -> Tensor:
        """Who sees whom, (rows, 1, width, columns of `mask`): causal over the prompt, ancestors within the trie."""
        n_columns = mask.shape[1]
        skip = n_columns - width
        visible = np.tri(width, n_columns, skip, dtype=bool) & mask.astype(bool)[:, None]
        for at, row in enumerate(rows):
            n_nodes = len(row.tokens)
            if n_nodes:
                visible[at, width - n_nodes :, n_columns - n_nodes :] = find_ancestors(row.parents)
        # Padding columns see themselves: a row of a softmax without any entry is NaN.
        visible[:, np.arange(width), skip + np.arange(width)] = True
        seen = torch.from_numpy(visible)[:, None]
        if self._attention == "sdpa":
            return seen
        dtype = self._model.dtype
        return torch.where(seen, torch.zeros((), dtype=dtype), torch.finfo(dtype).min)


def _trie_positions(rows: Sequence[TrieRow], positions: Tensor, done: Sequence[int]) -> Tensor:
    """`positions` (rows, columns) with those of the trie nodes; made at one go, as each transfer to a GPU waits."""
    found = np.zeros(tuple(positions.shape), dtype=np.int64)
    for at, (row, n_done) in enumerate(zip(rows, done, strict=True)):
        columns = find_positions(len(row.prompt), row.parents)[n_done:]
        found[at, found.shape[1] - len(columns) :] = columns
    return torch.from_numpy(found).to(positions.device)


def _shared_by_all(prompts: Sequence[Sequence[int]]) -> int:
    """Tokens that all `prompts` start with, without the last one of any."""
    return min(common_length(prompts), min(map(len, prompts)) - 1)


def _read(logits: Tensor, asked: Sequence[Sequence[tuple[int, int]]]) -> list[list[float]]:
    """Log-probabilities of `asked[i]`, (column, token) pairs, off `logits` (rows, columns, vocab); one transfer."""
    raw = logits.float()
    flat = [(at, column, token) for at, pairs in enumerate(asked) for column, token in pairs]
    row, column, token = torch.tensor(flat, device=raw.device).unbind(dim=1)
    values: Iterator[float] = iter((raw[row, column, token] - raw.logsumexp(dim=-1)[row, column]).tolist())
    return [list(islice(values, len(pairs))) for pairs in asked]


def draw_uniforms(seed: int, sample: int, count: int) -> NDArray[np.float64]:
    """The noise of one sample: a function of (seed, sample) alone, through the counter-based generator Philox."""
    key = int.from_bytes(hashlib.blake2b(f"{seed}/{sample}".encode(), digest_size=16).digest(), "little")
    return np.random.Generator(np.random.Philox(key=key)).random(count)


def _inverse_cdf(raw: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    """Token ids (rows, samples) at `uniforms` (rows, samples) of `raw`, tempered and cut to top_p."""
    size = max(1, LOGITS_BYTES // (8 * raw.shape[1]))  # float64: an id is found to 1e-16 of its place
    return torch.cat(
        [
            _inverse_cdf_block(raw[at : at + size], uniforms[at : at + size], temperature, top_p)
            for at in range(0, len(raw), size)
        ]
    )


def _inverse_cdf_block(raw: Tensor, uniforms: Tensor, temperature: float, top_p: float) -> Tensor:
    weights = torch.softmax(raw.double() / temperature, dim=-1)
    if top_p < 1:
        ordered, order = weights.sort(dim=-1, descending=True, stable=True)
        ordered[ordered.cumsum(dim=-1) - ordered >= top_p] = 0
        weights = torch.zeros_like(weights).scatter_(1, order, ordered)
    cdf = weights.cumsum(dim=-1)
    total = cdf[:, -1:].contiguous()
    drawn = torch.searchsorted(cdf, uniforms * total, right=True)
    return torch.minimum(drawn, torch.searchsorted(cdf, total))  # a product rounded up to the total is above all tokens
