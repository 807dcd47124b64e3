"""A vLLM server and the client to it: brings it up, loads adapters, and starts it again when it has crashed.

The client, its repetitions and its limit on what is under way are those of the hosted backends (openai_calls.py). When
a request fails in passing and the server is gone, one of the requests starts it again while the others wait; they then
go to the new address.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from semievol.artifacts import folder_hash
from semievol.backends.notes import logger
from semievol.backends.openai_budget import Budget
from semievol.backends.openai_calls import Caller, Cost
from semievol.backends.vllm_requests import ROUTE
from semievol.backends.vllm_server import BASE_NAME, VllmServer
from semievol.config import EndpointConfig, VllmGeneratorConfig
from semievol.errors import ConfigError, GenerationError, SemiEvolError
from semievol.types import ModelRef

T = TypeVar("T")

UNSUPPORTED_TARGETS = ("lm_head", "embed_tokens")
"""Modules whose adapters vLLM drops or refuses (vllm-project/vllm#51594 for the first)."""


SETTLE_SECONDS = 1.0
"""In which a server that has crashed is seen to be gone."""


class VllmService:
    """Serves one base at a time. All but `post` is for the thread of the caller."""

    def __init__(self, config: VllmGeneratorConfig, server: VllmServer) -> None:
        self._config, self._server = config, server
        self._caller: Caller | None = None
        self._adapters: dict[str, str] = {}
        """Name and folder of those that the server has."""
        self._names: dict[str, str] = {}
        """Adapter folder -> name; adapters of a training never change."""
        self._lock = asyncio.Lock()
        self._n_restarts = 0
        self._given_up: GenerationError | None = None

    @property
    def caller(self) -> Caller:
        """The client, once `serve` has been called."""
        assert self._caller is not None
        return self._caller

    @property
    def n_requests(self) -> int:
        """Sent so far, repetitions included."""
        return 0 if self._caller is None else self._caller.n_requests

    def serve(self, base: str) -> None:
        """Have the server up with the model in `base`, in the place of any other; nothing may be under way.

        Raises:
            GenerationError: If it does not come up.
        """
        if self._server.base == base and self._server.is_alive:
            return
        if self._given_up is not None:
            raise self._given_up
        if self._server.base != base:
            self._adapters.clear()
        logger.info("starting vLLM with %s; its log is %s", base, self._server.log)
        self._start(base)

    def name_of(self, model: ModelRef) -> str:
        """What requests to `model` name; loads its adapter if the server has not got it.

        Raises:
            ConfigError: If vLLM cannot use the adapter.
        """
        if model.adapter is None:
            return BASE_NAME
        name = self._names.get(model.adapter)
        if name is None:
            name = self._names[model.adapter] = f"semievol-{folder_hash(Path(model.adapter))[:12]}"
        if name not in self._adapters:
            folder = str(Path(model.adapter).resolve())
            check_adapter(Path(folder), self._config)
            try:
                self.caller.wait(self._load(name, folder))
            except SemiEvolError:
                raise
            except Exception as error:
                said = " ".join(str(error).replace(self._server.key, "[key]").split())[:400]
                raise ConfigError(f"vLLM could not load the adapter in {folder}: {said}") from None
        return name

    async def post(self, body: Mapping[str, Any], read: Callable[[dict[str, Any]], T]) -> T:
        """What `read` makes of the answer (see Caller.post). Raises GenerationError once the server is given up."""
        return await self.caller.post(ROUTE, body, str(body["model"]), Cost(), read)

    def close(self) -> None:
        """End the server; its memory is free when this returns."""
        self._server.close()
        if self._caller is not None:
            self._caller.__exit__(None, None, None)

    async def _load(self, name: str, folder: str) -> None:
        """Load an adapter; a server that is started again meanwhile brings it along."""
        n_restarts = self._n_restarts
        self._adapters[name] = folder
        try:
            await self.caller.load_adapter(name, folder)
        except Exception:
            await asyncio.sleep(SETTLE_SECONDS)
            await self._recover()
            if self._n_restarts == n_restarts:
                del self._adapters[name]
                raise

    async def _recover(self) -> float:
        """Start the server again if it is gone; returns the seconds that this took, 0 if it is there."""
        if self._server.is_alive:
            return 0.0
        started = time.monotonic()
        async with self._lock:
            if not self._server.is_alive:
                await asyncio.to_thread(self._restart)
        return time.monotonic() - started

    def _restart(self) -> None:
        if self._given_up is not None:
            raise self._given_up
        base = self._server.base
        assert base is not None
        said = f"the vLLM server for {base} ended with code {self._server.exit_code()} while it was answering"
        if self._n_restarts >= self._config.max_restarts:
            self._given_up = GenerationError(
                f"{said}, after {self._n_restarts} restarts (generator.max_restarts); what was answered is kept: run "
                f"again to go on. The last lines of its log:\n{self._server.last_lines()}"
            )
            raise self._given_up
        self._n_restarts += 1
        logger.info("%s; starting it again (%d of %d)", said, self._n_restarts, self._config.max_restarts)
        try:
            self._start(base)
        except GenerationError as error:
            self._given_up = error
            raise

    def _start(self, base: str) -> None:
        self._server.start(base, dict(self._adapters))
        endpoint = EndpointConfig(
            base_url=self._server.address,
            api_key_env=None,
            max_concurrency=self._config.max_concurrency,
            timeout_seconds=self._config.timeout_seconds,
        )
        if self._caller is None:
            budget = Budget(None, None, None)
            self._caller = Caller(endpoint, budget, key=self._server.key, recover=self._recover)
        else:
            self._caller.move(endpoint)


def check_adapter(folder: Path, config: VllmGeneratorConfig) -> None:
    """Raise ConfigError if vLLM would refuse the adapter, or serve it without a part of it and not say so."""
    try:
        stored = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"the adapter in {folder} cannot be opened: {error}") from error
    if config.max_loras == 0:
        raise ConfigError(f"generator.max_loras: 0 loads no adapter, but {folder} is one; set 1 or more")
    if stored.get("r", 0) > config.max_lora_rank:
        raise ConfigError(
            f"generator.max_lora_rank: {config.max_lora_rank} is below the rank {stored['r']} of the adapter in "
            f"{folder}; raise it"
        )
    listed = stored.get("target_modules") or ()
    targets = (listed,) if isinstance(listed, str) else listed
    wrong = [*(stored.get("modules_to_save") or ()), *(t for t in targets if t.endswith(UNSUPPORTED_TARGETS))]
    if wrong or stored.get("use_dora"):
        what = ", ".join(wrong) or "DoRA"
        raise ConfigError(
            f"the adapter in {folder} changes {what}, which vLLM does not serve; train without it, or use "
            "generator.type: transformers"
        )
