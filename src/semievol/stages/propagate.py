"""Collaborative learning: several configurations of the model answer every unlabelled row.

Reads   data/labeled, data/unlabeled, retrieve/demonstrations, warmup/model (or the model of the round before;
        neither where all configurations are of the base)
Writes  propagate/candidates, propagate/failed

A configuration is a member of {base, warm} x {0..k demonstrations} (arXiv:2410.14745, section 3.3); equal ones share
one prompt and its prefill. A prompt that would be too long loses its least similar demonstrations first, and that is
counted. Rows for which a request failed get no candidates and are written down with the reason.
"""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice, tee
from typing import NamedTuple

from semievol.answering import best_answer, choice_request, max_tokens
from semievol.answers import closed_set, parse_answer
from semievol.config import ConfigurationConfig, PropagateConfig, RunConfig
from semievol.demonstrations import ById, fit_demonstrations
from semievol.pools import LABELED_READS, count_unlabeled, labeled_pool, unlabeled_pool
from semievol.prompts import PromptBuilder
from semievol.stage import Stage, StageContext, StageStats
from semievol.types import (
    Candidates,
    ChoiceScores,
    Completion,
    Demonstrations,
    Dropped,
    Example,
    Message,
    Request,
    Result,
    Sampling,
)


class Prompt(NamedTuple):
    """One prompt of one row."""

    example: Example
    configuration: ConfigurationConfig
    messages: tuple[Message, ...]
    n_dropped: int
    """Demonstrations left out because the prompt would have been too long."""


def draw_configurations(config: PropagateConfig, k: int, seed: int) -> tuple[ConfigurationConfig, ...]:
    """The configurations in use: the list, or `config.draw` members of {base, warm} x {0..k} drawn by seed."""
    if config.draw is None:
        return config.configurations
    pool = [ConfigurationConfig(model=model, k=j) for model in ("base", "warm") for j in range(k + 1)]
    generator = random.Random(seed)
    return tuple(
        generator.sample(pool, config.draw) if config.draw <= len(pool) else generator.choices(pool, k=config.draw)
    )


def combine_samples(
    prompts: Sequence[Prompt], results: Sequence[Result], builder: PromptBuilder
) -> Candidates | Dropped:
    """Parse the completions of one row; a row with a failed request has no candidates."""
    example = prompts[0].example
    failed = [r.error for r in results if r.error is not None]
    if failed:
        return Dropped(example.id, "propagate", "generation failed", detail=failed[0])
    completions = [(p.configuration.name, c) for p, r in zip(prompts, results, strict=True) for c in r.completions]
    return Candidates(
        example_id=example.id,
        completions=tuple(c for _, c in completions),
        answers=tuple(parse_answer(c.text, example, builder.task, builder.facts) for _, c in completions),
        config_names=tuple(name for name, _ in completions),
        n_demonstrations_dropped=sum(p.n_dropped for p in prompts),
    )


def combine_scores(prompts: Sequence[Prompt], scores: Sequence[ChoiceScores], builder: PromptBuilder) -> Candidates:
    """Take the most likely answer of each configuration; its completion carries the exact log-probability."""
    example = prompts[0].example
    answers, completions = [], []
    for one in scores:
        answer, index = best_answer(one, closed_set(example, builder.task, builder.facts))
        each = round(one.logprobs[index] / one.n_tokens[index], 6)
        answers.append(answer)
        completions.append(Completion(builder.completion(answer, example), (each,) * one.n_tokens[index], "raw"))
    return Candidates(
        example_id=example.id,
        completions=tuple(completions),
        answers=tuple(answers),
        config_names=tuple(p.configuration.name for p in prompts),
        n_demonstrations_dropped=sum(p.n_dropped for p in prompts),
    )


def ask(ctx: StageContext, configurations: Sequence[ConfigurationConfig]) -> Iterator[Candidates | Dropped]:
    """Answer every row of the round with every configuration, in the order of the rows."""
    config, builder = ctx.config.propagate, ctx.prompts()
    models = {"base": ctx.base_model}
    if any(c.model == "warm" for c in configurations):
        models["warm"] = ctx.warm_model()
    counts = Counter(configurations)
    # Equal configurations become the n samples of one request, so they share its prefill.
    n = next(iter(counts.values())) if len(set(counts.values())) == 1 and config.answer_with == "samples" else 1
    slots = list(counts) if n > 1 else list(configurations)
    total = count_unlabeled(ctx) * len(slots)
    asked, kept = tee(row_prompts(ctx, slots, builder))
    flat = ((slot, prompt) for row in asked for slot, prompt in enumerate(row))
    if config.answer_with == "scores":
        scored = ctx.score_choices(
            (
                choice_request(
                    p.example, p.messages, models[p.configuration.model], builder, request_id=f"{p.example.id}/{i}"
                )
                for i, p in flat
            ),
            total=total,
            text="exact answer distributions",
        )
        yield from (combine_scores(row, list(islice(scored, len(slots))), builder) for row in kept)
        return
    sampled = ctx.generate(
        (
            Request(f"{p.example.id}/{i}", p.messages, models[p.configuration.model], ctx.seed(p.example.id, i))
            for i, p in flat
        ),
        Sampling(n, config.temperature, config.top_p, max_tokens(ctx.config, config.max_tokens)),
        total=total,
        text="sampled answers",
    )
    yield from (combine_samples(row, list(islice(sampled, len(slots))), builder) for row in kept)


def row_prompts(
    ctx: StageContext, slots: Sequence[ConfigurationConfig], builder: PromptBuilder
) -> Iterator[list[Prompt]]:
    """The prompts of each row of the round, one a slot."""
    labeled = ById(labeled_pool(ctx))
    tokens = ctx.backends.tokens
    limit = tokens.max_length - max_tokens(ctx.config, ctx.config.propagate.max_tokens)
    for example, near in zip(unlabeled_pool(ctx), ctx.read("retrieve/demonstrations", Demonstrations), strict=True):
        shown = [labeled.get(i) for i in near.demonstration_ids]
        # Slots of as many demonstrations share their prompt.
        fitted = {
            k: fit_demonstrations(example, shown[:k], builder, tokens, limit=limit) for k in {slot.k for slot in slots}
        }
        yield [Prompt(example, slot, *fitted[slot.k]) for slot in slots]


def run(ctx: StageContext) -> StageStats:
    """Ask, and keep what failed apart."""
    configurations = draw_configurations(ctx.config.propagate, ctx.config.retrieve.k, ctx.seed("configurations"))
    failed = ctx.spool(Dropped)
    stats: Counter[str] = Counter()

    def answered() -> Iterator[Candidates]:
        for outcome in ask(ctx, configurations):
            if isinstance(outcome, Dropped):
                failed.append(outcome)
                continue
            stats["n_answers"] += len(outcome.answers)
            stats["n_unparsed"] += sum(a is None for a in outcome.answers)
            stats["n_demonstrations_dropped"] += outcome.n_demonstrations_dropped
            yield outcome

    n = ctx.write("propagate/candidates", answered(), Candidates)
    ctx.write("propagate/failed", failed, Dropped)
    names = [c.name for c in configurations]
    return {"n_rows": n, "n_failed": len(failed), "configurations": names, "n_demonstrations_dropped": 0, **stats}


def unused_models(config: RunConfig) -> tuple[str, ...]:
    """Trained models that no configuration asks; configurations that are drawn may ask any."""
    drawn = config.propagate.draw is not None
    uses_warm = drawn or any(c.model == "warm" for c in config.propagate.configurations)
    return () if uses_warm else ("warmup/model", "evolve/model")


STAGE = Stage(
    "propagate",
    reads=(*LABELED_READS, "retrieve/demonstrations", "warmup/model", "evolve/model", "data/task"),
    writes=("propagate/candidates", "propagate/failed"),
    sections=("task", "model", "generator", "propagate", "retrieve", "seed"),
    run=run,
    unused=unused_models,
)
