"""Requests to vLLM's completions route by token ids, and its answers. Pure; no torch.

Prompts go as the ids that training used and completions come back as ids with the raw log-probability of each, the stop
token included, so nothing depends on a template or a tokenizer of the server. A closed set is scored by asking for one
token behind every node of its trie, with `logprob_token_ids`: the log-probabilities of exactly the tokens that follow
the node (vLLM 0.33, sampling_params.py). `prompt_logprobs` would do too, but reads nothing from the prefix cache.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from semievol.backends.openai_chat import NOT_LISTED, sample_seed
from semievol.backends.openai_client import MalformedAnswer
from semievol.backends.tries import Trie
from semievol.errors import ConfigError
from semievol.types import Sampling

ROUTE = "/completions"
MAX_TOKEN_IDS = 128
"""Most `logprob_token_ids` of a request (vLLM 0.33, sampling_params.MAX_LOGPROB_TOKEN_IDS)."""
MAX_PROMPTS = 64
"""Prompts of one request."""
GREEDY_BELOW = 1e-5
"""Temperatures under it are greedy to vLLM (sampling_params._SAMPLING_EPS), which then refuses more than one sample."""
_TOO_OLD = "the vLLM that generator.python names leaves out {what}; 0.33 is the version that this was written for"


class Drawn(NamedTuple):
    """One sampled completion."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Raw, one a token, the stop token included."""
    stopped: bool


class Question(NamedTuple):
    """A node of a trie and the tokens that are asked for behind it."""

    node: int
    path: tuple[int, ...]
    """Tokens from the prompt to the node, itself included."""
    tokens: tuple[int, ...]


def sampling_body(
    name: str, prompt: Sequence[int], sampling: Sampling, *, seed: int, stop_ids: Sequence[int]
) -> dict[str, Any]:
    """Ask for `sampling.n` completions; vLLM gives sample i the seed plus i. Greedy ones are asked for once."""
    greedy = sampling.temperature < GREEDY_BELOW
    body: dict[str, Any] = {
        "model": name,
        "prompt": list(prompt),
        "n": 1 if greedy else sampling.n,
        "temperature": 0.0 if greedy else sampling.temperature,
        "max_tokens": sampling.max_tokens,
        "seed": sample_seed(seed, 0),
        "logprobs": 0,
        "stop_token_ids": list(stop_ids),
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
    }
    return body | ({"top_p": sampling.top_p} if sampling.top_p < 1 and not greedy else {})


def read_samples(payload: Mapping[str, Any], *, n: int) -> list[Drawn]:
    """The completions of an answer, in the order of their numbers.

    Raises:
        MalformedAnswer: If there are not `n`, or tokens and log-probabilities do not fit together.
        ConfigError: If the server gives no token ids.
    """
    return [_drawn(choice) for choice in _choices(payload, n)]


def plan_questions(trie: Trie) -> list[list[Question]]:
    """What has to be asked to score `trie`, one list a request (see MAX_TOKEN_IDS and MAX_PROMPTS)."""
    behind: dict[int, list[int]] = {}
    for node, token in dict.fromkeys(itertools.chain(trie.prefix, *trie.paths)):
        behind.setdefault(node, []).append(token)
    requests: list[list[Question]] = []
    union: set[int] = set()
    for node, tokens in behind.items():
        for at in range(0, len(tokens), MAX_TOKEN_IDS):
            part = tuple(tokens[at : at + MAX_TOKEN_IDS])
            if not requests or len(union | set(part)) > MAX_TOKEN_IDS or len(requests[-1]) == MAX_PROMPTS:
                requests.append([])
                union = set()
            requests[-1].append(Question(node, tuple(_path(trie, node)), part))
            union |= set(part)
    return requests


def scoring_body(name: str, prompt: Sequence[int], questions: Sequence[Question]) -> dict[str, Any]:
    """Ask for the log-probabilities of all tokens of `questions` behind each of them."""
    return {
        "model": name,
        "prompt": [[*prompt, *question.path] for question in questions],
        "max_tokens": 1,
        "temperature": 0.0,
        "logprobs": 1,
        "logprob_token_ids": sorted({token for question in questions for token in question.tokens}),
        "return_tokens_as_token_ids": True,
    }


def read_scores(payload: Mapping[str, Any], questions: Sequence[Question]) -> dict[tuple[int, int], float]:
    """Log-probability of each (node, token) that was asked for.

    Raises:
        MalformedAnswer: If an answer is missing, or a log-probability is no number.
        ConfigError: If the server leaves out what was asked for.
    """
    found: dict[tuple[int, int], float] = {}
    for question, choice in zip(questions, _choices(payload, len(questions)), strict=True):
        listed = (choice.get("logprobs") or {}).get("top_logprobs") or [{}]
        for token in question.tokens:
            value = (listed[0] or {}).get(f"token_id:{token}")
            if value is None:
                raise ConfigError(_TOO_OLD.format(what="log-probabilities of given tokens (logprob_token_ids)"))
            if not NOT_LISTED < value <= 1e-3:
                raise MalformedAnswer(f"the log-probability {value} of token {token} is none")
            found[question.node, token] = min(0.0, float(value))
    return found


def _choices(payload: Mapping[str, Any], n: int) -> list[Mapping[str, Any]]:
    choices = payload.get("choices")
    if not isinstance(choices, list) or len(choices) != n:
        raise MalformedAnswer(f"the answer holds {len(choices) if isinstance(choices, list) else 'no'} of {n} choices")
    if sorted(choice.get("index", -1) for choice in choices) != list(range(n)):
        raise MalformedAnswer(f"the choices of the answer are not numbered from 0 to {n - 1}")
    return sorted(choices, key=lambda choice: int(choice["index"]))


def _drawn(choice: Mapping[str, Any]) -> Drawn:
    tokens, listed = choice.get("token_ids"), choice.get("logprobs") or {}
    if tokens is None:
        raise ConfigError(_TOO_OLD.format(what="token ids (return_token_ids)"))
    logprobs = listed.get("token_logprobs") or []
    if not tokens or len(logprobs) != len(tokens) or any(x is None or x <= NOT_LISTED for x in logprobs):
        raise MalformedAnswer(f"{len(logprobs)} log-probabilities for {len(tokens)} tokens, or some that are none")
    finish = choice.get("finish_reason")
    if finish not in ("stop", "length"):
        raise MalformedAnswer(f"the completion ended with {finish}")
    return Drawn(tuple(tokens), tuple(min(0.0, float(x)) for x in logprobs), finish == "stop")


def _path(trie: Trie, node: int) -> Iterator[int]:
    nodes = []
    while node >= 0:
        nodes.append(node)
        node = trie.parents[node]
    return (trie.tokens[n] for n in reversed(nodes))
