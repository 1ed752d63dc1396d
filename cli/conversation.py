"""Talking to an OpenAI endpoint from a terminal: one question, or a chat."""

import contextlib
import json
import os
import sys
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.text import Text

from plimsoll.api.errors import PlimsollError, SpecError
from plimsoll.api.keys import is_sendable, read_keys
from plimsoll.api.printable import printable
from plimsoll.checkpoint.answers import IDENTITY, body, pieces
from plimsoll.cli.events import EventLines

VARIABLE = "OPENAI_API_KEY"
#: Characters of a model's name, and of an endpoint's own words, that are shown.
LONGEST_NAME, LONGEST_ERROR = 200, 2000
HELP = "/clear forgets the conversation · /system TEXT sets the system prompt · /exit leaves · Ctrl-C stops an answer"


class EndpointError(PlimsollError):
    """An endpoint cannot be reached, or answered with an error."""


def first_key(path: Path, option: str) -> str:
    """The first key of a file as the server reads it: one a line, `#` starts a comment.

    Raises:
        SpecError: it cannot be read or holds none; `option` is named.
    """
    try:
        keys = read_keys(path.read_bytes(), field=option, where=str(path))
    except OSError as error:
        raise SpecError(f"cannot be read: {error}", field=option, value=str(path)) from None
    if not keys:
        raise SpecError("holds no key", field=option, value=str(path), fix="Write one key a line")
    return keys[0]


def key_of_environment() -> str | None:
    """$OPENAI_API_KEY, as the openai client reads it. Raises SpecError where no header can carry it."""
    key = os.environ.get(VARIABLE, "").strip()
    if not is_sendable(os.fsencode(key)):
        raise SpecError(
            "holds a character that a header cannot carry", field=f"${VARIABLE}",
            fix="Use letters, digits and punctuation of ASCII alone, or --api-key-file",
        )  # fmt: skip
    return key or None


class Endpoint:
    """An OpenAI endpoint.

    Args:
        url: with or without the `/v1` at its end.
        model: None asks the endpoint and takes the first it names.
        key: sent as bearer token when given.

    Raises EndpointError for a `url` that is no address of the web.
    """

    def __init__(self, url: str, model: str | None = None, key: str | None = None) -> None:
        if not url.startswith(("http://", "https://")):
            raise EndpointError(
                "must begin with http:// or https://", field="--url", value=url, fix=f"Write http://{url[:80]}"
            )
        root = url.rstrip("/")
        self.url = root if root.endswith("/v1") else f"{root}/v1"
        headers = IDENTITY | ({"Authorization": f"Bearer {key}"} if key else {})
        # An answer may take its time; only connecting may not.
        self.client = httpx.Client(headers=headers, timeout=httpx.Timeout(None, connect=10))
        self._model = model

    @property
    def model(self) -> str:
        """The first model that the endpoint lists. Raises EndpointError when it lists none."""
        if self._model is None:
            with self._plainly(), self.client.stream("GET", f"{self.url}/models") as answer:
                self._check(answer)
                names = [str(item["id"])[:LONGEST_NAME] for item in json.loads(body(answer))["data"]]
            if not names:
                raise EndpointError("the endpoint serves no model", field="--url", value=self.url)
            self._model = names[0]
        return self._model

    def stream(self, messages: list[dict[str, str]], options: dict[str, Any]) -> Generator[str]:
        """The answer's pieces as they come. Closing the iterator early hangs up, which ends the request.

        Raises:
            EndpointError: in the endpoint's own words where it has some.
        """
        asked = {"model": self.model, "messages": messages, "stream": True, **options}
        with self._plainly(), self.client.stream("POST", f"{self.url}/chat/completions", json=asked) as answer:
            self._check(answer)
            for data in _events(answer):
                chunk = json.loads(data)
                if "error" in chunk:
                    raise EndpointError(str(chunk["error"].get("message", chunk["error"]))[:LONGEST_ERROR])
                for choice in chunk.get("choices", ()):
                    if text := choice.get("delta", {}).get("content"):
                        if not isinstance(text, str):
                            raise TypeError("an answer that is no text")
                        yield text

    @contextlib.contextmanager
    def _plainly(self) -> Iterator[None]:
        try:
            yield
        except httpx.ConnectError:
            raise EndpointError(
                "nothing answers there", field="--url", value=self.url, fix="Start a server with `plimsoll serve`"
            ) from None
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise EndpointError(f"the connection failed: {error}", field="--url", value=self.url) from None
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise EndpointError("does not answer as an OpenAI endpoint does", field="--url", value=self.url) from None

    def _check(self, answer: httpx.Response) -> None:
        if answer.status_code == 200:
            return
        said = body(answer)
        try:
            message = str(json.loads(said)["error"]["message"])[:LONGEST_ERROR]
        except (ValueError, KeyError, TypeError, RecursionError):
            message = said[:200].decode("utf-8", "replace")
        raise EndpointError(f"HTTP {answer.status_code}: {message}", field="--url", value=self.url)

    def close(self) -> None:
        self.client.close()


def _events(answer: httpx.Response) -> Iterator[str]:
    lines = EventLines()
    for received in pieces(answer):
        yield from filter(_is_chunk, lines.feed(received))
    yield from filter(_is_chunk, lines.close())


def _is_chunk(data: str) -> bool:
    return data not in ("", "[DONE]")


def legible(typed: str) -> str:
    """What was typed or given as an argument, with a question mark for each byte that was no UTF-8."""
    return typed.encode("utf-8", "replace").decode()


#: How a conversation samples by default: at the API's own default of 1, small models ramble.
CALM = {"temperature": 0.0}


def ask(endpoint: Endpoint, question: str, options: dict[str, Any]) -> str:
    """Streams the answer to one question to stdout and returns it."""
    pieces = []
    for text in endpoint.stream([{"role": "user", "content": legible(question)}], options):
        pieces.append(text)
        print(printable(text), end="", flush=True)
    print(flush=True)
    return "".join(pieces)


def chat(endpoint: Endpoint, options: dict[str, Any], system: str | None, console: Console) -> None:
    """Reads questions until /exit or the end of input. Blocks; runs in the main thread, where Ctrl-C arrives."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  # gives input() a history and line editing
    console.print(Text.assemble((endpoint.model, "bold"), f" at {endpoint.url}\n", (HELP, "dim")))
    start = [{"role": "system", "content": system}] if system else []
    messages = list(start)
    while True:
        try:
            line = legible(input("\n> " if sys.stdin.isatty() else "").strip())
        except EOFError:
            return
        except KeyboardInterrupt:
            console.print("\n/exit or Ctrl-D leaves", style="dim")
            continue
        command, _, rest = line.partition(" ")
        if not line:
            continue
        if command in ("/exit", "/quit"):
            return
        if command == "/clear":
            messages = list(start)
            console.print("forgotten", style="dim")
        elif command == "/system":
            start = [{"role": "system", "content": rest}] if rest else []
            messages = list(start)
            console.print("system prompt set; the conversation starts again", style="dim")
        elif command == "/help":
            console.print(HELP, style="dim")
        elif command.startswith("/"):
            console.print(f"no such command: {command}. {HELP}", style="dim")
        else:
            _turn(endpoint, messages, line, options, console)


def _turn(
    endpoint: Endpoint, messages: list[dict[str, str]], line: str, options: dict[str, Any], console: Console
) -> None:
    """One question and its answer, both kept; a question that failed is forgotten, an answer cut short is kept."""
    messages.append({"role": "user", "content": line})
    pieces: list[str] = []
    try:
        with contextlib.closing(endpoint.stream(messages, options)) as answer:
            for text in answer:
                pieces.append(text)
                print(printable(text), end="", flush=True)
    except KeyboardInterrupt:
        console.print(" (stopped)", style="dim", end="")
    except EndpointError as error:
        console.print(f"error: {error}", style="red")
        if not pieces:
            messages.pop()
            return
    print(flush=True)
    messages.append({"role": "assistant", "content": "".join(pieces)})
