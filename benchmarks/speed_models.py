"""Llama shapes with random weights for benchmarks/speed.py, and the floating-point operations that they need.

Speed depends on the shape and not on what the weights are, so nothing is downloaded. The tokenizer is a real one, the
Pocket LM's (30,522 word pieces), in front of a model whose vocabulary is at least as large.
"""

import random
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from semievol.demo.pocket import pocket_lm_dir

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")


class Shape(NamedTuple):
    """A Llama: sizes of its matrices."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocab: int
    tied: bool = True

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def linear_weights(self) -> int:
        """Weights of the linear layers of one block: query, key, value, output; gate, up, down."""
        return 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads) + self.feed_forward_weights

    @property
    def feed_forward_weights(self) -> int:
        """Weights of gate, up and down of one block."""
        return 3 * self.hidden * self.intermediate


SHAPES = {
    "135M": Shape(hidden=576, layers=30, heads=9, kv_heads=3, intermediate=1536, vocab=49152),
    "1B": Shape(hidden=2048, layers=16, heads=32, kv_heads=8, intermediate=8192, vocab=128256),
    "8B": Shape(hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14336, vocab=128256, tied=False),
}
"""Those of SmolLM-135M, Llama 3.2 1B and Llama 3.1 8B."""


def write_model(shape: Shape, folder: Path, *, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Path:
    """A model folder of `shape` with random weights and the Pocket LM's tokenizer; returns `folder`."""
    from transformers import LlamaConfig, LlamaForCausalLM

    pocket = pocket_lm_dir()
    config = LlamaConfig(
        hidden_size=shape.hidden,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.intermediate,
        vocab_size=shape.vocab,
        max_position_embeddings=2048,
        tie_word_embeddings=shape.tied,
        bos_token_id=101,
        eos_token_id=102,
        pad_token_id=0,
        dtype=dtype,
    )
    torch.manual_seed(seed)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(before)
    model.save_pretrained(folder)
    for name in TOKENIZER_FILES:
        shutil.copy(pocket / name, folder / name)
    return folder


def forward_flops(shape: Shape, lengths: Iterable[int], *, logit_columns: int) -> int:
    """Floating-point operations of one forward pass over rows of `lengths` tokens, none of them padding.

    Counted are the matrix products: two a weight and token in the linear layers; in the attention of a layer two
    products of two operations for each pair of a token and one it may see, L(L+1)/2 pairs a row; and the vocabulary
    projection of `logit_columns` positions over all rows, which alone the last layer's feed-forward part is run for.
    Norms, activations, rotations and softmax are not counted.
    """
    kept = list(lengths)
    left_out = 2 * (sum(kept) - logit_columns) * shape.feed_forward_weights
    flops = 2 * logit_columns * shape.hidden * shape.vocab - left_out
    for length in kept:
        pairs = length * (length + 1) // 2
        flops += shape.layers * (2 * length * shape.linear_weights + 4 * pairs * shape.hidden)
    return flops


def lora_training_flops(shape: Shape, lengths: Iterable[int], *, rank: int, logit_columns: int) -> int:
    """Floating-point operations of one forward and backward pass of LoRA on all linear layers.

    Forward as `forward_flops`; backward as much again for the frozen weights, of which only the inputs get a gradient,
    twice as much for attention, where both factors of a product get one, and twice as much for the adapters.
    """
    kept = list(lengths)
    tokens = sum(kept)
    pairs = sum(length * (length + 1) // 2 for length in kept)
    feed_forward = rank * 3 * (shape.hidden + shape.intermediate)
    adapter = feed_forward + rank * (
        2 * (2 * shape.hidden)  # query, output
        + 2 * (shape.hidden + shape.head_dim * shape.kv_heads)  # key, value
    )
    attention = 4 * pairs * shape.hidden
    linear = 2 * tokens * shape.linear_weights
    head = 2 * logit_columns * shape.hidden * shape.vocab
    left_out = (tokens - logit_columns) * (4 * shape.feed_forward_weights + 6 * feed_forward)
    return shape.layers * (2 * linear + 3 * attention + 6 * tokens * adapter) + 2 * head - left_out


def fill_to_lengths(sentences: Sequence[str], counts: Sequence[int], lengths: Sequence[int], *, seed: int) -> list[str]:
    """Texts of about `lengths` tokens, made of whole `sentences`, of which `counts` are the tokens."""
    generator = random.Random(seed)
    texts: list[str] = []
    for length in lengths:
        chosen: list[str] = []
        left = length
        while left > 0:
            at = generator.randrange(len(sentences))
            chosen.append(sentences[at])
            left -= counts[at]
        texts.append(" ".join(chosen))
    return texts
