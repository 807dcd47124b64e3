"""Prompts, closed sets and stop tokens as the ids that training and the transformers generator use, for a server."""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, NamedTuple

from semievol.backends.choice_tries import ChoiceTries, make_completion
from semievol.backends.hf import (
    open_tokenizer,
    render_prompt_ids,
    resolve_max_length,
    resolve_model_path,
    stop_ids,
)
from semievol.backends.tries import Trie
from semievol.backends.vllm_requests import Drawn, Question, plan_questions
from semievol.config import ModelConfig
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
        self._plans = lru_cache(maxsize=1024)(plan_questions)
        self._stops: dict[str, tuple[int, ...]] = {}
        self.max_length = resolve_max_length(model)
        self._tries = ChoiceTries(self._tokenizer, max_length=self.max_length)

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
        trie = self._tries.build(request, ids)
        return Scored(ids, trie, self._plans(trie))

    def stop_ids(self, base: str) -> tuple[int, ...]:
        """Ids after which the model in `base` stops: the end of a turn, and those of its generation config."""
        if base not in self._stops:
            configured = SimpleNamespace(generation_config=_read_generation_config(self._model, base))
            self._stops[base] = tuple(sorted(stop_ids(self._tokenizer, configured)))
        return self._stops[base]

    def completion(self, drawn: Drawn, stops: Sequence[int]) -> Completion:
        """The text of a sample, as the transformers generator makes it."""
        has_stop_token = drawn.stopped and drawn.tokens[-1] in stops
        return make_completion(
            self._tokenizer, drawn.tokens, drawn.logprobs, stopped=drawn.stopped, has_stop_token=has_stop_token
        )


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
