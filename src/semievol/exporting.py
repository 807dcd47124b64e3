"""Writes a model of a run as an ordinary folder that transformers, PEFT and vLLM open, with a model card.

The folder is written beside its place and renamed: it is whole or absent. Nothing in it names a folder of this machine.
"""

import json
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semievol.errors import ArtifactError, ConfigError
from semievol.runs import FinishedRun, open_run, public_base
from semievol.types import ModelRef

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NOT_EXPORTED = ("fit_report.json", "README.md", "training_args.bin")


def export_model(run_path: Path, output_dir: Path, *, merge: bool, which: str = "semievol") -> Path:
    """Write a model of a run to `output_dir` and return it.

    Args:
        run_path: Folder of a finished run.
        output_dir: Must not exist, or be empty.
        merge: Put the adapter into the base's weights, in the base's own dtype; else the adapter alone is written. A
            fully fine-tuned model is a whole model either way.
        which: semievol, sft (the warm-up model) or sft_matched (the control).

    Raises:
        ConfigError: If `output_dir` holds something, or the model was not trained by the TRL trainer.
        ArtifactError: If the run is not finished, or the disk is full.
    """
    from safetensors import SafetensorError

    from semievol.model_card import write_card

    if output_dir.is_dir() and any(output_dir.iterdir()):
        raise ConfigError(f"--output {output_dir} is not empty; name a new folder")
    if output_dir.is_file():
        raise ConfigError(f"--output {output_dir} is a file; name a new folder")
    run = open_run(run_path)
    if run.is_arm:
        raise ConfigError(
            f"{run_path} is a run of a comparison, which has no results of its own for the model card; export from a "
            "run of the same config and seed (semievol run CONFIG seed=N)"
        )
    model = run.model(which)
    _check_trained(run, model)
    if not (run_path / "results.json").is_file():  # a run that began again has none, as it would be of other models
        raise ArtifactError(f"{run_path} is not finished; run it again to go on")
    results = run.run_dir.read_json("results")
    parent = output_dir.resolve().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}.partial-", dir=parent))
    except OSError as error:
        raise ConfigError(f"--output {output_dir} cannot be made: {error.strerror}; name another folder") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of the libraries, about themselves
            kind = _write_weights(run, model, partial, merge=merge)
        card = write_card(run, model, results, which=which, kind=kind)
        (partial / "README.md").write_text(card, encoding="utf-8")
        for path in partial.iterdir():
            path.chmod(0o644)
        partial.chmod(0o755)
        if output_dir.is_dir():
            output_dir.rmdir()
        partial.replace(output_dir)
    except SafetensorError as error:
        raise ArtifactError(f"the weights of {which} in {run_path} are damaged ({error}); train them again") from error
    except OSError as error:
        raise ArtifactError(
            f"{output_dir} cannot be written: {error.strerror or error}; nothing of it was left"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return output_dir


def _check_trained(run: FinishedRun, model: ModelRef) -> None:
    folder = Path(model.adapter or model.base)
    weights = ("adapter_model.safetensors",) if model.adapter else ("model.safetensors", "model.safetensors.index.json")
    if run.config.trainer.type == "openai":
        raise ConfigError(
            f"the model is {model.base} at the server that trained it; its weights stay there, so there is nothing to "
            "export. Ask for it by that name"
        )
    if run.config.trainer.type == "fake":
        raise ConfigError("this run has trainer.type: fake, which trains nothing; there is no model to export")
    if not any((folder / name).is_file() for name in weights):
        raise ArtifactError(f"{folder} holds no weights ({' or '.join(weights)}); run it again to train the model anew")


def _write_weights(run: FinishedRun, model: ModelRef, folder: Path, *, merge: bool) -> str:
    """Write weights, tokenizer and settings; returns what was written: adapter, merged or full."""
    from semievol.backends.hf import open_tokenizer, quiet_loading

    quiet_loading()
    tokenizer = open_tokenizer(run.config.model)
    if model.adapter is None:
        _copy_model(Path(model.base), folder)
    elif merge:
        _merge(run, model, tokenizer, folder)
    else:
        _copy_adapter(run, Path(model.adapter), folder)
    tokenizer.save_pretrained(folder)
    return "full" if model.adapter is None else "merged" if merge else "adapter"


def _copy_model(source: Path, folder: Path) -> None:
    for file in source.iterdir():
        if file.is_file() and file.name not in NOT_EXPORTED:
            shutil.copy2(file, folder / file.name)
    _forget_path(folder / "config.json", "_name_or_path")


def _copy_adapter(run: FinishedRun, source: Path, folder: Path) -> None:
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        shutil.copy2(source / name, folder / name)
    settings_file = folder / "adapter_config.json"
    settings: dict[str, Any] = json.loads(settings_file.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = public_base(run.config.model.path)
    settings["revision"] = run.config.model.revision
    settings_file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _merge(run: FinishedRun, model: ModelRef, tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    from semievol.backends.hf import open_model, stop_ids

    settings = run.config.model.model_copy(update={"device": "cpu"})
    opened: Any = open_model(settings, model, dtype=_base_dtype(run))
    merged = opened.merge_and_unload()
    # Generation outside this package has to stop where the chat template ends a turn.
    merged.generation_config.eos_token_id = sorted(stop_ids(tokenizer, merged))
    if merged.generation_config.pad_token_id is None:
        merged.generation_config.pad_token_id = tokenizer.pad_token_id
    merged.config._name_or_path = ""
    merged.save_pretrained(folder)
    _forget_path(folder / "config.json", "_name_or_path")


def _base_dtype(run: FinishedRun) -> Any:
    """The dtype in which the base was published; float32 where its config does not say."""
    import torch
    from transformers import AutoConfig

    from semievol.backends.hf import resolve_model_path

    model = run.config.model
    path = resolve_model_path(model.path)
    revision = None if Path(path).is_dir() else model.revision
    dtype = getattr(AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False), "dtype", None)
    return getattr(torch, dtype) if isinstance(dtype, str) else dtype or torch.float32


def _forget_path(file: Path, key: str) -> None:
    if not file.is_file():
        return
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if settings.pop(key, None) is not None:
        file.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
