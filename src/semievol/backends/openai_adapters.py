"""Makes a model that was trained on this machine known to a server, which knows models by name.

The name is made of the hash of the folder, so the same weights have the same name at every start. vLLM loads a LoRA
adapter on request; any other server has to be told by a person, and the run stops with the name until that is done.
"""

from pathlib import Path

from semievol.artifacts import folder_hash
from semievol.backends.openai_calls import Caller, describe
from semievol.backends.openai_client import classify, redact, to_exception
from semievol.config import ChatGeneratorConfig
from semievol.errors import ConfigError
from semievol.types import ModelRef


class ServedNames:
    """Names under which a server knows models; each is looked up once."""

    def __init__(self, config: ChatGeneratorConfig, base: str, caller: Caller) -> None:
        self._config, self._caller = config, caller
        self._names = {ModelRef(base): config.model or base}

    def name_of(self, model: ModelRef) -> str:
        """What requests to `model` name.

        Raises:
            ConfigError: If the server does not know a model that was trained here.
        """
        if model not in self._names:
            folder = Path(model.adapter or model.base)
            self._names[model] = self._serve(model, folder) if folder.is_dir() else model.base
        return self._names[model]

    def _serve(self, model: ModelRef, folder: Path) -> str:
        name = f"semievol-{folder_hash(folder)[:12]}"
        known = self._list()
        if name in known or f"{name}:latest" in known:
            return name
        if self._config.adapters == "load" and model.adapter is not None:
            self._load(name, folder)
            return name
        what = "adapter" if model.adapter is not None else "model"
        raise ConfigError(
            f"{describe(self._config, name)} is not served: serve the {what} in {folder.resolve()} under this name and "
            "run again, all is kept (vLLM loads adapters by itself with generator.adapters: load)"
        )

    def _list(self) -> set[str]:
        try:
            listed: set[str] = self._caller.wait(self._caller.list_models())
        except Exception as error:
            raise to_exception(classify(error, self._config, "of the run")) from None
        return listed

    def _load(self, name: str, folder: Path) -> None:
        try:
            self._caller.wait(self._caller.load_adapter(name, str(folder.resolve())))
        except Exception as error:
            said = redact(" ".join(str(error).split())[:300], self._config)
            raise ConfigError(
                f"{describe(self._config, name)} could not load the adapter in {folder.resolve()} ({said}): start vLLM "
                "where it sees this folder, with --enable-lora, a --max-lora-rank of at least trainer.r and "
                "VLLM_ALLOW_RUNTIME_LORA_UPDATING=True"
            ) from None
