"""Reads tokenizers and sizes from a model's folder, without transformers and torch, which take seconds to import.

What is read here is what transformers makes of the same files (a test compares both); `None` means that it might make
something else of them, and that it has to be asked. Hub ids are not read: only the hub's client knows their files.
"""

import json
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from semievol.backends.chat_templates import render_template

if TYPE_CHECKING:
    from tokenizers import Tokenizer

NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
ARCHITECTURES = {
    "bert": "BertLMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Dense decoders by `model_type`, for which transformers takes a generic tokenizer class at its word."""
GENERIC_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")
"""Tokenizer classes that are all in `tokenizer.json`; others build parts of it anew."""
PLAIN_SETTINGS = frozenset(
    (
        *NAMED_TOKENS,
        "added_tokens_decoder",
        "additional_special_tokens",
        "backend",
        "chat_template",
        "clean_up_tokenization_spaces",
        "extra_special_tokens",
        "is_local",
        "local_files_only",
        "model_input_names",
        "model_max_length",
        "padding_side",
        "tokenizer_class",
    )
)
"""Keys of `tokenizer_config.json` that change nothing in how text without special tokens added is split."""
UNREAD_FILES = ("added_tokens.json", "additional_chat_templates", "tekken.json")
"""Whose presence changes what transformers opens."""


class FileTokenizer:
    """The part of a transformers tokenizer that rendering and counting need; `backends.hf` works on both."""

    def __init__(self, backend: "Tokenizer", special_tokens_map: Mapping[str, str], chat_template: str) -> None:
        self.backend_tokenizer = backend
        self.special_tokens_map = special_tokens_map
        self.chat_template = chat_template

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        """`input_ids` of `text`, without added special tokens."""
        return {"input_ids": self.backend_tokenizer.encode(text, add_special_tokens=False).ids}

    def apply_chat_template(self, turns: list[dict[str, str]], *, tokenize: bool, **variables: Any) -> str:
        """The conversation as text. `tokenize` is always False in this project; ids come from `__call__`."""
        return render_template(self.chat_template, turns, self.special_tokens_map, **variables)


class WeightShapes(NamedTuple):
    """What the weight files of a model hold."""

    architecture: str
    n_parameters: int
    linear: dict[str, tuple[int, int]]
    """Rows and columns of each linear layer's matrix, by the layer's name."""
    config: dict[str, Any]
    """`config.json`."""


def read_config(folder: Path) -> dict[str, Any] | None:
    """`config.json` of a dense decoder that is known here; None of any other."""
    config = _read_json(folder / "config.json")
    kind = config.get("model_type")
    known = kind in ARCHITECTURES and config.get("architectures") == [ARCHITECTURES[kind]]
    return config if known and not {"auto_map", "quantization_config"} & set(config) else None


def open_file_tokenizer(folder: Path, chat_template: str | None) -> FileTokenizer | None:
    """The tokenizer in `folder`; None where it is not all in its `tokenizer.json`, or has no chat template.

    Args:
        folder: Of a model.
        chat_template: In the place of the tokenizer's own.
    """
    settings = _read_json(folder / "tokenizer_config.json")
    if (
        read_config(folder) is None
        or settings.get("tokenizer_class") not in GENERIC_CLASSES
        or not set(settings) <= PLAIN_SETTINGS
        or any((folder / name).exists() for name in UNREAD_FILES)
    ):
        return None
    file = folder / "tokenizer.json"
    special = _special_tokens(settings, _read_json(folder / "special_tokens_map.json"), _read_json(file))
    template = chat_template or _own_template(folder, settings)
    if special is None or template is None:
        return None
    from tokenizers import Tokenizer

    try:
        backend = Tokenizer.from_file(str(file))
    except Exception:  # the library raises no other class; transformers then says what is wrong
        return None
    backend.no_truncation()
    backend.no_padding()
    special.setdefault("pad_token", special.get("eos_token") or str(backend.id_to_token(0)))
    return FileTokenizer(backend, special, template)


def _special_tokens(
    settings: Mapping[str, Any], legacy: Mapping[str, Any], tokenizer: Mapping[str, Any]
) -> dict[str, str] | None:
    """Named special tokens; None if any special token would still have to be added to `tokenizer.json`."""
    added = {token["content"]: token for token in tokenizer.get("added_tokens", ())}
    if tokenizer.get("post_processor") is None:  # one is then made
        return None
    listed = settings.get("added_tokens_decoder")
    if listed is not None and any(
        _without_id(added.get(token["content"], {})) != _without_id(token) for token in listed.values()
    ):
        return None
    merged = {**settings, **legacy} if listed is None else settings
    named = {name: _content(merged[name]) for name in NAMED_TOKENS if merged.get(name) is not None}
    extra = [merged.get(key) or [] for key in ("extra_special_tokens", "additional_special_tokens")]
    if not set(legacy) <= PLAIN_SETTINGS or not all(isinstance(tokens, list) for tokens in extra):
        return None
    wanted = [*named.values(), *(_content(token) for tokens in extra for token in tokens)]
    return named if all(added.get(token, {}).get("special") for token in wanted) else None


def _without_id(token: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in token.items() if key not in ("id", "__type")}


def _content(token: Any) -> str:
    return str(token["content"] if isinstance(token, dict) else token)


def _own_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """The file wins over the setting; a setting with several templates is left to transformers."""
    file = folder / "chat_template.jinja"
    template = file.read_text(encoding="utf-8") if file.is_file() else settings.get("chat_template")
    return template if isinstance(template, str) else None


def read_shapes(folder: Path) -> WeightShapes | None:
    """Shapes of the weights in `folder`, from the heads of its safetensors files; None where they are not plain."""
    config = read_config(folder)
    index = _read_json(folder / "model.safetensors.index.json")
    files = sorted(set(index.get("weight_map", {}).values())) or ["model.safetensors"]
    if config is None or not all((folder / name).is_file() for name in files):
        return None
    from safetensors import safe_open

    linear, n = {}, 0
    for file in files:
        with safe_open(folder / file, framework="np") as opened:
            for name in opened.keys():  # noqa: SIM118 - it is no mapping
                layer, _, kind = name.rpartition(".")
                if layer == "lm_head" and config.get("tie_word_embeddings"):
                    continue
                part = opened.get_slice(name)
                if kind not in ("weight", "bias") and not name.endswith(".predictions.bias"):
                    return None
                if part.get_dtype() not in ("F64", "F32", "F16", "BF16"):
                    return None
                shape = part.get_shape()
                n += prod(shape)
                if kind == "weight" and len(shape) == 2 and "embed" not in layer:
                    linear[layer] = (shape[0], shape[1])
    return WeightShapes(config["architectures"][0], n, linear, config)


def _read_json(path: Path) -> dict[str, Any]:
    """Empty where there is no such file or it holds no JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
