"""The process protocol around vLLM: a key nobody sees, errors with the log, and no server that outlives its client."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from semievol.backends.vllm_server import VllmServer, build_command, check_vllm, server_environment
from semievol.config import ModelConfig, VllmGeneratorConfig, parse_config, recipe_differences
from semievol.errors import ConfigError, GenerationError
from tests.emulator.fixtures import ROOT
from tests.emulator.vllm_fixtures import processes_with

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MODEL = ModelConfig(path="some/model")
DATA = {"labeled": "labeled.csv", "unlabeled": "unlabeled.csv"}


def make_server(python: str, log_dir: Path | None, **changes) -> VllmServer:
    config = VllmGeneratorConfig(python=python, startup_timeout_seconds=60, **changes)
    return VllmServer(config, ModelConfig(path="some/model"), max_length=512, log_dir=log_dir)


@pytest.fixture
def hash_engine(monkeypatch):
    monkeypatch.setenv("VLLM_STANDIN", "engine=hash,worker=1")


@linux
def test_server_starts_answers_and_is_gone_after_stop(vllm_python, hash_engine, tmp_path):
    server = make_server(vllm_python, tmp_path)
    marker = f"some/model-{tmp_path.name}"
    try:
        server.start(marker, {})
        assert server.is_alive
        running = processes_with(marker)
        assert len(running) == 3  # the supervisor, the server and its worker
        for pid in running:
            assert server.key not in Path(f"/proc/{pid}/cmdline").read_text()
            assert os.getsid(pid) != os.getsid(0)
        with socket.socket() as other:
            assert other.connect_ex(("127.0.0.1", server.port)) == 0
    finally:
        server.close()
    assert processes_with(marker) == []
    assert server.key not in server.log.read_text()


def test_server_that_fails_is_an_error_with_the_end_of_its_log(vllm_python, monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_STANDIN", "fail=1")
    server = make_server(vllm_python, tmp_path)
    with pytest.raises(GenerationError, match=r"code 1 before it could answer(?s:.)*Free memory on device") as caught:
        server.start("some/model", {})
    assert "generator.gpu_memory_utilization" in str(caught.value)
    server.close()


def test_server_that_does_not_answer_is_ended(vllm_python, monkeypatch, tmp_path):
    monkeypatch.setenv("VLLM_STANDIN", "hang=1")
    server = make_server(vllm_python, None)
    server._config = server._config.model_copy(update={"startup_timeout_seconds": 0.5})
    with pytest.raises(GenerationError, match="startup_timeout_seconds"):
        server.start("some/model", {})
    assert not server.is_alive
    server.close()


@linux
def test_server_ends_when_its_client_is_killed(vllm_python, hash_engine, tmp_path):
    marker = f"model-{tmp_path.name}"
    client = subprocess.Popen(
        [sys.executable, "-c", CLIENT, vllm_python, marker, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])},
        stdout=subprocess.PIPE,
    )
    try:
        assert client.stdout is not None
        client.stdout.readline()
        assert len(processes_with(marker)) == 4
        client.kill()
        client.wait()
        wait_until(lambda: processes_with(marker) == [])
    finally:
        client.kill()


@linux
def test_killed_supervisor_takes_the_server_along_and_stop_the_rest(vllm_python, hash_engine, tmp_path):
    server = make_server(vllm_python, tmp_path)
    marker = f"model-{tmp_path.name}"
    try:
        server.start(marker, {})
        assert server._process is not None
        server._process.kill()
        wait_until(lambda: len(processes_with(marker)) == 1)  # the worker
        assert not server.is_alive
        server.stop()
        wait_until(lambda: processes_with(marker) == [])
    finally:
        server.close()


CLIENT = """
import sys, time
from pathlib import Path
from tests.unit.test_vllm_server import make_server
server = make_server(sys.argv[1], Path(sys.argv[3]))
server.start(sys.argv[2], {})
print("up", flush=True)
time.sleep(120)
"""


def wait_until(is_true, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_missing_vllm_is_an_error_that_says_how_to_get_it():
    with pytest.raises(ConfigError, match=r"pip install vllm, and set generator\.python"):
        check_vllm(VllmGeneratorConfig(python=sys.executable), MODEL)


def test_interpreter_that_is_none_is_an_error():
    with pytest.raises(ConfigError, match=r"generator\.python: /nowhere/python cannot be run"):
        check_vllm(VllmGeneratorConfig(python="/nowhere/python"), MODEL)


def test_pocket_lm_is_refused(vllm_python):
    with pytest.raises(ConfigError, match="Pocket LM"):
        check_vllm(VllmGeneratorConfig(python=vllm_python), ModelConfig(path="pocket"))


def test_recipe_differences_do_not_need_a_model():
    raw = {"data": DATA, "model": {"path": "org/name"}, "generator": {"type": "vllm"}, "trainer": {"r": 8}}
    assert ("trainer.r", 8, 16) in recipe_differences(parse_config(raw))


def test_stand_in_is_found_by_its_own_interpreter(vllm_python):
    check_vllm(VllmGeneratorConfig(python=vllm_python), MODEL)


def test_command_asks_for_raw_logprobs_and_the_plain_distribution():
    config = VllmGeneratorConfig(python="py", tensor_parallel_size=2, extra_args=("--enforce-eager",))
    model = ModelConfig(path="org/name", revision="abc", dtype="bfloat16")
    command = " ".join(build_command(config, model, "org/name", {}, port=1, max_length=99))
    assert command.startswith("py -m vllm.entrypoints.cli.main serve org/name --host 127.0.0.1 --port 1 ")
    for part in (
        "--dtype bfloat16",
        "--max-model-len 99",
        "--tensor-parallel-size 2",
        "--logprobs-mode raw_logprobs",
        "--generation-config vllm",
        "--enable-prefix-caching",
        "--revision abc --tokenizer-revision abc",
        "--enable-lora --max-loras 1 --max-lora-rank 16 --api-server-count 1",
        "--load-format safetensors",
    ):
        assert part in command
    assert command.endswith(" --enforce-eager")
    assert "lora" not in " ".join(build_command(VllmGeneratorConfig(max_loras=0), model, "x", {}, port=1, max_length=9))


def test_revision_is_of_the_base_alone():
    model = ModelConfig(path="org/name", revision="abc")
    assert "--revision" not in build_command(VllmGeneratorConfig(), model, "/trained", {}, port=1, max_length=9)


def test_other_interpreter_does_not_see_our_packages(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/ours")
    config = VllmGeneratorConfig(python="py")
    found = server_environment(config, ModelConfig(), "k")
    assert "PYTHONPATH" not in found
    assert found["VLLM_API_KEY"] == "k"
    assert server_environment(VllmGeneratorConfig(), ModelConfig(), "k")["PYTHONPATH"] == "/ours"


@pytest.mark.parametrize(
    ("device", "visible", "n", "expected"),
    [("cuda:1", None, 1, "1"), ("cuda:1", "4,5,6", 2, "5,6"), ("cuda", "4,5", 1, "4,5"), ("auto", "3", 1, "3")],
)
def test_devices_are_counted_among_the_visible_ones(monkeypatch, device, visible, n, expected):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    config = VllmGeneratorConfig(tensor_parallel_size=n)
    assert server_environment(config, ModelConfig(device=device), "k")["CUDA_VISIBLE_DEVICES"] == expected


def test_device_that_is_not_visible_is_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(ConfigError, match="wants 2 GPUs"):
        server_environment(VllmGeneratorConfig(), ModelConfig(device="cuda:1"), "k")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"generator": {"extra_args": ["--api-key=x"]}}, "the run sets this itself"),
        ({"generator": {"extra_args": ["--trust_remote_code"]}}, "the run sets this itself"),
        ({"generator": {"max_lora_rank": 24}}, r"generator\.max_lora_rank"),
        ({"trainer": {"r": 64}}, r"below trainer\.r: 64"),
        ({"generator": {"max_loras": 0}}, r"generator\.max_loras: 1"),
        ({"trainer": {"type": "openai"}}, r"trainer\.type: trl"),
        ({"generator": {"pyhton": "x"}}, "did you mean python"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, match):
    raw = {"data": DATA, "model": {"path": "org/name"}, "generator": {"type": "vllm"}, "trainer": {"type": "trl"}}
    for section, values in changes.items():
        raw[section] = raw.get(section, {}) | values
    with pytest.raises(ConfigError, match=match):
        parse_config(raw)


def test_whole_fine_tuned_models_need_no_adapters():
    raw = {"data": DATA, "model": {"path": "org/name"}, "trainer": {"method": "full", "r": 99}}
    assert parse_config({**raw, "generator": {"type": "vllm", "max_loras": 0}}).generator.max_loras == 0


def test_check_says_what_is_missing():
    from semievol.surroundings import missing_packages

    raw = {"data": DATA, "model": {"path": "org/name"}, "generator": {"type": "vllm", "python": sys.executable}}
    assert [fault for fault in missing_packages(parse_config(raw)) if "pip install vllm" in fault]
    raw["model"]["device"] = "cuda:3"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
        assert [fault for fault in missing_packages(parse_config(raw)) if "wants 4 GPUs" in fault]


def test_results_depend_on_the_kind_and_the_arguments_of_the_server_alone():
    assert set(VllmGeneratorConfig.model_fields) - VllmGeneratorConfig.operational == {"type", "extra_args"}
