"""The application: the gate before the routes, and /_admin/ for tests."""

import socket
from typing import Any

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tests.emulator import batches, chat, files, fine_tuning
from tests.emulator.engine import Engine
from tests.emulator.errors import ApiError
from tests.emulator.faults import Faults
from tests.emulator.gate import Gate
from tests.emulator.state import State

API_KEY = "sk-emulator"


def create_app(engine: Engine, faults: Faults | None = None, *, api_key: str = API_KEY) -> Gate:
    """An ASGI application that answers as the API would."""
    state = State(engine, faults or Faults())
    app = FastAPI(title="OpenAI emulator", openapi_url=None)
    for module in (chat, files, batches, fine_tuning):
        app.include_router(module.routes(state))
    app.add_exception_handler(ApiError, lambda _, error: error.response())
    app.add_exception_handler(HTTPException, _no_route)
    _add_admin(app, state)
    return Gate(app, state, api_key)


def open_socket(host: str, port: int) -> socket.socket:
    """Listens at once, so that whoever learns the port may connect. Port 0: any free one."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # asyncio: no Nagle delay
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((host, port))
    listener.listen(1024)
    return listener


def make_server(app: Gate) -> uvicorn.Server:
    """To be run on a socket of `open_socket`."""
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=1))


def _add_admin(app: FastAPI, state: State) -> None:
    @app.get("/_admin/counters")
    async def counters() -> dict[str, Any]:
        return state.counters.as_json()

    @app.get("/_admin/requests")
    async def requests() -> list[dict[str, Any]]:
        return list(state.counters.log)

    @app.post("/_admin/faults")
    async def set_faults(switches: dict[str, Any]) -> JSONResponse:
        try:
            state.faults.set(**switches)
        except (TypeError, ValueError) as error:
            return JSONResponse({"error": str(error)}, 400)
        return JSONResponse({})

    @app.post("/_admin/reset")
    async def reset() -> dict[str, Any]:
        state.reset()
        return {}


def _no_route(request: Request, error: Exception) -> JSONResponse:
    status = error.status_code if isinstance(error, HTTPException) else 500
    message = f"Invalid URL ({request.method} {request.url.path})"
    return ApiError(status, message).response()
