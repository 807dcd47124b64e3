"""Opens tokenizers and causal language models of the Hugging Face kind, once for generation and for training.

Both sides take their token ids from `render_prompt_ids` and `completion_ids`, so what a model is trained on and what it
is asked are the same tokens.
"""

import hashlib
import json
import sys
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semievol.artifacts import disk_full, says_disk_full
from semievol.backends.host_memory import reuse_freed_memory
from semievol.backends.model_files import read_config
from semievol.config import ModelConfig
from semievol.errors import ArtifactError, ConfigError, SemiEvolError
from semievol.types import Message, ModelRef

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LONGEST = 4096
"""Tokens of prompt and completion at most, where the config sets no `model.max_length`."""

_PROBE = (Message("user", "Name a letter."),)


def resolve_model_path(path: str) -> str:
    """The folder or hub id behind `model.path`; `pocket` is the embedded Pocket LM.

    Raises:
        ConfigError: If it can only be a folder, and is none.
    """
    if path == "pocket":
        from semievol.demo.pocket import pocket_lm_dir

        return str(pocket_lm_dir())
    if Path(path).is_file():
        raise ConfigError(f"model.path: {path} is a file; give the folder that holds the model")
    is_folder = path.startswith((".", "/")) or path.count("/") > 1  # a hub id is NAME or OWNER/NAME
    if is_folder and not Path(path).is_dir():
        raise ConfigError(f"model.path: there is no folder {path}; give the folder of a model, or a hub id")
    return path


def resolve_device_type(model: ModelConfig) -> str:
    """`resolve_device(model).type`; torch is not imported where there plainly is no GPU.

    Raises:
        ConfigError: As `resolve_device`.
    """
    if model.device == "cpu" or (model.device == "auto" and sys.platform == "linux" and not _has_gpu_files()):
        return "cpu"
    return resolve_device(model).type


def _has_gpu_files() -> bool:
    """Whether the kernel has a driver that torch might know as cuda: NVIDIA's, AMD's, or that of WSL."""
    return any(Path("/dev").glob("nvidia*")) or Path("/dev/kfd").exists() or Path("/dev/dxg").exists()


def resolve_device(model: ModelConfig) -> "torch.device":
    """The torch device of `model.device`.

    Raises:
        ConfigError: If torch does not know the device or sees no such GPU.
    """
    import torch

    if model.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(model.device)
    except RuntimeError as error:
        raise ConfigError(f"model.device: torch does not know {model.device!r}; use auto, cpu or cuda:0") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"model.device: {model.device!r} asked for, but torch sees {torch.cuda.device_count()} GPUs")
    return device


def resolve_dtype(model: ModelConfig) -> "torch.dtype":
    """The torch dtype of `model.dtype`: `auto` is float32 on a CPU, bfloat16 on a GPU that has it, else float16."""
    import torch

    if model.dtype != "auto":
        dtype: torch.dtype = getattr(torch, model.dtype)
        return dtype
    if resolve_device(model).type != "cuda":
        return torch.float32
    return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16


def open_tokenizer(model: ModelConfig) -> "PreTrainedTokenizerBase":
    """The tokenizer of `model`, with the chat template of the config in the place of its own, and with a pad token.

    Raises:
        ConfigError: If it cannot be opened or if there is no chat template.
    """
    from transformers import AutoTokenizer

    path = resolve_model_path(model.path)
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=_revision(model, path), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_open("tokenizer", path, error) from error
    if model.chat_template is not None:
        tokenizer.chat_template = read_template(model.chat_template)
    if not tokenizer.chat_template:
        raise ConfigError(
            f"model.path: the tokenizer of {path} has no chat template, so there is no telling how to prompt it; "
            "set model.chat_template to a Jinja template (or a file with one), for a plain base model for example\n"
            "  {% for m in messages %}{% if m.role != 'assistant' %}{{ m.content }}\\n\\n"
            "{% else %}{{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return tokenizer


def open_model(
    model: ModelConfig,
    ref: ModelRef,
    *,
    trainable: bool = False,
    dtype: "torch.dtype | None" = None,
    quantization_config: Any = None,
) -> "PreTrainedModel":
    """The base of `ref` on the device of `model`, with the adapter of `ref` (a PeftModel then) where it has one.

    In eval mode unless `trainable`, which also leaves the adapter's weights open to training. `dtype` replaces
    `model.dtype`. A quantised model is placed by its quantiser and is not moved.

    Raises:
        ConfigError: If the folder or hub id cannot be opened, is no causal language model or lacks weights of one.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    path = resolve_model_path(ref.base)
    device = resolve_device(model)
    if device.type == "cpu":
        reuse_freed_memory()
    placement = (
        {} if quantization_config is None else {"quantization_config": quantization_config, "device_map": device}
    )
    try:
        opened, loading = AutoModelForCausalLM.from_pretrained(
            path,
            output_loading_info=True,
            revision=_revision(model, path),
            dtype=resolve_dtype(model) if dtype is None else dtype,
            use_safetensors=True,
            trust_remote_code=False,
            **placement,
        )
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise _cannot_open("model", path, error) from error
    if loading["missing_keys"]:
        missing = ", ".join(sorted(loading["missing_keys"])[:5])
        raise ConfigError(
            f"model.path: {path} lacks weights of a causal language model, which would be random: {missing}"
        )
    if quantization_config is None:
        opened = opened.to(device)
    if ref.adapter is not None:
        opened = add_adapter(opened, ref.adapter, name="default", trainable=trainable)
    return opened.train(trainable)


def add_adapter(model: "PreTrainedModel", path: str, *, name: str, trainable: bool = False) -> "PreTrainedModel":
    """Load the PEFT adapter in the folder `path` under `name`; returns the PeftModel around `model`.

    Raises:
        ConfigError: If the folder holds no adapter that fits the model.
        ArtifactError: If its weights are damaged.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers, about names that PEFT still uses
            if isinstance(model, PeftModel):
                model.load_adapter(path, adapter_name=name, is_trainable=trainable)
                return model
            return PeftModel.from_pretrained(model, path, adapter_name=name, is_trainable=trainable)
    except SafetensorError as error:
        raise ArtifactError(f"the weights of the adapter in {path} are damaged ({error}); train it again") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"the adapter in {path} cannot be put on the model: {_first_line(error)}") from error


def resolve_max_length(model: ModelConfig) -> int:
    """Most tokens of prompt and completion together: `model.max_length`, else what the model can hold, at most 4096.

    Raises:
        ConfigError: If `model.max_length` is more than the model has positions.
    """
    path = resolve_model_path(model.path)
    positions = (read_config(Path(path)) or {}).get("max_position_embeddings") or _positions(model, path)
    if model.max_length is None:
        return min(positions or LONGEST, LONGEST)
    if positions is not None and model.max_length > positions:
        raise ConfigError(
            f"model.max_length: {model.max_length} is more than the {positions} positions that {path} has"
        )
    return model.max_length


def _positions(model: ModelConfig, path: str) -> int | None:
    """Positions that the model has; None where its config names none."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, revision=_revision(model, path), trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise _cannot_open("model", path, error) from error
    text_config = config.get_text_config()
    return next((n for k in ("max_position_embeddings", "n_positions") if (n := getattr(text_config, k, None))), None)


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """SHA-256 over what the tokenizer does and its chat template; padding and truncation settings are left out."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state = {"vocab": tokenizer.get_vocab()}
    else:
        state = json.loads(backend.to_str())
        state.pop("padding", None)
        state.pop("truncation", None)
    payload = json.dumps([state, tokenizer.chat_template], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(payload.encode()).hexdigest()


def render_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> str:
    """The prompt as text, special tokens and the start of the assistant turn included."""
    return _apply_template(tokenizer, messages, add_generation_prompt=True)


def render_prompt_ids(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> list[int]:
    """Token ids of the prompt. The template alone puts special tokens, so none is doubled."""
    return encode(tokenizer, render_prompt(tokenizer, messages))


def completion_ids(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], completion: str) -> list[int]:
    """Token ids of the assistant's turn after the prompt, up to and including the token that ends the turn.

    They are what the full conversation has after the prompt's ids, as a model that is trained on it sees it. Where the
    last prompt token would merge with the first of the completion, the completion is tokenised alone, as a model that
    goes on from the prompt would write it.

    Raises:
        ConfigError: If the template writes the prompt in another way once the answer is there.
    """
    prompt = render_prompt(tokenizer, messages)
    full = _apply_template(tokenizer, (*messages, Message("assistant", completion)), add_generation_prompt=False)
    prompt_ids, full_ids = encode(tokenizer, prompt), encode(tokenizer, full)
    if full_ids[: len(prompt_ids)] == prompt_ids:
        ids = full_ids[len(prompt_ids) :]
    elif full.startswith(prompt):
        ids = encode(tokenizer, full[len(prompt) :])
    else:
        raise ConfigError(
            "model.chat_template: the conversation with its answer does not begin with the prompt, so training and "
            f"inference would differ; set another template. Prompt ends {prompt[-60:]!r}, conversation {full[-80:]!r}"
        )
    return _until_turn_end(tokenizer, ids, full.rpartition(completion.strip())[2])


def turn_end_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Ids that end an assistant turn: the tokenizer's end of text and the token that the chat template puts there."""
    last = completion_ids(tokenizer, _PROBE, "A")[-1]
    ends = {last} & special_ids(tokenizer)
    if tokenizer.eos_token_id is not None:
        ends.add(tokenizer.eos_token_id)
    return ends


def stop_ids(tokenizer: "PreTrainedTokenizerBase", model: Any) -> frozenset[int]:
    """Ids after which generation stops: those of `turn_end_ids` and of the generation config that `model` holds."""
    configured = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed: Iterable[int] = () if configured is None else configured if isinstance(configured, list) else (configured,)
    return frozenset(turn_end_ids(tokenizer) | set(listed))


def special_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Ids of special and added tokens, which no ordinary text is split into."""
    return set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)


def encode(tokenizer: "PreTrainedTokenizerBase", text: str) -> list[int]:
    """Token ids of `text` without added special tokens."""
    ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    return ids


def quiet_loading() -> None:
    """Keep transformers' weight-loading bars out of the run's output."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _apply_template(
    tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message], *, add_generation_prompt: bool
) -> str:
    turns = [{"role": m.role, "content": m.content} for m in messages]
    try:
        # Templates of reasoning models open a chain of thought unless told otherwise; others ignore the word.
        text: str = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=add_generation_prompt, enable_thinking=False
        )
    except Exception as error:  # jinja2 raises its own tree, and templates raise through `raise_exception`
        roles = ", ".join(m.role for m in messages)
        raise ConfigError(f"model.chat_template: cannot render turns ({roles}): {_first_line(error)}") from error
    return text


def _until_turn_end(tokenizer: "PreTrainedTokenizerBase", ids: list[int], after_completion: str) -> list[int]:
    """Cut what templates put behind the token that ends the turn, such as the newline of ChatML."""
    tail = encode(tokenizer, after_completion)
    if not tail or ids[-len(tail) :] != tail:
        return ids
    specials = special_ids(tokenizer)
    end = next((at for at, i in enumerate(tail) if i in specials), len(tail) - 1)
    return ids[: len(ids) - len(tail) + end + 1]


def read_template(value: str) -> str:
    """The Jinja template that `model.chat_template` is, or that the file it names holds."""
    looks_like_path = "\n" not in value and "{" not in value
    if not looks_like_path:
        return value
    try:
        return Path(value).expanduser().read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"model.chat_template: {value!r} is neither a Jinja template nor a readable file") from error


def _revision(model: ModelConfig, path: str) -> str | None:
    """`model.revision` names a state of the base on the hub; a folder has none."""
    return model.revision if path == model.path and not Path(path).is_dir() else None


def _cannot_open(what: str, path: str, error: Exception) -> SemiEvolError:
    if says_disk_full(error):  # while a model comes from the hub
        from huggingface_hub import constants

        return disk_full(Path(constants.HF_HUB_CACHE))
    hint = "check the folder" if Path(path).exists() else "check the hub id, the network and HF_TOKEN, or give a folder"
    return ConfigError(f"model.path: the {what} of {path} cannot be opened ({_first_line(error)}); {hint}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
