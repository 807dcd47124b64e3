"""Fixtures of the stand-in for vLLM, and of vLLM itself where there is one."""

import os
import sys
from pathlib import Path

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

    from semievol.backends.vllm_server import check_installed
    from semievol.config import VllmGeneratorConfig
    from semievol.errors import ConfigError

    if not torch.cuda.is_available():
        pytest.skip("vLLM needs a CUDA GPU")
    python = os.environ.get("SEMIEVOL_VLLM_PYTHON", sys.executable)
    try:
        check_installed(VllmGeneratorConfig(python=python))
    except ConfigError as error:
        pytest.skip(str(error))
    return python


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
