"""The Pocket LM folder is an ordinary causal language model."""

import importlib.util
import shutil
import threading
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from semievol.backends.caches import find_cache_name
from semievol.demo import pocket
from semievol.errors import ConfigError

transformers = pytest.importorskip("transformers")
torch = pytest.importorskip("torch")
if importlib.util.find_spec(pocket.MINILM_MODULE) is None:
    pytest.skip(f"{pocket.MINILM_PACKAGE} is not installed", allow_module_level=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pocket.pocket_lm_dir(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Any:
    return transformers.AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def model(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


def test_folder_opens_as_a_causal_model_with_every_weight_found(folder: Path) -> None:
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == "BertLMHeadModel"
    assert model.config.is_decoder
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_later_token_does_not_change_earlier_logits(model: Any) -> None:
    ids = torch.tensor([[101, 3160, 1024, 2054, 2003, 2023, 102]])
    changed = ids.clone()
    changed[0, -1] = 2009
    with torch.no_grad():
        assert torch.equal(model(ids).logits[:, :-1], model(changed).logits[:, :-1])


def test_cached_decoding_with_left_padding_equals_the_plain_forward(model: Any) -> None:
    ids = torch.tensor([[101, 3160, 1024, 2054, 2003, 2023, 102, 3437, 1024, 1037]])
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), ids], dim=1)
    mask = (padded != 0).long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        expected = model(ids).logits
        first = model(padded[:, :8], attention_mask=mask[:, :8], position_ids=positions[:, :8], use_cache=True)
        cache = {(name := find_cache_name(first)): first[name]}
        rest = model(padded[:, 8:], attention_mask=mask, position_ids=positions[:, 8:], **cache)
    torch.testing.assert_close(first.logits[:, 3:], expected[:, :5], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(rest.logits, expected[:, 5:], rtol=1e-4, atol=1e-4)


def test_generate_in_a_padded_batch_equals_generate_alone(model: Any, tokenizer: Any) -> None:
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": text}], tokenize=False)
        for text in (
            "Options:\nA. red\nB. blue\n\nQuestion: the sky",
            "Question: one two three four five six seven eight nine?",
        )
    ]
    batch = tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt")
    together = model.generate(
        **batch, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
    )
    for row, prompt in enumerate(prompts):
        single = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")
        alone = model.generate(
            **single, max_new_tokens=4, do_sample=False, output_logits=True, return_dict_in_generate=True
        )
        torch.testing.assert_close(together.logits[0][row], alone.logits[0][0], rtol=1e-4, atol=1e-4)


def test_chat_template_suits_the_trainer(tokenizer: Any) -> None:
    templates = pytest.importorskip("trl.chat_template_utils")
    assert templates.is_chat_template_prefix_preserving(tokenizer)
    assert templates.is_chat_template_stop_token_trained(tokenizer)


def test_chat_template_puts_one_stop_token_behind_each_turn(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Answer: B"},
    ]
    ids = tokenizer.apply_chat_template(messages, return_dict=False)
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "[CLS]",
        "be",
        "brief",
        "[SEP]",
        "hi",
        "[SEP]",
        "answer",
        ":",
        "b",
        "[SEP]",
    ]
    prompt = tokenizer.apply_chat_template(messages[:2], add_generation_prompt=True, return_dict=False)
    assert ids[: len(prompt)] == prompt
    assert tokenizer.decode(ids[len(prompt) :], skip_special_tokens=True) == "answer: b"


def test_apply_delta_adds_rows_scaled_and_keeps_the_rest() -> None:
    base = {
        "embeddings.a": np.ones((2, 2), np.float32),
        "encoder.b": np.zeros(2, np.float32),
        "pooler.c": np.zeros(1, np.float32),
    }
    delta = {
        "bert.embeddings.a": np.array([[1, 0], [0, 2]], np.int8),
        "bert.embeddings.a.scale": np.array([0.5, 2.0], np.float32),
        "bert.encoder.b.add": np.array([1, 2], np.float16),
        "cls.d.new": np.array([3], np.float16),
    }
    weights = {name: w.tolist() for name, w in pocket.apply_delta(base, delta).items()}
    assert weights == {"bert.embeddings.a": [[1.5, 1.0], [1.0, 5.0]], "bert.encoder.b": [1.0, 2.0], "cls.d": [3.0]}


def test_two_callers_at_once_get_the_same_folder(tmp_path: Path) -> None:
    found: list[Path] = []
    threads = [threading.Thread(target=lambda: found.append(pocket.pocket_lm_dir(tmp_path))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert [p.name for p in tmp_path.iterdir()] == [found[0].name]


def test_cache_folder_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("SEMIEVOL_CACHE", str(folder.parent))
    assert pocket.pocket_lm_dir() == folder


def test_corrupted_minilm_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(pocket.minilm_dir(), tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    spec = ModuleSpec(pocket.MINILM_MODULE, None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ConfigError, match="sha256"):
        pocket.pocket_lm_dir(tmp_path / "cache")


def test_missing_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'pip install "semievol\[demo\]"'):
        pocket.pocket_lm_dir(tmp_path)
