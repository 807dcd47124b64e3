"""Sizes of a causal language model, from the heads of its weight files or its config; no weight is loaded."""

from pathlib import Path
from typing import NamedTuple

from semievol.backends.hf import resolve_model_path
from semievol.backends.model_files import WeightShapes, read_shapes
from semievol.config import RunConfig
from semievol.errors import ConfigError


class ModelSize(NamedTuple):
    """Size of a causal language model, from its config alone."""

    architecture: str
    n_parameters: int
    n_adapter: int
    """Weights that training changes: of the adapter, or all."""
    n_layers: int
    hidden_size: int
    kv_size: int
    """Numbers that one token adds to the cache, a layer: keys and values."""
    vocab_size: int


def model_size(config: RunConfig) -> ModelSize:
    """The size of the config's base; where its weight files are not here, what its config would build.

    Raises:
        ConfigError: If the weight files are damaged.
    """
    from safetensors import SafetensorError

    path = resolve_model_path(config.model.path)
    try:
        shapes = read_shapes(Path(path)) or _build_shapes(config, path)
    except SafetensorError as error:
        raise ConfigError(f"model.path: the weights in {path} are damaged ({error}); fetch them again") from error
    text = shapes.config
    n_heads = text.get("num_attention_heads") or 1
    head_dim = text.get("head_dim") or text["hidden_size"] // n_heads
    n_kv = text.get("num_key_value_heads") or n_heads
    return ModelSize(
        architecture=shapes.architecture,
        n_parameters=shapes.n_parameters,
        n_adapter=_count_trained(config, shapes),
        n_layers=text.get("num_hidden_layers", 1),
        hidden_size=text["hidden_size"],
        kv_size=2 * n_kv * head_dim,
        vocab_size=text["vocab_size"],
    )


def _build_shapes(config: RunConfig, path: str) -> WeightShapes:
    """Build the model on the meta device: nothing but its config is read."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    revision = None if Path(path).is_dir() else config.model.revision
    found = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(found, trust_remote_code=False)
    model.tie_weights()
    text = found.get_text_config()
    names = ("num_attention_heads", "head_dim", "num_key_value_heads", "num_hidden_layers", "hidden_size", "vocab_size")
    linear = {
        name: (m.out_features, m.in_features) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)
    }
    n = sum(p.numel() for p in model.parameters())
    values = {name: value for name in names if (value := getattr(text, name, None)) is not None}
    return WeightShapes(type(model).__name__, n, linear, values)


def _count_trained(config: RunConfig, shapes: WeightShapes) -> int:
    trainer = config.trainer
    if trainer.type != "trl" or trainer.method == "full":
        return shapes.n_parameters
    targets, linear = trainer.target_modules, shapes.linear
    if targets == "all-linear":
        chosen = [m for name, m in linear.items() if not name.endswith(("lm_head", "decoder", "embed_out"))]
    else:
        wanted = (targets,) if isinstance(targets, str) else targets
        chosen = [m for name, m in linear.items() if name.split(".")[-1] in wanted]
    return sum(trainer.r * sum(shape) for shape in chosen)
