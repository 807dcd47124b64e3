"""Fixtures that start servers in processes of their own. Cheap to import."""

import json
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
API_KEY = "sk-emulator"


class Emulator:
    """A running emulator, as seen by a test."""

    def __init__(self, base_url: str, api_key: str) -> None:
        self.base_url, self.api_key = base_url, api_key
        self.origin = base_url.removesuffix("/v1")

    def counters(self) -> dict[str, Any]:
        """Since the reset: `requests` by route, `statuses`, `paid` and `trainings` (content hash: times), `tokens`."""
        counters: dict[str, Any] = self._call("GET", "counters")
        return counters

    def requests(self, route: str = "") -> list[dict[str, Any]]:
        """The last requests whose route holds `route`: `route`, JSON `body` and number of the `retry`."""
        return [r for r in self._call("GET", "requests") if route in r["route"]]

    def bought_twice(self) -> list[str]:
        """Content hashes of requests and trainings that were paid more than once."""
        counters = self.counters()
        return [content for kind in ("paid", "trainings") for content, times in counters[kind].items() if times > 1]

    def set_faults(self, **switches: Any) -> None:
        """Switch faults on, in the place of any set before (tests/emulator/faults.py lists them)."""
        self._call("POST", "faults", switches)

    def reset(self) -> None:
        """As freshly started."""
        self._call("POST", "reset", {})

    def _call(self, method: str, name: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"content-type": "application/json"}
        request = urllib.request.Request(f"{self.origin}/_admin/{name}", data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise ValueError(error.read().decode()) from error


@contextmanager
def running_emulator(*arguments: str, api_key: str = API_KEY) -> Iterator[Emulator]:
    """Start `python -m tests.emulator ARGUMENTS` on a free port; stopped on leaving."""
    command = [sys.executable, "-m", "tests.emulator", "--port", "0", "--api-key", api_key, *arguments]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)])}
    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            base_url = process.stdout.readline().strip()
            assert base_url, f"the emulator did not start: {' '.join(command)}"
            yield Emulator(base_url, api_key)
        finally:
            _stop(process)


@contextmanager
def serving(engine: Any, api_key: str = API_KEY) -> Iterator[Emulator]:
    """Serve `engine` from a thread of this process, which saves a causal engine's process the import of torch."""
    from tests.emulator.server import create_app, make_server, open_socket

    server = make_server(create_app(engine, api_key=api_key))
    with open_socket("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield Emulator(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", api_key)
        finally:
            server.should_exit = True
            thread.join(timeout=10)


@pytest.fixture(scope="session")
def emulator_process() -> Iterator[Emulator]:
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with running_emulator() as running:
        yield running


@pytest.fixture(scope="module")
def emulator(emulator_process: Emulator) -> Emulator:
    """An emulator with the fake engine, fresh for this module; `reset()` it between tests."""
    emulator_process.reset()
    return emulator_process


class TransformersServe(NamedTuple):
    """A running `transformers serve`, a server by others that drops `n` and `logprobs` without a word."""

    base_url: str
    model: str


@pytest.fixture(scope="session")
def transformers_serve(tiny_llama_dir: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TransformersServe]:
    """Serves the tiny Llama. Its start takes about ten seconds: for tests under the mark `slow`."""
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", tiny_llama_dir]
    command += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with log.open("w") as out, subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env) as process:
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", process, log)
            yield TransformersServe(f"http://127.0.0.1:{port}/v1", tiny_llama_dir)
        finally:
            _stop(process)


def _wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"{url} did not answer: {log.read_text()[-2000:]}")


def _stop(process: "subprocess.Popen[Any]") -> None:
    process.terminate()
    try:
        process.wait(timeout=10)
    except subprocess.TimeoutExpired:  # a training at work
        process.kill()
