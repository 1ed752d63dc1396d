"""`plimsoll chat`: a conversation in the terminal, with any OpenAI endpoint or with a model started for it."""

from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

import typer


def chat(
    model: Annotated[
        str | None,
        typer.Argument(help="A checkpoint to start here: a folder, a .gguf file, or hf://ORG/NAME. Without it, --url."),
    ] = None,
    url: Annotated[str, typer.Option(help="The endpoint, with or without /v1.")] = "http://127.0.0.1:8000",
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

    options: dict[str, Any] = dict(conversation.CALM) if temperature is None else {"temperature": temperature}
    if max_tokens is not None:
        options["max_tokens"] = max_tokens
    screen = local.console()

    def talk(address: str, key: str | None) -> None:
        with closing(conversation.Endpoint(address, model_name, key)) as endpoint:
            conversation.chat(endpoint, options, system, screen)

    if model is None:
        key = conversation.first_key(api_key_file, "--api-key-file") if api_key_file else None
        talk(url, key or conversation.key_of_environment())
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
