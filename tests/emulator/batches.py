"""/v1/batches. A batch moves when it is looked at: each retrieval takes it one state on.

validating, in_progress with no line done, with half of them, with all, finalizing, completed. Listing moves nothing.
The lines are answered by the routes' own functions, and are paid under the same content hash as if asked one by one.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request

from tests.emulator.chat import answer_chat, embed
from tests.emulator.errors import ApiError, not_found, wrong_value
from tests.emulator.files import add_file, find_file
from tests.emulator.pages import page
from tests.emulator.state import State, content_hash, now

MAX_LINES = 50_000
DAY = 24 * 3600
PATIENCE_SECONDS = 0.25
"""How long a retrieval waits for the lines at work, so that small batches take the same number of looks each time."""
FINISHED = ("failed", "completed", "expired", "cancelled")
ANSWERS: dict[str, Callable[[State, dict[str, Any]], Awaitable[dict[str, Any]]]] = {
    "/chat/completions": answer_chat,
    "/embeddings": embed,
}


@dataclass
class Batch:
    """A batch at work."""

    entry: dict[str, Any]
    output_expires_in: int | None
    lines: list[dict[str, Any]] = field(default_factory=list)
    started: int = 0
    """Lines taken up so far."""
    task: asyncio.Task[None] | None = None
    output: list[dict[str, Any]] = field(default_factory=list)
    errors: list[dict[str, Any]] = field(default_factory=list)
    faults: set[str] = field(default_factory=set)

    def halt(self) -> None:
        """Stop working."""
        if self.task is not None:
            self.task.cancel()

    def move(self, status: str) -> None:
        """Enter a state and note when."""
        self.entry["status"] = status
        self.entry[f"{status}_at"] = now()


def routes(state: State) -> APIRouter:
    """Bind the routes to `state`."""
    router = APIRouter()

    @router.post("/v1/batches")
    async def create(body: dict[str, Any]) -> dict[str, Any]:
        return _create(state, body)

    @router.get("/v1/batches")
    async def list_batches(request: Request) -> dict[str, Any]:
        return page([b.entry for b in state.batches.values()], request.query_params)

    @router.get("/v1/batches/{batch_id}")
    async def retrieve(batch_id: str) -> dict[str, Any]:
        batch = _find(state, batch_id)
        await _advance(state, batch)
        return batch.entry

    @router.post("/v1/batches/{batch_id}/cancel")
    async def cancel(batch_id: str) -> dict[str, Any]:
        batch = _find(state, batch_id)
        if batch.entry["status"] in (*FINISHED, "cancelling"):
            status = batch.entry["status"]
            raise ApiError(409, f"Cannot cancel a batch with status '{status}'.", param="id")
        batch.move("cancelling")
        return batch.entry

    return router


def _create(state: State, body: dict[str, Any]) -> dict[str, Any]:
    endpoint, file_id = body.get("endpoint", ""), body.get("input_file_id", "")
    if endpoint.removeprefix("/v1") not in ANSWERS:
        raise wrong_value("endpoint", f"Invalid value: '{endpoint}'.")
    if body.get("completion_window") != "24h":
        raise wrong_value("completion_window", f"Invalid value: '{body.get('completion_window')}'.")
    entry, _ = find_file(state, file_id)
    if entry["purpose"] != "batch":
        raise ApiError(400, f"File {file_id} has the purpose {entry['purpose']}, not batch", param="input_file_id")
    batch_id = state.new_id("batch_")
    counts = {"total": 0, "completed": 0, "failed": 0}
    job: dict[str, Any] = {
        "id": batch_id,
        "object": "batch",
        "endpoint": endpoint,
        "input_file_id": file_id,
        "completion_window": "24h",
        "status": "validating",
        "created_at": now(),
        "expires_at": now() + DAY,
        "request_counts": counts,
        "metadata": body.get("metadata"),
    }
    batch = Batch(job, (body.get("output_expires_after") or {}).get("seconds"))
    content = content_hash({"endpoint": endpoint, "input": find_file(state, file_id)[1].decode()})
    kinds = ("batch_failed", "batch_expired", "batch_stuck")
    batch.faults = {k for k in kinds if state.faults.strikes(k, "/v1/batches", content)}
    state.batches[batch_id] = batch
    return job


def _find(state: State, batch_id: str) -> Batch:
    if batch_id not in state.batches:
        raise not_found("batch", batch_id)
    batch: Batch = state.batches[batch_id]
    return batch


async def _advance(state: State, batch: Batch) -> None:
    status = batch.entry["status"]
    if status == "validating":
        _validate(state, batch)
    elif status == "cancelling":
        await _wait(batch)
        if batch.task is None:
            _finish(state, batch, "cancelled", "batch_cancelled")
    elif status == "in_progress" and "batch_stuck" not in batch.faults:
        total, half = len(batch.lines), (len(batch.lines) + 1) // 2
        if batch.task is None and batch.started >= half and "batch_expired" in batch.faults:
            _finish(state, batch, "expired", "batch_expired")
        elif batch.task is None and batch.started == total:
            batch.move("finalizing")
        else:
            end = half if batch.started < half else total
            batch.task = batch.task or asyncio.create_task(_work(state, batch, end))
            await _wait(batch)
    elif status == "finalizing":
        _finish(state, batch, "completed", "")


async def _wait(batch: Batch) -> None:
    """A while for the lines at work."""
    if batch.task is not None:
        await asyncio.wait({batch.task}, timeout=PATIENCE_SECONDS)
        if batch.task.done():
            batch.task.result()
            batch.task = None


def _validate(state: State, batch: Batch) -> None:
    lines = [json.loads(line) for line in find_file(state, batch.entry["input_file_id"])[1].splitlines()]
    faults = list(_line_faults(lines, batch.entry["endpoint"]))
    if "batch_failed" in batch.faults:
        faults.append({"code": "token_limit_exceeded", "line": None, "message": "Enqueued token limit reached."})
    if faults:
        batch.entry["errors"] = {"object": "list", "data": [{"param": None, **f} for f in faults]}
        batch.move("failed")
        return
    batch.lines = lines
    batch.entry["model"] = lines[0]["body"].get("model")
    batch.entry["request_counts"]["total"] = len(lines)
    batch.move("in_progress")


def _line_faults(lines: list[dict[str, Any]], endpoint: str) -> list[dict[str, Any]]:
    """What the API refuses before it starts; `line` counts from 1."""
    if len(lines) > MAX_LINES:
        message = f"The batch input file contains {len(lines)} requests; at most {MAX_LINES} are taken."
        return [{"code": "too_many_tasks", "line": None, "message": message}]
    faults, seen, models = [], set(), set()
    for number, line in enumerate(lines, 1):
        custom_id = line.get("custom_id")
        if not isinstance(custom_id, str):
            faults.append({"code": "missing_required_parameter", "line": number, "message": "No custom_id."})
        elif custom_id in seen:
            faults.append({"code": "duplicate_custom_id", "line": number, "message": f"{custom_id} stands twice."})
        elif line.get("method") != "POST" or line.get("url") != endpoint or not isinstance(line.get("body"), dict):
            message = f"method must be POST, url {endpoint}, body an object."
            faults.append({"code": "invalid_request", "line": number, "message": message})
        else:
            models.add(line["body"].get("model"))
        seen.add(custom_id)
    if len(models) > 1:
        message = f"A batch is for one model; this one names {sorted(map(str, models))}."
        faults.append({"code": "mismatched_model", "line": None, "message": message})
    return faults


async def _work(state: State, batch: Batch, end: int) -> None:
    """Answer the lines up to `end`, side by side where the engine can."""
    counts = batch.entry["request_counts"]
    for line in batch.lines[batch.started : end]:
        if batch.entry["status"] == "cancelling":
            return
        batch.started += 1
        await asyncio.sleep(0)
        if state.faults.strikes("batch_line_error", "/v1/batches", line["custom_id"]):
            error = ApiError(500, "The server had an error while processing your request.", kind="server_error")
            status, body = 500, {"error": error.error}
        else:
            status, body = await _answer(state, batch.entry["endpoint"], line["body"])
        counts["completed" if status == 200 else "failed"] += 1
        request_id = state.new_id("req_")
        response = {"status_code": status, "request_id": request_id, "body": body}
        row = {"id": state.new_id("batch_req_"), "custom_id": line["custom_id"], "response": response, "error": None}
        if status != 200:
            batch.errors.append(row)
        elif not state.faults.strikes("batch_missing", "/v1/batches", line["custom_id"]):
            twice = state.faults.strikes("batch_duplicate", "/v1/batches", line["custom_id"])
            batch.output.extend([row] * (2 if twice else 1))


async def _answer(state: State, endpoint: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    try:
        return 200, await ANSWERS[endpoint.removeprefix("/v1")](state, body)
    except ApiError as error:
        return error.status, {"error": error.error}


def _finish(state: State, batch: Batch, status: str, code: str) -> None:
    """Write the files; lines that were never taken up go to the error file."""
    for line in batch.lines[batch.started :]:
        message = "This request could not be executed before the batch ended."
        row = {"id": state.new_id("batch_req_"), "custom_id": line["custom_id"], "response": None}
        batch.errors.append({**row, "error": {"code": code, "message": message}})
        batch.entry["request_counts"]["failed"] += 1
    for name, rows in (("output", batch.output), ("error", batch.errors)):
        if rows:
            mixed = sorted(rows, key=lambda row: content_hash({"id": row["custom_id"]}))
            data = "".join(json.dumps(row) + "\n" for row in mixed).encode()
            file_name = f"{batch.entry['id']}_{name}.jsonl"
            kept = batch.output_expires_in
            entry = add_file(state, data, name=file_name, purpose="batch_output", expires_in=kept)
            batch.entry[f"{name}_file_id"] = entry["id"]
    batch.entry["usage"] = _usage(batch)
    batch.move(status)


def _usage(batch: Batch) -> dict[str, Any]:
    used = [row["response"]["body"].get("usage", {}) for row in batch.output]
    n_input = sum(u.get("prompt_tokens", 0) for u in used)
    n_output = sum(u.get("completion_tokens", 0) for u in used)
    cached = sum(u.get("prompt_tokens_details", {}).get("cached_tokens", 0) for u in used)
    return {
        "input_tokens": n_input,
        "input_tokens_details": {"cached_tokens": cached},
        "output_tokens": n_output,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": n_input + n_output,
    }
