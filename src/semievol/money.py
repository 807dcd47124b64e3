"""What a run at a hosted model will cost, from its real prompts and the prices in use.

Low and high differ by what is not known before: how many rows need justification, how long answers are up to their
limit, and, where tokens are estimated from bytes, how far the estimate is off. Discounts for prompts that the server
has seen before are not counted on.
"""

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

from semievol.answering import max_tokens
from semievol.backends.base import HOSTED
from semievol.config import (
    ChatGeneratorConfig,
    OpenAIBatchGeneratorConfig,
    OpenAIEmbedderConfig,
    OpenAITrainerConfig,
    RunConfig,
)
from semievol.costs import Sizes, StagePlan, configurations
from semievol.prices import AS_OF, BATCH_SHARE, dollars, price_of

ESTIMATE_RANGE = (0.8, 1.25)
"""Around a token count that comes from bytes; measured on English text."""
PROBE_REQUESTS = 3


class StageMoney(NamedTuple):
    """One stage, over all rounds. Dollars are None where a price is unknown."""

    stage: str
    requests: int
    input_tokens: int
    output_tokens: int
    training_tokens: int
    low: float | None
    high: float | None


class Money(NamedTuple):
    """What the whole run may cost, in US dollars."""

    stages: tuple[StageMoney, ...]
    low: float
    """Sum over the stages whose price is known."""
    high: float
    unknown: tuple[str, ...]
    """Models whose price is not known; what they cost is not in the sums."""
    as_of: str
    """Date of the price table, or `config` where the config gives the prices."""

    @property
    def requests(self) -> int:
        """All that may be sent, without repetitions."""
        return sum(s.requests for s in self.stages) + PROBE_REQUESTS


class Use(NamedTuple):
    """Requests of one kind to one model."""

    n: float
    prompt: float
    """Tokens of a prompt."""
    answers: int
    """Completions a request."""
    tuned: bool
    is_certain: bool = True
    """Whether they will be sent in any case."""


def is_hosted(config: RunConfig) -> bool:
    """Whether a run sends requests that may cost money."""
    return config.generator.type in HOSTED or config.trainer.type == "openai" or config.embedder.type == "openai"


def estimate_money(config: RunConfig, sizes: Sizes, plan: list[StagePlan], *, is_estimate: bool) -> Money | None:
    """Price the plan; None for a run that sends nothing to a server.

    Args:
        config: What would be run.
        sizes: Rows and tokens of the real prompts.
        plan: What each stage does.
        is_estimate: Whether tokens were counted by bytes.
    """
    if not is_hosted(config):
        return None
    plans = {p.stage: p for p in plan}
    around = ESTIMATE_RANGE if is_estimate else (1.0, 1.0)
    stages: list[StageMoney] = []
    unknown: dict[str, None] = {}
    if isinstance(config.generator, ChatGeneratorConfig):
        for stage, uses in _uses(config, sizes, plans).items():
            stages.append(_price_uses(stage, uses, config, config.generator, sizes, around, unknown))
    if isinstance(config.trainer, OpenAITrainerConfig):
        stages += [_price_training(p, config, around, unknown) for p in plan if p.train_tokens]
    if isinstance(config.embedder, OpenAIEmbedderConfig):
        stages.append(_price_embedding(config, config.embedder, sizes, around, unknown))
    order = {p.stage: i for i, p in enumerate(plan)}
    stages.sort(key=lambda s: order[s.stage])
    override = getattr(config.generator, "prices", None)
    return Money(
        tuple(stages),
        sum(s.low or 0.0 for s in stages),
        sum(s.high or 0.0 for s in stages),
        tuple(unknown),
        AS_OF if override is None else "config",
    )


def _uses(config: RunConfig, sizes: Sizes, plans: Mapping[str, StagePlan]) -> dict[str, list[Use]]:
    """Requests of the stages that ask the model."""
    trained = config.trainer.type == "openai"
    rows, plain = plans["propagate"].rows, sizes.prompt_tokens[0]
    used = configurations(config)
    counts = Counter(used)
    shared = len(set(counts.values())) == 1
    propagate = [
        Use(rows, sizes.prompt_tokens[c.k], counts[c] if shared else 1, trained and c.model == "warm")
        for c in (list(counts) if shared else used)
    ]
    verdict = plain + 4 * sizes.completion_tokens + 20
    justify = (
        [] if config.justify.when == "never" else [Use(rows, verdict, 1, trained, config.justify.when == "always")]
    )
    if getattr(config.generator, "logprobs", "off") != "off":
        justify.append(Use(rows, plain, 1, trained))
    n_models = 4 if config.control.enabled else 3
    evaluate = [Use(sizes.n_test, plain, 1, False), Use((n_models - 1) * sizes.n_test, plain, 1, trained)]
    return {"propagate": propagate, "justify": justify, "evaluate": evaluate}


def _price_uses(
    stage: str,
    uses: list[Use],
    config: RunConfig,
    generator: ChatGeneratorConfig,
    sizes: Sizes,
    around: tuple[float, float],
    unknown: dict[str, None],
) -> StageMoney:
    limits = {
        "propagate": config.propagate.max_tokens,
        "justify": config.justify.max_tokens,
        "evaluate": config.evaluate.max_tokens,
    }
    limit = max_tokens(config, limits[stage])
    share = BATCH_SHARE if isinstance(generator, OpenAIBatchGeneratorConfig) else 1.0
    low = high = 0.0
    for use in uses:
        price = price_of(config.model.path, generator.prices, tuned=use.tuned)
        if price is None:
            unknown[config.model.path] = None
            continue
        n_answers = use.n * use.answers
        usual, most = n_answers * sizes.completion_tokens, n_answers * max(limit, sizes.completion_tokens)
        high += share * dollars(price, input_tokens=use.n * use.prompt * around[1], output_tokens=most)
        if use.is_certain:
            low += share * dollars(price, input_tokens=use.n * use.prompt * around[0], output_tokens=usual * around[0])
    is_known = not uses or config.model.path not in unknown
    return StageMoney(
        stage,
        round(sum(u.n for u in uses)),
        round(sum(u.n * u.prompt for u in uses)),
        round(sum(u.n * u.answers * sizes.completion_tokens for u in uses)),
        0,
        low if is_known else None,
        high if is_known else None,
    )


def _price_training(
    plan: StagePlan, config: RunConfig, around: tuple[float, float], unknown: dict[str, None]
) -> StageMoney:
    override = getattr(config.generator, "prices", None)
    price = price_of(config.model.path, override)
    per_million = None if price is None else price.training
    if per_million is None:
        unknown[f"training of {config.model.path}"] = None
        return StageMoney(plan.stage, 0, 0, 0, plan.train_tokens, None, None)
    cost = plan.train_tokens * per_million / 1e6
    low = 0.0 if plan.at_most else cost * around[0]
    return StageMoney(plan.stage, 0, 0, 0, plan.train_tokens, low, cost * around[1])


def _price_embedding(
    config: RunConfig,
    embedder: OpenAIEmbedderConfig,
    sizes: Sizes,
    around: tuple[float, float],
    unknown: dict[str, None],
) -> StageMoney:
    """Questions of the labelled and the unlabelled rows; a whole prompt is the most that a question can be."""
    n = sizes.n_labeled + sizes.n_unlabeled if config.retrieve.k else 0
    tokens = n * sizes.prompt_tokens[0]
    requests = -(-n // embedder.batch_size)
    price = price_of(embedder.model)
    if price is None:
        unknown[embedder.model] = None
        return StageMoney("retrieve", requests, round(tokens), 0, 0, None, None)
    cost = dollars(price, input_tokens=tokens, output_tokens=0)
    return StageMoney("retrieve", requests, round(tokens), 0, 0, 0.2 * cost, cost * around[1])


def limit_warnings(config: RunConfig, money: Money) -> list[str]:
    """What the run's own limits would stop, and what cannot be priced."""
    generator = config.generator
    found = []
    if money.unknown:
        found.append(
            f"no price is known of {', '.join(money.unknown)} (table of {AS_OF}), so it is not in the sum: set "
            "generator.prices: {input: ..., output: ..., training: ...} in US dollars for a million tokens (0 for a "
            "server of your own)"
        )
    if not isinstance(generator, ChatGeneratorConfig):
        return found
    if config.trainer.type == "trl" and generator.adapters == "by_name":
        found.append(
            "each training ends on this machine, and the run stops until the server serves its model under the name "
            "that it says; vLLM loads adapters by itself with generator.adapters: load"
        )
    n = sum(s.requests for s in money.stages if s.stage != "retrieve") + PROBE_REQUESTS
    if generator.max_requests is not None and n > generator.max_requests:
        found.append(
            f"the run may send {n:,} requests, more than generator.max_requests ({generator.max_requests:,}): it would "
            "stop there and go on when the limit is raised"
        )
    asked = [s.high for s in money.stages if s.requests and s.stage != "retrieve" and s.high is not None]
    if generator.max_cost is not None and sum(asked) > generator.max_cost:
        found.append(
            f"the requests may cost up to ${sum(asked):,.2f}, more than generator.max_cost ({generator.max_cost:g}): "
            "the run would stop there and go on when the limit is raised"
        )
    limit = generator.confirm_above_cost
    if limit is not None and money.high > limit:
        found.append(
            f"the run may cost more than generator.confirm_above_cost ({limit:g}), so `semievol run` wants --yes"
        )
    return found
