"""/v1/files: what clients upload, and what batches and jobs leave."""

import json
from typing import Any

from fastapi import APIRouter, Request, Response

from tests.emulator.errors import ApiError, not_found, wrong_value
from tests.emulator.pages import page
from tests.emulator.state import State, now

PURPOSES = ("fine-tune", "batch", "assistants", "vision", "user_data", "evals")


def routes(state: State) -> APIRouter:
    """Bind the routes to `state`."""
    router = APIRouter()

    @router.post("/v1/files")
    async def upload(request: Request) -> dict[str, Any]:
        fields, name, data = read_form(request.headers.get("content-type", ""), await request.body())
        purpose = fields.get("purpose", "")
        if purpose not in PURPOSES:
            raise wrong_value("purpose", f"'{purpose}' is not one of {list(PURPOSES)}")
        if purpose in ("fine-tune", "batch"):
            _check_jsonl(data)
        seconds = fields.get("expires_after[seconds]")
        return add_file(state, data, name=name, purpose=purpose, expires_in=int(seconds) if seconds else None)

    @router.get("/v1/files")
    async def list_files(request: Request) -> dict[str, Any]:
        purpose = request.query_params.get("purpose")
        rows = [entry for entry, _ in state.files.values() if purpose in (None, entry["purpose"])]
        return page(rows, request.query_params, default_limit=10_000)

    @router.get("/v1/files/{file_id}")
    async def retrieve(file_id: str) -> dict[str, Any]:
        return find_file(state, file_id)[0]

    @router.get("/v1/files/{file_id}/content")
    async def content(file_id: str) -> Response:
        return Response(find_file(state, file_id)[1], media_type="application/octet-stream")

    @router.delete("/v1/files/{file_id}")
    async def delete(file_id: str) -> dict[str, Any]:
        find_file(state, file_id)
        del state.files[file_id]
        return {"id": file_id, "object": "file", "deleted": True}

    return router


def add_file(state: State, data: bytes, *, name: str, purpose: str, expires_in: int | None = None) -> dict[str, Any]:
    """Keep a file; gives its entry."""
    entry: dict[str, Any] = {
        "id": state.new_id("file-"),
        "object": "file",
        "bytes": len(data),
        "created_at": now(),
        "filename": name,
        "purpose": purpose,
        "status": "processed",
    }
    if expires_in is not None:
        entry["expires_at"] = now() + expires_in
    state.files[entry["id"]] = (entry, data)
    return entry


def find_file(state: State, file_id: str) -> tuple[dict[str, Any], bytes]:
    """Entry and bytes. Raises ApiError 404."""
    if file_id not in state.files:
        raise not_found("File object", file_id)
    return state.files[file_id]


def _check_jsonl(data: bytes) -> None:
    lines = data.splitlines()
    for number, line in enumerate(lines, 1):
        try:
            json.loads(line)
        except ValueError as error:
            message = f"Expected file to have JSONL format; line {number} is not valid JSON: {error}"
            raise ApiError(400, message, code="invalid_jsonl_file", param="file") from error
    if not lines:
        raise ApiError(400, "File is empty.", code="empty_file", param="file")


def read_form(content_type: str, body: bytes) -> tuple[dict[str, str], str, bytes]:
    """The text fields, the name and the bytes of the one file of a multipart/form-data body."""
    _, _, boundary = content_type.partition("boundary=")
    fields: dict[str, str] = {}
    name, data = None, b""
    for part in body.split(b"--" + boundary.strip('"').encode())[1:-1] if boundary else []:
        head, _, value = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        value = value.removesuffix(b"\r\n")
        marks = dict(m.strip().split("=", 1) for m in head.decode().splitlines()[0].split(";") if "=" in m)
        if "filename" in marks:
            name, data = marks["filename"].strip('"'), value
        else:
            fields[marks["name"].strip('"')] = value.decode()
    if name is None:
        raise wrong_value("file", "'file' is a required property", None)
    return fields, name, data
