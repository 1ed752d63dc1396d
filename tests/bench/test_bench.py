"""`plimsoll bench` against a small endpoint that speaks OpenAI's protocol on loopback, over real sockets."""

import asyncio
import itertools
import json
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from typer.testing import CliRunner

from plimsoll.api.errors import PlimsollError, SpecError
from plimsoll.cli import load
from plimsoll.cli.main import build

TEMPLATE_TOKENS = 11


@dataclass
class Stub:
    """What the endpoint was asked, and how it is to behave: the model's name says."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    in_flight: int = 0
    most_in_flight: int = 0


def application(stub: Stub) -> FastAPI:
    app = FastAPI()
    counter = itertools.count()

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{"id": "counts", "object": "model"}]}

    @app.post("/v1/chat/completions")
    @app.post("/v1/completions")
    async def answer(request: Request) -> Response:
        body = await request.json()
        stub.bodies.append(body)
        kind = body["model"]
        if request.headers.get("authorization") != "Bearer secret" and kind == "locked":
            return Response('{"error": {"message": "no"}}', status_code=401)
        if kind == "busy" and next(counter) % 2:
            return Response('{"error": {"message": "full"}}', status_code=429)
        if kind == "hangs":
            await asyncio.sleep(30)
        return StreamingResponse(stream(body, kind), media_type="text/event-stream")

    async def stream(body: dict[str, Any], kind: str) -> AsyncIterator[str]:
        stub.in_flight += 1
        stub.most_in_flight = max(stub.most_in_flight, stub.in_flight)
        try:
            if "messages" in body:
                words = len(body["messages"][0]["content"].split())
                yield event({"choices": [{"delta": {"role": "assistant", "content": ""}}]})
            else:
                words = len(body["prompt"].split())
            for index in range(body["max_tokens"] if kind != "empty" else 0):
                await asyncio.sleep(0)
                if kind == "cut" and index == 2:
                    return
                if kind == "fails" and index == 2:
                    yield event({"error": {"message": "boom"}})
                    return
                yield event({"choices": [{"delta": {"content": "x"}} if "messages" in body else {"text": "x"}]})
            if kind == "counts":
                usage = {"prompt_tokens": 2 * words + TEMPLATE_TOKENS, "completion_tokens": 3 * body["max_tokens"]}
                yield event({"choices": [], "usage": usage})
            yield "data: [DONE]\n\n"
        finally:
            stub.in_flight -= 1

    return app


def event(chunk: dict[str, Any]) -> str:
    return f"data: {json.dumps(chunk)}\n\n"


@pytest.fixture(scope="module")
def server() -> Iterator[Stub]:
    stub = Stub()
    listener = socket.create_server(("127.0.0.1", 0))
    stub.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    running = uvicorn.Server(uvicorn.Config(application(stub), log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    yield stub
    running.should_exit = True
    thread.join()
    listener.close()


@pytest.fixture
def stub(server: Stub) -> Stub:
    server.bodies.clear()
    server.most_in_flight = 0
    return server


def run(stub: Stub, model: str, count: int = 6, **options: Any) -> tuple[list[load.Outcome], dict[str, Any]]:
    settings = {key: options.pop(key) for key in list(options) if key in load.Target.__dataclass_fields__}
    target = load.Target(**{"url": f"{stub.url}/v1", "model": model, "output_tokens": 5, **settings})
    if "rate" not in options:
        options.setdefault("concurrency", 3)
    outcomes, seconds = asyncio.run(load.run(target, load.random_prompts(count, 4, 0), **options))
    return outcomes, load.summary(outcomes, seconds)


def command(*arguments: str) -> Any:
    return CliRunner().invoke(build(["bench"]), ["bench", *arguments])


def test_tokens_are_counted_by_the_endpoint_where_it_does(stub: Stub) -> None:
    outcomes, result = run(stub, "counts")
    assert result["succeeded"] == 6
    assert result["tokens_counted_by_endpoint"]
    assert result["output_tokens"] == 6 * 15
    assert result["prompt_tokens"] == 6 * (8 + TEMPLATE_TOKENS)
    assert all(len(o.gaps) == 4 and o.first is not None and o.first <= o.total for o in outcomes)


def test_chunks_are_counted_where_it_does_not(stub: Stub) -> None:
    _, result = run(stub, "silent")
    assert not result["tokens_counted_by_endpoint"]
    assert result["output_tokens"] == 6 * 5


def test_completions_work_as_chat_does(stub: Stub) -> None:
    _, result = run(stub, "counts", api="completions", extra={"ignore_eos": True})
    assert result["succeeded"] == 6
    assert all("prompt" in body and body["ignore_eos"] for body in stub.bodies)


def test_concurrency_is_the_most_in_flight(stub: Stub) -> None:
    run(stub, "counts", count=12, concurrency=3)
    assert 1 <= stub.most_in_flight <= 3


def test_a_rate_sends_every_prompt_once(stub: Stub) -> None:
    outcomes, result = run(stub, "counts", count=8, rate=400.0, seed=3)
    assert result["succeeded"] == 8
    sent = [body["messages"][0]["content"] for body in stub.bodies]
    assert sorted(sent) == sorted(load.random_prompts(8, 4, 0))
    assert [o.started >= m for o, m in zip(outcomes, load.arrivals(8, 400.0, 3), strict=True)] == [True] * 8


def test_arrivals_are_a_seeded_poisson_process() -> None:
    moments = load.arrivals(4000, 50.0, seed=1)
    gaps = np.diff(moments)
    assert moments == load.arrivals(4000, 50.0, seed=1)
    assert moments != load.arrivals(4000, 50.0, seed=2)
    assert gaps.mean() == pytest.approx(1 / 50, rel=0.06)
    assert gaps.std() == pytest.approx(1 / 50, rel=0.1)  # an exponential's deviation equals its mean


@pytest.mark.parametrize(
    ("model", "kind"),
    [("cut", "stream cut short"), ("fails", "error in stream"), ("empty", "empty answer"), ("locked", "HTTP 401")],
)
def test_failures_are_counted_by_kind(stub: Stub, model: str, kind: str) -> None:
    _, result = run(stub, model)
    assert result["errors"] == {kind: 6}
    assert result["output_tokens_per_second"] == 0


def test_some_failures_leave_the_others_measured(stub: Stub) -> None:
    _, result = run(stub, "busy")
    assert result["errors"] == {"HTTP 429": 3}
    assert result["succeeded"] == 3


def test_silence_is_a_timeout(stub: Stub) -> None:
    _, result = run(stub, "hangs", count=2, timeout=0.1)
    assert result["errors"] == {"timeout": 2}


def test_percentiles_are_those_of_numpy() -> None:
    values = np.random.default_rng(0).exponential(size=257).tolist()
    found = load.percentiles(values)
    for point in (50, 90, 95, 99):
        assert found[f"p{point}"] == pytest.approx(np.percentile(values, point))
    assert load.percentiles([]) == {}


def test_the_command_writes_figures_and_a_picture(stub: Stub, tmp_path: Path) -> None:
    out, picture = tmp_path / "out.json", tmp_path / "out.png"
    done = command(
        "--url", stub.url, "-n", "8", "--concurrency", "2", "--input-tokens", "51", "--output-tokens", "4",
        "--output-json", str(out), "--plot", str(picture),
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "8 of 8 requests" in done.stdout
    written = json.loads(out.read_text())
    assert written["settings"]["model"] == "counts"  # the endpoint named it
    # Warm-up taught the command that a word is two tokens here and the template eleven.
    assert {each["prompt_tokens"] for each in written["each"]} == {51}
    assert written["result"]["time_to_first_token"].keys() == {"mean", "p50", "p90", "p95", "p99", "max"}
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_prompts_come_from_a_file(stub: Stub, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n\ntwo words\n")
    assert command("--url", stub.url, "-n", "4", "--warmup", "0", "--prompt-file", str(prompts)).exit_code == 0
    assert sorted(b["messages"][0]["content"] for b in stub.bodies) == ["one", "one", "two words", "two words"]


def test_the_key_comes_from_a_file(stub: Stub, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("# ours\nsecret\n")
    arguments = ("--url", stub.url, "--model", "locked", "-n", "2", "--output-tokens", "2", "--warmup", "0")
    assert command(*arguments, "--api-key-file", str(key)).exit_code == 0
    refused = command(*arguments)
    assert isinstance(refused.exception, PlimsollError)
    assert "HTTP 401" in str(refused.exception)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--rate", "3", "--concurrency", "2"),
        ("--rate", "-1"),
        ("--api", "telepathy"),
        ("--prompt-file", "/nowhere"),
        ("--input-tokens", "5", "--prompt-file", "/nowhere"),
    ],
)
def test_options_that_make_no_sense_are_named(stub: Stub, arguments: tuple[str, ...]) -> None:
    done = command("--url", stub.url, "--warmup", "0", *arguments)
    assert isinstance(done.exception, SpecError)
    assert arguments[0] in str(done.exception)


def test_an_address_without_a_scheme_is_named_as_it_was_written() -> None:
    done = command("--url", "localhost:8000")
    assert str(done.exception).startswith("--url: must begin with http:// or https:// (found 'localhost:8000')")
