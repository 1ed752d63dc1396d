"""Answers of untrusted endpoints to `plimsoll chat`, `bench` and `eval`, from a real socket."""

import asyncio
import contextlib
import functools
import gzip
import random
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from plimsoll.api.errors import PlimsollError
from plimsoll.checkpoint import answers
from plimsoll.cli import conversation, events, load
from plimsoll.cli.events import EventLines
from plimsoll.quantjob import endpoint as scoring
from tests.support.bounded import bounded, refusal
from tests.support.mutated_bytes import mutated

SEEDS = Path(__file__).parent / "seeds" / "streams"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n"
FAILED = b"HTTP/1.1 500 No\r\nConnection: close\r\n\r\n"
#: One piece of an answer that never ends.
PIECE = b"a" * (1 << 16)


class Server:
    """Sends `answer` to every request, and then `forever` until the client hangs up; counts what it sent."""

    def __init__(self) -> None:
        self.answer, self.forever, self.sent = b"", b"", 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        # One client for all: each loads certificate authorities first.
        self.chat = conversation.Endpoint(self.url, "m")

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(10)
                # Request heads and bodies of the clients come in one or two pieces.
                connection.recv(1 << 16)
                connection.sendall(self.answer)
                while self.forever:
                    connection.sendall(self.forever)
                    self.sent += len(self.forever)
                connection.shutdown(socket.SHUT_WR)
                while connection.recv(1 << 16):
                    pass

    def close(self) -> None:
        self.chat.close()
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(10)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


def chatted(server: Server) -> str:
    return "".join(server.chat.stream([{"role": "user", "content": "Hi"}], {}))


def first_model(server: Server) -> str:
    with contextlib.closing(conversation.Endpoint(server.url)) as endpoint:
        return endpoint.model


def scored(server: Server) -> object:
    with contextlib.closing(scoring.Endpoint(server.url, None, "m")) as endpoint:  # type: ignore[arg-type]
        return endpoint.score([[1, 2]])


def benched(server: Server) -> load.Outcome:
    async def once() -> load.Outcome:
        async with httpx.AsyncClient(timeout=10, verify=False) as client:
            return await load.stream(client, load.Target(server.url, "m"), "Hi", time.perf_counter())

    outcome = asyncio.run(once())
    assert isinstance(load.summary([outcome], 1.0)["output_tokens"], int)
    return outcome


@pytest.mark.parametrize("part", range(6))
@pytest.mark.parametrize("name", sorted(path.name for path in SEEDS.iterdir()))
def test_a_changed_stream_is_told_or_refused(name: str, part: int, server: Server) -> None:
    draw, honest = random.Random(f"{name} {part}"), (SEEDS / name).read_bytes()
    server.forever = b""
    for _ in range(10):
        server.answer = HEAD + b"\r\n" + mutated(honest, draw)
        error = refusal(chatted, server)
        assert error is None or 0 < len(str(error)) < 3000
        with bounded():
            assert benched(server).error in (
                None, "stream cut short", "not an OpenAI stream", "error in stream", "empty answer"
            )  # fmt: skip


@pytest.mark.parametrize("size", [1, 2, 7, 4096])
def test_lines_do_not_depend_on_how_the_bytes_come(size: int) -> None:
    draw = random.Random(size)
    for _ in range(40):
        sent = mutated((SEEDS / "chat.sse").read_bytes(), draw)
        whole, pieces = EventLines(), EventLines()
        wanted = whole.feed(sent) + whole.close()
        found = [data for start in range(0, len(sent), size) for data in pieces.feed(sent[start : start + size])]
        assert found + pieces.close() == wanted


def test_a_long_line_in_small_pieces_takes_time_in_step_with_its_length() -> None:
    lines = EventLines()
    with bounded(5):
        assert not any(lines.feed(b"a" * 256) for _ in range(events.MAX_LINE // 256))
    with pytest.raises(ValueError, match="never ends"):
        lines.feed(b"a")
    with bounded(5):
        ended = EventLines()
        for _ in range(1 << 14):
            ended.feed(b"data: " + b"a" * 200 + b"\r")
        assert ended.feed(b"\n") == ["a" * 200]


def test_a_stream_that_goes_on_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "MAX_STREAM", 1 << 16)
    lines = EventLines()
    assert not any(lines.feed(b":" * 1023 + b"\n") for _ in range(64))
    with pytest.raises(ValueError, match="the stream never ends"):
        lines.feed(b"\n")


ENDLESS: dict[str, tuple[bytes, Callable[[Server], Any]]] = {
    "a line, chat": (HEAD + b"\r\ndata: ", chatted),
    "a line, bench": (HEAD + b"\r\ndata: ", benched),
    "an error, chat": (FAILED, chatted),
    "an error, bench": (FAILED, benched),
    "an error, eval": (FAILED, scored),
    "a list of models": (HEAD + b"\r\n", first_model),
    "an answer, eval": (HEAD + b"\r\n", scored),
}


@pytest.mark.parametrize("name", ENDLESS)
def test_an_answer_without_an_end_takes_little_memory(
    name: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.answer, ask = ENDLESS[name]
    server.forever, server.sent = PIECE, 0
    monkeypatch.setattr(scoring, "MOST_BYTES", 1 << 22)
    tracemalloc.start()
    try:
        with bounded():
            try:
                failed = ask(server).error
            except PlimsollError as error:
                failed = str(error)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        server.forever = b""
    assert failed
    assert peak < 32 << 20


@functools.cache
def bomb() -> bytes:
    return gzip.compress(b"data: " + bytes(64 << 20), 1)


@pytest.mark.parametrize("ask", [chatted, benched, scored, first_model])
def test_a_packed_answer_is_not_unpacked(ask: Callable[[Server], Any], server: Server) -> None:
    body = bomb()
    server.forever = b""
    server.answer = HEAD + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    tracemalloc.start()
    try:
        failed = ask(server).error
    except PlimsollError as error:
        failed = str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert "OpenAI" in failed
    assert peak < 16 << 20
    assert answers.IDENTITY == {"Accept-Encoding": "identity"}


CHUNKS = [
    "[" * 100_000, "7", '"error"', "[1]", "null", '{"choices": 5}', '{"choices": [5]}',
    '{"error": 5}', '{"error": null}',
    '{"choices": [{"delta": {"content": {"a": 1}}}]}', '{"choices": [{"delta": []}]}', '{"choices": [null]}',
    '{"usage": {"prompt_tokens": "many"}}', '{"usage": {"completion_tokens": 1e400}}',
    '{"usage": {"completion_tokens": -5}}', '{"usage": {"completion_tokens": [1]}}', '{"usage": 5}',
    '{"usage": {"completion_tokens": %s}}' % ("9" * 5000), '{"usage": {"prompt_tokens": true}}',
    '{"error": {"message": "%s"}}' % ("a" * 100_000), "NaN", '{"choices": [{"delta": {"content": "\\ud800"}}]}',
]  # fmt: skip


@pytest.mark.parametrize("chunk", CHUNKS, ids=range(len(CHUNKS)))
def test_a_chunk_of_another_shape_is_no_traceback(chunk: str, server: Server) -> None:
    server.forever, server.answer = b"", HEAD + b"\r\ndata: " + chunk.encode() + b"\n\ndata: [DONE]\n\n"
    error = refusal(chatted, server)
    assert error is None or len(str(error)) < 3000
    assert benched(server).error != "timeout"


MODELS = ["[]", "{}", '{"data": 5}', '{"data": [5]}', '{"data": []}', '{"data": [{}]}', "[" * 100_000, "", "\xff"]


@pytest.mark.parametrize("body", MODELS, ids=range(len(MODELS)))
def test_a_list_of_models_of_another_shape_is_no_traceback(body: str, server: Server) -> None:
    server.forever, server.answer = b"", HEAD + b"\r\n" + body.encode("latin-1")
    for ask in (first_model, lambda server: scoring.Endpoint(server.url, None)):  # type: ignore[arg-type]
        assert refusal(ask, server) is not None


SCORES = [
    f'{{"choices": [{inner}]}}'
    for inner in (
        '{"prompt_logprobs": [null, {"2": {"logprob": %s}}]}' % ("9" * 4000),
        '{"prompt_logprobs": [null, {"2": {"logprob": "x"}}]}', '{"prompt_logprobs": [null, 5]}',
        '{"prompt_logprobs": 5}', '{"logprobs": {"token_logprobs": [null, -1], "top_logprobs": [null, 5]}}',
        '{"logprobs": 5}', "5", "[]",
    )
]  # fmt: skip


@pytest.mark.parametrize("body", SCORES, ids=range(len(SCORES)))
def test_scores_of_another_shape_are_no_traceback(body: str, server: Server) -> None:
    server.forever, server.answer = b"", HEAD + b"\r\n" + body.encode()
    error = refusal(scored, server)
    assert error is not None
    assert "endpoint" in str(error)
