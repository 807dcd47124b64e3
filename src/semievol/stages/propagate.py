"""Collaborative learning: several configurations of the model answer every unlabelled row.

Reads   data/labeled, data/unlabeled, retrieve/demonstrations, warmup/model (or the model of the round before;
        neither where all configurations are of the base)
Writes  propagate/candidates, propagate/failed; with `propagate.cascade` propagate/first_looks, propagate/asked

A configuration is a member of {base, warm} x {0..k demonstrations} (arXiv:2410.14745, section 3.3); equal ones share
one prompt and its prefill. A prompt that would be too long loses its least similar demonstrations first, and that is
counted. Rows for which a request failed get no candidates and are written down with the reason. With a cascade only the
rows that stay open after a first look, and the audited ones, are asked.
"""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, tee
from typing import NamedTuple

from semievol.answering import best_answer, choice_request, max_tokens
from semievol.answers import closed_set, parse_answer
from semievol.cascade import FirstLook, Spent, count_savings, look, merge_candidates
from semievol.config import ConfigurationConfig, PropagateConfig, RunConfig
from semievol.demonstrations import ById, fit_demonstrations
from semievol.errors import ConfigError
from semievol.pools import LABELED_READS, count_unlabeled, labeled_pool, unlabeled_pool
from semievol.prompts import PromptBuilder
from semievol.spool import Spool
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


class Shown(NamedTuple):
    """A row of the round and its nearest labelled rows, nearest first."""

    example: Example
    demonstrations: list[Example]


class Answered(NamedTuple):
    """What all configurations said to one row, and the tokens of its requests."""

    outcome: Candidates | Dropped
    prompt_tokens: int
    completion_tokens: int


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


def share_prompts(
    configurations: Sequence[ConfigurationConfig], config: PropagateConfig
) -> tuple[list[ConfigurationConfig], int]:
    """The configurations that a row is asked under, and samples of each.

    Equal configurations become the n samples of one request, so they share its prefill.
    """
    counts = Counter(configurations)
    n = next(iter(counts.values())) if len(set(counts.values())) == 1 and config.answer_with == "samples" else 1
    return (list(counts) if n > 1 else list(configurations)), n


def ask(
    ctx: StageContext, configurations: Sequence[ConfigurationConfig], rows: Iterable[Shown], *, n_rows: int
) -> Iterator[Answered]:
    """Answer `n_rows` rows with every configuration, in their order."""
    config, builder = ctx.config.propagate, ctx.prompts()
    models = {"base": ctx.base_model}
    if any(c.model == "warm" for c in configurations):
        models["warm"] = ctx.warm_model()
    slots, n = share_prompts(configurations, config)
    total = n_rows * len(slots)
    asked, kept = tee(row_prompts(ctx, rows, slots, builder))
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
        for row in kept:
            scores = list(islice(scored, len(slots)))
            yield Answered(combine_scores(row, scores, builder), sum(s.n_prompt_tokens for s in scores), 0)
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
    for row in kept:
        results = list(islice(sampled, len(slots)))
        n_prompt, n_completion = sum(r.n_prompt_tokens for r in results), sum(r.n_completion_tokens for r in results)
        yield Answered(combine_samples(row, results, builder), n_prompt, n_completion)


def shown_rows(ctx: StageContext) -> Iterator[Shown]:
    """The rows of the round."""
    labeled = ById(labeled_pool(ctx))
    for example, near in zip(unlabeled_pool(ctx), ctx.read("retrieve/demonstrations", Demonstrations), strict=True):
        yield Shown(example, [labeled.get(i) for i in near.demonstration_ids])


def row_prompts(
    ctx: StageContext, rows: Iterable[Shown], slots: Sequence[ConfigurationConfig], builder: PromptBuilder
) -> Iterator[list[Prompt]]:
    """The prompts of each row, one a slot."""
    tokens = ctx.backends.tokens
    limit = tokens.max_length - max_tokens(ctx.config, ctx.config.propagate.max_tokens)
    for example, shown in rows:
        # Slots of as many demonstrations share their prompt.
        fitted = {
            k: fit_demonstrations(example, shown[:k], builder, tokens, limit=limit) for k in {slot.k for slot in slots}
        }
        yield [Prompt(example, slot, *fitted[slot.k]) for slot in slots]


def look_first(ctx: StageContext, plain: ConfigurationConfig) -> Iterator[FirstLook]:
    """Look at every row of the round under `plain`, the model without demonstrations."""
    builder, cascade = ctx.prompts(), ctx.config.propagate.cascade
    assert cascade is not None
    model = ctx.warm_model() if plain.model == "warm" else ctx.base_model
    rows = (Shown(example, []) for example in unlabeled_pool(ctx))
    asked, kept = tee(row_prompts(ctx, rows, [plain], builder))
    requests = (choice_request(p.example, p.messages, model, builder) for (p,) in asked)
    scored = ctx.score_choices(requests, total=count_unlabeled(ctx), text="first look, exact")
    for row, scores in zip(kept, scored, strict=True):
        candidates = combine_scores(row, [scores], builder)
        yield look(candidates, scores, cascade, seed=ctx.seed("cascade", candidates.example_id))


def read_looks(ctx: StageContext) -> Iterator[FirstLook]:
    """The first looks that this stage wrote."""
    return ctx.run_dir.read_records(ctx.artifact("propagate/first_looks"), FirstLook)


def ask_open(ctx: StageContext, configurations: Sequence[ConfigurationConfig], failed: Spool[Dropped]) -> StageStats:
    """Look first, then put the open rows and the audited ones to all configurations; says what that saved.

    Open rows whose requests failed go to `failed`; audited ones are settled all the same.

    Raises:
        ConfigError: If the generator has no exact scores.
    """
    if not ctx.backends.generator.exact_choice_scores:
        raise ConfigError(f"propagate.cascade: generator.type: {ctx.config.generator.type} gives no exact scores here")
    model = "warm" if any(c.model == "warm" for c in configurations) else "base"
    start = ctx.backends.usage
    ctx.write("propagate/first_looks", look_first(ctx, ConfigurationConfig(model=model, k=0)), FirstLook)
    looked = ctx.backends.usage
    spent = Spent()

    def answered() -> Iterator[Candidates]:
        nonlocal spent
        n_asked = sum(one.is_asked for one in read_looks(ctx))
        rows = (row for row, one in zip(shown_rows(ctx), read_looks(ctx), strict=True) if one.is_asked)
        open_or_not = (not one.is_settled for one in read_looks(ctx) if one.is_asked)
        answers = ask(ctx, configurations, rows, n_rows=n_asked)
        for is_open, (outcome, n_prompt, n_completion) in zip(open_or_not, answers, strict=True):
            spent = Spent(spent.n_rows + 1, spent.prompt_tokens + n_prompt, spent.completion_tokens + n_completion)
            if isinstance(outcome, Candidates):
                yield outcome
            elif is_open:
                failed.append(outcome)

    ctx.write("propagate/asked", answered(), Candidates)
    end = ctx.backends.usage
    used = end._replace(
        prompt_tokens=end.prompt_tokens - looked.prompt_tokens,
        completion_tokens=end.completion_tokens - looked.completion_tokens,
        model_seconds=end.model_seconds - looked.model_seconds,
    )
    return count_savings(
        read_looks(ctx),
        n_requests_a_row=len(share_prompts(configurations, ctx.config.propagate)[0]),
        spent=spent,
        used=used,
        first_seconds=looked.model_seconds - start.model_seconds,
    )


def run(ctx: StageContext) -> StageStats:
    """Ask, and keep what failed apart."""
    configurations = draw_configurations(ctx.config.propagate, ctx.config.retrieve.k, ctx.seed("configurations"))
    failed = ctx.spool(Dropped)
    stats: Counter[str] = Counter()
    saved: StageStats = {}
    outcomes: Iterator[Candidates | Dropped]
    if ctx.config.propagate.cascade is None:
        outcomes = (a.outcome for a in ask(ctx, configurations, shown_rows(ctx), n_rows=count_unlabeled(ctx)))
    else:
        counted = ask_open(ctx, configurations, failed)
        saved = {"n_settled": counted["n_settled"], "cascade": counted}
        asked = ctx.run_dir.read_records(ctx.artifact("propagate/asked"), Candidates)
        outcomes = merge_candidates(read_looks(ctx), asked)

    def answered() -> Iterator[Candidates]:
        for outcome in outcomes:
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
    return (
        {"n_rows": n, "n_failed": len(failed), "configurations": names, "n_demonstrations_dropped": 0} | stats | saved
    )


def unused_models(config: RunConfig) -> tuple[str, ...]:
    """Trained models that no configuration asks; configurations that are drawn may ask any."""
    drawn = config.propagate.draw is not None
    uses_warm = drawn or any(c.model == "warm" for c in config.propagate.configurations)
    return () if uses_warm else ("warmup/model", "evolve/model")


STAGE = Stage(
    "propagate",
    reads=(*LABELED_READS, "retrieve/demonstrations", "warmup/model", "evolve/model", "data/task"),
    writes=("propagate/candidates", "propagate/failed", "propagate/first_looks", "propagate/asked"),
    sections=("task", "model", "generator", "propagate", "retrieve", "seed"),
    run=run,
    unused=unused_models,
)
