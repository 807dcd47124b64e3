"""The completions of a closed set as a trie of token ids, and its rows in a forward pass. Pure; no torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Trie:
    """The completions of a closed set: their shared start as a chain, then the tokens in which they differ.

    Node i holds token `tokens[i]` behind node `parents[i]`; -1 is the last prompt token. Parents come before children.
    Tokens that end a completion are asked for and not fed, so they are no nodes.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    prefix: tuple[tuple[int, int], ...]
    """(node, token) steps of the shared start: the token's log-probability is read off behind the node."""
    paths: tuple[tuple[tuple[int, int], ...], ...]
    """The steps of each completion after the shared start."""

    @property
    def depth(self) -> int:
        """Tokens of the longest completion, shared start included."""
        return len(self.prefix) + max(len(path) for path in self.paths)


@dataclass(frozen=True, slots=True)
class TrieRow:
    """A part of a trie behind its prompt, as one row of a forward pass."""

    prompt: Sequence[int]
    tokens: tuple[int, ...]
    parents: tuple[int, ...]
    nodes: tuple[int, ...]
    """Number in the trie of each node of this row."""

    @property
    def length(self) -> int:
        """Columns that the row takes."""
        return len(self.prompt) + len(self.tokens)


@lru_cache(maxsize=4096)
def build_trie(completions: tuple[tuple[int, ...], ...]) -> Trie:
    """The trie over `completions`, token ids that each end with a stop token.

    The stop token counts only where one completion is the start of another. A single completion has no shared start.

    Raises:
        ValueError: If two of them have the same tokens.
    """
    bodies = [c[:-1] for c in completions]
    if len(set(bodies)) < len(bodies):
        raise ValueError("two completions have the same tokens")
    scored = [c if _starts_another(b, bodies) else b for c, b in zip(completions, bodies, strict=True)]
    shared = common_length(scored) if len(scored) > 1 else 0
    tokens: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int], int] = {}
    walks: list[tuple[tuple[int, int], ...]] = []
    for ids in scored:
        node, steps = -1, []
        for depth, token in enumerate(ids):
            steps.append((node, token))
            if depth + 1 == len(ids):
                break
            if (node, token) not in children:
                children[node, token] = len(tokens)
                tokens.append(token)
                parents.append(node)
            node = children[node, token]
        walks.append(tuple(steps))
    return Trie(tuple(tokens), tuple(parents), walks[0][:shared], tuple(w[shared:] for w in walks))


def _starts_another(body: Sequence[int], bodies: Sequence[Sequence[int]]) -> bool:
    return any(len(other) > len(body) and other[: len(body)] == body for other in bodies)


@lru_cache(maxsize=1024)
def cut_trie(trie: Trie, max_nodes: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """(nodes, their parents' places in the part) of parts of at most `max_nodes` nodes, or of one path."""
    inner = set(trie.parents)
    leaves = [n for n in range(len(trie.tokens)) if n not in inner]
    parts: list[set[int]] = [set()]
    for leaf in leaves:
        path = set(_path(trie, leaf))
        if parts[-1] and len(parts[-1] | path) > max_nodes:
            parts.append(set())
        parts[-1] |= path
    cut = []
    for part in parts:
        nodes = tuple(sorted(part))
        place = {n: i for i, n in enumerate(nodes)} | {-1: -1}
        cut.append((nodes, tuple(place[trie.parents[n]] for n in nodes)))
    return tuple(cut)


def _path(trie: Trie, node: int) -> list[int]:
    path = []
    while node >= 0:
        path.append(node)
        node = trie.parents[node]
    return path


@lru_cache(maxsize=1024)
def find_ancestors(parents: tuple[int, ...]) -> NDArray[np.bool_]:
    """Entry (i, j): node j is node i or stands above it."""
    above = np.eye(len(parents), dtype=bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            above[node] |= above[parent]
    return above


def find_positions(n_prompt: int, parents: Sequence[int]) -> list[int]:
    """Position of every prompt token and trie node: a node's is that of its depth behind the prompt."""
    depths: list[int] = []
    for parent in parents:
        depths.append(0 if parent < 0 else depths[parent] + 1)
    return [*range(n_prompt), *(n_prompt + depth for depth in depths)]


def common_length(sequences: Sequence[Sequence[int]]) -> int:
    """Number of tokens that all `sequences` start with."""
    low, high = (
        min(map(tuple, sequences)),
        max(map(tuple, sequences)),
    )  # what they share, all share
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
