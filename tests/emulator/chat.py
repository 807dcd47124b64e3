"""/v1/models, /v1/chat/completions and /v1/embeddings."""

import asyncio
import base64
import struct
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from semievol.types import Message
from tests.emulator.engine import Answer, Chat, ServedModel, Token
from tests.emulator.errors import ApiError, unknown_model, wrong_value
from tests.emulator.state import State, content_hash, now

MAX_EMBEDDING_INPUTS = 2048
CACHE_MINIMUM, CACHE_STEP = 1024, 128
IGNORED = ("metadata", "store", "user", "service_tier", "safety_identifier", "prompt_cache_key", "reasoning_effort")
REFUSED_BY_REASONING = {"temperature": 1, "top_p": 1, "logprobs": False, "top_logprobs": None, "max_tokens": None}


class ChatBody(BaseModel):
    """What the chat route takes; the rest of the API's parameters are not emulated and refused."""

    model_config = ConfigDict(extra="forbid")

    model: str
    messages: list[dict[str, Any]] = Field(min_length=1)
    n: int | None = Field(None, ge=1, le=128)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    stop: str | list[str] | None = None
    logit_bias: dict[int, float] | None = None
    stream: Literal[False] | None = None
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None


class EmbeddingBody(BaseModel):
    """What the embeddings route takes."""

    model_config = ConfigDict(extra="forbid")

    model: str
    input: str | list[str]
    dimensions: int | None = Field(None, ge=1)
    encoding_format: Literal["float", "base64"] | None = None
    user: str | None = None


def routes(state: State) -> APIRouter:
    """Bind the three routes to `state`."""
    router = APIRouter()

    @router.get("/v1/models")
    async def list_models() -> dict[str, Any]:
        return {"object": "list", "data": [_model_json(m, state) for m in state.engine.models().values()]}

    @router.get("/v1/models/{name}")
    async def retrieve_model(name: str) -> dict[str, Any]:
        return _model_json(state.model(name), state)

    @router.post("/v1/chat/completions")
    async def create_completion(body: dict[str, Any]) -> dict[str, Any]:
        return await answer_chat(state, body)

    @router.post("/v1/embeddings")
    async def create_embeddings(body: dict[str, Any]) -> dict[str, Any]:
        return await embed(state, body)

    return router


async def answer_chat(state: State, body: dict[str, Any]) -> dict[str, Any]:
    """One request to its answer; also used for the lines of a batch. Counts it as paid.

    Raises:
        ApiError: As the API would answer.
    """
    asked = parse(ChatBody, {k: v for k, v in body.items() if k not in IGNORED})
    model = state.model(asked.model)
    if model.dimension:
        raise ApiError(404, "This is not a chat model", param="model")
    _check_together(asked, model)
    strikes = _striking(state, body)
    chat = _chat(asked, state, strikes)
    if state.engine.blocking:
        answers, n_prompt = await asyncio.to_thread(state.engine.complete, model, chat)
    else:
        answers, n_prompt = state.engine.complete(model, chat)
    if "content_filter" in strikes:
        answers = [Answer((), "content_filter") for _ in answers]
    usage = _usage(state, body, n_prompt, sum(len(a.tokens) for a in answers))
    state.counters.pay(body, usage)
    with_logprobs = bool(asked.logprobs) and "no_logprobs" not in strikes
    answer = {
        "id": state.new_id("chatcmpl-"),
        "object": "chat.completion",
        "created": now(),
        "model": model.id,
        "choices": [_choice_json(i, a, with_logprobs) for i, a in enumerate(answers)],
        "usage": usage,
        "service_tier": "default",
        "system_fingerprint": "fp_emulator",
    }
    if "no_usage" in strikes:
        del answer["usage"]
    return answer


async def embed(state: State, body: dict[str, Any]) -> dict[str, Any]:
    """One embeddings request to its answer. Raises ApiError."""
    asked = parse(EmbeddingBody, body)
    model = state.model(asked.model)
    if not model.dimension:
        raise unknown_model(asked.model)
    texts = [asked.input] if isinstance(asked.input, str) else asked.input
    if not texts or len(texts) > MAX_EMBEDDING_INPUTS or not all(texts):
        message = f"'$.input' is invalid: 1 to {MAX_EMBEDDING_INPUTS} texts are taken, none of them empty"
        raise wrong_value("input", message, None)
    if asked.dimensions is not None:
        if asked.dimensions > model.dimension:
            raise wrong_value("dimensions", f"Invalid value for 'dimensions' = {asked.dimensions}", None)
        model = replace(model, dimension=asked.dimensions)
    if state.engine.blocking:
        vectors, n_tokens = await asyncio.to_thread(state.engine.embed, model, texts)
    else:
        vectors, n_tokens = state.engine.embed(model, texts)
    usage = {"prompt_tokens": n_tokens, "total_tokens": n_tokens}
    state.counters.pay(body, usage)
    encode = _base64 if asked.encoding_format == "base64" else list
    rows = [{"object": "embedding", "index": i, "embedding": encode(v)} for i, v in enumerate(vectors)]
    return {"object": "list", "data": rows, "model": asked.model, "usage": usage}


def parse(kind: Any, body: Mapping[str, Any]) -> Any:
    """Check a body. Raises ApiError 400 in the API's words."""
    try:
        return kind.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        param = ".".join(map(str, first["loc"]))
        if first["type"] == "extra_forbidden":
            raise wrong_value(param, f"Unrecognized request argument supplied: {param}", None) from error
        raise wrong_value(param, f"Invalid value for '{param}': {first['msg']}") from error


def _check_together(asked: ChatBody, model: ServedModel) -> None:
    if asked.top_logprobs is not None and not asked.logprobs:
        raise wrong_value("top_logprobs", "'top_logprobs' is only allowed when 'logprobs' is set to true.")
    if asked.max_tokens is not None and asked.max_completion_tokens is not None:
        message = "Setting 'max_tokens' and 'max_completion_tokens' at the same time is not supported."
        raise wrong_value("max_tokens", message, "invalid_parameter_combination")
    if not model.reasoning:
        return
    for name, default in REFUSED_BY_REASONING.items():
        if getattr(asked, name) not in (None, default):
            message = f"Unsupported parameter: '{name}' is not supported with this model."
            raise wrong_value(name, message, "unsupported_parameter")


def _striking(state: State, body: Mapping[str, Any]) -> set[str]:
    kinds = ("no_logprobs", "ignore_n", "ignore_seed", "no_usage", "content_filter")
    content = content_hash(body)
    return {k for k in kinds if state.faults.strikes(k, "/v1/chat/completions", content)}


def _chat(asked: ChatBody, state: State, strikes: set[str]) -> Chat:
    seed = asked.seed
    if seed is None or "ignore_seed" in strikes:
        seed = int(state.new_id("")[:12], 16)
    stop = asked.stop or []
    return Chat(
        messages=tuple(_message(m) for m in asked.messages),
        n=1 if "ignore_n" in strikes else asked.n or 1,
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_p=1.0 if asked.top_p is None else asked.top_p,
        max_tokens=asked.max_completion_tokens or asked.max_tokens,
        seed=seed,
        top_logprobs=asked.top_logprobs or 0,
        stop=tuple([stop] if isinstance(stop, str) else stop),
        logit_bias=asked.logit_bias or {},
    )


def _message(turn: Mapping[str, Any]) -> Message:
    role, content = turn.get("role"), turn.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise wrong_value("messages.role", f"Invalid value: '{role}'.")
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise wrong_value("messages.content", f"Invalid type for 'messages.content': {type(content).__name__}")
    return Message("system" if role == "developer" else role, content)


def _usage(state: State, body: Mapping[str, Any], n_prompt: int, n_completion: int) -> dict[str, Any]:
    """With prompt caching as the API counts it: from 1024 tokens on, in steps of 128, once a prompt was seen."""
    prompt = content_hash({"model": body["model"], "messages": body["messages"]})
    cached = n_prompt // CACHE_STEP * CACHE_STEP if prompt in state.seen_prompts and n_prompt >= CACHE_MINIMUM else 0
    state.seen_prompts.add(prompt)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": cached, "audio_tokens": 0},
        "completion_tokens_details": {
            "reasoning_tokens": 0,
            "audio_tokens": 0,
            "accepted_prediction_tokens": 0,
            "rejected_prediction_tokens": 0,
        },
    }


def _choice_json(index: int, answer: Answer, with_logprobs: bool) -> dict[str, Any]:
    return {
        "index": index,
        "message": {"role": "assistant", "content": answer.text, "refusal": None, "annotations": []},
        "logprobs": {"content": [_token_json(t) for t in answer.tokens], "refusal": None} if with_logprobs else None,
        "finish_reason": answer.finish_reason,
    }


def _token_json(token: Token) -> dict[str, Any]:
    top = [{"token": t, "logprob": lp, "bytes": list(t.encode())} for t, lp in token.top]
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.text.encode()), "top_logprobs": top}


def _model_json(model: ServedModel, state: State) -> dict[str, Any]:
    owner = "user-emulator" if model.parent else "system"
    entry = {"id": model.id, "object": "model", "created": state.started, "owned_by": owner}
    return entry | ({"shutdown_date": model.shutdown_date} if model.shutdown_date else {})


def _base64(vector: list[float]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
