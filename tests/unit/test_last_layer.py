"""Leaving columns out of the last layer changes nothing that is read."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from semievol.backends.caches import find_cache_name
from semievol.backends.last_layer import LastLayer

MODELS = ["llama", "qwen", "bert", "mistral"]
IDS = torch.tensor([[5, 9, 13, 17, 21, 25, 29, 33, 37, 41], [6, 10, 14, 18, 22, 26, 30, 34, 38, 42]])


@pytest.fixture(params=MODELS)
def model(request):
    return AutoModelForCausalLM.from_pretrained(request.getfixturevalue(f"tiny_{request.param}_dir")).eval()


def feed_forward_columns(model):
    """Columns that each layer's feed-forward part saw in the order of the layers, filled while the model runs."""
    seen = []
    for name, module in model.named_modules():
        if name.endswith((".mlp", ".intermediate")):
            module.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
    return seen


def test_what_is_asked_for_stays_and_the_rest_is_not_run(model):
    whole = model(input_ids=IDS)
    last = LastLayer(model)
    seen = feed_forward_columns(model)
    with last.only(3):
        left = model(input_ids=IDS)
    assert seen == [10] * (len(seen) - 1) + [3]
    torch.testing.assert_close(left.logits[:, -3:], whole.logits[:, -3:])
    caches = [out[find_cache_name(out)] for out in (left, whole)]
    for ours, theirs in zip(*(cache.layers for cache in caches), strict=True):
        torch.testing.assert_close(ours.keys, theirs.keys)
        torch.testing.assert_close(ours.values, theirs.values)
    torch.testing.assert_close(model(input_ids=IDS).logits, whole.logits)  # nothing stays behind


def test_gradients_are_the_same(model):
    gradients = []
    last = LastLayer(model)
    for n_columns in (10, 3):
        model.zero_grad()
        with last.only(n_columns):
            model(input_ids=IDS).logits[:, -3:].square().mean().backward()
        gradients.append({name: w.grad.clone() for name, w in model.named_parameters() if w.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


def test_a_layer_whose_columns_are_mixed_later_is_run_whole(tiny_llama_dir):
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir).eval()
    norm = model.model.norm
    norm.register_forward_hook(lambda _, __, out: out + out.mean(dim=1, keepdim=True))
    last = LastLayer(model)
    seen = feed_forward_columns(model)
    with last.only(3):
        model(input_ids=IDS)
    assert set(seen) == {10}
