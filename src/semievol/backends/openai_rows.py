"""Training rows as the JSONL that a fine-tuning endpoint takes, and what is checked before a byte is sent.

The loss of a hosted training is on every assistant turn; earlier turns of a chat get `weight: 0`, so that it lies on
the completion alone, as with the local trainer.
"""

import hashlib
import json
import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

from semievol.errors import TrainingError
from semievol.types import SftRow

MIN_ROWS = 10
"""Fewest rows of a training file (OpenAI's supervised fine-tuning guide)."""
MAX_FILE_BYTES = 512 * 2**20
"""Largest file that can be uploaded (OpenAI's Files API)."""
BYTES_A_TOKEN = 4
"""UTF-8 bytes a token, roughly, in English prose; the server's own count is what is billed."""
TURN_TOKENS = 4
"""Tokens that the chat format adds to a turn, roughly."""


class TrainingFile(NamedTuple):
    """The bytes of a file of training rows."""

    data: bytes
    n_rows: int
    n_tokens: int
    """An estimate (see BYTES_A_TOKEN)."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the bytes, hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()


def build_training_file(rows: Sequence[SftRow]) -> TrainingFile:
    """One line a row, in the order given; the same rows give the same bytes."""
    data = b"".join(_line(row) for row in rows)
    return TrainingFile(data, len(rows), sum(estimate_tokens(row) for row in rows))


def check_rows(rows: Sequence[SftRow], *, max_length: int) -> None:
    """Raise TrainingError if there are too few rows, or rows without a completion or longer than `max_length`."""
    if len(rows) < MIN_ROWS:
        raise TrainingError(
            f"{len(rows)} training rows: hosted fine-tuning takes {MIN_ROWS} or more; label more rows, or train "
            "locally with trainer.type: trl"
        )
    empty = [row.id for row in rows if not row.completion.strip()]
    if empty:
        raise TrainingError(f"no token carries loss in {name_some(empty)}: the completion is empty")
    lengths = {row.id: estimate_tokens(row) for row in rows}
    over = sorted((i for i, n in lengths.items() if n > max_length), key=lambda i: -lengths[i])
    if over:
        named = name_some([f"{i} (about {lengths[i]:,} tokens)" for i in over])
        raise TrainingError(
            f"{len(over)} of {len(rows)} training rows are longer than trainer.max_length ({max_length:,} tokens, "
            f"estimated at {BYTES_A_TOKEN} bytes each): {named}; shorten them, or raise trainer.max_length if the "
            "model takes more"
        )


def check_size(file: TrainingFile) -> None:
    """Raise TrainingError if the file is larger than the API takes."""
    if len(file.data) > MAX_FILE_BYTES:
        raise TrainingError(
            f"the training file has {len(file.data):,} bytes, the Files API takes {MAX_FILE_BYTES:,}: lower "
            "select.keep_fraction or data.max_unlabeled, or shorten the prompts"
        )


def repeat_rows(rows: Sequence[SftRow], n: int, *, seed: int) -> list[SftRow]:
    """`n` rows made of whole passes over `rows`, each shuffled by `seed`, the last one cut."""
    repeated: list[SftRow] = []
    for number in range(math.ceil(n / len(rows))):
        one_pass = list(rows)
        random.Random(f"{seed}/pass-{number}").shuffle(one_pass)
        repeated += one_pass
    return repeated[:n]


def hold_out(rows: Sequence[SftRow], fraction: float, *, seed: int) -> tuple[list[SftRow], list[SftRow]]:
    """Training rows, and the share of the rows that only the validation loss is measured on."""
    n_held_out = count_held_out(len(rows), fraction)
    chosen = set(random.Random(f"{seed}/held-out").sample(range(len(rows)), n_held_out))
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)]


def count_held_out(n_rows: int, fraction: float) -> int:
    """Rows held out: the share, at least one where it is above 0, and never all."""
    return 0 if fraction == 0 else min(max(1, round(n_rows * fraction)), n_rows - 1)


def estimate_tokens(row: SftRow) -> int:
    """Tokens of a row, completion included, at BYTES_A_TOKEN."""
    texts = [*(turn.content for turn in row.messages), row.completion]
    return sum(math.ceil(len(text.encode()) / BYTES_A_TOKEN) + TURN_TOKENS for text in texts)


def render_example(row: SftRow) -> str:
    """The row turn by turn, with the part that carries loss between ⟦ and ⟧."""
    turns = "".join(f"[{turn.role}]\n{turn.content}\n" for turn in row.messages)
    return f"{turns}[assistant]\n⟦{row.completion}⟧"


def name_some(names: Sequence[str], most: int = 5) -> str:
    """The first few names, and how many more there are."""
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _line(row: SftRow) -> bytes:
    turns: list[dict[str, Any]] = []
    for turn in row.messages:
        silent = {"weight": 0} if turn.role == "assistant" else {}
        turns.append({"role": turn.role, "content": turn.content, **silent})
    turns.append({"role": "assistant", "content": row.completion})
    return json.dumps({"messages": turns}, ensure_ascii=False).encode() + b"\n"
