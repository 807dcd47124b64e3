"""Opens clients of the openai package for a configured endpoint, and turns its faults into ours.

What is asked for stands in the config alone: no address is taken from the environment. The key comes from the variable
that the config names, and `redact` takes it out of every text that may reach a person or a file.
"""

import math
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from semievol.backends.base import require
from semievol.config import EndpointConfig, OpenAIEmbedderConfig
from semievol.errors import ConfigError, GenerationError, SemiEvolError

if TYPE_CHECKING:
    from ssl import SSLContext

    from httpx2 import AsyncClient
    from openai import AsyncOpenAI, OpenAI

OPENAI_URL = "https://api.openai.com/v1"
NO_KEY = "none"
"""Sent to servers that want no key: the client refuses an empty one."""
IDLE_SECONDS = 4.0
"""After which an unused connection is closed: servers do so after 5 (uvicorn), and a request may cross that."""

_KEY_SHAPES = re.compile(r"\b(?:sk|ek|rk)-[A-Za-z0-9_*\-]{4,}|(?<=Bearer )[^\s\"']+")


def address(config: EndpointConfig) -> str:
    """Where requests go, for messages and for keys of stored answers; it never holds a secret."""
    return config.azure.endpoint.rstrip("/") if config.azure else (config.base_url or OPENAI_URL).rstrip("/")


def read_key(config: EndpointConfig) -> str:
    """The key from the environment.

    Raises:
        ConfigError: If the variable is not set.
    """
    if config.api_key_env is None:
        return NO_KEY
    key = os.environ.get(config.api_key_env, "").strip()
    if not key:
        raise ConfigError(
            f"the key for {address(config)} is missing: set the environment variable {config.api_key_env}, or name "
            "another one in api_key_env (null for a server that wants no key)"
        )
    if not key.isascii() or not key.isprintable() or " " in key:
        raise ConfigError(
            f"the environment variable {config.api_key_env} holds no key: there are characters in it that no key has, "
            "such as spaces or line breaks"
        )
    return key


def open_client(config: EndpointConfig, *, max_retries: int = 5) -> "OpenAI":
    """A synchronous client, for few and slow calls: files, jobs, batches. The package repeats passing faults."""
    package = require("openai", extra="openai")
    settings = {
        "api_key": read_key(config),
        "max_retries": max_retries,
        "timeout": config.timeout_seconds,
        "http_client": package.DefaultHttpxClient(verify=_tls(), timeout=config.timeout_seconds),
    }
    if config.azure is not None:
        client: OpenAI = package.AzureOpenAI(**settings, **_azure(config))
        return client
    client = package.OpenAI(**settings, base_url=address(config))
    return client


def open_async_client(config: EndpointConfig, *, key: str | None = None) -> "AsyncOpenAI":
    """An asynchronous client that repeats nothing by itself and opens as many connections as may be under way.

    With a `key` the endpoint is one of this process's own: no proxy of the environment stands before it.
    """
    package = require("openai", extra="openai")
    import httpx2

    n = config.max_concurrency
    limits = httpx2.Limits(max_connections=n, max_keepalive_connections=n, keepalive_expiry=IDLE_SECONDS)
    http_client = package.DefaultAsyncHttpxClient(
        verify=_tls(), limits=limits, timeout=config.timeout_seconds, trust_env=key is None
    )
    settings = {
        "api_key": read_key(config) if key is None else key,
        "max_retries": 0,
        "timeout": config.timeout_seconds,
        "http_client": http_client,
    }
    if config.azure is not None:
        client: AsyncOpenAI = package.AsyncAzureOpenAI(**settings, **_azure(config))
        return client
    client = package.AsyncOpenAI(**settings, base_url=address(config))
    return client


def open_lane(*, trust_env: bool = True) -> "AsyncClient":
    """An HTTP client with one connection, which follows no redirection; `trust_env` False: nor a proxy."""
    package = require("openai", extra="openai")
    import httpx2

    limits = httpx2.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=IDLE_SECONDS)
    lane: AsyncClient = package.DefaultAsyncHttpxClient(
        verify=_tls(), limits=limits, follow_redirects=False, trust_env=trust_env
    )
    return lane


@cache
def _tls() -> "SSLContext":
    """Trusted certificates, read once: that takes longer than opening a client."""
    import httpx2

    return httpx2.create_ssl_context()


def _azure(config: EndpointConfig) -> dict[str, str]:
    assert config.azure is not None
    return {"azure_endpoint": config.azure.endpoint, "api_version": config.azure.api_version}


def redact(text: str, config: EndpointConfig) -> str:
    """`text` without the key, and without anything that looks like one: servers quote keys in their messages."""
    key = os.environ.get(config.api_key_env or "", "").strip()
    if len(key) >= 4:
        text = text.replace(key, "[key]")
    return _KEY_SHAPES.sub("[key]", text)


class MalformedAnswer(Exception):
    """An answer that is not JSON, or lacks what every answer has."""


class Fault(NamedTuple):
    """What a failed call means."""

    kind: Literal["transient", "permanent", "configuration"]
    """transient: the same call may succeed later; permanent: this one never will; configuration: none will."""
    text: str
    """One line without secrets."""
    retry_after_seconds: float | None = None
    """What the server asked to wait."""
    may_be_billed: bool = False
    """Whether the server may have done the work: the answer was lost on the way."""
    throttles: bool = False
    """Whether the server says, or shows, that it has too much to do."""
    refused: bool = False
    """Whether there was no connection at all."""


def classify(error: Exception, config: EndpointConfig, model: str) -> Fault:
    """What an exception of the client means for the call that raised it."""
    import openai

    if isinstance(error, openai.APITimeoutError | TimeoutError):
        return Fault("transient", "no answer in time", may_be_billed=True, throttles=True)
    if isinstance(error, openai.APIStatusError):
        return _classify_status(error, config, model)
    if isinstance(error, openai.APIConnectionError):
        cause = error.__cause__
        refused = type(cause).__name__ in ("ConnectError", "ConnectTimeout")
        detail = redact(_one_line(str(cause or error)), config)
        return Fault(
            "transient", f"no connection to {address(config)}: {detail}", may_be_billed=not refused, refused=refused
        )
    if isinstance(error, MalformedAnswer):
        return Fault("transient", redact(_one_line(str(error)), config), may_be_billed=True)
    raise error


def _classify_status(error: Any, config: EndpointConfig, model: str) -> Fault:
    status, code = error.status_code, error.code or error.type or ""
    named = error.body.get("message") if isinstance(error.body, dict) else None
    said = redact(_one_line(str(named or error.message)), config)
    if status == 401 or status == 403:
        variable = config.api_key_env or "api_key_env (none is set)"
        return _wrong(f"{address(config)} refuses the key in {variable} for the model {model} ({status}): {said}")
    if status == 404:
        what = "deployment" if config.azure else "model"
        return _wrong(
            f"{address(config)} knows no {what} {model} ({said}); check {_model_key(config)} and the address, or that "
            "the model has not been shut down"
        )
    if status == 429 and "quota" in f"{code} {said}".lower() and "insufficient" in f"{code} {said}".lower():
        return _wrong(
            f"the account behind {config.api_key_env} at {address(config)} has no quota left for {model}: raise its "
            "limit or add credit, and run again; what is answered is kept"
        )
    if status in (408, 409, 425, 429) or status >= 500:
        throttles = status in (429, 503, 529)
        return Fault("transient", f"{status}: {said}", wait_asked_for(error.response.headers), throttles=throttles)
    return Fault("permanent", f"{status} {code}: {said}".replace(" :", ":"))


def _model_key(config: EndpointConfig) -> str:
    """Config key that names the model."""
    if isinstance(config, OpenAIEmbedderConfig):
        return "embedder.model"
    return "generator.model" if getattr(config, "model", None) else "model.path"


def _wrong(text: str) -> Fault:
    return Fault("configuration", text)


def to_exception(fault: Fault) -> SemiEvolError:
    """The error that stops the work."""
    return GenerationError(fault.text) if "no quota left" in fault.text else ConfigError(fault.text)


def wait_asked_for(headers: Mapping[str, str]) -> float | None:
    """Seconds from `retry-after-ms`, or from `retry-after` as a number or a date (RFC 9110, 10.2.3); None without."""
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        with suppress(ValueError):
            if math.isfinite(seconds := float(headers.get(name, "")) * scale):
                return max(0.0, seconds)
    with suppress(ValueError):
        moment = parsedate_to_datetime(headers.get("retry-after", ""))
        zoned = moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)
        return max(0.0, (zoned - datetime.now(timezone.utc)).total_seconds())
    return None


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400]
