"""`plimsoll chat`: a conversation in the terminal, with any OpenAI endpoint or with a model started for it."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer

from plimsoll.api.errors import SpecError

#: Where `plimsoll serve` listens.
DEFAULT_URL = "http://127.0.0.1:8000"


def chat(
    model: Annotated[
        str | None,
        typer.Argument(help="A checkpoint to start here: a folder, a .gguf file, or hf://ORG/NAME. Without it, --url."),
    ] = None,
    url: Annotated[str | None, typer.Option(help=f"The endpoint, with or without /v1. Default: {DEFAULT_URL}.")] = None,
    model_name: Annotated[str | None, typer.Option(help="Which of the endpoint's models. Default: its first.")] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File whose first line is the key. Default: $OPENAI_API_KEY, if set.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    temperature: Annotated[
        float | None,
        typer.Option(min=0.0, max=2.0, help="0 always takes the likeliest token. Default: 0."),
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, in tokens.")] = None,
) -> None:
    """Chat with a model: /clear, /system, /exit; Ctrl-C stops an answer."""
    from plimsoll.cli import conversation, local

    of_an_endpoint = {"--url": url, "--model-name": model_name, "--api-key-file": api_key_file}
    for name, value in of_an_endpoint.items():
        if model is not None and value is not None:
            raise SpecError(
                "is of an endpoint, and MODEL starts another one here",
                field=name,
                value=str(value),
                fix="Leave one out",
            )
    options: dict[str, Any] = dict(conversation.CALM) if temperature is None else {"temperature": temperature}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    screen = local.console()

    def talk(address: str, key: str | None) -> None:
        with closing(conversation.Endpoint(address, model_name, key)) as endpoint:
            conversation.chat(endpoint, options, system, screen)

    if model is None:
        key = conversation.first_key(api_key_file, "--api-key-file") if api_key_file else None
        talk(url or DEFAULT_URL, key or conversation.key_of_environment())
        return

    from plimsoll.checkpoint.open import open_checkpoint
    from plimsoll.runtime.config import EngineConfig, ServerConfig
    from plimsoll.runtime.server import log
    from plimsoll.runtime.server.service import Service

    log.configure("warning")
    path = local.fetch(model, screen, "MODEL")
    server = ServerConfig(served_name=model_name or local.own_name(model, path), port=0)
    service = Service(EngineConfig(model=str(path)), server, open_checkpoint(path))
    local.run([service], screen, lambda: talk(service.url, None))
