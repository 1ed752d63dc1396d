"""The routes of `/v1/responses`."""

from collections.abc import Awaitable, Callable

from fastapi import FastAPI, Request, Response

from plimsoll.runtime.server import openapi
from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.responses_api.objects import ResponseObject
from plimsoll.runtime.server.responses_api.request import NAMES, ResponsesRequest
from plimsoll.runtime.server.responses_api.run import ResponseRun
from plimsoll.runtime.server.serving import Serving


def add(app: FastAPI, serving: Serving, run: Callable[..., Awaitable[Response]]) -> None:
    """Adds the routes to `app`; `run` answers a request whole or as events."""

    @app.post("/v1/responses", tags=["OpenAI"], **openapi.reads(ResponsesRequest, ResponseObject))
    async def responses(request: Request) -> Response:
        """Answers a conversation, in items. Nothing is stored."""
        try:
            prepared = await serving.prepare("responses", request)
            parsed, [(_, ids)], chat = prepared.request, prepared.prompts, prepared.chat
            assert isinstance(parsed, ResponsesRequest)
            assert chat is not None
            work = ResponseRun(serving, parsed, chat, ids, request.scope["request_id"])
            return await run(request, work, parsed.stream, work.failed)
        except ApiError as error:
            raise error.renamed(NAMES) from None

    @app.api_route("/v1/responses/{path:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
    async def stored(path: str) -> Response:
        """There are none."""
        raise ApiError(
            404,
            f"Response {path.split('/')[0][:80]!r} does not exist: this server stores no responses. Send the whole "
            "conversation to /v1/responses as input.",
            code="response_not_found",
        )
