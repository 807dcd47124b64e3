"""Fixtures of the stand-in for vLLM, and of vLLM itself where there is one."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.emulator.fixtures import ROOT


@pytest.fixture(scope="session")
def vllm_python(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An interpreter whose `vllm` is the stand-in."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    script = tmp_path_factory.mktemp("interpreter") / "python"
    paths = os.pathsep.join(map(str, (ROOT / "tests/emulator/standin", ROOT, ROOT / "src")))
    script.write_text(f'#!/bin/sh\nPYTHONPATH="{paths}" exec "{sys.executable}" "$@"\n')
    script.chmod(0o755)
    return str(script)


@pytest.fixture(scope="session")
def real_vllm_python() -> str:
    """The interpreter of SEMIEVOL_VLLM_PYTHON, else this one, if it has vLLM and there is a GPU."""
    import torch

    from semievol.backends.vllm_server import check_vllm
    from semievol.config import ModelConfig, VllmGeneratorConfig
    from semievol.errors import ConfigError

    if not torch.cuda.is_available():
        pytest.skip("vLLM needs a CUDA GPU")
    python = os.environ.get("SEMIEVOL_VLLM_PYTHON", sys.executable)
    try:
        check_vllm(VllmGeneratorConfig(python=python), ModelConfig(path="some/model"))
    except ConfigError as error:
        pytest.skip(str(error))
    return python


@pytest.fixture(scope="session")
def standin_generator(vllm_python: str, tiny_llama_dir: str) -> Iterator[Any]:
    """A generator over the stand-in with the tiny Llama; its server starts once a session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_STANDIN", "")
        yield from _opened(vllm_python, tiny_llama_dir, max_concurrency=4)


@pytest.fixture(scope="session")
def gpu_vllm_generator(real_vllm_python: str, gpu_llama_dir: str) -> Iterator[Any]:
    """A generator over vLLM itself, in float32 and with results that do not depend on the batch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_BATCH_INVARIANT", "1")
        yield from _opened(real_vllm_python, gpu_llama_dir, gpu_memory_utilization=0.3, extra_args=("--enforce-eager",))


@pytest.fixture(scope="session")
def gpu_llama_dir(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Any) -> str:
    """As the tiny Llama, with heads as wide as the attention kernels want them."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    eos = tiny_tokenizer.eos_token_id
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=eos,
        pad_token_id=eos,
        initializer_range=0.2,
    )
    folder = tmp_path_factory.mktemp("gpu") / "llama"
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = eos
    model.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return str(folder)


def _opened(python: str, path: str, **settings: Any) -> Iterator[Any]:
    from semievol.backends.base import open_generator
    from semievol.config import ModelConfig, VllmGeneratorConfig

    config = VllmGeneratorConfig(python=python, **settings)
    with open_generator(config, ModelConfig(path=path, dtype="float32")) as generator:
        yield generator


def processes_with(text: str) -> list[int]:
    """Ids of the processes whose command line holds `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                arguments = (entry / "cmdline").read_bytes().decode(errors="replace")
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            if text in arguments and state != "Z":
                found.append(int(entry.name))
    return found
