"""Prompts, closed sets and stop tokens as the ids that training and the transformers generator use, for a server."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

from semievol.backends.hf import (
    completion_ids,
    open_tokenizer,
    render_prompt_ids,
    resolve_max_length,
    resolve_model_path,
    special_ids,
    stop_ids,
)
from semievol.backends.tries import Trie, build_trie
from semievol.backends.vllm_requests import Drawn, Question, plan_questions
from semievol.config import ModelConfig
from semievol.errors import DataError, GenerationError
from semievol.types import ChoiceRequest, Completion, Message

if TYPE_CHECKING:
    from transformers import GenerationConfig


class Scored(NamedTuple):
    """A closed set behind its prompt, and what has to be asked."""

    ids: list[int]
    trie: Trie
    requests: list[list[Question]]


class PromptIds:
    """Makes ids of texts and texts of ids, with the tokenizer and chat template of `model`."""

    def __init__(self, model: ModelConfig) -> None:
        self._model = model
        self._tokenizer = open_tokenizer(model)
        self._special = special_ids(self._tokenizer)
        self._endings: dict[tuple[str, tuple[int, ...], tuple[str, ...]], tuple[int, ...]] = {}
        self._plans = lru_cache(maxsize=1024)(plan_questions)
        self._stops: dict[str, tuple[int, ...]] = {}
        self.max_length = resolve_max_length(model)

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """The prompt, special tokens and the start of the assistant turn included."""
        return render_prompt_ids(self._tokenizer, messages)

    def plan(self, request: ChoiceRequest) -> Scored:
        """What to ask for the scores of `request`.

        Raises:
            DataError: If two of its completions have the same tokens.
            GenerationError: If prompt and completions are longer than the model can hold.
        """
        ids = self.encode(request.messages)
        try:
            trie = build_trie(tuple(self._ending(request, ids, text) for text in request.completions))
        except ValueError as error:
            raise DataError(f"row {request.id}: {error} to this tokenizer: {request.completions}") from error
        if len(ids) + trie.depth > self.max_length:
            raise GenerationError(
                f"row {request.id}: prompt and completions have {len(ids) + trie.depth} tokens, more than "
                f"model.max_length {self.max_length}; shorten the row or show fewer demonstrations"
            )
        return Scored(ids, trie, self._plans(trie))

    def stop_ids(self, base: str) -> tuple[int, ...]:
        """Ids after which the model in `base` stops: the end of a turn, and those of its generation config."""
        if base not in self._stops:
            configured = SimpleNamespace(generation_config=_read_generation_config(self._model, base))
            self._stops[base] = tuple(sorted(stop_ids(self._tokenizer, configured)))
        return self._stops[base]

    def completion(self, drawn: Drawn, stops: Sequence[int]) -> Completion:
        """The text of a sample, as the transformers generator makes it."""
        kept = drawn.tokens[:-1] if drawn.stopped and drawn.tokens[-1] in stops else drawn.tokens
        return Completion(
            text=self._tokenizer.decode(kept, skip_special_tokens=True).strip(),
            token_logprobs=tuple(round(x, 6) for x in drawn.logprobs),
            logprob_kind="raw",
            finish_reason="stop" if drawn.stopped else "length",
        )

    def _ending(self, request: ChoiceRequest, ids: Sequence[int], completion: str) -> tuple[int, ...]:
        """`completion_ids`, remembered by the prompt from its last special token on: no token reaches over one."""
        turn = next((at for at in range(len(ids) - 1, -1, -1) if ids[at] in self._special), 0)
        key = (completion, tuple(ids[turn:]), tuple(m.role for m in request.messages))
        if key not in self._endings:
            self._endings[key] = tuple(completion_ids(self._tokenizer, request.messages, completion))
        return self._endings[key]


def _read_generation_config(model: ModelConfig, base: str) -> "GenerationConfig":
    """Of the model in `base`; as transformers makes it from the model's config where the folder has none."""
    from transformers import AutoConfig, GenerationConfig

    path = resolve_model_path(base)
    revision = model.revision if base == model.path and not Path(path).is_dir() else None
    try:
        found: GenerationConfig = GenerationConfig.from_pretrained(path, revision=revision)
    except OSError:
        config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
        found = GenerationConfig.from_model_config(config)
    return found
