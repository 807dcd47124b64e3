"""Prompts that share a start, and the partition of them that saves most."""

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from semievol.backends import shared_starts
from semievol.backends.shared_starts import StartGroup, group_by_start


def saved(prompts, groups, skip):
    for group in groups:
        assert len({tuple(prompts[i][: group.n_tokens]) for i in group.prompts}) == 1
        assert all(len(prompts[i]) > group.n_tokens or group.n_tokens == skip for i in group.prompts)
    return sum((len(g.prompts) - 1) * (g.n_tokens - skip) for g in groups)


def most_saved(prompts, skip, least):
    """By trying all partitions."""
    if not prompts:
        return 0
    first, *others = prompts
    best = 0
    for chosen in product((False, True), repeat=len(others)):
        group = [first, *(p for p, take in zip(others, chosen, strict=True) if take)]
        columns = zip(*(row[:-1] for row in group), strict=False)
        n = next((i for i, column in enumerate(columns) if len(set(column)) > 1), min(map(len, group)) - 1)
        if len(group) == 1 or n - skip >= least:
            rest = [p for p, take in zip(others, chosen, strict=True) if not take]
            best = max(best, (len(group) - 1) * (n - skip) + most_saved(rest, skip, least))
    return best


@given(st.lists(st.lists(st.integers(0, 1), min_size=3, max_size=9), min_size=1, max_size=7), st.integers(0, 2))
def test_the_partition_that_saves_most_is_found(prompts, skip):
    prompts = [[7] * skip + p for p in prompts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared_starts, "MIN_SHARED_START", 2)
        groups = group_by_start(prompts, skip=skip)
    assert sorted(i for g in groups for i in g.prompts) == list(range(len(prompts)))
    assert saved(prompts, groups, skip) == most_saved(prompts, skip, 2)


def test_groups_come_longest_first_and_so_do_their_prompts():
    head, shown, other = [1] * 5, [2] * 20, [3] * 20
    prompts = [head + [4] * 3, head + shown + [5], head + other + [6] * 9, head + shown + [7, 8], head + other + [9]]
    assert group_by_start(prompts, skip=5) == [
        StartGroup((2, 4), 25),
        StartGroup((3, 1), 25),
        StartGroup((0,), 5),
    ]


def test_short_starts_and_single_prompts_are_left_alone():
    prompts = [[1] * 10 + [2], [1] * 10 + [3], [4]]
    assert {(g.prompts, g.n_tokens) for g in group_by_start(prompts)} == {((0,), 0), ((1,), 0), ((2,), 0)}
    assert group_by_start([]) == []


def test_a_prompt_keeps_a_token_of_its_own():
    prompts = [[1] * 30, [1] * 30, [1] * 30 + [2] * 4]
    groups = group_by_start(prompts)
    assert [g.n_tokens for g in groups] == [29]
    assert all(len(prompts[i]) > g.n_tokens for g in groups for i in g.prompts)


def test_many_prompts_of_one_start_take_no_quadratic_time():
    prompts = [[1] * 40 + [i // 3] * 30 + [i] for i in range(4000)]
    groups = group_by_start(prompts, skip=40)
    assert {len(g.prompts) for g in groups} <= {1, 2, 3}
    assert sum(len(g.prompts) for g in groups) == 4000
    assert {g.n_tokens for g in groups if len(g.prompts) > 1} == {70}
