"""What a request may weigh before anything is made of it."""

from collections.abc import MutableMapping
from typing import Any

from plimsoll.runtime.server.asgi import App, Receive, Scope, Send
from plimsoll.runtime.server.errors import ApiError


class LimitBody:
    """ASGI middleware: refuses a body above `max_bytes` with 413, by its Content-Length or as its chunks come in."""

    def __init__(self, app: App, max_bytes: int) -> None:
        self.app = app
        self.max_bytes = max_bytes

    def _too_large(self) -> ApiError:
        # What is left of the body is not read, so the connection cannot be used again.
        return ApiError(
            413,
            f"The request body is larger than this server takes ({self.max_bytes} bytes).",
            code="request_too_large",
            headers={"Connection": "close"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        for name, value in scope["headers"]:
            if name == b"content-length" and (not value.isdigit() or int(value) > self.max_bytes):
                raise self._too_large()
        seen = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal seen
            message = await receive()
            if message["type"] == "http.request":
                seen += len(message.get("body", b""))
                if seen > self.max_bytes:
                    raise self._too_large()
            return message

        await self.app(scope, counted, send)
