"""Posts JSON to one endpoint, as the openai package would and with less CPU time (benchmarks/hosted_throughput.py).

The package builds options, headers and address anew for every request, which takes longer than sending it. So the first
request to a route goes through the package, and what became of it (address, headers, where Azure puts the deployment)
is the form of those after it. They go straight to the package's HTTP library, each over a client with one connection:
a client with many looks at all of them for every request.
"""

import json
from collections.abc import Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from semievol.backends.openai_client import address, open_async_client, open_lane
from semievol.config import EndpointConfig

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx2
    from openai import AsyncOpenAI

_LEFT_OUT = (b"content-length", b"idempotency-key", b"x-stainless-")
"""Starts of headers that belong to one request, or describe the package and this machine."""


class Poster:
    """An open client; used from one event loop, with at most `max_concurrency` requests at once."""

    def __init__(self, config: EndpointConfig, *, key: str | None = None) -> None:
        """`key` is that of an endpoint of this process's own; None: the key that the config names."""
        self.client: AsyncOpenAI = open_async_client(config, key=key)
        self._trust_env = key is None
        self._forms: dict[tuple[str, str], tuple[httpx2.URL, list[tuple[bytes, bytes]]]] = {}
        """Address and headers by route and model."""
        self._lanes: list[httpx2.AsyncClient] = []
        """Those that are free; the last one used is taken first, so that its connection is still open."""

    async def post(self, path: str, body: Mapping[str, Any], model: str, seconds: float) -> "httpx2.Response":
        """The answer, read to its end.

        Args:
            path: Route behind the address of the endpoint, such as `/chat/completions`.
            body: JSON object.
            model: Name in `body`; Azure makes it part of the address.
            seconds: Longest time to open a connection; the whole has no limit here.

        Raises:
            openai.APIError: If there is no connection, or the server answers with an error.
        """
        import httpx2
        from openai import APIConnectionError

        form = self._forms.get((path, model))
        timeout = {"connect": seconds, "read": None, "write": None, "pool": None}
        if form is None:
            return await self._post_with_package(path, body, model, timeout)
        url, headers = form
        # Escaped, so that half of a surrogate pair in a row reaches the server, too.
        content = json.dumps(body, separators=(",", ":"), allow_nan=False).encode()
        request = httpx2.Request("POST", url, headers=headers, content=content, extensions={"timeout": timeout})
        try:
            with self._lane() as lane:
                response = await lane.send(request)
        except httpx2.RequestError as error:
            raise APIConnectionError(request=request) from error
        if response.is_redirect:  # the package knows whom it may hand the key
            return await self._post_with_package(path, body, model, timeout)
        if not response.is_success:
            raise _status_error(response)
        return response

    def move(self, config: EndpointConfig) -> None:
        """From now on the endpoint is found at the address of `config`."""
        self.client.base_url = address(config)
        self._forms.clear()

    async def close(self) -> None:
        """Close all connections."""
        await self.client.close()
        while self._lanes:
            await self._lanes.pop().aclose()

    async def _post_with_package(
        self, path: str, body: Mapping[str, Any], model: str, timeout: Mapping[str, float | None]
    ) -> "httpx2.Response":
        import httpx2

        options: Any = {"timeout": httpx2.Timeout(**timeout)}
        base = self.client.base_url
        response = await self.client.post(path, body=body, cast_to=httpx2.Response, options=options)
        request = response.request
        if request.method == "POST" and self.client.base_url == base:
            lasting = [(k, v) for k, v in request.headers.raw if not k.lower().startswith(_LEFT_OUT)]
            self._forms[path, model] = request.url, lasting
        return response

    @contextmanager
    def _lane(self) -> "Iterator[httpx2.AsyncClient]":
        lane = self._lanes.pop() if self._lanes else open_lane(trust_env=self._trust_env)
        try:
            yield lane
        finally:
            self._lanes.append(lane)


def _status_error(response: "httpx2.Response") -> Exception:
    """As the package makes it: `body` is what stands under `error`."""
    from openai import APIStatusError

    try:
        body = response.json()
    except ValueError:
        body = response.text
    said = body.get("error", body) if isinstance(body, Mapping) else body
    message = said.get("message") if isinstance(said, Mapping) else said
    return APIStatusError(f"Error code: {response.status_code} - {message}", response=response, body=said)
