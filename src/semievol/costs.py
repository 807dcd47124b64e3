"""Works out what a run will cost before it starts: requests, tokens, optimiser steps, memory, disk and time.

Rows and steps follow from the config where they can be known. What depends on the model's answers (how many rows need
justification; how many the `released` recipe keeps) is given as the most there can be.
"""

import math
import os
import shutil
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from semievol.answering import max_tokens
from semievol.backends.base import HOSTED, open_trainer
from semievol.config import (
    ConfigurationConfig,
    ModelConfig,
    RayGeneratorConfig,
    RunConfig,
    TrainerConfig,
    local_generator,
)
from semievol.model_sizes import ModelSize
from semievol.sft import stage_trainer_config

ROW_BYTES = 1500
"""Row store and artifacts, a request: keys, text, log-probabilities, candidates and labels."""


class Sizes(NamedTuple):
    """Rows and mean tokens that the plan is made of."""

    n_labeled: int
    n_unlabeled: int
    n_test: int
    prompt_tokens: Mapping[int, float]
    """Mean tokens of a prompt with k demonstrations, by k; 0 is always there."""
    train_tokens: float
    """Mean tokens of a training row, completion included."""
    completion_tokens: float


class StagePlan(NamedTuple):
    """What one stage does, over all rounds."""

    stage: str
    what: str
    rows: int
    at_most: bool
    """Whether `rows` and what follows from it is the most there can be."""
    prompt_tokens: int
    n_scored: int
    """Exact answer distributions."""
    n_sampled: int
    """Completions."""
    optimizer_steps: int
    train_tokens: int


class Memory(NamedTuple):
    """Bytes that the model needs, roughly, and how many there are."""

    generation: int
    training: int
    available: int
    device: str


class Disk(NamedTuple):
    """Bytes that a run needs on the disk of its folder, roughly, and how many are free."""

    models: int
    checkpoints: int
    rows: int
    free: int

    @property
    def needed(self) -> int:
        """At the run's fullest moment."""
        return self.models + self.checkpoints + self.rows


def plan_stages(config: RunConfig, sizes: Sizes) -> list[StagePlan]:
    """What each stage will do."""
    trainer = open_trainer(config.trainer, config.model)
    closed = config.task.type in ("choice", "label")
    rounds = _round_rows(config, sizes)
    warm = stage_trainer_config(config.trainer, config.warmup)
    n_answered = sum(n for n, _ in rounds)
    trained = [n for _, n in rounds]
    # From the base every round trains afresh and the control matches the last one; from the warm model rounds add up.
    matched = trained[-1:] if config.evolve.init == "base" else trained
    minima = (config.select.min_confidence, config.select.min_agreement)
    uncertain = config.select.apply_to == "justified" or minima != (None, None)
    settings = stage_trainer_config(config.trainer, config.evolve)

    def training(stage: str, what: str, rows: list[int], used: TrainerConfig, at_most: bool) -> StagePlan:
        steps = sum(trainer.count_steps(n, used) for n in rows)
        return StagePlan(
            stage, what, sum(rows), at_most, 0, 0, 0, steps, round(steps * rows_a_step(config) * sizes.train_tokens)
        )

    plans = [
        training("warmup", "SFT on labelled rows", [sizes.n_labeled], warm, False),
        StagePlan("retrieve", "nearest labelled rows", n_answered, False, 0, 0, 0, 0, 0),
        _propagate(config, sizes, n_answered),
        _justify(config, sizes, n_answered, closed=closed),
        training("evolve", "SFT with pseudo-labels", trained, settings, uncertain),
    ]
    if config.adapt.enabled:
        adapt = stage_trainer_config(config.trainer, config.adapt)
        n_texts = sizes.n_labeled + sizes.n_unlabeled
        plans.insert(0, training("adapt", "questions of all rows", [n_texts], adapt, False))
    if config.control.enabled:
        control = training("control", "SFT for as many steps", matched, settings, uncertain)
        plans.append(control._replace(rows=sizes.n_labeled))
    n_models = 4 if config.control.enabled else 3
    exact = closed and config.evaluate.answer_with == "auto" and config.generator.type not in HOSTED
    n = n_models * sizes.n_test
    tokens = round(n * sizes.prompt_tokens[0])
    what = f"{n_models} models, test rows"
    plans.append(StagePlan("evaluate", what, sizes.n_test, False, tokens, n if exact else 0, 0 if exact else n, 0, 0))
    return plans


def _round_rows(config: RunConfig, sizes: Sizes) -> list[tuple[int, int]]:
    """Rows that each round answers, and rows that its evolve trains on."""
    left, kept, found = sizes.n_unlabeled, 0, []
    labeled = sizes.n_labeled if config.evolve.train_on == "labeled+selected" else 0
    for _ in range(config.rounds):
        share = config.select.keep_fraction if config.select.apply_to == "all" else 1.0
        kept_here = math.ceil(share * left)
        kept += kept_here
        found.append((left, labeled + kept))
        if config.select.apply_to == "all":
            left -= kept_here
    return found


def rows_a_step(config: RunConfig) -> int:
    """Rows that one optimiser step sees."""
    trainer = config.trainer
    if trainer.type == "trl":
        return trainer.rows_a_step
    return trainer.batch_size if trainer.type == "openai" and isinstance(trainer.batch_size, int) else 8


def configurations(config: RunConfig) -> list[ConfigurationConfig]:
    """The configurations of propagate; those that are drawn by seed stand for all that might be."""
    if config.propagate.draw is None:
        return list(config.propagate.configurations)
    k = config.retrieve.k
    return [
        ConfigurationConfig(model="warm", k=round(i * k / max(1, config.propagate.draw - 1)))
        for i in range(config.propagate.draw)
    ]


def _propagate(config: RunConfig, sizes: Sizes, n_rows: int) -> StagePlan:
    used = configurations(config)
    counts = Counter(used)
    sampled = config.propagate.answer_with == "samples"
    shared = sampled and len(set(counts.values())) == 1
    prompts = list(counts) if shared else used
    tokens = round(n_rows * sum(sizes.prompt_tokens[c.k] for c in prompts))
    n = n_rows * len(used)
    what = f"{len(used)} answers a row"
    plan = StagePlan("propagate", what, n_rows, False, tokens, 0 if sampled else n, n if sampled else 0, 0, 0)
    if config.propagate.cascade is None:
        return plan
    # All rows are looked at; how many stay open is not known before.
    first = round(n_rows * sizes.prompt_tokens[0])
    what = f"a first look, {what.replace('a row', 'an open row')}"
    return plan._replace(what=what, at_most=True, prompt_tokens=tokens + first, n_scored=plan.n_scored + n_rows)


def _justify(config: RunConfig, sizes: Sizes, n_rows: int, *, closed: bool) -> StagePlan:
    """Justification of the rows without consensus, and the confidence of every final answer."""
    n_justified = 0 if config.justify.when == "never" else n_rows
    extra = sizes.completion_tokens * (1 if closed else 4) + 20
    tokens = round(n_rows * sizes.prompt_tokens[0] + n_justified * (sizes.prompt_tokens[0] + extra))
    hosted = config.generator.type in HOSTED  # completes only, so confidence is one more completion
    by_score = closed and config.justify.temperature == 0.0 and not hosted
    n_scored = 0 if hosted else n_rows + (n_justified if by_score else 0)
    n_sampled = (0 if by_score else n_justified) + (n_rows if hosted else 0)
    return StagePlan(
        "justify",
        "verdicts, confidence",
        n_rows,
        config.justify.when == "disagree",
        tokens,
        n_scored,
        n_sampled,
        0,
        0,
    )


def estimate_memory(config: RunConfig, size: ModelSize, longest_row: int) -> Memory:
    """Weights, cache and activations of the fullest batch; within a factor of about 1.5 for dense decoders."""
    device, available, half = _device(config.model)
    width = 2 if half or config.model.dtype in ("bfloat16", "float16") else 4
    generator, trainer = local_generator(config.generator), config.trainer
    batch, n_models = 0, 1
    if generator.type == "transformers":
        batch = generator.batch_tokens
        if trainer.type == "trl" and trainer.method == "full":
            n_models = min(2, generator.max_loaded_models)  # base and warm model
    cache = batch * size.kv_size * size.n_layers * width
    generation = n_models * size.n_parameters * width + cache + batch * size.hidden_size * 8 * width
    if generator.type == "vllm" and device != "cpu":
        generation = round(generator.gpu_memory_utilization * available)  # of each GPU, whatever the model's size
    if isinstance(config.generator, RayGeneratorConfig):  # models on other machines need no memory of this one
        generation *= config.generator.replicas if config.generator.address is None else 0
    if trainer.type != "trl":
        return Memory(generation, 0, available, device)
    # precision: auto may halve the frozen weights on a CPU; that would take torch to tell.
    frozen_width = 2 if trainer.precision == "bf16" else width
    frozen = {"lora": frozen_width, "qlora": 0.6, "full": 0.0}[trainer.method] * size.n_parameters
    tokens = trainer.per_device_train_batch_size * min(longest_row, trainer.max_length)
    layers = 1 if trainer.activation_checkpointing else size.n_layers
    activations = tokens * (size.hidden_size * 34 * layers * width / 2 + size.vocab_size * 10)
    weights = (frozen + 16 * size.n_adapter) / (trainer.num_processes if trainer.is_sharded else 1)
    # Processes on a CPU share its memory; those on GPUs have one each.
    n_here = trainer.launch.num_processes_per_machine if trainer.launch is not None and device == "cpu" else 1
    return Memory(generation, round(n_here * (weights + activations)), available, device)


def _device(model: ModelConfig) -> tuple[str, int, bool]:
    """Name of the device, bytes of memory it has, and whether weights stand in 16 bits on it by default."""
    from semievol.backends.hf import resolve_device, resolve_device_type, resolve_dtype

    if resolve_device_type(model) != "cuda":
        half = model.dtype not in ("auto", "float32")
        return "cpu", os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), half
    import torch

    properties = torch.cuda.get_device_properties(resolve_device(model))
    return properties.name, properties.total_memory, resolve_dtype(model) != torch.float32


def estimate_disk(config: RunConfig, size: ModelSize | None, plans: list[StagePlan], folder: Path) -> Disk:
    """Adapters or models of all trainings, the checkpoints of one, and the rows."""
    n_trainings = 1 + config.rounds + int(config.control.enabled)
    weights = 0 if size is None or config.trainer.type != "trl" else 4 * size.n_adapter
    n_requests = sum(p.n_scored + p.n_sampled for p in plans)
    checkpoints = checkpoint_bytes(config, size.n_adapter) if weights and size is not None else 0
    return Disk(n_trainings * weights, checkpoints, n_requests * ROW_BYTES, shutil.disk_usage(folder).free)


def checkpoint_bytes(config: RunConfig, n_trained: int) -> int:
    """Most bytes of the checkpoints of one training of `n_trained` weights, for as long as it runs.

    One holds the weights, one more time where they are cut into shares, and the two moments of AdamW, with 4 bytes a
    number; a new one is written before the old one goes.
    """
    n_copies = 4 if config.trainer.type == "trl" and config.trainer.is_sharded else 3
    return 2 * n_copies * 4 * n_trained


def answer_limit(config: RunConfig) -> int:
    """Most tokens of a sampled answer."""
    return max_tokens(config, config.propagate.max_tokens)
