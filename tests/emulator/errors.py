"""The API's errors: a status and the JSON body `{"error": {message, type, param, code}}`."""

from fastapi.responses import JSONResponse


class ApiError(Exception):
    """Raised by a route; the server answers with it."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        kind: str = "invalid_request_error",
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}
        self.error = {"message": message, "type": kind, "param": param, "code": code}

    def response(self) -> JSONResponse:
        """As the API sends it."""
        return JSONResponse({"error": self.error}, self.status, self.headers)


def unknown_model(name: str) -> ApiError:
    """A name that nobody serves, or that this key may not use."""
    message = f"The model `{name}` does not exist or you do not have access to it."
    return ApiError(404, message, code="model_not_found", param="model")


def not_found(what: str, name: str) -> ApiError:
    """A file, batch or job that is not there."""
    return ApiError(404, f"No such {what}: {name}", param="id")


def wrong_value(param: str, message: str, code: str | None = "invalid_value") -> ApiError:
    """A parameter that the API does not take."""
    return ApiError(400, message, code=code, param=param)
