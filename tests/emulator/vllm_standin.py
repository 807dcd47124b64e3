"""Stands in for `vllm serve`: its command line, its key, and the routes that the package uses, as vLLM 0.33 has them.

Two engines: a real causal model (the folder to be served), with adapters, and `hash`, without torch, whose tokens
come from hashes. What goes wrong is set by the environment variable VLLM_STANDIN, `name=value` pairs with commas:
engine=hash; fail=1 (ends with an error before it answers); hang=1 (never answers); worker=1 (has a process of its own);
crash_after=N (ends with code 7 at the N-th completion request); wait=SECONDS (before each completion);
crash_on_load=1 and refuse_load=1 (what becomes of a request to load an adapter).
"""

import argparse
import asyncio
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from fastapi import APIRouter, FastAPI
from pydantic import BaseModel, ConfigDict, Field

from tests.emulator.chat import parse
from tests.emulator.engine import ServedModel
from tests.emulator.errors import ApiError, unknown_model, wrong_value
from tests.emulator.faults import Faults
from tests.emulator.gate import Gate
from tests.emulator.server import make_server, open_socket
from tests.emulator.state import State

MAX_LOGPROB_TOKEN_IDS = 128
VOCABULARY = 300
"""Of the engine `hash`."""


class CompletionBody(BaseModel):
    """Of vLLM's CompletionRequest what the package uses; vLLM takes more and drops what it does not know."""

    model_config = ConfigDict(extra="forbid")

    model: str
    prompt: list[int] | list[list[int]]
    n: int = Field(1, ge=1)
    temperature: float = Field(1.0, ge=0)
    top_p: float = Field(1.0, gt=0, le=1)
    max_tokens: int = Field(16, ge=1)
    seed: int | None = None
    logprobs: int | None = None
    logprob_token_ids: list[int] | None = None
    stop_token_ids: list[int] = []
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False

    @property
    def prompts(self) -> list[list[int]]:
        """One or more, as a list of them."""
        return [p for p in self.prompt if isinstance(p, list)] or [[t for t in self.prompt if isinstance(t, int)]]


class Step(NamedTuple):
    """A generated token, its raw log-probability and those of the tokens that were asked for."""

    token: int
    logprob: float
    listed: dict[int, float]


class Engine(Protocol):
    """What completes."""

    def complete(self, model: str, prompt: list[int], asked: CompletionBody) -> list[list[Step]]:
        """`asked.n` completions, each with its stop token where it has come to one."""
        ...

    def load(self, name: str, path: str) -> None:
        """Serve the adapter in `path` as `name`. Raises OSError if there is none."""
        ...


class HashEngine:
    """Tokens and log-probabilities from hashes of model, prompt, seed and place."""

    def complete(self, model: str, prompt: list[int], asked: CompletionBody) -> list[list[Step]]:
        """Never stops by itself."""
        return [
            [self._step(model, prompt, asked, sample, at) for at in range(asked.max_tokens)]
            for sample in range(asked.n)
        ]

    def load(self, name: str, path: str) -> None:
        """Looks for the folder only."""
        (Path(path) / "adapter_config.json").read_text(encoding="utf-8")

    def _step(self, model: str, prompt: list[int], asked: CompletionBody, sample: int, at: int) -> Step:
        seed = None if asked.temperature == 0 else (asked.seed or 0) + sample
        digest = hashlib.blake2b(repr((model, prompt, seed, at)).encode(), digest_size=8).digest()
        token = int.from_bytes(digest[:4], "big") % VOCABULARY
        listed = {t: -1.0 - t % 7 for t in asked.logprob_token_ids or ()}
        return Step(token, -0.5, listed | {token: -0.5})


class TorchEngine:
    """The causal model in `path`, in float32 on the CPU, one row at a time without a cache of prefixes."""

    def __init__(self, path: str) -> None:
        import threading

        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._model: Any = AutoModelForCausalLM.from_pretrained(path).eval()
        self._stops = {AutoTokenizer.from_pretrained(path).eos_token_id}
        self._adapters: set[str] = set()
        self._lock = threading.Lock()

    def load(self, name: str, path: str) -> None:
        """Put a PEFT adapter on the model."""
        from peft import PeftModel

        with self._lock:
            if self._adapters:
                self._model.load_adapter(path, adapter_name=name)
            else:
                self._model = PeftModel.from_pretrained(self._model, path, adapter_name=name).eval()
            self._adapters.add(name)

    def complete(self, model: str, prompt: list[int], asked: CompletionBody) -> list[list[Step]]:
        """Draws with a generator for each sample, seeded with the seed plus its number, as vLLM does."""
        import contextlib

        with self._lock:
            base = self._model.disable_adapter() if self._adapters else contextlib.nullcontext()
            if model in self._adapters:
                self._model.set_adapter(model)
                base = contextlib.nullcontext()
            with base:
                return [self._complete(prompt, asked, sample) for sample in range(asked.n)]

    def _complete(self, prompt: list[int], asked: CompletionBody, sample: int) -> list[Step]:
        import torch

        from semievol.backends.caches import find_cache_name

        draws = torch.Generator().manual_seed((asked.seed or 0) + sample)
        steps: list[Step] = []
        with torch.inference_mode():
            ids, cache = torch.tensor([prompt]), {}
            while len(steps) < asked.max_tokens:
                out = self._model(input_ids=ids, use_cache=True, **cache)
                cache = {(name := find_cache_name(out)): out[name]}
                raw = out.logits[0, -1].float().log_softmax(-1)
                token = self._draw(raw, asked, draws)
                wanted = asked.logprob_token_ids or raw.topk(asked.logprobs or 1).indices.tolist()
                steps.append(Step(token, float(raw[token]), {t: float(raw[t]) for t in [token, *wanted]}))
                if token in self._stops or token in asked.stop_token_ids:
                    break
                ids = torch.tensor([[token]])
        return steps

    @staticmethod
    def _draw(raw: Any, asked: CompletionBody, draws: Any) -> int:
        import torch

        if asked.temperature == 0:
            return int(raw.argmax())
        p = (raw / asked.temperature).softmax(-1)
        if asked.top_p < 1:
            ordered, at = p.sort(descending=True)
            ordered[ordered.cumsum(0) - ordered > asked.top_p] = 0
            p = torch.zeros_like(p).scatter(0, at, ordered)
        return int(torch.multinomial(p, 1, generator=draws))


class Served:
    """The engine, the names that it answers to, and what the emulator's gate wants of an engine."""

    def __init__(self, engine: Engine, args: argparse.Namespace, faults: Mapping[str, str]) -> None:
        self.engine, self.args, self.faults = engine, args, faults
        self.names = {args.served_model_name: ServedModel(args.served_model_name)}
        self.n_completions = 0

    def models(self) -> Mapping[str, ServedModel]:
        """By name."""
        return self.names

    def forget(self) -> None:
        """Nothing is trained here."""


def routes(served: Served) -> APIRouter:
    """What vLLM's server has under these paths."""
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in served.names]}

    @router.post("/v1/load_lora_adapter")
    async def load_adapter(body: dict[str, Any]) -> str:
        if os.environ.get("VLLM_ALLOW_RUNTIME_LORA_UPDATING") != "1":
            raise ApiError(404, "Not Found")
        if "crash_on_load" in served.faults:
            os._exit(7)
        if "refuse_load" in served.faults:
            raise ApiError(400, "LoRA rank 4 is not supported by this kernel.")
        await asyncio.to_thread(load, served, body["lora_name"], body["lora_path"])
        return f"Success: LoRA adapter '{body['lora_name']}' added successfully."

    @router.post("/v1/completions")
    async def create_completion(body: dict[str, Any]) -> dict[str, Any]:
        served.n_completions += 1
        if served.n_completions == int(served.faults.get("crash_after", 0)):
            print("EngineCore encountered a fatal error: CUDA error: an illegal memory access", flush=True)
            os._exit(7)
        await asyncio.sleep(float(served.faults.get("wait", 0)))
        asked: CompletionBody = parse(CompletionBody, body)
        _check(asked, served)
        rows = [
            steps
            for prompt in asked.prompts
            for steps in await asyncio.to_thread(served.engine.complete, asked.model, prompt, asked)
        ]
        n_written = sum(map(len, rows))
        n_prompt = sum(map(len, asked.prompts))
        return {
            "id": "cmpl-1",
            "object": "text_completion",
            "created": int(time.time()),
            "model": asked.model,
            "choices": [_choice(index, steps, asked, served) for index, steps in enumerate(rows)],
            "usage": {"prompt_tokens": n_prompt, "completion_tokens": n_written, "total_tokens": n_prompt + n_written},
        }

    return router


def load(served: Served, name: str, path: str) -> None:
    """Load an adapter as vLLM does. Raises ApiError where vLLM refuses."""
    if not served.args.enable_lora:
        raise ApiError(400, "LoRA is not enabled.")
    if name in served.names:
        raise ApiError(400, f"The lora adapter '{name}' has already been loaded.")
    try:
        rank = json.loads((Path(path) / "adapter_config.json").read_text(encoding="utf-8"))["r"]
        if rank > served.args.max_lora_rank:
            raise ApiError(500, f"LoRA rank {rank} is greater than max_lora_rank {served.args.max_lora_rank}.")
        served.engine.load(name, path)
    except OSError as error:
        raise ApiError(404, f"Loading lora {name} failed: No adapter found for {path}") from error
    served.names[name] = ServedModel(name)


def _check(asked: CompletionBody, served: Served) -> None:
    if asked.model not in served.names:
        raise unknown_model(asked.model)
    if asked.temperature == 0 and asked.n > 1:
        raise wrong_value("n", f"n must be 1 when using greedy sampling, got {asked.n}.")
    if asked.logprob_token_ids is not None:
        if asked.logprobs is None:
            raise wrong_value("logprob_token_ids", "when using `logprob_token_ids`, `logprobs` must be set.")
        if len(asked.logprob_token_ids) > MAX_LOGPROB_TOKEN_IDS:
            raise wrong_value("logprob_token_ids", f"{len(asked.logprob_token_ids)} is greater than max allowed")
    for prompt in asked.prompts:
        if len(prompt) + asked.max_tokens > served.args.max_model_len:
            message = f"This model's maximum context length is {served.args.max_model_len} tokens."
            raise wrong_value("prompt", message)


def _choice(index: int, steps: list[Step], asked: CompletionBody, served: Served) -> dict[str, Any]:
    assert asked.return_tokens_as_token_ids, "names of tokens as text are not emulated"
    stopped = len(steps) < asked.max_tokens or steps[-1].token in asked.stop_token_ids
    logprobs = {
        "tokens": [f"token_id:{s.token}" for s in steps],
        "token_logprobs": [max(s.logprob, -9999.0) for s in steps],
        "top_logprobs": [{f"token_id:{t}": max(x, -9999.0) for t, x in s.listed.items()} for s in steps],
    }
    return {
        "index": index,
        "text": "",
        "logprobs": None if asked.logprobs is None else logprobs,
        "finish_reason": "stop" if stopped else "length",
        "token_ids": [s.token for s in steps] if asked.return_token_ids else None,
    }


def main() -> None:
    """Serve until SIGTERM."""
    args = _parser().parse_args()
    faults = dict(pair.split("=", 1) for pair in os.environ.get("VLLM_STANDIN", "").split(",") if pair)
    print(f"non-default args: {sys.argv[1:]}", flush=True)
    if "fail" in faults:
        print("ValueError: Free memory on device cuda:0 (1.2/79.1 GiB) is less than desired", flush=True)
        sys.exit(1)
    if "worker" in faults:  # as vLLM's engine is a process beside its server
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)", args.model_tag])
    if "hang" in faults:
        time.sleep(600)
    engine = HashEngine() if faults.get("engine") == "hash" else TorchEngine(args.model_tag)
    served = Served(engine, args, faults)
    for module in args.lora_modules:
        load(served, **json.loads(module))
    app = FastAPI(openapi_url=None)
    app.include_router(routes(served))
    app.add_exception_handler(ApiError, lambda _, error: error.response())  # type: ignore[attr-defined]
    gate = Gate(app, State(served, Faults()), os.environ["VLLM_API_KEY"])  # type: ignore[arg-type]
    with open_socket(args.host, args.port) as listener:
        make_server(gate).run(sockets=[listener])


def _parser() -> argparse.ArgumentParser:
    """The arguments that the package gives, under vLLM's names; others are refused, as vLLM refuses unknown ones."""
    parser = argparse.ArgumentParser(prog="vllm")
    serve = parser.add_subparsers(required=True).add_parser("serve")
    serve.add_argument("model_tag")
    serve.add_argument("--host", required=True)
    serve.add_argument("--port", type=int, required=True)
    serve.add_argument("--served-model-name", required=True)
    serve.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16"])
    serve.add_argument("--max-model-len", type=int, required=True)
    serve.add_argument("--load-format", choices=["auto", "safetensors"])
    serve.add_argument("--tensor-parallel-size", type=int)
    serve.add_argument("--gpu-memory-utilization", type=float)
    serve.add_argument("--logprobs-mode", choices=["raw_logprobs"], required=True)
    serve.add_argument("--generation-config", choices=["vllm"], required=True)
    serve.add_argument("--enable-prefix-caching", action="store_true")
    serve.add_argument("--disable-uvicorn-access-log", action="store_true")
    serve.add_argument("--enable-lora", action="store_true")
    serve.add_argument("--max-loras", type=int)
    serve.add_argument("--max-lora-rank", type=int, default=16)
    serve.add_argument("--lora-modules", nargs="*", default=[])
    serve.add_argument("--api-server-count", type=int, choices=[1])
    serve.add_argument("--enforce-eager", action="store_true")
    return parser
