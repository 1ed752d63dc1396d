"""Thousands of requests that nobody should send: each gets an answer, and the server is as it was."""

import json
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from plimsoll.runtime.server.protocol import CONSTRAINTS
from tests.support import hostile_bodies
from tests.support.endpoint import eventually
from tests.support.server_process import ServerProcess, answers, server_process

KEY = "a-key-of-this-test"
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
ROUTES = (("/v1/chat/completions", CHAT), ("/v1/completions", TEXT))
CALLED: dict[str, dict[str, Any]] = {
    "/v1/responses": {"input": "hi", "max_output_tokens": 2},
    "/v1/messages": {"messages": CHAT["messages"], "max_tokens": 2},
    "/v1/messages/count_tokens": {"messages": CHAT["messages"]},
    "/tokenize": {"prompt": "hi"},
    "/detokenize": {"tokens": [1, 2]},
}
"""Routes whose schema leaves much to what reads the body: what a request for one must say."""
TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}{% for turn in messages %}"
    "{{ turn.role[0] + ':' + (turn.content or '') }}{% for call in turn.tool_calls or [] %}"
    "<tool_call>{{ call.function.name }}</tool_call>{% endfor %}{% endfor %}{% if add_generation_prompt %}a:"
    "{{ '<think></think>' if enable_thinking is defined and not enable_thinking }}{% endif %}"
)
"""Knows tools and thoughts in so few words that the tiny model has positions left."""
LOOSE = (
    "input", "messages", "prompt", "tokens", "tools", "tool_choice", "system", "thinking", "output_config", "text",
    "reasoning", "metadata", "include", "background", "conversation", "previous_response_id", "truncation",
)  # fmt: skip
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
TIMES = int(os.environ.get("PLIMSOLL_FUZZ", "1"))
"""How many times as many requests are made up. Above 1 they also differ from one run to the next."""
GENERATED, FEWER, HOSTILE = 30 * TIMES, 6 * TIMES, 120 * TIMES
"""Requests that schemathesis makes up for a route of ROUTES and one of CALLED, by each mode; bodies made by hand."""

#: JSON texts, so that what JSON cannot say, or Python cannot hold, is among them.
NASTY = (
    "null", "true", "false", "-1", "0", "1", "2", "0.5", "-0.0", "1e-320", "1e308", "1e400", "-1e400", "NaN",
    "Infinity", "2147483647", "2147483648", "9223372036854775807", "9223372036854775808", "18446744073709551616",
    "1" + "0" * 400, '""', '"x"', '"\\u0000"', '"\\ud800"', '"\\udc00\\ud800"', '"\\uffff"', '"' + "a" * 100_000 + '"',
    '"🦀"', '"../../etc/passwd"', '"{{ 1 / 0 }}"', '"%s%n"', "[]", "[null]", "[[]]", "[1]", "[-1]", "[320]", '[""]',
    '["a","a"]', "[1.5]", "[[1],[2]]", "[[1],[]]", '["a",1]', '[{"type":"text","text":"x"}]',
    '[{"role":"robot","content":"x"}]',
    '[{"role":"tool","content":"x","tool_call_id":"c"}]', '[{"role":"user","content":[{"type":"text","text":"x"}]}]',
    '[{"role":"user","content":[{"type":"image_url","image_url":{"url":"file:///etc/passwd"}}]}]',
    '[{"role":"user","content":"x","role":"system"}]', '[{"role":"assistant","content":null,"tool_calls":[{}]}]',
    '[{"role":"user","content":"' + "word" * 20_000 + '"}]', "{}", '{"a":1}', '{"1":1}', '{"1":1e400}', '{"320":1}',
    '{"-1":1}', '{"1":NaN}', '{"\\ud800":1}', '{"include_usage":true}', '{"__class__":"x"}', "[" * 150 + "]" * 150,
    "[" * 5000 + "]" * 5000, '{"a":' * 150 + "1" + "}" * 150, "[" + ",".join(['"stop"'] * 100_000) + "]",
    "[" + ",".join(["1"] * 100_000) + "]", "{" + ",".join(f'"{i}":1' for i in range(20_000)) + "}",
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """The server under attack. However a test left it, at the end it must be as it was at the start."""
    folder = tmp_path_factory.mktemp("fuzz-server")
    keys = folder / "keys"
    keys.write_text(KEY + "\n")
    template = folder / "template.jinja"
    template.write_text(TEMPLATE)
    options = ("--api-keys", str(keys), "--chat-template", str(template))
    with server_process(tiny_checkpoint, folder / "log", *options, key=KEY) as running:
        engine = running.engine.pid
        right = [running.post(path, body | {"temperature": 0, "max_tokens": 20})[1]["choices"] for path, body in ROUTES]
        yield running
        eventually(running.idle, 60)
        assert running.engine.pid == engine
        assert running.metrics()["engine_restarts_total"] == 0
        after = [running.post(path, body | {"temperature": 0, "max_tokens": 20})[1]["choices"] for path, body in ROUTES]
        assert after == right
        assert "Traceback" not in running.words()
        assert '"level": "error"' not in running.words()


def check_error(status: int, body: bytes, path: str = "") -> dict[str, Any]:
    """Asserts that this is OpenAI's error, or Anthropic's on its paths, and a documented one; returns its inside."""
    assert 400 <= status < 500 or status in (503, 504), (status, body)
    answer = json.loads(body)
    if path.startswith("/v1/messages"):
        assert set(answer) == {"type", "error", "request_id"}
        assert set(answer["error"]) == {"type", "message"}
        answer = {"error": answer["error"] | {"param": None, "code": None}}
    assert set(answer) == {"error"}
    error: dict[str, Any] = answer["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert 0 < len(error["message"]) < 1000
    assert "Traceback" not in error["message"]
    return error


def openapi(server: ServerProcess) -> Any:
    """The server's document. Streams are read to their end: by default, up to 20 events and for 10 s."""
    schema = schemathesis.openapi.from_url(f"{server.root}/openapi.json", headers=server.headers)
    schema.config.max_stream_events, schema.config.request_timeout = 10_000, 120
    return schema


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("path", "smallest"), ROUTES)
def test_what_schemathesis_makes_of_our_own_openapi(
    server: ServerProcess, path: str, smallest: dict[str, Any], mode: GenerationMode
) -> None:
    schema = openapi(server)
    statuses: Counter[int] = Counter()

    @settings(max_examples=GENERATED, deadline=None, database=None, derandomize=TIMES == 1, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=schema[path]["POST"].as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            # What the schema cannot say: the model's name, limits of this server, which fields exclude each other.
            case.body["model"] = "tiny"
            for name in ("max_completion_tokens", "truncate_prompt_tokens", "tools", "tool_choice", *CONSTRAINTS):
                case.body.pop(name, None)
            for turn in case.body.get("messages", []):
                if turn["role"] == "tool":
                    turn["role"] = "user"
                if turn["role"] != "assistant":
                    turn.pop("tool_calls", None)
            case.body["logit_bias"] = {
                str(int(key) % 320): bias for key, bias in (case.body.get("logit_bias") or {}).items()
            }
            case.body["stop_token_ids"] = [token % 320 for token in case.body.get("stop_token_ids") or []]
            if "top_logprobs" in case.body:
                case.body["logprobs"] = True
            for name, most in (
                ("n", 4),
                ("best_of", 8),
                ("logprobs", 20),
                ("top_logprobs", 20),
                ("prompt_logprobs", 20),
            ):
                if type(case.body.get(name)) is int:
                    case.body[name] %= most + 1
            case.body["max_tokens"] = 1 + (case.body.get("max_tokens") or 1) % 8
            case.body["min_tokens"] = (case.body.get("min_tokens") or 0) % 2
        response = case.call(headers=server.headers)
        statuses[response.status_code] += 1
        if response.status_code >= 400:
            check_error(response.status_code, response.content)
        # Of a stream the schema says that it is text; schemathesis takes that for a word on each event.
        streamed = response.headers["content-type"][0].startswith("text/event-stream")
        case.validate_response(response, checks=CHECKS[:-1] if streamed else CHECKS)
        assert not streamed or response.text.endswith("data: [DONE]\n\n"), (case.body, response.text[-2000:])

    send()
    assert statuses.total() >= GENERATED
    if mode is GenerationMode.POSITIVE:
        assert statuses[200] > GENERATED // 4, "what follows the schema should mostly run"


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("path", CALLED)
def test_what_schemathesis_makes_of_routes_with_loose_schemas(
    server: ServerProcess, path: str, mode: GenerationMode
) -> None:
    schema = openapi(server)
    statuses: Counter[int] = Counter()

    @settings(max_examples=FEWER, deadline=None, database=None, derandomize=TIMES == 1, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(case=schema[path]["POST"].as_strategy(generation_mode=mode))
    def send(case: Any) -> None:
        if mode is GenerationMode.POSITIVE:
            for name in (*LOOSE, *CONSTRAINTS, "logit_bias", "stop_token_ids", "allowed_token_ids", "min_tokens"):
                case.body.pop(name, None)
            case.body |= CALLED[path] | {"model": "tiny"}
        response = case.call(headers=server.headers)
        statuses[response.status_code] += 1
        if response.status_code >= 400:
            check_error(response.status_code, response.content, path)
        streamed = response.headers["content-type"][0].startswith("text/event-stream")
        case.validate_response(response, checks=CHECKS[:-1] if streamed else CHECKS)

    send()
    assert statuses.total() >= FEWER
    if mode is GenerationMode.POSITIVE:
        assert statuses[200] > 0, "what follows the schema should run"


def test_bodies_that_are_honest_but_for_a_few_places(server: ServerProcess) -> None:
    first = 0 if TIMES == 1 else time.time_ns()
    sent: Counter[tuple[str, int]] = Counter()

    def send(seed: int) -> tuple[str, int, bytes, bytes]:
        path, body = hostile_bodies.hostile(random.Random(seed))
        answer = server.http.post(path, content=body, headers={"Content-Type": "application/json"})
        return path, answer.status_code, answer.content, body

    with ThreadPoolExecutor(8) as pool:
        seeds = range(first, first + HOSTILE)
        for seed, (path, status, answer, body) in zip(seeds, pool.map(send, seeds), strict=True):
            sent[path, status] += 1
            case = (seed, path, body[:2000], status, answer[-1000:])
            if status != 200:
                assert status in (400, 404, 503, 504), case
                check_error(status, answer, path)
            # What fails after a stream's first byte has no status of its own.
            assert not any(word in answer for word in (b'"server_error"', b'"api_error"', b"Traceback")), case
    assert {path for path, _ in sent} == set(hostile_bodies.ROUTES)
    assert sum(count for (_, status), count in sent.items() if status == 200) > HOSTILE // 10


@pytest.mark.parametrize(("path", "body"), hostile_bodies.HONEST)
def test_the_bodies_that_become_hostile_are_honest(server: ServerProcess, path: str, body: dict[str, Any]) -> None:
    answer = server.http.post(path, json=body)
    assert answer.status_code == 200, answer.text


def test_every_field_with_every_nasty_value(server: ServerProcess) -> None:
    document = server.http.get("/openapi.json").json()
    sent: Counter[int] = Counter()
    known: dict[str, Any] = {}
    for path, smallest in ROUTES:
        reference = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]["$ref"]
        fields = document["components"]["schemas"][reference.rpartition("/")[2]]["properties"]
        assert len(fields) > 25
        # What both routes read by one class is sent to one of them.
        own = [field for field, schema in fields.items() if known.get(field) != schema]
        known |= fields
        assert len(own) >= 5
        for field in (*own, "tools", "response_format", "user", "no_such_field"):
            rest = json.dumps({name: value for name, value in smallest.items() if name != field})[1:]
            for value in NASTY:
                body = f'{{"{field}":{value},{rest}'
                response = server.http.post(path, content=body.encode(), headers={"Content-Type": "application/json"})
                sent[response.status_code] += 1
                assert response.status_code in (200, 400, 404), (field, value[:100], response.text)
                if response.status_code == 200:
                    continue
                error = check_error(response.status_code, response.content)
                named = error["param"] or ""
                blamed = {field, "max_tokens" if field.startswith("max_") else field}
                assert error["code"] == "invalid_json" or named.split(".")[0].split("[")[0] in blamed, (
                    body[:200],
                    error,
                )
    assert sent.total() > 1000
    assert sent[200] > 100


def test_bodies_that_are_no_json_object(server: ServerProcess) -> None:
    bodies = (
        b"", b" ", b"{", b"}", b"nul", b"null", b"[]", b"1", b'"x"', b"\xff\xfe{\x00}\x00", b"\xef\xbb\xbf{}", b"\x00",
        b"{}{}", b"{'a':1}", b'{"a":1,}', b'{"model":"tiny\xff"}', b'{"\xc0\xaf":1}', b"[" * 1_000_000,
        b'{"a":' * 200_000, b"{" + b'"a":1,' * 100_000 + b'"a":1}', b'{"' + b"a" * 1_000_000 + b'":1}',
        b" " * 1_000_000, b"9" * 1_000_000, b'"' + b"\\u0000" * 100_000 + b'"', b"model=tiny&prompt=x",
    )  # fmt: skip
    for path, _ in ROUTES:
        for body in bodies:
            for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", "x", ""):
                response = server.http.post(path, content=body, headers={"Content-Type": kind})
                expected = 400 if kind == "application/json" else 415
                assert response.status_code == expected
                check_error(expected, response.content)


def test_keys_that_are_none(server: ServerProcess) -> None:
    values = (
        b"", b"Bearer", b"Bearer ", b"bearer x", b"Basic " + KEY.encode(), KEY.encode(), b"Bearer \xff\xfe",
        "Bearer ключ".encode(), b"Bearer " + b"k" * 30_000, f"Bearer {KEY} x".encode(), f"Bearer {KEY},".encode(),
        f"Bearer\t{KEY}".encode(), b"Bearer " + KEY.encode()[:-1], b"Bearer " + KEY.encode().upper(),
        f"Bearer x\r\nAuthorization: Bearer {KEY}".encode(), f"Bearer {KEY}\r\nAuthorization: Bearer {KEY}".encode(),
    )  # fmt: skip
    for value in values:
        for path in (b"/v1/models", b"/metrics", b"/docs", b"/openapi.json", b"/nowhere", b"/version"):
            head = b"GET %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: %s\r\n\r\n"
            [(status, body)] = answers(server.say(head % (path, value)))
            assert status == 401
            check_error(401, body)


def test_every_method_on_every_path(server: ServerProcess) -> None:
    paths = (
        "/", "/v1", "/v1/", "/v1/models", "/v1/models/", "/v1/models/tiny", "/v1/models/a/b/../c",
        "/v1/chat/completions", "/v1/completions", "/health", "/ready", "/version", "/metrics",
        "/docs", "/openapi.json", "/redoc",
        "/v1/chat/completions/", "//v1//models", "/v1/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "/v1/models/%00",
        "/v1/models/%ff%fe", "/v1/models/" + "x" * 20_000, "/v1/models?" + "a=b&" * 5_000, "/static/../../etc/passwd",
        "/v1/models/%F0%9F%A6%80", "/docs/oauth2-redirect", "/.env", "/v1/embeddings",
    )  # fmt: skip
    for path in paths:
        for method in ("GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "POST", "PROPFIND"):
            response = server.http.request(method, server.root + path, content=b"")
            assert response.status_code in (200, 307, 400, 404, 405, 415), (method, path)
            if response.status_code >= 400 and method != "HEAD":
                check_error(response.status_code, response.content)
            assert b"root:" not in response.content
