"""Azure's addresses, read as the API's own: /openai/v1/..., /openai/deployments/NAME/..., /openai/...?api-version=."""

import json
import re
from collections.abc import Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from tests.emulator.errors import ApiError

_DEPLOYMENT = re.compile(r"/openai/deployments/([^/]+)/(.+)")


def to_openai(scope: MutableMapping[str, Any], headers: Mapping[str, str], body: bytes) -> bytes:
    """Rewrite the path in `scope`; give back the body, where a deployment's name takes the model's place.

    Raises:
        ApiError: If an old-style address comes without `api-version`.
    """
    path: str = scope["path"]
    if not path.startswith("/openai/"):
        return body
    if path.startswith("/openai/v1/"):
        _set_path(scope, path.removeprefix("/openai"))
        return body
    if "api-version" not in parse_qs(scope["query_string"].decode()):
        raise ApiError(404, "Resource not found: the query parameter api-version is missing", code="404")
    if match := _DEPLOYMENT.fullmatch(path):
        _set_path(scope, f"/v1/{match[2]}")
        return json.dumps(json.loads(body) | {"model": match[1]}).encode()
    _set_path(scope, path.replace("/openai/", "/v1/", 1))
    return body


def _set_path(scope: MutableMapping[str, Any], path: str) -> None:
    scope["path"] = path
    scope["raw_path"] = path.encode()
