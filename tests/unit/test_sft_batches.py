"""Which rows an optimiser step sees, in one process and in several."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from semievol.backends.sft_batches import (
    CompletionCollator,
    LengthGroupedEpochs,
    RowsInOrder,
    ShuffledEpochs,
    make_dataset,
    set_epoch,
)
from semievol.backends.sft_rows import EncodedRow


def batches_of(sampler: RowsInOrder, n_processes: int, size: int) -> list[list[list[int]]]:
    """Of each process the batches that accelerate gives it, the empty row left out as the collator does."""
    from accelerate.data_loader import BatchSamplerShard

    whole = torch.utils.data.BatchSampler(sampler, size, drop_last=False)
    shards = [BatchSamplerShard(whole, n_processes, k) for k in range(n_processes)]
    return [[[i for i in batch if i != sampler.n_rows] for batch in shard] for shard in shards]


@given(
    lengths=st.lists(st.integers(2, 60), min_size=1, max_size=60),
    n_processes=st.integers(2, 4),
    size=st.integers(1, 4),
    accumulation=st.integers(1, 3),
    grouped=st.booleans(),
    epoch=st.integers(0, 2),
)
def test_each_step_sees_the_rows_that_one_process_would_see(lengths, n_processes, size, accumulation, grouped, epoch):
    def make_sampler(multiple_of: int) -> ShuffledEpochs:
        n = len(lengths)
        if not grouped:
            return ShuffledEpochs(n, seed=5, multiple_of=multiple_of)
        return LengthGroupedEpochs(lengths, size * accumulation * n_processes, seed=5, multiple_of=multiple_of)

    alone, shared = make_sampler(1), make_sampler(size * n_processes)
    alone.set_epoch(epoch)
    shared.set_epoch(epoch)
    order = list(alone)
    shards = batches_of(shared, n_processes, size)
    assert len({len(shard) for shard in shards}) == 1
    rows_a_step = size * accumulation * n_processes
    expected = [sorted(order[at : at + rows_a_step]) for at in range(0, len(order), rows_a_step)]
    n_steps = -(-len(shards[0]) // accumulation)
    found = [
        sorted(i for shard in shards for batch in shard[at * accumulation : (at + 1) * accumulation] for i in batch)
        for at in range(n_steps)
    ]
    assert found == expected


def test_rows_in_order_are_filled_up():
    assert list(RowsInOrder(5, multiple_of=4)) == [0, 1, 2, 3, 4, 5, 5, 5]
    assert len(RowsInOrder(5, multiple_of=4)) == 8
    assert list(RowsInOrder(4, multiple_of=4)) == [0, 1, 2, 3]


def test_shuffled_epochs_differ_and_repeat():
    sampler = ShuffledEpochs(50, seed=1)
    first = list(sampler)
    sampler.set_epoch(1)
    assert sorted(first) == list(range(50))
    assert list(sampler) != first
    assert list(ShuffledEpochs(50, seed=1)) == first


@pytest.mark.parametrize("n_processes", [1, 2])
def test_the_epoch_reaches_the_order_of_a_training_that_goes_on(n_processes):
    from accelerate.data_loader import BatchSamplerShard, DataLoaderShard, skip_first_batches

    sampler = ShuffledEpochs(24, seed=1, multiple_of=4)
    batches = torch.utils.data.BatchSampler(sampler, 2, drop_last=False)
    shard = BatchSamplerShard(batches, n_processes, 0) if n_processes > 1 else batches
    loader = DataLoaderShard(list(range(25)), batch_sampler=shard)
    set_epoch(skip_first_batches(loader, 1), 3)
    other = ShuffledEpochs(24, seed=1, multiple_of=4)
    other.set_epoch(3)
    assert list(sampler) == list(other) != list(ShuffledEpochs(24, seed=1))


ROWS = [EncodedRow("a", (5, 6, 7, 8), 2), EncodedRow("b", (9, 10, 11), 1, 0.5)]


@pytest.mark.parametrize("start_first", [True, False])
def test_the_empty_row_leaves_a_batch_as_it_is(start_first):
    collate = CompletionCollator(0, start_first)
    data = make_dataset(ROWS, pad_token_id=0)
    expected, found = collate([data[0], data[1]]), collate([data[0], data[1], data[2]])
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_batch_of_the_empty_row_alone_has_no_label_no_weight_and_no_mask():
    data = make_dataset(ROWS, pad_token_id=7)
    batch = CompletionCollator(7, True)([data[2], data[2]])
    assert batch["input_ids"].tolist() == [[7, 7]]
    assert batch["labels"].tolist() == [[-100, -100]]
    assert batch["weights"].tolist() == [0.0]
    assert "attention_mask" not in batch
