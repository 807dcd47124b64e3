"""Token ids of training rows, and the checks that come before the first step.

The ids are made by the functions that make the prompts of inference, so a model is trained on what it will be asked.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semievol.backends import hf
from semievol.errors import ConfigError, TrainingError
from semievol.types import SftRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class EncodedRow:
    """Token ids of one row; those from `n_prompt` on carry the loss, times `weight`."""

    id: str
    input_ids: tuple[int, ...]
    n_prompt: int
    weight: float = 1.0

    @property
    def n_completion(self) -> int:
        """Number of tokens with loss."""
        return len(self.input_ids) - self.n_prompt


def encode_rows(tokenizer: "PreTrainedTokenizerBase", train: Sequence[SftRow]) -> list[EncodedRow]:
    """Token ids of all rows, in their order.

    Raises:
        TrainingError: If there are no rows, or the completion of one is empty.
        ConfigError: If the chat template writes a prompt in another way once the answer is there, or raw text is to be
            trained on and the tokenizer has no end-of-text token.
    """
    if not train:
        raise TrainingError("there are no training rows")
    empty = [row.id for row in train if not row.completion.strip()]
    if empty:
        raise TrainingError(f"no token carries loss in {_name_some(empty)}: the completion is empty")
    rows = []
    for row in train:
        if not row.messages:
            rows.append(_encode_text(tokenizer, row))
            continue
        prompt = hf.render_prompt_ids(tokenizer, row.messages)
        completion = hf.completion_ids(tokenizer, row.messages, row.completion)
        rows.append(EncodedRow(row.id, (*prompt, *completion), len(prompt), row.weight))
    return rows


def mean_weight(rows: Sequence[EncodedRow]) -> float:
    """Mean weight of the tokens with loss, over all rows. Dividing by it makes the loss a weighted mean.

    It is taken over the whole set: divided by the weights of its own batch, a batch of improbable answers alone would
    count as much as one of probable answers.
    """
    return math.fsum(row.weight * row.n_completion for row in rows) / sum(row.n_completion for row in rows)


def _encode_text(tokenizer: "PreTrainedTokenizerBase", row: SftRow) -> EncodedRow:
    """Raw text between its start and end tokens, all with loss but the first.

    Where there is no start token the end-of-text token stands in for it, as between the documents of a pretraining, so
    that the first token of the text is predicted too.
    """
    end = tokenizer.eos_token_id
    if end is None:
        raise ConfigError("model.path: the tokenizer has no end-of-text token, so raw text cannot be trained on")
    start = end if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return EncodedRow(row.id, (start, *hf.encode(tokenizer, row.completion), end), 1, row.weight)


def check_lengths(rows: Sequence[EncodedRow], *, max_length: int, model_length: int) -> None:
    """Raise TrainingError naming the rows that are longer than `trainer.max_length` or than the model takes."""
    limit = min(max_length, model_length)
    over = sorted((row for row in rows if len(row.input_ids) > limit), key=lambda row: -len(row.input_ids))
    if not over:
        return
    longest = len(over[0].input_ids)
    if longest <= model_length:
        remedy = f"raise trainer.max_length to {longest}"
    else:
        remedy = f"the model takes {model_length} tokens (model.max_length): shorten or leave out these rows"
    named = _name_some([f"{row.id} ({len(row.input_ids)} tokens)" for row in over])
    raise TrainingError(f"{len(over)} of {len(rows)} training rows are longer than {limit} tokens: {named}; {remedy}")


def check_stop_tokens(
    rows: Sequence[EncodedRow], stops: frozenset[int], *, tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Raise TrainingError if a row ends with a token after which generation goes on."""
    unstopped = [row for row in rows if row.input_ids[-1] not in stops]
    if unstopped:
        last = tokenizer.decode([unstopped[0].input_ids[-1]])
        raise TrainingError(
            f"the model would not learn to stop: the completion of {_name_some([row.id for row in unstopped])} ends "
            f"with {last!r}, where generation goes on; let model.chat_template put the end-of-turn token "
            f"({tokenizer.eos_token!r}) after an assistant turn"
        )


def render_example(tokenizer: "PreTrainedTokenizerBase", row: EncodedRow) -> str:
    """The row as the model sees it, with the part that carries loss between ⟦ and ⟧."""
    prompt, completion = list(row.input_ids[: row.n_prompt]), list(row.input_ids[row.n_prompt :])
    return f"{tokenizer.decode(prompt)}⟦{tokenizer.decode(completion)}⟧"


def count_held_out(n_rows: int, eval_fraction: float) -> int:
    """Rows held out: the share, at least one where it is above 0, and never all."""
    if eval_fraction == 0:
        return 0
    return min(max(1, round(n_rows * eval_fraction)), n_rows - 1)


def hold_out(
    rows: Sequence[EncodedRow], eval_fraction: float, *, seed: int
) -> tuple[list[EncodedRow], list[EncodedRow]]:
    """Training rows, and a random share of the rows that is only looked at."""
    n_held_out = count_held_out(len(rows), eval_fraction)
    chosen = set(random.Random(f"{seed}/held-out").sample(range(len(rows)), n_held_out))
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)]


def _name_some(names: Sequence[str], most: int = 5) -> str:
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
