"""The routes of `/v1/messages`."""

from collections.abc import Awaitable, Callable

import msgspec
from fastapi import FastAPI, Request, Response

from plimsoll.runtime.server import openapi
from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.messages_api.objects import MessageObject, MessagesError, TokenCount
from plimsoll.runtime.server.messages_api.request import NAMES, CountRequest, MessagesRequest
from plimsoll.runtime.server.messages_api.run import MessageRun
from plimsoll.runtime.server.serving import Serving


def add(app: FastAPI, serving: Serving, run: Callable[..., Awaitable[Response]]) -> None:
    """Adds the routes to `app`; `run` answers a request whole or as events."""

    @app.post("/v1/messages", tags=["Anthropic"], **openapi.reads(MessagesRequest, MessageObject, MessagesError))
    async def messages(request: Request) -> Response:
        """Answers a conversation, in Anthropic's shapes."""
        try:
            prepared = await serving.prepare("messages", request)
            parsed, [(_, ids)], chat = prepared.request, prepared.prompts, prepared.chat
            assert isinstance(parsed, MessagesRequest)
            assert chat is not None
            work = MessageRun(serving, parsed, chat, ids, request.scope["request_id"])
            return await run(request, work, parsed.stream, work.failed)
        except ApiError as error:
            raise error.renamed(NAMES) from None

    @app.post("/v1/messages/count_tokens", tags=["Anthropic"], **openapi.reads(CountRequest, TokenCount, MessagesError))
    async def count_tokens(request: Request) -> Response:
        """Counts the tokens of a conversation."""
        try:
            [(_, ids)] = (await serving.prepare("count", request)).prompts
        except ApiError as error:
            raise error.renamed(NAMES) from None
        return Response(msgspec.json.encode(TokenCount(len(ids))), media_type="application/json")
