"""Which prompts start with the same tokens, so that these are run once. Pure; no torch.

All prompts of a task share their instruction and options; those that show the same demonstrations first share these,
too. One level of sharing below what all have in common is looked for, the one that saves most tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

MIN_SHARED_START = 16
"""Tokens that prompts have to start with before they are worth a pass of their own."""


@dataclass(frozen=True, slots=True)
class StartGroup:
    """Prompts whose first `n_tokens` tokens are the same."""

    prompts: tuple[int, ...]
    """Places among the prompts, the longest prompt first."""
    n_tokens: int


def group_by_start(prompts: Sequence[Sequence[int]], *, skip: int = 0) -> list[StartGroup]:
    """`prompts`, of which all share their first `skip` tokens, in groups; that of the longest prompt first.

    Every prompt keeps a last token of its own. One that shares nothing with another is a group alone, with `skip`
    tokens. A group of m prompts that share s tokens saves (m - 1)(s - skip), or nothing below MIN_SHARED_START; among
    all partitions the one is taken that saves most.
    """
    if not prompts:
        return []
    order = sorted(range(len(prompts)), key=lambda i: list(prompts[i]))
    shared = [_shared_tokens(prompts[a], prompts[b]) for a, b in pairwise(order)]
    groups = [
        StartGroup(tuple(sorted((order[at] for at in places), key=lambda i: (-len(prompts[i]), i))), n_tokens)
        for places, n_tokens in _best_groups(shared, skip)
    ]
    return sorted(groups, key=lambda g: (-len(prompts[g.prompts[0]]), g.prompts))


def _shared_tokens(a: Sequence[int], b: Sequence[int]) -> int:
    longest = min(len(a), len(b)) - 1
    return next((i for i in range(longest) if a[i] != b[i]), max(0, longest))


@dataclass(slots=True)
class _Node:
    """Neighbours in the sorted order that share a start: single places, and nodes that share more."""

    depth: int
    """Tokens shared."""
    more: int
    """Those of them that a group at this node saves for every prompt but its first; 0 if there can be no group."""
    places: list[int] = field(default_factory=list)
    parts: list["_Node"] = field(default_factory=list)
    most: dict[int, int] = field(default_factory=dict)
    """Tokens saved at most, by `more` of the innermost group around this node; 0 without one."""

    def saved(self, around: int) -> int:
        """Tokens saved without a group at this node: each of its places belongs to the one around it."""
        return len(self.places) * around + sum(part.most[around] for part in self.parts)

    @property
    def saved_as_group(self) -> int:
        """Tokens saved with a group at this node."""
        return self.saved(self.more) - self.more if self.more else 0


def _best_groups(shared: Sequence[int], skip: int) -> list[tuple[list[int], int]]:
    """(places, tokens shared) of the groups; `shared[i]` are the tokens that places i and i + 1 share.

    At which nodes of the tree to make groups is found from the leaves up, for every group that may be around a node; a
    prompt belongs to the innermost group around it.
    """
    nodes = _build_tree(shared, skip)
    nodes[-1].most = {0: 0}
    for node in reversed(nodes):
        for part in node.parts:
            part.most = dict.fromkeys({*node.most, node.more}, 0)
    for node in nodes:
        node.most = {around: max(node.saved(around), node.saved_as_group) for around in node.most}
    groups: list[tuple[list[int], int]] = []
    waiting: list[tuple[_Node, int, list[int] | None]] = [(nodes[-1], 0, None)]
    while waiting:
        node, around, group = waiting.pop()
        if node.saved_as_group > node.saved(around):
            around, group = node.more, []
            groups.append((group, node.depth))
        if group is None:
            groups += [([place], skip) for place in node.places]
        else:
            group += node.places
        waiting += [(part, around, group) for part in node.parts]
    return groups


def _build_tree(shared: Sequence[int], skip: int) -> list[_Node]:
    """Nodes of the tree of sorted prompts, parts before what they are parts of; the last one holds all."""

    def open_node(depth: int) -> _Node:
        return _Node(depth, depth - skip if depth - skip >= MIN_SHARED_START else 0)

    done: list[_Node] = []
    path = [open_node(-1)]
    for place, depth in enumerate([*shared, -1]):
        if depth > path[-1].depth:
            path.append(open_node(depth))
        path[-1].places.append(place)
        while path[-1].depth > depth:
            done.append(path.pop())
            if path[-1].depth < depth:
                path.append(open_node(depth))
            path[-1].parts.append(done[-1])
    return [*done, path[0]]
