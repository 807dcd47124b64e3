"""Fine-tunes with TRL and PEFT: checks the rows, resumes from what a killed process left, saves whole or not at all.

Folders of one training:

    <output_dir>.partial/   request.sha256, checkpoint-<step>/, and at the very end final/
    <output_dir>/           final/ renamed: weights (safetensors), tokenizer, chat template, README.md, fit_report.json

Each training has a fingerprint over everything that its weights depend on. A partial folder of another fingerprint is
thrown away, a finished folder of the same one is taken as it is.
"""

import gc
import hashlib
import json
import logging
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from semievol.artifacts import folder_hash
from semievol.backends import hf, sft_rows
from semievol.backends.base import FIT_REPORT, FitReport, Progress, require
from semievol.backends.host_memory import restart_peak
from semievol.backends.launching import launch_faults, run_workers
from semievol.backends.sft_folders import (
    Request,
    make_report,
    open_partial,
    publish,
    read_finished,
    remove_finished,
    save_final,
)
from semievol.config import ModelConfig, TrainerConfig, TrlTrainerConfig
from semievol.errors import ConfigError
from semievol.identities import weights_identity
from semievol.types import ModelRef, SftRow

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from semievol.backends.sft_rows import EncodedRow

logger = logging.getLogger(__name__)

JOB_FILE = "launch.json"
WITHOUT_EFFECT = {"save_steps", "logging_steps", "report_to", "launch"}
"""Settings that change no weight, so a training may go on under other values (of `launch`, see `_processes`)."""

_NOISY = ("transformers", "trl", "peft", "accelerate", "datasets", "huggingface_hub")


class TrlTrainer:
    """LoRA, QLoRA or full fine-tuning of one model, on one device or on one for each process of `trainer.launch`."""

    def __init__(self, model: ModelConfig) -> None:
        self._model_config = model

    def count_steps(self, n_rows: int, config: TrainerConfig) -> int:
        """Optimiser steps that `fit` takes over `n_rows` rows."""
        settings = _own_section(config)
        if n_rows == 0:
            return 0
        if settings.max_steps is not None:
            return settings.max_steps
        n_train = n_rows - sft_rows.count_held_out(n_rows, settings.eval_fraction)
        return math.ceil(settings.num_train_epochs * math.ceil(n_train / settings.rows_a_step))

    def fingerprint(self, model: ModelRef, train: Sequence[SftRow], *, config: TrainerConfig, seed: int) -> str:
        """SHA-256 over rows, settings, seed, base, tokenizer, precision and the versions of the libraries."""
        with quiet():
            tokenizer = hf.tokenizer_fingerprint(hf.open_tokenizer(self._model_config))
            return self._fingerprint(model, train, _own_section(config), seed, tokenizer)

    def fit(
        self,
        model: ModelRef,
        train: Sequence[SftRow],
        output_dir: Path,
        *,
        config: TrainerConfig,
        seed: int,
        progress: Progress | None = None,
    ) -> FitReport:
        """Train `model` on the completions of `train` and save to `output_dir` (see `base.Trainer`).

        On a CPU with a set number of threads the same call gives the same bytes, killed on the way or not.

        Raises:
            ConfigError: If the settings do not fit together or to this machine.
            TrainingError: On rows that are too long or do not end with a stop token, a loss that is not finite, or
                lack of memory.
            ArtifactError: If `output_dir` holds something that no training of ours wrote.
        """
        settings = _own_section(config)
        device = hf.resolve_device(self._model_config)
        _check_method(model, settings, device)
        for fault in launch_faults(settings, self._model_config, device.type):
            raise ConfigError(fault)
        with quiet():
            tokenizer = hf.open_tokenizer(self._model_config)
            fingerprint = self._fingerprint(model, train, settings, seed, hf.tokenizer_fingerprint(tokenizer))
            finished = read_finished(output_dir, fingerprint)
            if finished is not None:
                if progress is not None:
                    progress(finished.optimizer_steps)
                return finished
            rows = sft_rows.encode_rows(tokenizer, train)
            model_length = hf.resolve_max_length(self._model_config)
            sft_rows.check_lengths(rows, max_length=settings.max_length, model_length=model_length)
            remove_finished(output_dir)
            request = Request(model, settings, seed, output_dir, fingerprint, progress)
            if settings.num_processes > 1:
                self._run_workers(rows, request=request)
            else:
                self.train_rows(rows, tokenizer, request=request)
            return publish(output_dir)

    def _run_workers(self, rows: list["EncodedRow"], *, request: "Request") -> None:
        from semievol.backends.sft_worker import write_job

        assert request.config.launch is not None
        opened = open_partial(request.output_dir, request.fingerprint)
        # What `auto` stands for is settled here: machines that differ would not agree.
        device = hf.resolve_device(self._model_config)
        model = self._model_config.model_copy(update={"device": device.type})
        precision = "bf16" if use_bf16(request.config, device) else "fp32"
        config = request.config.model_copy(update={"precision": precision})
        job_file = opened[0] / JOB_FILE
        write_job(job_file, rows, model=model, request=replace(request, config=config, opened=opened))
        run_workers(job_file, request.config.launch, rendezvous_id=request.fingerprint[:16], progress=request.progress)

    def train_rows(
        self, rows: Sequence["EncodedRow"], tokenizer: "PreTrainedTokenizerBase", *, request: "Request"
    ) -> None:
        """Train, or take part in a training of several processes; the first process writes `final` to its folder."""
        import torch

        from semievol.backends.sft_trainer import SftJob, train_job

        settings, device = request.config, hf.resolve_device(self._model_config)
        train, held_out = sft_rows.hold_out(rows, settings.eval_fraction, seed=request.seed)
        restart_peak()
        with _frozen_garbage(), _deterministic(device):
            opened = self._open_model(request.model, settings, device)
            sft_rows.check_stop_tokens(rows, hf.stop_ids(tokenizer, opened), tokenizer=tokenizer)
            example = sft_rows.render_example(tokenizer, rows[0])
            logger.info("training on %d rows; the part in ⟦⟧ carries the loss:\n%s", len(rows), example)
            partial_dir, checkpoint = request.opened or open_partial(request.output_dir, request.fingerprint)
            job = SftJob(
                model=opened,
                tokenizer=tokenizer,
                train=train,
                held_out=held_out,
                config=settings,
                seed=request.seed % 2**32,  # numpy takes no more
                device=device,
                bf16=use_bf16(settings, device),
                partial_dir=partial_dir,
                checkpoint=checkpoint,
                progress=request.progress,
            )
            outcome = train_job(job)
            if outcome.is_first_process:
                report = make_report(outcome, job, request.trained_model, n_rows=len(rows), example=example)
                save_final(outcome, tokenizer, partial_dir, report=report, request=request)
            del opened, job, outcome
            gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()

    def _open_model(self, model: ModelRef, config: TrlTrainerConfig, device: "torch.device") -> "PreTrainedModel":
        import torch
        from transformers import BitsAndBytesConfig

        quantization = None
        if config.method == "qlora":
            require("bitsandbytes", extra="qlora")
            quantization = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.bfloat16 if use_bf16(config, device) else torch.float16,
            )
        # Frozen weights may stand in bf16 (autocast would convert them at every use); weights that are trained stay in
        # fp32 under autocast, as small updates are lost in bf16.
        frozen_bf16 = use_bf16(config, device) and config.method != "full"
        dtype = torch.bfloat16 if frozen_bf16 else torch.float32
        # Weights that are cut into shares go to the GPU share by share.
        where = self._model_config.model_copy(update={"device": "cpu"}) if config.is_sharded else self._model_config
        return hf.open_model(where, model, trainable=True, dtype=dtype, quantization_config=quantization)

    def _fingerprint(
        self, model: ModelRef, train: Sequence[SftRow], config: TrlTrainerConfig, seed: int, tokenizer: str
    ) -> str:
        """SHA-256 over all that the trained weights depend on."""
        digest = hashlib.sha256()
        head = {
            "config": config.model_dump(mode="json", exclude=WITHOUT_EFFECT) | _processes(config),
            "model": self._model_config.model_dump(mode="json"),
            "base": _base_identity(model.base),
            "adapter": None if model.adapter is None else folder_hash(Path(model.adapter)),
            "seed": seed,
            "tokenizer": tokenizer,
            "bf16": use_bf16(config, hf.resolve_device(self._model_config)),
            "versions": {name: version(name) for name in ("torch", "transformers", "trl", "peft")},
        }
        digest.update(json.dumps(head, sort_keys=True).encode())
        for row in train:
            turns = [[turn.role, turn.content] for turn in row.messages]
            weight = [] if row.weight == 1.0 else [row.weight]
            digest.update(json.dumps([row.id, turns, row.completion, *weight]).encode())
        return digest.hexdigest()


def _own_section(config: TrainerConfig) -> TrlTrainerConfig:
    if not isinstance(config, TrlTrainerConfig):
        raise ConfigError(f"trainer.type: the TRL trainer got a section of type {config.type}")
    return config


def _check_method(model: ModelRef, config: TrlTrainerConfig, device: "torch.device") -> None:
    if config.method == "qlora" and device.type != "cuda":
        raise ConfigError(f"trainer.method: qlora needs a CUDA GPU, but the device is {device}; use lora")
    if config.method == "full" and model.adapter is not None:
        raise ConfigError(
            f"trainer.method: full trains plain weights, but the model carries the adapter {model.adapter}; use lora"
        )


def _processes(config: TrlTrainerConfig) -> dict[str, Any]:
    """What of `launch` changes the weights: how many processes there are, and how they share. Not where they run."""
    if config.launch is None or config.num_processes == 1:
        return {}
    return {"launch": [config.num_processes, config.launch.strategy]}


def use_bf16(config: TrlTrainerConfig, device: "torch.device") -> bool:
    """Whether a training computes in bf16, as `trainer.precision` says; auto: where the device is fast at it."""
    import torch

    if config.precision == "auto":
        return torch.cuda.is_bf16_supported() if device.type == "cuda" else device.type == "cpu" and _cpu_has_bf16()
    return config.precision == "bf16"


def _cpu_has_bf16() -> bool:
    """Whether the CPU has instructions for products of bf16 matrices (AVX512-BF16, AMX): twice as fast as fp32.

    Others take bf16 too, but convert it on the way, which is slower than fp32. False where torch does not tell.
    """
    import torch

    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16"))


def _base_identity(base: str) -> list[str | None]:
    """Name and content of a base; of one that was trained here the content alone, as its copies are the same model."""
    folder = hf.resolve_model_path(base)
    is_ours = (Path(folder) / FIT_REPORT).is_file()
    return [None if is_ours else base, weights_identity(folder)]


@contextmanager
def _deterministic(device: "torch.device") -> Iterator[None]:
    """Ask for deterministic kernels on a GPU; those of the CPU are. Ops that have none only warn."""
    if device.type != "cuda":
        yield
        return
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warn_only)


@contextmanager
def _frozen_garbage() -> Iterator[None]:
    """Keep the collector off what was there before: the libraries' objects are so many that each round takes 0.3 s."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' notices, bars and future warnings out of the run's output; errors come through."""
    hf.quiet_loading()
    levels = {name: logging.getLogger(name).level for name in _NOISY}
    for name in _NOISY:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
