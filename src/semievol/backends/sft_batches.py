"""Makes training batches of encoded rows: what is padded where, and which rows share a batch."""

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


def make_dataset(rows: Sequence[EncodedRow]) -> Dataset:
    """Token ids and labels; weights, over their mean, only where they differ from 1."""
    labels = [[IGNORED] * row.n_prompt + list(row.input_ids[row.n_prompt :]) for row in rows]
    columns: dict[str, list[Any]] = {"input_ids": [list(row.input_ids) for row in rows], "labels": labels}
    if any(row.weight != 1.0 for row in rows):
        mean = mean_weight(rows)
        columns["weight"] = [row.weight / mean for row in rows]
    return Dataset.from_dict(columns)


@dataclass
class CompletionCollator:
    """Pads in front, so that all rows end in the last column; with `start_first` behind what all rows start with.

    Positions count real tokens only and the padding is masked, so it changes no number: `start | padding | rest` needs
    full attention, as a sliding window counts columns.
    """

    pad_token_id: int
    start_first: bool

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Batch of shape (n, longest row); `weights`, where rows have one, of shape (n,)."""
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
        if "weight" in rows[0]:
            batch["weights"] = torch.tensor([row["weight"] for row in rows], dtype=torch.float32)
        return batch


def _count_start(rows: list[dict[str, Any]]) -> int:
    """Tokens that all rows start with, without the last one before a label: it predicts, so it stands right before."""
    first_labels = (next(i for i, label in enumerate(row["labels"]) if label != IGNORED) for row in rows)
    return max(0, min(common_length([row["input_ids"] for row in rows]), min(first_labels) - 1))


class LengthGroupedEpochs(torch.utils.data.Sampler[int]):
    """Rows in an order that puts like lengths into one batch; a function of (seed, epoch), so a resumed run repeats it.

    The transformers sampler of this kind draws from the global generator, which a resumed run finds in another state.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, *, seed: int) -> None:
        self._lengths, self._batch_size, self._seed, self._epoch = list(lengths), batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader before every epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + 1_000_003 * self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._batch_size, generator=generator))
