"""Lists as the API gives them: newest first, `limit` and `after`."""

from collections.abc import Mapping, Sequence
from typing import Any

from tests.emulator.errors import wrong_value

MOST = 10_000


def page(rows: Sequence[dict[str, Any]], query: Mapping[str, str], *, default_limit: int = 20) -> dict[str, Any]:
    """One page of `rows`, which stand oldest first.

    Raises:
        ApiError: On a limit that is not a number from 1 to 10000.
    """
    limit = query.get("limit", str(default_limit))
    if not limit.isdigit() or not 1 <= int(limit) <= MOST:
        raise wrong_value("limit", f"Invalid 'limit': {limit!r}; from 1 to {MOST}")
    ordered = list(rows) if query.get("order") == "asc" else list(reversed(rows))
    if after := query.get("after"):
        ids = [row["id"] for row in ordered]
        ordered = ordered[ids.index(after) + 1 :] if after in ids else []
    data = ordered[: int(limit)]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return {"object": "list", "data": data, "has_more": len(ordered) > len(data), **ends}
