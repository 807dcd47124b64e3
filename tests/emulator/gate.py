"""Stands before the routes: counts, checks the key, lets faults strike, waits. A plain ASGI application."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from tests.emulator.azure import to_openai
from tests.emulator.errors import ApiError
from tests.emulator.state import State, content_hash

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_ID = re.compile(r"/(models|files|batches|jobs)/[^/]+")


class Gate:
    """Wraps the routes. Admin routes pass untouched."""

    def __init__(self, app: App, state: State, api_key: str) -> None:
        self._app, self._state, self._api_key = app, state, api_key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http" or scope["path"].startswith("/_admin"):
            await self._app(scope, receive, send)
            return
        counters = self._state.counters
        counters.in_flight += 1
        counters.max_in_flight = max(counters.max_in_flight, counters.in_flight)
        try:
            await self._handle(scope, await _read(receive), send)
        except ApiError as error:
            counters.statuses[str(error.status)] += 1
            await error.response()(scope, receive, send)
        finally:
            counters.in_flight -= 1

    async def _handle(self, scope: Scope, body: bytes, send: Send) -> None:
        state, faults = self._state, self._state.faults
        headers = {k.decode().lower(): v.decode() for k, v in scope["headers"]}
        body = to_openai(scope, headers, body)
        route = scope["method"] + " " + _ID.sub(r"/\1/{id}", scope["path"])
        state.counters.requests[route] += 1
        self._log(route, headers, body)
        given = headers.get("api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if given != self._api_key:  # quoted, as careless servers do
            raise ApiError(401, f"Incorrect API key provided: {given}.", code="invalid_api_key")
        content = content_hash({"path": scope["path"], "body": body.decode(errors="replace")})
        crowded = 0 < faults.max_in_flight < state.counters.in_flight
        if crowded or faults.strikes("rate_limit", route, content):
            wait = {
                "retry-after": str(max(1, round(faults.retry_after))),
                "retry-after-ms": str(faults.retry_after * 1000),
            }
            raise ApiError(
                429, "Rate limit reached for requests", code="rate_limit_exceeded", kind="requests", headers=wait
            )
        if faults.strikes("quota", route, content):
            message = "You exceeded your current quota, please check your plan and billing details."
            raise ApiError(429, message, code="insufficient_quota", kind="insufficient_quota")
        if faults.strikes("server_error", route, content):
            raise ApiError(500, "The server had an error while processing your request.", kind="server_error")
        if faults.strikes("drop_before", route, content):
            await _drop(send)
            return
        seconds = faults.latency_ms / 1000
        if faults.strikes("slow", route, content):
            seconds += faults.slow_seconds
        if seconds:
            await asyncio.sleep(seconds)
        status, out_headers, out = await self._answer(scope, body)
        if faults.strikes("drop_after", route, content):
            await _drop(send)
            return
        if faults.strikes("truncate", route, content):
            out = out[: len(out) // 2]
        state.counters.statuses[str(status)] += 1
        out_headers = [(k, v) for k, v in out_headers if k != b"content-length"]
        out_headers += [(b"content-length", str(len(out)).encode()), (b"x-request-id", state.new_id("req_").encode())]
        await send({"type": "http.response.start", "status": status, "headers": out_headers})
        await send({"type": "http.response.body", "body": out})

    async def _answer(self, scope: Scope, body: bytes) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
        """What the routes answer, in one piece."""
        start: dict[str, Any] = {}
        parts: list[bytes] = []

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, receive, send)
        return start["status"], list(start["headers"]), b"".join(parts)

    def _log(self, route: str, headers: dict[str, str], body: bytes) -> None:
        said: Any = None
        if headers.get("content-type", "").startswith("application/json") and body:
            try:
                said = json.loads(body)
            except ValueError:
                said = body.decode(errors="replace")
        retry = int(headers.get("x-stainless-retry-count", 0))
        self._state.counters.log.append({"route": route, "body": said, "retry": retry})


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


async def _drop(send: Send) -> None:
    """Reset the connection: uvicorn's `send` belongs to an object that knows its transport."""
    transport = send.__self__.transport  # type: ignore[attr-defined]
    transport.abort()
    await asyncio.sleep(0.01)  # till uvicorn has seen it, or it would answer 500
