"""OpenAI's error bodies: `{"error": {"message", "type", "param", "code"}}`, one exception for all of them."""

import re
from collections.abc import Mapping
from typing import Any

import msgspec

TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "invalid_request_error",
    403: "invalid_request_error",
    404: "invalid_request_error",
    405: "invalid_request_error",
    408: "invalid_request_error",
    413: "invalid_request_error",
    415: "invalid_request_error",
    429: "rate_limit_error",
}

ABSENT: Mapping[str, str] = {
    "embeddings": "embeddings",
    "rerank": "scores",
    "score": "scores",
    "pooling": "embeddings",
    "moderations": "moderations",
    "images": "images",
    "videos": "videos",
    "audio": "speech or transcripts",
    "realtime": "realtime sessions",
    "files": "stored files",
    "uploads": "stored files",
    "batches": "batches",
    "fine_tuning": "fine-tuning jobs",
    "vector_stores": "vector stores",
    "conversations": "stored conversations",
    "assistants": "assistants",
    "threads": "threads",
}
"""Routes of other servers, without `/v1`, that clients ask for: what they would give."""


class ApiError(Exception):
    """A refusal or a failure on its way to the client; any route, dependency or middleware may raise it.

    Args:
        status: HTTP status. 400 and below 500 blame the request, 500 and up the server.
        message: for a human, naming what was wrong and what would be right. Never a traceback or a prompt.
        param: the request's field, in OpenAI's spelling (`messages[0].content`).
        code: for a program (`model_not_found`, `context_length_exceeded`).
        headers: extra response headers, e.g. Retry-After in seconds.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = dict(headers or {})

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.status, self.message, self.param, self.code, self.headers)

    def renamed(self, names: Mapping[str, str]) -> "ApiError":
        """The same error for a request whose fields have other names.

        Args:
            names: from patterns that a field's path begins with to what replaces them.
        """
        for pattern, name in names.items():
            found = re.match(rf"{pattern}(?=$|[.\[])", self.param or "")
            if found is None:
                continue
            new = found.expand(name)
            param = new + found.string[found.end() :]
            message = re.sub(rf"(?<![\w.]){re.escape(found[0])}(?!\w)", new.replace("\\", r"\\"), self.message)
            return ApiError(self.status, message, param=param, code=self.code, headers=self.headers)
        return self

    def body(self) -> dict[str, Any]:
        """The body in OpenAI's shape, as plain data."""
        kind = TYPES.get(self.status, "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}

    def encoded(self) -> bytes:
        """The body as JSON."""
        return msgspec.json.encode(self.body())


def _again(status: int, message: str, param: str | None, code: str | None, headers: Mapping[str, str]) -> ApiError:
    return ApiError(status, message, param=param, code=code, headers=headers)


def bad_request(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """400: the request is not valid; `param` names the field at fault."""
    return ApiError(400, message, param=param, code=code)


def unknown_path(path: str) -> ApiError:
    """404: no route has this path. Names what the server lacks where clients know the path from other servers."""
    first, *_ = path.removeprefix("/v1").strip("/").split("/")
    lacks = f"This server generates text and has no {ABSENT[first]}. " if first in ABSENT else ""
    return ApiError(404, f"Unknown path: {path[:200]}. {lacks}GET /docs lists the routes.", code="unknown_url")


def invalid_value(message: str, param: str | None) -> ApiError:
    """400: the field `param` holds what it may not."""
    return bad_request(message, param, "invalid_value")


def queue_full(message: str) -> ApiError:
    """429: the engine's queue holds all it may; a client should come back when something has finished."""
    return ApiError(429, message, code="queue_full", headers={"Retry-After": "1"})


def engine_dead() -> ApiError:
    """503: the engine process died under this request and is being restarted."""
    return ApiError(
        503,
        "The engine stopped while it worked on this request; it is being restarted. Try again shortly.",
        code="engine_dead",
        headers={"Retry-After": "5"},
    )


def not_ready(message: str, retry_after: int = 5) -> ApiError:
    """503: the engine is not ready; `retry_after` in seconds."""
    return ApiError(503, message, code="not_ready", headers={"Retry-After": str(retry_after)})


def shutting_down() -> ApiError:
    """503: the server is draining or has ended."""
    return not_ready("This server is shutting down; another one may take the request.", retry_after=10)


def timed_out(seconds: float) -> ApiError:
    """504: the request used up its time. The openai client retries 5xx by default, and a retry would
    only use up the same time again."""
    return ApiError(
        504,
        f"The request took longer than this server allows ({seconds:g} s). Ask for fewer tokens, or stream.",
        code="timeout",
        headers={"X-Should-Retry": "false"},
    )
