"""Anthropic's error bodies: `{"type": "error", "error": {"type", "message"}, "request_id"}`."""

from collections.abc import Mapping

import msgspec

from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.messages_api.objects import MessagesError, MessagesErrorDetail

#: By HTTP status, which stays as it is for the other routes: the client tries 408, 409, 429 and all from 500 again.
TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
#: Every path of the API begins so.
PATH = "/v1/messages"


def encoded(error: ApiError, request_id: str) -> bytes:
    """The body as JSON."""
    kind = TYPES.get(error.status, "api_error" if error.status >= 500 else "invalid_request_error")
    return msgspec.json.encode(MessagesError(MessagesErrorDetail(kind, error.message), request_id))
