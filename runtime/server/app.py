"""The HTTP application: routes, and the layers around them."""

import asyncio
import functools
from collections.abc import Callable
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse

import plimsoll
from plimsoll.runtime.config import ServerConfig
from plimsoll.runtime.server import metrics, openapi, pages, tokenize_routes
from plimsoll.runtime.server.asgi import App, Boundary, ClientGoneError, Headless, error_response
from plimsoll.runtime.server.auth import KeyFile, RequireKey
from plimsoll.runtime.server.body_size import BodySize, body_size
from plimsoll.runtime.server.chat import Chat
from plimsoll.runtime.server.completions import Completions
from plimsoll.runtime.server.cors import Cors
from plimsoll.runtime.server.drain import Admit, Gate
from plimsoll.runtime.server.errors import ApiError, not_ready, timed_out, unknown_path
from plimsoll.runtime.server.limits import LimitBody
from plimsoll.runtime.server.messages_api import routes as messages_routes
from plimsoll.runtime.server.params import check_model
from plimsoll.runtime.server.protocol import ChatCompletionRequest, CompletionRequest
from plimsoll.runtime.server.responses import ChatCompletion, Completion, Health, Model, ModelList, Version
from plimsoll.runtime.server.responses_api import routes as responses_routes
from plimsoll.runtime.server.serving import Serving
from plimsoll.runtime.server.streaming import EventStream, Work, openai_failed, while_connected
from plimsoll.runtime.server.visitors import Door, Visitors

DESCRIPTION = (
    "OpenAI's API for one model, served by Plimsoll. A field that is not listed here is refused. Where it cannot "
    "change an answer, it is accepted, and the header `x-plimsoll-ignored` names it."
)


def build_app(serving: Serving, *, local: bool) -> App:
    """The whole application as ASGI.

    Args:
        serving: what is served.
        local: the server listens on a loopback address.

    Raises:
        SpecError: the API keys file cannot be used.
    """

    def size() -> BodySize:
        info = serving.engine.info
        return body_size(serving.config, serving.engine.config, None if info is None else info.model_len)

    return around(routes(serving), serving.config, serving.gate, size, local=local)


def around(app: App, config: ServerConfig, gate: Gate, size: Callable[[], BodySize], *, local: bool) -> App:
    """The layers about the routes: CORS, errors and log outside, then visitors, keys, the body's limits, the gate.

    Args:
        size: the limits of bodies now.

    Raises:
        SpecError: the API keys file cannot be used.
    """
    visitors = Visitors(
        keys=config.api_keys_file is not None,
        origins=config.allowed_origins,
        hosts=(*config.allowed_hosts, config.host.lower()) if local or config.allowed_hosts else None,
    )
    app = LimitBody(Admit(app, gate), size)
    if config.api_keys_file is not None:
        app = RequireKey(app, KeyFile(config.api_keys_file))
    return Cors(Boundary(Headless(Door(app, visitors)), gate), visitors)


def routes(serving: Serving) -> FastAPI:
    """The application with every route."""
    app = FastAPI(
        title="Plimsoll", description=DESCRIPTION, version=plimsoll.__version__, docs_url=None, redoc_url=None
    )
    # Made once: hundreds of milliseconds, which a client could ask for again and again.
    document = functools.cache(lambda: openapi.document(app, serving.config.api_keys_file is not None))
    app.openapi = document  # type: ignore[method-assign]
    _errors(app)
    _generation(app, serving)
    _models(app, serving)
    _operations(app, serving)
    return app


def reply(payload: Any, status: int = 200) -> Response:
    """A JSON response with `payload` as body."""
    return Response(msgspec.json.encode(payload), status, media_type="application/json")


def _generation(app: FastAPI, serving: Serving) -> None:
    seconds = serving.config.request_timeout

    async def run(
        request: Request, work: Work, stream: bool, failed: Callable[[ApiError], bytes] = openai_failed
    ) -> Response:
        """The answer whole, or as events. What can be refused was refused before."""
        if stream:
            return EventStream(work.events(), seconds, failed)
        try:
            async with asyncio.timeout(seconds):
                return reply(await while_connected(request.receive, work.complete()))
        except TimeoutError:
            raise timed_out(seconds) from None

    @app.post("/v1/chat/completions", tags=["OpenAI"], **openapi.reads(ChatCompletionRequest, ChatCompletion))
    async def chat_completions(request: Request) -> Response:
        """Answers a conversation."""
        prepared = await serving.prepare("chat", request)
        [(echo, ids)], chat = prepared.prompts, prepared.chat
        assert chat is not None
        return await run(request, Chat(serving, chat, ids, request.scope["request_id"], echo), chat.stream)

    @app.post("/v1/completions", tags=["OpenAI"], **openapi.reads(CompletionRequest, Completion))
    async def completions(request: Request) -> Response:
        """Continues a prompt, or several."""
        prepared = await serving.prepare("text", request)
        parsed, prompts = prepared.request, prepared.prompts
        assert isinstance(parsed, CompletionRequest)
        return await run(request, Completions(serving, parsed, prompts, request.scope["request_id"]), parsed.stream)

    responses_routes.add(app, serving, run)
    messages_routes.add(app, serving, run)
    tokenize_routes.add(app, serving)


def _models(app: FastAPI, serving: Serving) -> None:
    def model() -> Model:
        info = serving.engine.info
        name = serving.config.served_name
        return Model(name, serving.created, info.model_len if info else None, name)

    @app.get("/v1/models", tags=["OpenAI"], **openapi.gives(ModelList, "401"))
    async def list_models() -> Response:
        """The one model this server has."""
        return reply(ModelList([model()]))

    @app.get("/v1/models/{model_id:path}", tags=["OpenAI"], **openapi.gives(Model, "401", "404"))
    async def get_model(model_id: str) -> Response:
        """That model, by its name."""
        check_model(model_id, serving.config.served_name)
        return reply(model())


def _operations(app: FastAPI, serving: Serving) -> None:
    @app.get("/health", tags=["Operations"], **openapi.gives(Health, "503"))
    async def health() -> Response:
        """200 while the engine gives signs of life, loading and restarting included; a hung engine shows here."""
        if not serving.engine.alive:
            raise not_ready("The engine gives no sign of life.")
        return reply(Health("ok"))

    @app.get("/ready", tags=["Operations"], **openapi.gives(Health, "503"))
    async def ready() -> Response:
        """200 once the model is loaded and has generated a token, while the engine lives, until shutdown begins."""
        if serving.gate.leaving:
            raise not_ready("This server is shutting down.")
        if not serving.engine.ready:
            loading = serving.engine.alive
            raise not_ready("The model is not loaded yet." if loading else "The engine gives no sign of life.")
        return reply(Health("ready"))

    @app.get("/version", tags=["Operations"], **openapi.gives(Version, "401"))
    async def version() -> Response:
        """Which Plimsoll this is."""
        info = serving.engine.info
        return reply(Version(plimsoll.__version__, info.kernels if info else None))

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        """What is here."""
        found = {"name": "Plimsoll", "version": plimsoll.__version__, "model": serving.config.served_name}
        return reply({**found, "links": pages.LINKS})

    page = functools.cache(lambda: pages.docs(app.openapi(), serving.config.served_name).encode())

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        """What a request may say, as a page."""
        return HTMLResponse(page(), headers=pages.HEADERS)

    @app.get(
        "/metrics", tags=["Operations"], responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}
    )
    async def scrape() -> Response:
        """For Prometheus, under vLLM's names with the prefix `plimsoll:`."""
        return Response(serving.metrics.page(), media_type=metrics.CONTENT_TYPE)


def _errors(app: FastAPI) -> None:
    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> Response:
        return error_response(error, request.scope)

    @app.exception_handler(HTTPException)
    async def unrouted(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return error_response(unknown_path(request.url.path), request.scope)
        message = f"{request.method} is not allowed here" if error.status_code == 405 else str(error.detail)
        return error_response(ApiError(error.status_code, message, headers=error.headers), request.scope)

    @app.exception_handler(ClientGoneError)
    async def gone(request: Request, error: ClientGoneError) -> Response:
        # No client reads this; nginx's number for it keeps the log truthful.
        return Response(status_code=499)
