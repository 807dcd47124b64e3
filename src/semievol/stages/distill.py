"""Context distillation: a zero-shot student learns what the model answers with demonstrations in its prompt.

Reads   data/labeled, data/unlabeled, retrieve/demonstrations, with `distill.teacher: warm` warmup/model
Writes  distill/targets, distill/model, distill/training

The teacher sees the `retrieve.k` nearest labelled rows and gives its exact distribution p over the closed set of
answers to each unlabelled row (Snell et al., arXiv:2209.15189). The student starts from the base and sees the question
alone; its loss is the soft cross-entropy -sum_c p_c log P(c | x) over U; labelled rows are targets of probability 1.
Answers under MIN_PROBABILITY are left out and the others scaled up to 1, so that rows of many labels stay few.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import tee

from semievol.answering import choice_request, max_tokens
from semievol.answers import closed_set
from semievol.config import RunConfig
from semievol.demonstrations import fit_demonstrations
from semievol.errors import ConfigError
from semievol.sft import build_sft_rows, build_soft_rows, fit_stage, stage_trainer_config
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import ChoiceRequest, ChoiceScores, Demonstrations, Example, ModelRef, SftRow, SoftTarget

MIN_PROBABILITY = 0.01


def soft_target(scores: ChoiceScores, answers: Sequence[str]) -> SoftTarget:
    """The answers that are likely enough, most likely first; the most likely one always is."""
    ranked = sorted(zip(scores.probabilities, answers, strict=True), key=lambda pair: -pair[0])
    kept = [pair for pair in ranked if pair[0] >= MIN_PROBABILITY] or ranked[:1]
    total = sum(p for p, _ in kept)
    return SoftTarget(scores.id, tuple(a for _, a in kept), tuple(round(p / total, 6) for p, _ in kept))


def teacher_requests(ctx: StageContext, rows: Iterator[Example], teacher: ModelRef) -> Iterator[ChoiceRequest]:
    """The teacher's prompts, with as many demonstrations as fit."""
    labeled = {e.id: e for e in ctx.read("data/labeled", Example)}
    prompts, tokens = ctx.prompts(), ctx.backends.tokens
    limit = tokens.max_length - max_tokens(ctx.config, ctx.config.evaluate.max_tokens)
    for example, near in zip(rows, ctx.read("retrieve/demonstrations", Demonstrations, round=1), strict=True):
        shown = [labeled[i] for i in near.demonstration_ids]
        messages, _ = fit_demonstrations(example, shown, prompts, tokens, limit=limit)
        yield choice_request(example, messages, teacher, prompts)


def teach(ctx: StageContext) -> Iterator[SoftTarget]:
    """Soft targets of all unlabelled rows, in their order."""
    config, facts = ctx.config, ctx.facts()
    teacher = ctx.base_model if config.distill.teacher == "base" else ctx.read_model("warmup/model")
    total = sum(1 for _ in ctx.read("data/unlabeled", Example))
    asked, rows = tee(ctx.read("data/unlabeled", Example))
    scored = ctx.score_choices(teacher_requests(ctx, asked, teacher), total=total, text="soft targets")
    for example, scores in zip(rows, scored, strict=True):
        yield soft_target(scores, closed_set(example, config.task, facts))


def student_rows(ctx: StageContext, targets: Iterable[SoftTarget]) -> list[SftRow]:
    """L with its targets, then U with the soft targets."""
    prompts = ctx.prompts()
    rows = build_sft_rows(ctx.read("data/labeled", Example), prompts)
    for example, target in zip(ctx.read("data/unlabeled", Example), targets, strict=True):
        rows += build_soft_rows(example, target, prompts)
    return rows


def run(ctx: StageContext) -> StageStats:
    """Ask the teacher, train the student."""
    config = ctx.config
    if config.task.type not in ("choice", "label") or not ctx.backends.generator.exact_choice_scores:
        raise ConfigError(
            f"distill needs exact distributions over a closed answer set (choice, label); task.type is "
            f"{config.task.type} and generator.type {config.generator.type}"
        )
    targets = list(teach(ctx))
    ctx.write("distill/targets", targets, SoftTarget)
    settings = stage_trainer_config(config.trainer, config.distill)
    return {"n_targets": len(targets), **fit_stage(ctx, ctx.base_model, student_rows(ctx, targets), settings)}


def unused_models(config: RunConfig) -> tuple[str, ...]:
    """The warm-up, where the base teaches."""
    return () if config.distill.teacher == "warm" else ("warmup/model",)


STAGE = Stage(
    "distill",
    reads=("data/labeled", "data/unlabeled", "data/task", "retrieve/demonstrations", "warmup/model"),
    writes=("distill/targets", "distill/model", "distill/training"),
    sections=("task", "model", "generator", "trainer", "evaluate", "distill", "seed"),
    run=run,
    unused=unused_models,
)
