"""Closed sets as tries of token ids behind a prompt, and samples as completions: the same for every engine of ours."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from semievol.backends.hf import completion_ids, special_ids
from semievol.backends.tries import Trie, build_trie
from semievol.errors import DataError, GenerationError
from semievol.types import ChoiceRequest, Completion

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class ChoiceTries:
    """Makes the tries of requests; endings of prompts that end alike are tokenised once."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", *, max_length: int) -> None:
        """`max_length`: most tokens of a prompt and a completion together."""
        self._tokenizer = tokenizer
        self._max_length = max_length
        self._special_ids = special_ids(tokenizer)
        self._endings: dict[tuple[str, tuple[int, ...], tuple[str, ...]], tuple[int, ...]] = {}

    def build(self, request: ChoiceRequest, ids: Sequence[int]) -> Trie:
        """The trie of the completions of `request`, whose prompt has `ids`.

        Raises:
            DataError: If two of the completions have the same tokens.
            GenerationError: If prompt and completions are longer than the model can hold.
        """
        try:
            trie = build_trie(tuple(self._ending(request, ids, text) for text in request.completions))
        except ValueError as error:
            raise DataError(f"row {request.id}: {error} to this tokenizer: {request.completions}") from error
        if len(ids) + trie.depth > self._max_length:
            raise GenerationError(
                f"row {request.id}: prompt and completions have {len(ids) + trie.depth} tokens, more than "
                f"model.max_length {self._max_length}; shorten the row or show fewer demonstrations"
            )
        return trie

    def _ending(self, request: ChoiceRequest, ids: Sequence[int], completion: str) -> tuple[int, ...]:
        """`completion_ids`, remembered by the prompt from its last special token on: no token reaches over one."""
        turn = next((at for at in range(len(ids) - 1, -1, -1) if ids[at] in self._special_ids), 0)
        key = (completion, tuple(ids[turn:]), tuple(m.role for m in request.messages))
        if key not in self._endings:
            self._endings[key] = tuple(completion_ids(self._tokenizer, request.messages, completion))
        return self._endings[key]


def make_completion(
    tokenizer: "PreTrainedTokenizerBase",
    tokens: Sequence[int],
    logprobs: Sequence[float],
    *,
    stopped: bool,
    has_stop_token: bool,
) -> Completion:
    """A sample as text. `stopped`: it came to its end; `has_stop_token`: its last token is the one that ended it."""
    return Completion(
        text=tokenizer.decode(tokens[:-1] if has_stop_token else tokens, skip_special_tokens=True).strip(),
        token_logprobs=tuple(round(x, 6) for x in logprobs),
        logprob_kind="raw",
        finish_reason="stop" if stopped else "length",
    )
