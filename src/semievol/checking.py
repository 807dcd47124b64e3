"""Does everything that can fail later, without computing: data, model, prompts, folder, memory, disk and the plan.

Rows are loaded by the code of the data stage and prompts are made by the code of the later ones, so what passes here
is what a run will see. A fault is what would stop the run; a warning is what may surprise.
"""

import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from statistics import mean, median
from typing import TYPE_CHECKING, Any, NamedTuple

from semievol.artifacts import RunDir
from semievol.backends.base import Tokens, open_retriever
from semievol.config import Bm25EmbedderConfig, RunConfig
from semievol.costs import (
    Disk,
    Memory,
    Sizes,
    StagePlan,
    answer_limit,
    configurations,
    estimate_disk,
    estimate_memory,
    plan_stages,
    rows_a_step,
)
from semievol.demonstrations import fit_demonstrations, retrieve
from semievol.errors import SemiEvolError
from semievol.loading import LoadedData, load_examples
from semievol.model_sizes import ModelSize
from semievol.money import Money, estimate_money, limit_warnings
from semievol.prompts import PromptBuilder
from semievol.stage import Backends, SilentReporter, StageContext
from semievol.stages import data as data_stage
from semievol.surroundings import check_folder, check_hub, check_keys, check_model, check_tuning, missing_packages
from semievol.timing import measure_speed, spread, stage_seconds
from semievol.timing import to_json as timing_json
from semievol.types import Example, Message, SplitName

if TYPE_CHECKING:
    from rich.console import RenderableType

LOOKED_AT = 500
"""Rows of each split whose prompts are counted; the data stage counts all of them against the limit."""
WITH_DEMONSTRATIONS = 100
"""Unlabelled rows for which demonstrations are looked up."""


class RowsFound(NamedTuple):
    """What loading found."""

    labeled: int
    unlabeled: int
    test: int
    rejected: int
    duplicates: int
    duplicates_dropped: int
    gold_sealed: int
    labels: tuple[str, ...]
    targets: dict[str, int]
    """Labelled rows of each target; empty for open answers."""
    notes: tuple[str, ...]


class Lengths(NamedTuple):
    """Tokens of one kind of prompt."""

    prompt: str
    n_rows: int
    shortest: int
    median: float
    longest: int
    limit: int


class RenderedPrompt(NamedTuple):
    """One prompt as the model sees it."""

    stage: str
    text: str
    completion: str | None
    """What the model is trained to give, of a training row."""


@dataclass
class CheckResult:
    """What a check found, filled on the way; `faults` would stop the run."""

    config: RunConfig
    faults: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    rows: RowsFound | None = None
    lengths: list[Lengths] = field(default_factory=list)
    prompts: list[RenderedPrompt] = field(default_factory=list)
    model: ModelSize | None = None
    plan: list[StagePlan] = field(default_factory=list)
    memory: Memory | None = None
    disk: Disk | None = None
    notes: list[str] = field(default_factory=list)
    """What is neither: how numbers came about."""
    finished: list[str] = field(default_factory=list)
    """Stages of the run folder that are done and will be skipped if nothing that they depend on has changed."""
    money: Money | None = None
    """What a run at a hosted model may cost; None for one that sends nothing to a server."""
    timing: dict[str, Any] | None = None
    """Measured speed and seconds by stage; None if nothing was measured."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "ok": not self.faults,
            "faults": list(self.faults),
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "rows": self.rows and self.rows._asdict(),
            "lengths": [x._asdict() for x in self.lengths],
            "prompts": [x._asdict() for x in self.prompts],
            "model": self.model and self.model._asdict(),
            "plan": [x._asdict() for x in self.plan],
            "memory": self.memory and self.memory._asdict(),
            "disk": self.disk and {**self.disk._asdict(), "needed": self.disk.needed},
            "finished": list(self.finished),
            "money": self.money
            and {
                **self.money._asdict(),
                "stages": [s._asdict() for s in self.money.stages],
                "requests": self.money.requests,
            },
            "timing": self.timing,
            "output_dir": self.config.output_dir,
        }

    def render(self) -> "RenderableType":
        """Tables for a terminal."""
        from semievol.check_tables import render_check

        return render_check(self)


def check_run(config: RunConfig, *, measure: bool = False) -> CheckResult:
    """Check a run without starting it.

    Args:
        config: What would be run.
        measure: Load the model too, and time a few real steps in a temporary folder.
    """
    found = CheckResult(config)
    found.faults += missing_packages(config)
    found.warnings += [*check_keys(config), *check_tuning(config, date.today())]
    folder_faults, folder_warnings, found.finished = check_folder(config)
    found.faults += folder_faults
    found.warnings += folder_warnings
    with tempfile.TemporaryDirectory(prefix="semievol-check-") as folder:
        backends = Backends(config)
        unreachable = check_hub(config)
        found.faults += unreachable
        tokens = None if unreachable else _open_tokens(backends, found)
        if tokens is not None:
            model_faults, model_warnings, found.model = check_model(config)
            found.faults += model_faults
            found.warnings += model_warnings
        loaded = _load(config, backends, Path(folder), tokens, found)
    if loaded is not None:
        _check_rows(config, loaded, found)
    if loaded is not None and tokens is not None:
        try:
            _check_prompts(config, loaded, tokens, found, measure=measure)
        except SemiEvolError as error:
            found.faults.append(str(error))
    return found


def _open_tokens(backends: Backends, found: CheckResult) -> Tokens | None:
    try:
        return backends.tokens
    except SemiEvolError as error:
        found.faults.append(str(error))
        return None


def _load(
    config: RunConfig, backends: Backends, folder: Path, tokens: Tokens | None, found: CheckResult
) -> LoadedData | None:
    """The rows, as the data stage of the run will load them."""
    try:
        if tokens is None:
            return load_examples(config)
        context = StageContext(config, RunDir(folder), data_stage.STAGE, backends, SilentReporter())
        return data_stage.load(context)
    except SemiEvolError as error:
        found.faults.append(str(error))
        return None


def _check_rows(config: RunConfig, loaded: LoadedData, found: CheckResult) -> None:
    targets = dict(loaded.target_counts.get("labeled", {}))
    rows = RowsFound(
        labeled=len(loaded.labeled),
        unlabeled=len(loaded.unlabeled),
        test=len(loaded.test),
        rejected=len(loaded.rejected),
        duplicates=len(loaded.duplicates),
        duplicates_dropped=sum(d.dropped for d in loaded.duplicates),
        gold_sealed=len(loaded.gold),
        labels=loaded.facts.labels,
        targets=targets,
        notes=loaded.notes,
    )
    found.rows = rows
    if not rows.test:
        found.warnings.append("no test rows: nothing will be measured; data.test or data.split.test gives some")
    elif rows.test < 100:
        found.warnings.append(
            f"{rows.test} test rows: an interval will be about {98 / rows.test**0.5:.0f} points to each side"
        )
    if rows.unlabeled < rows.labeled:
        found.warnings.append(
            f"{rows.unlabeled} unlabelled rows for {rows.labeled} labelled ones; the paper has 3 for 1"
        )
    if rows.labeled < config.retrieve.k:
        found.warnings.append(
            f"{rows.labeled} labelled rows, but retrieve.k is {config.retrieve.k}: prompts show fewer"
        )
    missing = [label for label in rows.labels if label not in targets]
    if missing:
        found.warnings.append(f"{len(missing)} labels have no labelled row: {', '.join(missing[:5])}")
    rare = [target for target, n in targets.items() if n == 1]
    if rare:
        found.warnings.append(f"{len(rare)} targets have a single labelled row: {', '.join(rare[:5])}")
    if rows.rejected:
        first = loaded.rejected[0]
        found.warnings.append(
            f"{rows.rejected} rows cannot be used, first {first.file}, line {first.line}: {first.reason}; "
            f"{first.remedy}"
        )


def _check_prompts(config: RunConfig, loaded: LoadedData, tokens: Tokens, found: CheckResult, *, measure: bool) -> None:
    """Lengths, one prompt a stage, the plan and what follows from it."""
    prompts = PromptBuilder(config.task, loaded.facts)
    limit = tokens.max_length - answer_limit(config)
    splits: dict[SplitName, Sequence[Example]] = {
        "labeled": loaded.labeled, "unlabeled": loaded.unlabeled, "test": loaded.test,
    }  # fmt: skip
    lengths, zero = [], 0.0
    for name, rows in splits.items():
        counts = [tokens.count_prompt(prompts.answer(row)) for row in spread(rows, LOOKED_AT)]
        if counts:
            lengths.append(_lengths(f"{name}, no demonstration", counts, limit))
        if name == "unlabeled":
            zero = mean(counts)
    shown = _demonstrations(config, loaded)
    by_k = {0: zero}
    n_dropped = 0
    for k in sorted({c.k for c in configurations(config)} - {0}):
        fitted = [fit_demonstrations(row, near[:k], prompts, tokens, limit=limit) for row, near in shown]
        counts = [tokens.count_prompt(messages) for messages, _ in fitted]
        n_dropped += sum(n for _, n in fitted)
        by_k[k] = mean(counts)
        lengths.append(_lengths(f"unlabeled, {k} demonstration{'s' * (k > 1)}", counts, limit))
    if n_dropped:
        found.warnings.append(
            f"{n_dropped} demonstrations do not fit into model.max_length ({tokens.max_length}) in a sample of "
            f"{len(shown)} rows, and are left out"
        )
    trained, completions = _training_lengths(config, loaded, prompts, tokens, found)
    lengths.append(trained)
    found.lengths = lengths
    found.prompts = _render_prompts(config, loaded, prompts, tokens, shown)
    n_rows = (len(loaded.labeled), len(loaded.unlabeled), len(loaded.test))
    sizes = Sizes(*n_rows, by_k, trained.median, completions)
    _check_costs(config, sizes, trained.longest, found)
    is_estimate = getattr(tokens, "is_estimate", False)
    found.money = estimate_money(config, sizes, found.plan, is_estimate=is_estimate)
    if found.money is not None:
        found.warnings += limit_warnings(config, found.money)
        if is_estimate:
            found.notes.append("tokens are estimated from UTF-8 bytes, one for 4; ranges allow for that")
        if measure:
            found.notes.append("--measure is left out: it would send requests that may cost money")
    elif measure and not found.faults:
        speed = measure_speed(config, prompts, loaded.labeled, loaded.unlabeled)
        stages = stage_seconds(found.plan, speed, rows_a_step(config))
        found.timing = timing_json(speed, stages)


def _lengths(prompt: str, counts: Sequence[int], limit: int) -> Lengths:
    return Lengths(prompt, len(counts), min(counts), median(counts), max(counts), limit)


def _demonstrations(config: RunConfig, loaded: LoadedData) -> list[tuple[Example, list[Example]]]:
    """A sample of unlabelled rows with their nearest labelled rows; BM25 stands in for embedders that load a model."""
    rows = spread(loaded.unlabeled, WITH_DEMONSTRATIONS)
    if config.retrieve.k == 0:
        return [(row, []) for row in rows]
    embedder = config.embedder if config.embedder.type == "fake" else Bm25EmbedderConfig()
    by_id = {example.id: example for example in loaded.labeled}
    found = retrieve(loaded.labeled, rows, open_retriever(embedder, config.model), k=config.retrieve.k)
    return [(row, [by_id[i] for i in near.demonstration_ids]) for row, near in zip(rows, found, strict=True)]


def _training_lengths(
    config: RunConfig, loaded: LoadedData, prompts: PromptBuilder, tokens: Tokens, found: CheckResult
) -> tuple[Lengths, float]:
    """Tokens of training rows, and the mean of their completions; a row that is too long would stop the training."""
    longest_row = getattr(config.trainer, "max_length", tokens.max_length)
    limit = min(longest_row, tokens.max_length)
    totals, completions, over = [], [], []
    for row in loaded.labeled:
        n_completion = tokens.count_text(prompts.completion(row.target or "", row)) + 1  # and the stop token
        completions.append(n_completion)
        totals.append(tokens.count_prompt(prompts.answer(row)) + n_completion)
        if totals[-1] > limit:
            over.append(row.id)
    if over:
        key = "trainer.max_length" if max(totals) <= tokens.max_length else "model.max_length"
        found.faults.append(
            f"{len(over)} of {len(totals)} labelled rows are longer than {limit} tokens with their answer, {over[0]} "
            f"first, and would stop the training; the longest has {max(totals)}: raise {key}, or shorten them"
        )
    pseudo = [tokens.count_prompt(prompts.answer(row)) for row in spread(loaded.unlabeled, LOOKED_AT)]
    if not over and max(pseudo) + max(completions) > limit:
        found.warnings.append(
            f"unlabelled rows of up to {max(pseudo)} tokens may not fit with their answer into {limit} "
            "(trainer.max_length), and would stop the last training if they are kept"
        )
    return _lengths("training rows", totals, limit), mean(completions)


def _render_prompts(
    config: RunConfig,
    loaded: LoadedData,
    prompts: PromptBuilder,
    tokens: Tokens,
    shown: Sequence[tuple[Example, list[Example]]],
) -> list[RenderedPrompt]:
    """One prompt of each stage, as the model sees it."""
    labeled, row = loaded.labeled[0], loaded.unlabeled[0]
    k = max(c.k for c in configurations(config))
    near = shown[0][1][:k]
    limit = tokens.max_length - answer_limit(config)
    with_demonstrations, _ = fit_demonstrations(row, near, prompts, tokens, limit=limit)
    answers = list(dict.fromkeys(e.target or "" for e in loaded.labeled))[:2]

    def rendered(stage: str, messages: tuple[Message, ...], completion: str | None = None) -> RenderedPrompt:
        return RenderedPrompt(stage, tokens.render(messages), completion)

    found = [
        rendered("warmup", prompts.answer(labeled), prompts.completion(labeled.target or "", labeled)),
        rendered("propagate", with_demonstrations),
        rendered("justify", prompts.justify(row, answers)),
    ]
    return [*found, *(rendered("evaluate", prompts.answer(e)) for e in loaded.test[:1])]


def _check_costs(config: RunConfig, sizes: Sizes, longest_row: int, found: CheckResult) -> None:
    plan = plan_stages(config, sizes)
    found.plan = plan
    size = found.model
    warmup = next(p for p in plan if p.stage == "warmup")
    if config.trainer.type == "trl" and warmup.optimizer_steps < 20:
        found.warnings.append(
            f"warm-up takes {warmup.optimizer_steps} optimiser steps, which may teach little; raise "
            "trainer.num_train_epochs, or lower trainer.gradient_accumulation_steps"
        )
    if size is not None:
        memory = estimate_memory(config, size, longest_row)
        found.memory = memory
        for what, remedy, needed in (
            ("generation", "lower generator.batch_tokens (it is halved by itself)", memory.generation),
            (
                "training",
                "use trainer.method: qlora, a smaller batch or activation_checkpointing: true",
                memory.training,
            ),
        ):
            if needed > memory.available:
                found.warnings.append(
                    f"{what} may need {needed / 1e9:,.1f} GB, but {memory.device} has "
                    f"{memory.available / 1e9:,.1f} GB: {remedy}"
                )
    with suppress(OSError):
        path = Path(config.output_dir).resolve()
        folder = next(f for f in (path, *path.parents) if f.is_dir() and os.access(f, os.R_OK))
        found.disk = disk = estimate_disk(config, size, plan, folder)
        if disk.needed > disk.free:
            found.faults.append(
                f"output_dir: the run needs about {disk.needed / 1e9:,.1f} GB, and the disk of its folder has "
                f"{disk.free / 1e9:,.1f} GB free; free some or name another folder"
            )
