"""The arithmetic of benchmarks/speed.py."""

import sys
from pathlib import Path

import pytest

from semievol.backends.last_layer import LastLayer

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from speed_models import Shape, forward_flops, lora_training_flops
from speed_timing import Figure, Stopwatch, median_ratio, padding_share

TINY = Shape(hidden=32, layers=2, heads=4, kv_heads=2, intermediate=64, vocab=50)
LENGTH = 6


@pytest.fixture(scope="module")
def tiny_model(one_thread):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=TINY.hidden,
            num_hidden_layers=TINY.layers,
            num_attention_heads=TINY.heads,
            num_key_value_heads=TINY.kv_heads,
            intermediate_size=TINY.intermediate,
            vocab_size=TINY.vocab,
            tie_word_embeddings=True,
        )
    )


def count_linear(model, last_layer, *, n_columns) -> int:
    """Operations of the linear layers as torch counts them, where the logits of `n_columns` are asked for."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    ids = torch.ones(1, LENGTH, dtype=torch.long)
    with FlopCounterMode(display=False) as counter, last_layer.only(n_columns):
        out = model(input_ids=ids, use_cache=False, logits_to_keep=n_columns)
        if model.training:
            out.logits.sum().backward()
    return sum(n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op))


def test_forward_flops_are_those_that_torch_counts(tiny_model):
    linear = count_linear(tiny_model.eval(), LastLayer(tiny_model), n_columns=2)
    pairs = LENGTH * (LENGTH + 1) // 2
    causal = 4 * pairs * TINY.hidden * TINY.layers
    assert forward_flops(TINY, [LENGTH], logit_columns=2) == linear + causal


def test_forward_flops_add_up_over_rows():
    apart = forward_flops(TINY, [3], logit_columns=1) + forward_flops(TINY, [5], logit_columns=1)
    assert forward_flops(TINY, [3, 5], logit_columns=2) == apart


def test_lora_training_flops_are_those_that_torch_counts(tiny_model):
    from peft import LoraConfig, get_peft_model

    rank = 4
    model = get_peft_model(tiny_model, LoraConfig(r=rank, target_modules="all-linear", task_type="CAUSAL_LM")).train()
    linear = count_linear(model, LastLayer(tiny_model), n_columns=2)
    pairs = LENGTH * (LENGTH + 1) // 2
    attention = 3 * 4 * pairs * TINY.hidden * TINY.layers
    expected = lora_training_flops(TINY, [LENGTH], rank=rank, logit_columns=2)
    # What torch leaves out: the inputs of the first block need no gradient, in query, key and value.
    first = (
        2 * LENGTH * TINY.hidden * (TINY.hidden + 2 * TINY.kv_heads * TINY.head_dim)
        + 3 * 2 * LENGTH * TINY.hidden * rank
    )
    assert expected - attention - linear == first


def test_padding_share_counts_cells_over_all_batches():
    assert padding_share([[[0, 1, 1], [1, 1, 1]], [[1, 1]]]) == pytest.approx(1 / 8)


def test_median_ratio_compares_neighbours():
    assert median_ratio([2.0, 30.0, 8.0], [1.0, 10.0, 2.0]) == 3.0


def test_stopwatch_takes_turns():
    done = []
    Stopwatch(lambda: 0.0).in_turns((lambda: done.append("a"), lambda: done.append("b")), 2)
    assert done == ["a", "b", "a", "b"]


@pytest.mark.parametrize(
    ("value", "bound", "at_most", "expected"),
    [
        (0.8, 0.75, False, True),
        (0.7, 0.75, False, False),
        (0.3, 0.4, True, True),
        (None, 1.0, False, None),
        (1.0, None, False, None),
    ],
)
def test_figure_says_whether_its_bound_is_kept(value, bound, at_most, expected):
    assert Figure("x", value, "", bound, at_most).reached is expected
