"""Makes training batches of encoded rows: what is padded where, which rows share a batch, and who gets which batch.

The order of the rows is a function of (seed, epoch), so a resumed run repeats it. Of W processes the k-th takes batches
k, k + W, k + 2W, ... of one order, so an optimiser step sees the rows that it would see in one process with W times the
accumulation. Where the batches do not come out even, the last ones are filled up with the empty row, which no loss, no
gradient and no count sees; accelerate would repeat rows from the start of the epoch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset
from transformers.trainer_pt_utils import get_length_grouped_indices

from semievol.backends.sft_rows import EncodedRow, mean_weight
from semievol.backends.tries import common_length

IGNORED = -100
"""Label of a token without loss."""


def make_dataset(rows: Sequence[EncodedRow], *, pad_token_id: int | None = None) -> Dataset:
    """Token ids and labels; weights, over their mean, only where they differ from 1.

    With a `pad_token_id` the empty row comes last: two such tokens without a label.
    """
    labels = [[IGNORED] * row.n_prompt + list(row.input_ids[row.n_prompt :]) for row in rows]
    columns: dict[str, list[Any]] = {"input_ids": [list(row.input_ids) for row in rows], "labels": labels}
    if any(row.weight != 1.0 for row in rows):
        mean = mean_weight(rows)
        columns["weight"] = [row.weight / mean for row in rows]
    if pad_token_id is not None:
        empty: dict[str, Any] = {"input_ids": [pad_token_id] * 2, "labels": [IGNORED] * 2, "weight": 0.0}
        for name, column in columns.items():
            column.append(empty[name])
    return Dataset.from_dict(columns)


def _is_empty(row: dict[str, Any]) -> bool:
    return all(label == IGNORED for label in row["labels"])


@dataclass
class CompletionCollator:
    """Pads in front, so that all rows end in the last column; with `start_first` behind what all rows start with.

    Positions count real tokens only and the padding is masked, so it changes no number: `start | padding | rest` needs
    full attention, as a sliding window counts columns.
    """

    pad_token_id: int
    start_first: bool

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Batch of shape (n, longest row); `weights`, where rows have one, of shape (n,).

        Empty rows are left out. A batch of nothing else has one, and no mask: its tokens count as padding then.
        """
        rows = [row for row in rows if not _is_empty(row)] or rows[:1]
        width = max(len(row["input_ids"]) for row in rows)
        n_start = _count_start(rows) if self.start_first else 0
        input_ids = torch.full((len(rows), width), self.pad_token_id)
        labels = torch.full((len(rows), width), IGNORED)
        attention_mask = torch.zeros((len(rows), width), dtype=torch.long)
        position_ids = torch.zeros((len(rows), width), dtype=torch.long)
        for i, row in enumerate(rows):
            n_tokens = len(row["input_ids"])
            columns = torch.cat([torch.arange(n_start), torch.arange(width - n_tokens + n_start, width)])
            input_ids[i, columns] = torch.tensor(row["input_ids"])
            labels[i, columns] = torch.tensor(row["labels"])
            attention_mask[i, columns] = 1
            position_ids[i, columns] = torch.arange(n_tokens)
        batch = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "labels": labels,
        }
        if _is_empty(rows[0]):
            del batch["attention_mask"]
        if "weight" in rows[0]:
            batch["weights"] = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        return batch


def _count_start(rows: list[dict[str, Any]]) -> int:
    """Tokens that all rows start with, without the last one before a label: it predicts, so it stands right before."""
    if _is_empty(rows[0]):
        return 0
    first_labels = (next(i for i, label in enumerate(row["labels"]) if label != IGNORED) for row in rows)
    return max(0, min(common_length([row["input_ids"] for row in rows]), min(first_labels) - 1))


class RowsInOrder(torch.utils.data.Sampler[int]):
    """Rows as they come, and after them the empty row (number `n_rows`) up to a multiple of `multiple_of`."""

    def __init__(self, n_rows: int, *, multiple_of: int = 1) -> None:
        self.n_rows = n_rows
        self._n_empty = -n_rows % multiple_of

    def __len__(self) -> int:
        return self.n_rows + self._n_empty

    def __iter__(self) -> Iterator[int]:
        return iter([*self.order(), *[self.n_rows] * self._n_empty])

    def order(self) -> list[int]:
        """Numbers of all rows, the empty one apart."""
        return list(range(self.n_rows))


def set_epoch(dataloader: Any, epoch: int) -> None:
    """Tell the order of a data loader which epoch it is.

    accelerate's own way down ends above the third batch sampler, which is where the order stands when a training of
    several processes goes on in the middle of an epoch: it would repeat the rows of the first one.
    """
    batches = dataloader.batch_sampler
    while hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler
    batches.sampler.set_epoch(epoch)


class ShuffledEpochs(RowsInOrder):
    """Rows in an order drawn by (seed, epoch).

    The transformers samplers draw from the global generator, which a resumed run finds in another state.
    """

    def __init__(self, n_rows: int, *, seed: int, multiple_of: int = 1) -> None:
        super().__init__(n_rows, multiple_of=multiple_of)
        self._seed, self._epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called before every epoch (see `set_epoch`)."""
        self._epoch = epoch

    def order(self) -> list[int]:
        """A permutation."""
        found: list[int] = torch.randperm(self.n_rows, generator=self._generator()).tolist()
        return found

    def _generator(self) -> torch.Generator:
        return torch.Generator().manual_seed(self._seed + 1_000_003 * self._epoch)


class LengthGroupedEpochs(ShuffledEpochs):
    """Rows in an order that puts like lengths into one batch of `batch_size` rows."""

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int, multiple_of: int = 1) -> None:
        super().__init__(len(lengths), seed=seed, multiple_of=multiple_of)
        self._lengths, self._batch_size = list(lengths), batch_size

    def order(self) -> list[int]:
        """A permutation."""
        return list(get_length_grouped_indices(self._lengths, self._batch_size, generator=self._generator()))
