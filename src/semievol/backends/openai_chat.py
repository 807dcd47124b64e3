"""Chat requests as JSON bodies and the answers back as records; shared by single requests and by batches.

A log-probability of -9999 stands for "outside the listed ones" in this protocol; it is no probability and is never used
as one. The seed is cut to 31 bits, which every server takes.
"""

import hashlib
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from semievol.backends.openai_client import MalformedAnswer
from semievol.types import Completion, LogprobKind, Request, Sampling

NOT_LISTED = -9000.0
"""What is below is the sentinel of a token that is not among the listed ones."""


class Abilities(NamedTuple):
    """What a server does for a model; found by asking it once."""

    n: bool = True
    """Gives n completions to a request."""
    seed: bool = True
    """Takes a seed."""
    same_seed_same_text: bool = True
    """Gave the same text twice for the same seed."""
    logprobs: bool = True
    top_logprobs: int = 20
    """Most alternatives that it lists at a token."""
    token_limit: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    logprob_kind: LogprobKind = "raw"
    """Whether temperature changes them."""


class Answer(NamedTuple):
    """What one response holds."""

    completions: tuple[Completion, ...]
    n_prompt_tokens: int
    n_completion_tokens: int
    refusal: str | None
    """Why there is no completion, where a filter held it back."""


def chat_body(
    request: Request, sampling: Sampling, abilities: Abilities, extra_body: Mapping[str, Any], *, n: int, first: int = 0
) -> dict[str, Any]:
    """The body that asks for `n` completions, of which the first is sample number `first` of the request."""
    body: dict[str, Any] = {
        "model": request.model.base,
        "messages": [{"role": m.role, "content": m.content} for m in request.messages],
        "temperature": sampling.temperature,
        abilities.token_limit: sampling.max_tokens,
    }
    if sampling.top_p < 1:
        body["top_p"] = sampling.top_p
    if n > 1:
        body["n"] = n
    if abilities.seed:
        body["seed"] = sample_seed(request.seed, first)
    if abilities.logprobs:
        body["logprobs"] = True
        if wanted := min(sampling.top_logprobs, abilities.top_logprobs):
            body["top_logprobs"] = wanted
    return body | dict(extra_body)


def sample_seed(seed: int, sample: int) -> int:
    """A 31-bit seed of sample number `sample`."""
    digest = hashlib.sha256(f"{seed}/{sample}".encode()).digest()
    return int.from_bytes(digest[:4], "big") >> 1


def read_answer(payload: Mapping[str, Any], kind: LogprobKind) -> Answer:
    """What a response says.

    Raises:
        MalformedAnswer: If it is no chat completion.
    """
    try:
        return _read_answer(payload, kind)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # lists where objects belong, and the like
        raise MalformedAnswer(f"the answer is no chat completion: {error}") from None


def _read_answer(payload: Mapping[str, Any], kind: LogprobKind) -> Answer:
    choices = payload.get("choices")
    if not isinstance(choices, list) or not choices:
        raise MalformedAnswer("the answer holds no choices")
    usage = payload.get("usage") or {}
    refusal = None
    completions = []
    for choice in choices:
        message = choice.get("message") if isinstance(choice, Mapping) else None
        if not isinstance(message, Mapping):
            raise MalformedAnswer("a choice of the answer holds no message")
        text = message.get("content") or ""
        if not isinstance(text, str):
            raise MalformedAnswer("the content of a message is no text")
        if choice.get("finish_reason") == "content_filter" and not text:
            refusal = "the content filter of the server held the answer back"
            continue
        completions.append(_completion(text, choice, kind))
    n_completion = usage.get("completion_tokens")
    counted = sum(len(c.token_logprobs) for c in completions) if n_completion is None else n_completion
    return Answer(tuple(completions), usage.get("prompt_tokens") or 0, counted, None if completions else refusal)


def _completion(text: str, choice: Mapping[str, Any], kind: LogprobKind) -> Completion:
    finish: Literal["stop", "length"] = "length" if choice.get("finish_reason") == "length" else "stop"
    listed = (choice.get("logprobs") or {}).get("content") or []
    logprobs = tuple(t.get("logprob") for t in listed)
    if not logprobs or any(x is None or x < NOT_LISTED for x in logprobs):
        return Completion(text, finish_reason=finish)
    top = tuple(
        tuple(
            (o["token"], float(o["logprob"]))
            for o in t.get("top_logprobs") or ()
            if o.get("logprob") is not None and o["logprob"] > NOT_LISTED
        )
        for t in listed
    )
    values = tuple(min(0.0, float(x)) for x in logprobs)
    if not any(top):
        return Completion(text, values, kind, finish)
    return Completion(text, values, kind, finish, tuple(t["token"] for t in listed), top)
