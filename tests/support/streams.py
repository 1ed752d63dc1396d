"""Many streams at once over plain sockets: cheap enough that the server and not its clients is under load."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Heard:
    """What a client heard of one stream, or of one whole answer."""

    status: int = 0
    text: str = ""
    finish_reason: str | None = None
    completion_tokens: int = 0
    error: dict[str, Any] | None = None
    done: bool = False
    events: list[dict[str, Any]] = field(default_factory=list)


async def listen(port: int, body: dict[str, Any], *, hang_up_after: int | None = None) -> Heard:
    """Sends one completion request, streamed or not, and listens to its end.

    Args:
        port: of a server on 127.0.0.1.
        body: the request; with `stream` its `stream_options` should include usage.
        hang_up_after: closes the connection, reset and not shut, after so many events.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    heard = Heard()
    try:
        data = json.dumps(body).encode()
        head = "POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        heard.status = int((await reader.readline()).split()[1])
        while await reader.readline() != b"\r\n":
            pass
        if not body.get("stream") or heard.status != 200:
            answer = json.loads(await reader.read())
            heard.error, heard.done = answer.get("error"), True
            if heard.error is None:
                _take(heard, answer)
            return heard
        # Every event is one chunk, so a line is either a chunk's size, an event, or empty.
        while line := await reader.readline():
            if line == b"data: [DONE]\n":
                heard.done = True
            elif line.startswith(b"data: "):
                event = json.loads(line[6:])
                heard.error = event.get("error", heard.error)
                heard.events.append(event)
                _take(heard, event)
                if hang_up_after is not None and len(heard.events) >= hang_up_after:
                    writer.transport.abort()
                    return heard
        return heard
    finally:
        writer.close()


def _take(heard: Heard, answer: dict[str, Any]) -> None:
    for choice in answer.get("choices", ()):
        heard.text += choice["text"]
        heard.finish_reason = choice["finish_reason"] or heard.finish_reason
    if answer.get("usage"):
        heard.completion_tokens = answer["usage"]["completion_tokens"]
