"""Counts tokens of a hosted model without asking the server, and without downloading a tokenizer.

With tiktoken and its encoding on this machine the count is exact for OpenAI's models; otherwise it is an estimate from
the UTF-8 bytes, and `is_estimate` says so.
"""

import hashlib
import importlib.util
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from semievol.artifacts import content_hash
from semievol.backends.openai_client import address
from semievol.config import ChatGeneratorConfig, ModelConfig
from semievol.prices import base_name
from semievol.types import Message

BYTES_PER_TOKEN = 4
"""Of English text in the vocabularies of today; other scripts and code take more tokens for the same bytes."""
MESSAGE_TOKENS, PRIMING_TOKENS = 4, 3
"""Around a turn and before the answer, as OpenAI's documentation counts them."""
MAX_LENGTH = 8192
"""Prompt and completion together, where the config gives no `model.max_length`."""

_ENCODINGS_URL = "https://openaipublic.blob.core.windows.net/encodings/"
_OLD_MODELS = ("gpt-3.5", "gpt-4-", "text-embedding-")


class OpenAITokens:
    """Tokens of the prompts that a server will see."""

    def __init__(self, config: ChatGeneratorConfig, model: ModelConfig) -> None:
        self.max_length = model.max_length or MAX_LENGTH
        # How tokens are counted is left out: answers that were paid for do not depend on it.
        self.fingerprint = content_hash("openai", address(config), config.model, config.extra_body)
        self._encoding = _find_encoding(base_name(model.path)) if config.base_url is None else None

    @property
    def is_estimate(self) -> bool:
        """Whether counts come from the number of bytes."""
        return self._encoding is None

    def count_prompt(self, messages: Sequence[Message]) -> int:
        """Tokens of all turns, of what stands around them and before the answer."""
        return sum(MESSAGE_TOKENS + self.count_text(m.content) for m in messages) + PRIMING_TOKENS

    def count_text(self, text: str) -> int:
        """Tokens of `text`."""
        if self._encoding is not None:
            return len(self._encoding.encode(text, disallowed_special=()))
        return -(-len(text.encode("utf-8", "surrogatepass")) // BYTES_PER_TOKEN)

    def render(self, messages: Sequence[Message]) -> str:
        """The turns under their roles: only the server knows its template."""
        return "\n".join(f"[{m.role}]\n{m.content}" for m in messages) + "\n[assistant]\n"


def most_tokens(messages: Sequence[Message]) -> int:
    """More tokens than a prompt can have: each stands for at least one byte."""
    n_bytes = sum(len(m.content.encode("utf-8", "surrogatepass")) for m in messages)
    return n_bytes + 8 * len(messages) + 8


def _find_encoding(model: str) -> Any:
    """The model's encoding, if tiktoken is installed and has the file in its cache; None otherwise."""
    if importlib.util.find_spec("tiktoken") is None:
        return None
    import tiktoken

    name = "cl100k_base" if model.startswith(_OLD_MODELS) or model == "gpt-4" else "o200k_base"
    url = f"{_ENCODINGS_URL}{name}.tiktoken"
    folder = os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR")
    cached = Path(folder or Path(tempfile.gettempdir()) / "data-gym-cache") / hashlib.sha1(url.encode()).hexdigest()
    return tiktoken.get_encoding(name) if cached.is_file() else None
