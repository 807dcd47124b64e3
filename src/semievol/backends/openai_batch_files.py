"""The files of the Batch API: requests out, one line each, and the answers back in any order, some twice, some never.

A line is told by its `custom_id`, a hash of the request's body, so an answer belongs to its request whatever file,
process or attempt it comes from.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from semievol.artifacts import content_hash
from semievol.config import EndpointConfig

URL, AZURE_URL = "/v1/chat/completions", "/chat/completions"
PASSING_STATUSES = (408, 409, 425, 429)
PASSING_CODES = ("batch_expired", "batch_cancelled", "rate_limit_exceeded", "server_error", "timeout")


class Line(NamedTuple):
    """One request of a batch."""

    custom_id: str
    data: bytes


class Outcome(NamedTuple):
    """What a file says of one line."""

    custom_id: str
    kind: Literal["answered", "transient", "permanent"]
    body: Mapping[str, Any]
    """The chat completion of an answered line, else empty."""
    error: str = ""


class Reading(NamedTuple):
    """What the text of a file held."""

    outcomes: list[Outcome]
    n_broken: int
    """Lines that are no JSON, or say nothing of a request."""


def chat_url(config: EndpointConfig) -> Any:
    """The route that lines and batches name; Azure leaves the version out."""
    return URL if config.azure is None else AZURE_URL


def make_line(body: Mapping[str, Any], *salt: int, url: str = URL) -> Line:
    """The line that asks for `body`. Equal bodies with equal `salt` are one line; other salt asks for another draw."""
    custom_id = content_hash(dict(body), salt)[:32]
    line = {"custom_id": custom_id, "method": "POST", "url": url, "body": body}
    return Line(custom_id, json.dumps(line, ensure_ascii=False).encode() + b"\n")


def split_lines(lines: Iterable[Line], *, max_lines: int, max_bytes: int) -> Iterator[list[Line]]:
    """Cut into files that keep both limits, in order. A line that is too large alone gets a file of its own."""
    part: list[Line] = []
    size = 0
    for line in lines:
        if part and (len(part) >= max_lines or size + len(line.data) > max_bytes):
            yield part
            part, size = [], 0
        part.append(line)
        size += len(line.data)
    if part:
        yield part


def read_outcomes(text: bytes) -> Reading:
    """Outcomes in the order of the file; of a line that stands there twice, both."""
    outcomes: list[Outcome] = []
    n_broken = 0
    for raw in text.splitlines():
        if not raw.strip():
            continue
        try:
            outcomes.append(_outcome(json.loads(raw)))
        except (ValueError, KeyError, TypeError, AttributeError):
            n_broken += 1
    return Reading(outcomes, n_broken)


def best_outcomes(outcomes: Iterable[Outcome]) -> dict[str, Outcome]:
    """One outcome a line: the first answer, else a refusal, else whatever there is."""
    rank = {"answered": 0, "permanent": 1, "transient": 2}
    best: dict[str, Outcome] = {}
    for outcome in outcomes:
        known = best.get(outcome.custom_id)
        if known is None or rank[outcome.kind] < rank[known.kind]:
            best[outcome.custom_id] = outcome
    return best


def _outcome(line: dict[str, Any]) -> Outcome:
    custom_id, response, error = str(line["custom_id"]), line.get("response") or {}, line.get("error") or {}
    status = response.get("status_code")
    body = response.get("body") or {}
    if status == 200 and not error:
        return Outcome(custom_id, "answered", dict(body))
    said = error or body.get("error") or {}
    code, message = said.get("code") or said.get("type") or "", said.get("message") or "no reason given"
    passing = status in PASSING_STATUSES or (status or 0) >= 500 or code in PASSING_CODES
    text = " ".join(f"{status or ''} {code}: {message}".split())
    return Outcome(custom_id, "transient" if passing else "permanent", {}, text)
