"""The parts of the local generator's forward passes that need no model."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import DynamicCache

from semievol.backends.caches import cut_rows, join_caches


@pytest.mark.parametrize(
    ("lengths", "max_columns", "max_rows", "expected"),
    [
        ([5, 5, 5], None, None, [3]),
        ([5, 5, 5], 10, None, [2, 1]),
        ([9, 4, 4, 4], 10, None, [1, 2, 1]),
        ([2, 6], 10, None, [1, 1]),  # two rows of six columns would be twelve
        ([50, 50], 10, None, [1, 1]),
        ([1, 1, 1], 10, 2, [2, 1]),
    ],
)
def test_cut_rows_keeps_to_the_limits(lengths, max_columns, max_rows, expected):
    parts = cut_rows(lengths, max_columns, max_rows=max_rows)
    assert [part.stop - part.start for part in parts] == expected


@given(st.lists(st.integers(1, 50)), st.integers(1, 100))
def test_cut_rows_takes_every_row_once_and_in_order(lengths, max_columns):
    parts = cut_rows(lengths, max_columns)
    assert [length for part in parts for length in lengths[part]] == lengths
    for part in parts:
        rows = lengths[part]
        assert len(rows) == 1 or len(rows) * max(rows) <= max_columns


def test_join_caches_puts_every_row_at_the_right_end():
    long, short = DynamicCache(), DynamicCache()
    for layer in range(2):
        long.update(torch.full((1, 1, 3, 2), 1.0 + layer), torch.full((1, 1, 3, 2), 5.0), layer)
        short.update(torch.full((2, 1, 1, 2), 7.0 + layer), torch.full((2, 1, 1, 2), 9.0), layer)
    joined = join_caches([long, short])
    assert joined.layers[1].keys[:, 0, :, 0].tolist() == [[2, 2, 2], [0, 0, 8], [0, 0, 8]]
    assert joined.layers[0].values[:, 0, :, 0].tolist() == [[5, 5, 5], [0, 0, 9], [0, 0, 9]]
