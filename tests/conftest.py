"""Tiny models made on the spot, the same in every session; nothing is downloaded."""

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
from hypothesis import settings

from tests.emulator.fixtures import emulator as emulator
from tests.emulator.fixtures import emulator_process as emulator_process
from tests.emulator.fixtures import transformers_serve as transformers_serve
from tests.emulator.vllm_fixtures import gpu_llama_dir as gpu_llama_dir
from tests.emulator.vllm_fixtures import gpu_vllm_generator as gpu_vllm_generator
from tests.emulator.vllm_fixtures import real_vllm_python as real_vllm_python
from tests.emulator.vllm_fixtures import standin_generator as standin_generator
from tests.emulator.vllm_fixtures import vllm_python as vllm_python
from tests.ray_standin import StandIn

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell leaves it for jobs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ.setdefault("GOMP_SPINCOUNT", "20000")  # before torch is loaded
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may need the hub
# Properties are asserted, not how long an example takes on a busy machine (pytest-timeout ends a hang).
settings.register_profile("no clock", deadline=None)
settings.load_profile("no clock")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SENTENCES = [
    "Choose the right option. Reply with Answer: and its letter.",
    "Question: where is my parcel? A. refund B. delivery C. card lost D. card stolen",
    "Answer: A Answer: B Answer: C Answer: D",
    "Labels: card lost, card lost abroad, card stolen, top up failed, top up limits",
    "The quick brown fox jumps over the lazy dog while numbers 0 1 2 3 4 5 6 7 8 9 go by.",
]


@pytest.fixture(scope="session")
def one_thread():
    """Tiny matrices are slower on many threads than on one."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny_tokenizer(one_thread):
    """A small byte-level BPE with a ChatML template; <|im_end|> ends a turn, <|endoftext|> is the eos token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(SENTENCES * 3, trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|endoftext|>", extra_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tokenizer.chat_template = CHATML
    return tokenizer


def _save(folder: Path, model, tokenizer) -> str:
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def _sizes(tokenizer) -> dict[str, int]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.6,  # far from uniform, so that a wrong mask or position shows
    }


@pytest.fixture(scope="session")
def tiny_llama_dir(tmp_path_factory, tiny_tokenizer) -> str:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(num_key_value_heads=2, **_sizes(tiny_tokenizer)))
    return _save(tmp_path_factory.mktemp("tiny") / "llama", model, tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_qwen_dir(tmp_path_factory, tiny_tokenizer) -> str:
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(2)
    config = Qwen3Config(num_key_value_heads=2, head_dim=8, tie_word_embeddings=True, **_sizes(tiny_tokenizer))
    return _save(tmp_path_factory.mktemp("tiny") / "qwen", Qwen3ForCausalLM(config), tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_mistral_dir(tmp_path_factory, tiny_tokenizer) -> str:
    """A model with sliding-window attention."""
    import torch
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(3)
    config = MistralConfig(num_key_value_heads=2, sliding_window=24, **_sizes(tiny_tokenizer))
    return _save(tmp_path_factory.mktemp("tiny") / "mistral", MistralForCausalLM(config), tiny_tokenizer)


@pytest.fixture(scope="session")
def tiny_bert_dir(tmp_path_factory, tiny_tokenizer) -> str:
    """A BERT opened as a causal decoder: learned absolute positions, as the Pocket LM has."""
    import torch
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(4)
    config = BertConfig(
        is_decoder=True, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, **_sizes(tiny_tokenizer)
    )
    return _save(tmp_path_factory.mktemp("tiny") / "bert", BertLMHeadModel(config), tiny_tokenizer)


@pytest.fixture(scope="session")
def pocket_dir(tmp_path_factory) -> str:
    from semievol.demo.pocket import DATA_DIR, pocket_lm_dir

    if not (DATA_DIR / "delta.safetensors").is_file():
        pytest.skip("the Pocket LM's weights are not there")
    return str(pocket_lm_dir(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory):
    """Give a model folder, get the folder of a LoRA adapter with random weights that are not zero."""

    def make(model_dir: str, seed: int = 0) -> str:
        import torch
        from peft import LoraConfig, get_peft_model
        from transformers import AutoModelForCausalLM

        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        peft = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
        for name, weights in peft.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(weights, std=0.1)
        folder = tmp_path_factory.mktemp("adapter")
        peft.save_pretrained(folder)
        assert json.loads((folder / "adapter_config.json").read_text())["r"] == 4
        return str(folder)

    return make


@pytest.fixture(scope="module")
def ray_standin():
    """Ray's interface in this process, in the place of the package."""
    with pytest.MonkeyPatch.context() as patch:
        standin = StandIn()
        patch.setitem(sys.modules, "ray", standin)
        yield standin


@pytest.fixture(scope="session")
def real_ray():
    """A Ray of two CPUs on this machine, without dashboard and telemetry."""
    if isinstance(sys.modules.get("ray"), StandIn):  # of the tests before
        del sys.modules["ray"]
    ray = pytest.importorskip("ray", reason="ray is not installed (pip install 'semievol[ray]')")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    services = ray._private.services
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(services, "get_node", _patiently(services.get_node))
        ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=80 * 2**20, log_to_driver=False)
    yield ray
    ray.shutdown()


def _patiently(get_node, seconds: float = 300.0):
    """Ray gives its own processes 30 s to start, which is too short on a machine that is busy with other tests."""

    def get(*arguments):
        end = time.monotonic() + seconds
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > end:
                    raise

    return get
