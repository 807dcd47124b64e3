"""Asks a server in a few tiny requests what it does for a model, once a run.

Servers that speak the protocol differ, and some drop a parameter without a word. So nothing is believed that the answer
does not show: the number of choices, log-probabilities, the length that was asked for, the same text for the same seed,
and log-probabilities that do not move with the temperature.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from semievol.artifacts import content_hash
from semievol.backends.openai_calls import Caller, Cost, RowFault, describe
from semievol.backends.openai_chat import Abilities, Answer, chat_body, read_answer
from semievol.backends.openai_client import address
from semievol.config import ChatGeneratorConfig
from semievol.errors import ConfigError, GenerationError
from semievol.types import Completion, LogprobKind, Message, ModelRef, Request, Sampling

PROBE = "probe.json"
QUESTION = "Write any ten words that come to your mind."
MAX_TOKENS = 6
TEMPERATURE = 0.7
"""Below 1, so that log-probabilities that were divided by it can be told from raw ones."""

_PARAMETERS = ("max_completion_tokens", "max_tokens", "top_logprobs", "logprobs", "temperature", "seed", "n")

Post = Callable[[dict[str, Any]], Answer]


def probe(config: ChatGeneratorConfig, model: str, caller: Caller, cost: Cost, state_dir: Path | None) -> Abilities:
    """What the server does; taken from the run folder if it was asked before.

    Raises:
        ConfigError: If the server or the model cannot be used as configured.
        GenerationError: If the server does not answer.
    """
    path = None if state_dir is None else state_dir / PROBE
    key = content_hash(address(config), model, config.extra_body, config.logprobs == "off")[:16]
    known = json.loads(path.read_text(encoding="utf-8")) if path is not None and path.exists() else {}
    if key in known:
        abilities = Abilities(**known[key]["abilities"])
    else:
        abilities = _ask(config, model, lambda body: _post(caller, body, model, cost))
        if path is not None:
            known[key] = {"address": address(config), "model": model, "abilities": abilities._asdict()}
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps(known, indent=2), encoding="utf-8")
            partial.replace(path)
    if config.logprobs == "require" and not abilities.logprobs:
        raise ConfigError(
            f"{describe(config, model)} gives no log-probabilities, but generator.logprobs is require: use another "
            "server, or generator.logprobs: auto with select.signal: agreement or sample_entropy"
        )
    return abilities


def _ask(config: ChatGeneratorConfig, model: str, post: Post) -> Abilities:
    request = Request("probe", (Message("user", QUESTION),), ModelRef(model), seed=1)
    limit: Any = "max_completion_tokens" if config.base_url is None else "max_tokens"
    abilities = Abilities(token_limit=limit, logprobs=config.logprobs != "off")

    def answer(sampling: Sampling, n: int) -> Answer:
        return post(chat_body(request, sampling, abilities, config.extra_body, n=n))

    warm = Sampling(2, TEMPERATURE, 1.0, MAX_TOKENS, 20)
    tried: set[str] = set()
    while True:
        try:
            first = answer(warm, 2 if abilities.n else 1)
        except RowFault as error:
            abilities = _without(abilities, str(error), tried, config, model)
            continue
        if first.n_completion_tokens > 4 * MAX_TOKENS and "length" not in tried:  # the limit was passed over
            tried.add("length")
            abilities = abilities._replace(token_limit=_other(abilities.token_limit))
            continue
        break
    given = bool(first.completions) and all(c.token_logprobs for c in first.completions)
    abilities = abilities._replace(
        n=abilities.n and len(first.completions) == 2,
        logprobs=given,
        top_logprobs=max((len(o) for c in first.completions for o in c.top_logprobs), default=0) if given else 0,
    )
    try:
        again = answer(warm, 2 if abilities.n else 1)
        greedy = answer(Sampling(1, 0.0, 1.0, MAX_TOKENS, 20), 1)
    except RowFault as error:
        _without(abilities, str(error), {"max_tokens", "max_completion_tokens", "logprobs"}, config, model)
        raise GenerationError(f"{describe(config, model)} does not answer: {error}") from error
    same = [c.text for c in again.completions] == [c.text for c in first.completions[: len(again.completions)]]
    kind = _kind(first.completions, greedy.completions) if given else "none"
    return abilities._replace(same_seed_same_text=same and abilities.seed, logprob_kind=kind)


def _post(caller: Caller, body: dict[str, Any], model: str, cost: Cost) -> Answer:
    answer: Answer = caller.wait(caller.post("/chat/completions", body, model, cost, lambda x: read_answer(x, "raw")))
    return answer


def _without(abilities: Abilities, said: str, tried: set[str], config: ChatGeneratorConfig, model: str) -> Abilities:
    """Leave out what the server complains of.

    Raises:
        ConfigError: If that is nothing that can be left out.
    """
    named = [p for p in _PARAMETERS if re.search(rf"\b{p}\b", said) and p not in tried]
    if "temperature" in named:
        raise ConfigError(
            f"{describe(config, model)} refuses a temperature, as reasoning models do: set generator.extra_body: "
            f"{{reasoning_effort: none}} if it has that, or use another model ({said})"
        )
    for name in named:
        tried.add(name)
        if name in ("max_tokens", "max_completion_tokens"):
            if name != abilities.token_limit:
                continue
            return abilities._replace(token_limit=_other(abilities.token_limit))
        if name == "top_logprobs" and abilities.top_logprobs > 5:
            tried.discard(name)
            return abilities._replace(top_logprobs=5)
        if name in ("top_logprobs", "logprobs"):
            return abilities._replace(logprobs=False, top_logprobs=0)
        return abilities._replace(seed=False) if name == "seed" else abilities._replace(n=False)
    if said.startswith("given up"):
        raise GenerationError(f"{describe(config, model)} does not answer: {said}")
    raise ConfigError(f"{describe(config, model)} refuses a plain chat request: {said}")


def _other(name: str) -> Any:
    return "max_tokens" if name == "max_completion_tokens" else "max_completion_tokens"


def _kind(warm: tuple[Completion, ...], greedy: tuple[Completion, ...]) -> LogprobKind:
    """Raw if the alternatives at the first token lie as far apart under both temperatures."""
    if not warm or not greedy or not warm[0].top_logprobs or not greedy[0].top_logprobs:
        return "raw"
    a, b = dict(warm[0].top_logprobs[0]), dict(greedy[0].top_logprobs[0])
    both = sorted(a.keys() & b.keys(), key=lambda t: -b[t])
    if len(both) < 2:
        return "raw"
    gap_a, gap_b = a[both[0]] - a[both[-1]], b[both[0]] - b[both[-1]]
    # Divided by the temperature, gaps are 1 / 0.7 = 1.43 times as wide; servers' own noise is far below that.
    return "raw" if gap_b <= 0.1 or gap_a / gap_b < 1.2 else "processed"
