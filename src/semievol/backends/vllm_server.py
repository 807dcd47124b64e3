"""Starts and ends one `vllm serve` on a free port of the loopback, with a key that only this process knows.

The key goes through the environment of the server's process: it stands in no argument, file or log. The server is a
child of a supervisor (vllm_supervisor.py), so it never outlives this process, and its memory is free when `stop`
returns.
"""

import contextlib
import gc
import importlib.util
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import Path

from semievol.backends import vllm_supervisor
from semievol.config import ModelConfig, VllmGeneratorConfig
from semievol.errors import ConfigError, GenerationError

BASE_NAME = "semievol-base"
"""What the server calls the model that it has loaded; adapters have names of their own."""
LOG = "vllm.log"
TAIL_LINES, TAIL_BYTES = 15, 8192
LOOK_SECONDS = 0.2
STOP_SECONDS = vllm_supervisor.GRACE_SECONDS + vllm_supervisor.REAP_SECONDS + 5
INSTALL = "python3.12 -m venv vllm-env && vllm-env/bin/pip install vllm"


class VllmServer:
    """One server process after another; at most one at a time.

    Args:
        config: Its section of the config.
        model: What it serves; the folder of another base is given to `start`.
        max_length: Most tokens of prompt and completion together.
        log_dir: Where `vllm.log` is kept. None: in a temporary file.
    """

    def __init__(
        self, config: VllmGeneratorConfig, model: ModelConfig, *, max_length: int, log_dir: Path | None
    ) -> None:
        self._config, self._model, self._max_length = config, model, max_length
        self.key = f"sk-{secrets.token_urlsafe(32)}"
        self.port = 0
        self.base: str | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._session = 0
        self._ended = threading.Event()
        self._scratch = None if log_dir is not None else tempfile.TemporaryDirectory(prefix="semievol-vllm-")
        self.log = (log_dir or Path(self._scratch.name if self._scratch else "")) / LOG

    @property
    def address(self) -> str:
        """Up to and with `/v1`."""
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def is_alive(self) -> bool:
        """Whether its process has not ended."""
        return self._process is not None and self._process.poll() is None

    def start(self, base: str, adapters: Mapping[str, str]) -> None:
        """Serve `base` and `adapters` (name: folder); returns when the server answers.

        Raises:
            GenerationError: If it ends before that, or takes longer than `startup_timeout_seconds`; with the last lines
                of its log.
        """
        self.stop()
        if self._ended.is_set():
            raise GenerationError("the vLLM server is not needed any more")
        _release_memory()
        self.port, self.base = find_free_port(), base
        self.log.parent.mkdir(parents=True, exist_ok=True)
        command = build_command(self._config, self._model, base, adapters, port=self.port, max_length=self._max_length)
        with self.log.open("ab") as log:
            log.write(f"\n# {' '.join(command)}\n".encode())
            log.flush()
            process = self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", vllm_supervisor.__file__, str(os.getpid()), *command],
                env=server_environment(self._config, self._model, self.key),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert process.stdout is not None
        with process.stdout as said:
            self._session = int(said.readline() or 0)
        self._wait_until_ready()

    def stop(self) -> None:
        """End the server; when this returns all of its processes are gone."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.returncode < 0 and self._session:  # killed, and so with no time to end the server's own processes
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._session, signal.SIGKILL)

    def close(self) -> None:
        """End the server for good; a start that is under way in another thread fails."""
        self._ended.set()
        self.stop()
        if self._scratch is not None:
            self._scratch.cleanup()

    def last_lines(self) -> str:
        """Of the log, indented, without the key."""
        try:
            with self.log.open("rb") as stream:
                stream.seek(max(0, self.log.stat().st_size - TAIL_BYTES))
                text = stream.read().decode(errors="replace")
        except OSError:
            return "  (no log)"
        lines = text.replace(self.key, "[key]").rstrip().splitlines()[-TAIL_LINES:]
        return "\n".join(f"  {line}" for line in lines)

    def exit_code(self) -> int | None:
        """Of the process, once it has ended."""
        return None if self._process is None else self._process.poll()

    def _wait_until_ready(self) -> None:
        end = time.monotonic() + self._config.startup_timeout_seconds
        where = "" if self._scratch is not None else f" (log: {self.log})"
        while time.monotonic() < end:
            if self._ended.is_set():
                self.stop()
                raise GenerationError("the vLLM server is not needed any more")
            if not self.is_alive:
                raise GenerationError(
                    f"the vLLM server for {self.base} ended with code {self.exit_code()} before it could answer"
                    f"{where}; its last lines:\n{self.last_lines()}\nWhat fits is decided by "
                    "generator.gpu_memory_utilization, generator.tensor_parallel_size and model.max_length"
                )
            if self._answers():
                return
            self._ended.wait(LOOK_SECONDS)
        self.stop()
        raise GenerationError(
            f"the vLLM server for {self.base} did not answer within generator.startup_timeout_seconds "
            f"({self._config.startup_timeout_seconds:g}){where}; its last lines:\n{self.last_lines()}"
        )

    def _answers(self) -> bool:
        """Whether this very server is up: another one on the port would not know the key or the name."""
        request = urllib.request.Request(f"{self.address}/models", headers={"Authorization": f"Bearer {self.key}"})
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with direct.open(request, timeout=5) as response:
                return any(m["id"] == BASE_NAME for m in json.load(response)["data"])
        except (OSError, HTTPException, ValueError, KeyError, TypeError):
            return False


def build_command(
    config: VllmGeneratorConfig,
    model: ModelConfig,
    base: str,
    adapters: Mapping[str, str],
    *,
    port: int,
    max_length: int,
) -> list[str]:
    """The command line of `vllm serve`. What it has as a default and the results depend on is given all the same.

    The sampling defaults of the model's own generation_config.json are left out (`--generation-config vllm`): a top_k
    or a repetition penalty of it would change the distribution that is sampled from.
    """
    revision = [] if model.revision is None or base != model.path or Path(base).is_dir() else [model.revision]
    command = [interpreter(config), "-m", "vllm.entrypoints.cli.main", "serve", base]
    command += ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", BASE_NAME]
    command += ["--dtype", model.dtype, "--max-model-len", str(max_length), "--load-format", "safetensors"]
    command += ["--tensor-parallel-size", str(config.tensor_parallel_size)]
    command += ["--gpu-memory-utilization", f"{config.gpu_memory_utilization:g}"]
    command += ["--logprobs-mode", "raw_logprobs", "--generation-config", "vllm", "--enable-prefix-caching"]
    command += ["--disable-uvicorn-access-log"]
    command += [part for value in revision for part in ("--revision", value, "--tokenizer-revision", value)]
    if config.max_loras:
        command += ["--enable-lora", "--max-loras", str(config.max_loras)]
        command += ["--max-lora-rank", str(config.max_lora_rank)]
        command += ["--api-server-count", "1"]  # each one would know of the adapters alone that it has loaded itself
        if adapters:
            command += ["--lora-modules", *(json.dumps({"name": n, "path": p}) for n, p in adapters.items())]
    return [*command, *config.extra_args]


def server_environment(config: VllmGeneratorConfig, model: ModelConfig, key: str) -> dict[str, str]:
    """This process's environment with the key, and without what would lead another interpreter to our packages."""
    environment = dict(os.environ)
    if config.python is not None:
        for name in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"):
            environment.pop(name, None)
    environment |= {"VLLM_API_KEY": key, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1", "VLLM_NO_USAGE_STATS": "1"}
    if (found := re.fullmatch(r"cuda:(\d+)", model.device)) is not None:
        visible = environment.get("CUDA_VISIBLE_DEVICES", "")
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(
            _pick_devices(visible, first=int(found[1]), n=config.tensor_parallel_size)
        )
    return environment


def _pick_devices(visible: str, *, first: int, n: int) -> Sequence[str]:
    """`n` GPUs from number `first` on, among those that this process sees."""
    seen = visible.split(",") if visible else [str(i) for i in range(first + n)]
    if len(seen) < first + n:
        raise ConfigError(
            f"model.device: cuda:{first} with generator.tensor_parallel_size: {n} wants {first + n} GPUs, but "
            f"CUDA_VISIBLE_DEVICES is {visible}"
        )
    return seen[first : first + n]


def interpreter(config: VllmGeneratorConfig) -> str:
    """What runs vLLM."""
    return sys.executable if config.python is None else str(Path(config.python).expanduser())


def find_free_port() -> int:
    """A port of the loopback that nobody listens on just now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


def check_vllm(config: VllmGeneratorConfig, model: ModelConfig) -> None:
    """Raise ConfigError, with the remedy, if there is no vLLM, or none that could serve the model where it is to be."""
    if model.path == "pocket":
        raise ConfigError("generator.type: vllm does not know the Pocket LM's architecture; set model.path to another")
    environment = server_environment(config, model, key="")
    python = interpreter(config)
    if config.python is None:
        is_there = importlib.util.find_spec("vllm") is not None
    else:
        code = "import importlib.util, sys; sys.exit(0 if importlib.util.find_spec('vllm') else 3)"
        try:
            done = subprocess.run([python, "-c", code], env=environment, capture_output=True, timeout=60, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigError(f"generator.python: {python} cannot be run ({error}); name an interpreter") from error
        is_there = done.returncode == 0
    if not is_there:
        raise ConfigError(
            f"generator.type: vllm: {python} has no vLLM. It pins other versions of torch and transformers than this "
            f"package may have, so give it an environment of its own: {INSTALL}, and set generator.python: "
            "vllm-env/bin/python"
        )


def _release_memory() -> None:
    """Give the GPU memory that torch keeps in this process, after a training, back to the device."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized():
        with contextlib.suppress(RuntimeError):
            gc.collect()
            torch.cuda.empty_cache()
