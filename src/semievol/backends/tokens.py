"""Counts and renders prompts with a model's tokenizer and chat template."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from semievol.backends import hf
from semievol.backends.model_files import open_file_tokenizer
from semievol.config import ModelConfig, TransformersGeneratorConfig
from semievol.types import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TransformersTokens:
    """Counts and renders prompts as the generator and the trainer will see them.

    A tokenizer that is all in its `tokenizer.json` is opened without transformers, which takes seconds to import.
    """

    def __init__(self, config: TransformersGeneratorConfig, model: ModelConfig) -> None:
        self._tokenizer = _open(model)
        self.fingerprint = hf.tokenizer_fingerprint(self._tokenizer)
        self.max_length = hf.resolve_max_length(model)

    def count_prompt(self, messages: Sequence[Message]) -> int:
        """Tokens of the rendered chat, the start of the assistant turn included."""
        return len(hf.render_prompt_ids(self._tokenizer, messages))

    def count_text(self, text: str) -> int:
        """Tokens of `text`, without special tokens."""
        return len(hf.encode(self._tokenizer, text))

    def render(self, messages: Sequence[Message]) -> str:
        """The prompt as the model sees it, special tokens and all."""
        return hf.render_prompt(self._tokenizer, messages)


def _open(model: ModelConfig) -> "PreTrainedTokenizerBase":
    template = None if model.chat_template is None else hf.read_template(model.chat_template)
    found = open_file_tokenizer(Path(hf.resolve_model_path(model.path)), template)
    return hf.open_tokenizer(model) if found is None else cast("PreTrainedTokenizerBase", found)
