"""The OpenAPI document behind /docs: schemas of the types that the routes really parse and encode."""

from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from plimsoll.runtime.server import responses
from plimsoll.runtime.server.messages_api.objects import MessageObject, MessagesError, TokenCount
from plimsoll.runtime.server.messages_api.request import CountRequest, MessagesRequest
from plimsoll.runtime.server.protocol import ChatCompletionRequest, CompletionRequest
from plimsoll.runtime.server.responses_api.objects import ResponseObject
from plimsoll.runtime.server.responses_api.request import ResponsesRequest
from plimsoll.runtime.server.tokenizing import Detokenized, DetokenizeRequest, Tokenized, TokenizeRequest

REF = "#/components/schemas/{}"
REQUESTS: tuple[type[BaseModel], ...] = (
    ChatCompletionRequest,
    CompletionRequest,
    ResponsesRequest,
    MessagesRequest,
    CountRequest,
    TokenizeRequest,
    DetokenizeRequest,
)
RESPONSES = (
    responses.ChatCompletion,
    responses.Completion,
    ResponseObject,
    MessageObject,
    TokenCount,
    MessagesError,
    Tokenized,
    Detokenized,
    responses.Model,
    responses.ModelList,
    responses.Health,
    responses.Version,
    responses.Error,
)
MEANINGS = {
    "400": "A field is wrong, unknown or not supported; `param` names it",
    "401": "The API key is missing or wrong",
    "404": "No such model or path",
    "408": "The body did not arrive in time",
    "413": "The body is larger than this server takes",
    "415": "The body is not declared as JSON",
    "429": "The queue is full; Retry-After says when to come back",
    "500": "The server failed on this request",
    "503": "Loading, restarting or shutting down; Retry-After says when to come back",
    "504": "The request took longer than this server allows",
}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": REF.format(name)}}}


def reads(
    request: type[BaseModel], response: type[msgspec.Struct], error: type[msgspec.Struct] = responses.Error
) -> dict[str, Any]:
    """Arguments of a FastAPI route that reads `request` itself and answers `response`, whole or as events."""
    events = {"text/event-stream": {"schema": {"type": "string"}}}
    return {
        "openapi_extra": {"requestBody": {"content": _json(request.__name__), "required": True}},
        "responses": {
            200: {"description": "The answer", "content": {**_json(response.__name__), **events}},
            **failures(*MEANINGS, error=error),
        },
    }


def gives(response: type[msgspec.Struct], *statuses: str) -> dict[str, Any]:
    """Arguments of a FastAPI route that takes no body."""
    return {
        "responses": {200: {"description": "The answer", "content": _json(response.__name__)}, **failures(*statuses)}
    }


def failures(*statuses: str, error: type[msgspec.Struct] = responses.Error) -> dict[int | str, dict[str, Any]]:
    """The entries of these error statuses for the OpenAPI document."""
    return {int(status): {"description": MEANINGS[status], "content": _json(error.__name__)} for status in statuses}


def document(app: FastAPI, keys: bool) -> dict[str, Any]:
    """The whole document; `keys` says whether the paths but the probes want one."""
    found = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, asked = models_json_schema([(kind, "validation") for kind in REQUESTS], ref_template=REF.format("{model}"))
    _, given = msgspec.json.schema_components(RESPONSES, ref_template=REF.format("{name}"))
    found["components"] = {"schemas": {**asked.get("$defs", {}), **given}}
    if keys:
        found["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        found["security"] = [{"key": []}]
        for path in ("/health", "/ready"):
            for operation in found["paths"][path].values():
                operation["security"] = []
    return found
