"""Keys, limits, hanging up, timing out, dying and coming back, letting go: what running a server is about."""

import asyncio
import json
import os
import re
import signal
import threading
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from plimsoll.api.errors import SpecError
from tests.support.endpoint import Endpoint, eventually, serving

CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}
#: As long as the tiny model can go on; never shorter.
LONG = CHAT | {"max_tokens": 200, "ignore_eos": True}


def test_probes_and_version(tiny: Endpoint) -> None:
    assert tiny.http.get("/health").json() == {"status": "ok"}
    assert tiny.http.get("/ready").json() == {"status": "ready"}
    assert tiny.http.get("/version").json()["version"]


def test_metrics_have_vllms_names_under_our_prefix(tiny: Endpoint) -> None:
    before = tiny.metric("generation_tokens_total")
    tiny.post("/v1/chat/completions", CHAT | {"max_tokens": 5, "ignore_eos": True})
    eventually(lambda: tiny.metric("generation_tokens_total") == before + 5)
    page = tiny.http.get("/metrics").text
    for name in (
        "num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "num_preemptions_total",
        "prompt_tokens_total", "generation_tokens_total", "request_success_total", "prefix_cache_queries_total",
        "prefix_cache_hits_total", "iteration_tokens_total_bucket", "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket", "request_time_per_output_token_seconds_bucket",
        "e2e_request_latency_seconds_bucket", "request_queue_time_seconds_bucket",
        "request_inference_time_seconds_bucket", "request_prefill_time_seconds_bucket",
        "request_decode_time_seconds_bucket", "request_prompt_tokens_bucket", "request_generation_tokens_bucket",
        "cache_config_info",
    ):  # fmt: skip
        assert f"\nplimsoll:{name}{{" in page, name
    for name in ("time_to_first_token_seconds", "request_queue_time_seconds", "request_generation_tokens"):
        assert tiny.metric(f"{name}_count") >= 1


def exported(page: str) -> set[str]:
    """Names of a page of /metrics, as docs/serving.md writes them."""
    types = dict(re.findall(r"^# TYPE plimsoll:(\w+) (\w+)$", page, re.MULTILINE))
    return {f"plimsoll:{name}" for name in types if not name.endswith("_created")}


def test_the_docs_name_every_metric_and_no_other(tiny: Endpoint, repository: Path) -> None:
    tiny.post("/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 1})
    text = (repository / "docs" / "serving.md").read_text()
    table = text[text.index("\n## Metrics") : text.index("\n## Browsers")]
    named = re.findall(r"`(plimsoll:\w+)`", table)
    assert len(named) == len(set(named))
    assert exported(tiny.http.get("/metrics").text) == set(named)


def test_an_iteration_counts_its_tokens_as_vllm_does(tiny: Endpoint) -> None:
    """With each first token its prompt, but for what was cached, and every token that is generated."""
    prompt = list(range(40, 40 + 33))

    def counted() -> tuple[float, ...]:
        eventually(tiny.idle)
        names = (
            "iteration_tokens_total_sum",
            "generation_tokens_total",
            "prompt_tokens_total",
            "prefix_cache_hits_total",
        )
        return tuple(tiny.metric(name) for name in names)

    for _ in range(2):
        before = counted()
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 5, "ignore_eos": True, "n": 2}
        assert tiny.post("/v1/completions", body)[0] == 200
        step, generated, prompted, cached = (now - then for now, then in zip(counted(), before, strict=True))
        assert (generated, prompted) == (10, 66)
        assert step == prompted - cached + generated
    assert cached == 64


def test_what_requests_ask_for_and_what_the_cache_holds_is_shown(tiny: Endpoint) -> None:
    names = ("request_params_n_sum", "request_params_n_count", "request_params_max_tokens_sum",
             "request_params_max_tokens_count")  # fmt: skip

    def counted() -> tuple[float, ...]:
        return tuple(tiny.metric(name) for name in names)

    before = counted()
    tiny.post("/v1/completions", {"model": "tiny", "prompt": ["a", "b"], "max_tokens": 7, "n": 2, "best_of": 3})
    tiny.post("/v1/chat/completions", CHAT | {"max_tokens": 5})
    assert tuple(now - then for now, then in zip(counted(), before, strict=True)) == (5, 3, 47, 7)
    tokens = tiny.metric("kv_cache_size_tokens")
    info = tiny.service.info
    assert tokens == tiny.metric("kv_cache_blocks") * 16
    assert tiny.metric("kv_cache_max_concurrency") == tokens / info.model_len
    concurrency = f"{tokens / info.model_len:g}"
    labels = {"kv_cache_size_tokens": f"{tokens:g}", "kv_cache_max_concurrency": concurrency, "cache_dtype": "float32"}
    assert tiny.metric("cache_config_info", **labels) == 1
    test = info.determinism
    labels = {"kernels": info.kernels, "deterministic": str(test.deterministic).lower(), "self_test": test.digest}
    assert tiny.metric("determinism_info", **labels) == 1
    assert tiny.metric("num_requests_waiting_by_reason", reason="capacity") == tiny.metric("num_requests_waiting")


def test_a_stream_whose_client_leaves_gives_its_blocks_back(tiny: Endpoint) -> None:
    aborted = tiny.metric("request_success_total", finished_reason="abort")
    with tiny.openai.chat.completions.create(**{k: v for k, v in LONG.items() if k != "ignore_eos"}, stream=True,
                                             extra_body={"ignore_eos": True}) as stream:  # fmt: skip
        next(iter(stream))
    eventually(tiny.idle)
    eventually(lambda: tiny.metric("request_success_total", finished_reason="abort") == aborted + 1)


def test_a_client_that_leaves_while_it_waits_gives_its_blocks_back(tiny: Endpoint) -> None:
    generated = tiny.service.engine.stats.generation_tokens

    async def leave() -> None:
        # 16 samples of 200 tokens would take far longer than this client's patience.
        async with httpx.AsyncClient(timeout=60) as client:
            post = asyncio.create_task(client.post(f"{tiny.url}/chat/completions", json=LONG | {"n": 16}))
            while not tiny.service.engine.stats.running:
                await asyncio.sleep(0.005)
            post.cancel()

    asyncio.run(leave())
    eventually(tiny.idle)
    assert tiny.service.engine.stats.generation_tokens - generated < 16 * 200


def test_many_streams_of_which_some_leave(tiny: Endpoint) -> None:
    async def stream(client: httpx.AsyncClient, leaves: bool) -> bool:
        body = LONG | {"max_tokens": 40, "stream": True}
        async with client.stream("POST", f"{tiny.url}/chat/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if leaves and line:
                    return True
                if line == "data: [DONE]":
                    return True
        return False

    async def all_of_them() -> list[bool]:
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
            return await asyncio.gather(*[stream(client, number % 3 == 0) for number in range(40)])

    assert all(asyncio.run(all_of_them()))
    eventually(tiny.idle)


@pytest.fixture(scope="module")
def strict(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory):
    """A server with keys, a short queue and little patience."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("# ours\nkey-one\n\nkey-two\n")
    engine = {"max_queued_requests": 2, "max_running": 1}
    with serving(tiny_checkpoint, engine, api_keys_file=str(keys), request_timeout=3.0) as endpoint:
        endpoint.http.headers["Authorization"] = "Bearer key-one"
        yield endpoint, keys


def test_every_path_but_the_probes_needs_a_key(strict: tuple[Endpoint, Path]) -> None:
    endpoint, _ = strict
    for path in ("/health", "/ready"):
        assert httpx.get(endpoint.root + path).status_code == 200
    for path in (
        "/metrics",
        "/docs",
        "/openapi.json",
        "/version",
        "/v1/models",
        "/no/such/path",
        "//health",
        "/health/",
    ):
        answer = httpx.get(endpoint.root + path)
        assert answer.status_code == 401, path
        assert answer.json()["error"]["code"] == "invalid_api_key"
    for header in ("Bearer wrong", "Bearer", "Basic key-one", "key-one", "Bearer key-one key-two"):
        assert httpx.get(f"{endpoint.root}/v1/models", headers={"Authorization": header}).status_code == 401
    assert endpoint.http.get("/v1/models").status_code == 200
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=endpoint.url, api_key="nope", max_retries=0).models.list()


def test_keys_change_with_their_file_and_nobody_enters_without_it(strict: tuple[Endpoint, Path]) -> None:
    endpoint, keys = strict

    def status(key: str) -> int:
        return httpx.get(f"{endpoint.root}/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code

    before = keys.read_text()
    try:
        keys.write_text("key-three\n")
        assert (status("key-two"), status("key-three")) == (401, 200)
        keys.unlink()
        assert (status("key-two"), status("key-three")) == (401, 401)
        keys.write_text("")
        assert status("anything") == 401
    finally:
        keys.write_text(before)
    assert status("key-two") == 200


def test_a_keys_file_that_cannot_be_used_stops_the_start(tiny_checkpoint: Path, tmp_path: Path) -> None:
    empty, foreign, wide = tmp_path / "empty", tmp_path / "foreign", tmp_path / "wide"
    empty.write_text("# nothing\n")
    foreign.write_text("# ours: ключ\nplain\nschlüssel\n", encoding="utf-8")
    wide.write_text("key-one\n", encoding="utf-16")
    for path, words in (
        (empty, "holds no key"), (tmp_path / "absent", "cannot read"), (tmp_path, "cannot read"),
        (foreign, "the key in line 3 holds a character"), (wide, "UTF-16"),
    ):  # fmt: skip
        with pytest.raises(SpecError, match=words) as refused, serving(tiny_checkpoint, api_keys_file=str(path)):
            pass
        assert refused.value.field == "api-keys"
        assert "schl" not in str(refused.value)


def test_a_byte_order_mark_is_no_part_of_a_key(strict: tuple[Endpoint, Path]) -> None:
    endpoint, keys = strict
    before = keys.read_bytes()
    try:
        keys.write_bytes(b"\xef\xbb\xbfkey-four\r\n  key-five\r\n")
        for key, status in (("key-four", 200), ("key-five", 200), ("key-one", 401)):
            assert endpoint.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}).status_code == status
        # A file that becomes unusable later lets nobody in.
        keys.write_bytes("key-four\nschlüssel\n".encode())
        assert endpoint.http.get("/v1/models", headers={"Authorization": "Bearer key-four"}).status_code == 401
    finally:
        keys.write_bytes(before)


def test_a_full_queue_is_429_with_retry_after(strict: tuple[Endpoint, Path]) -> None:
    endpoint, _ = strict

    async def burst() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=30, headers=endpoint.http.headers) as client:
            url = f"{endpoint.url}/chat/completions"
            # Each takes the engine ten times as long as it takes the server to read the next.
            return await asyncio.gather(*[client.post(url, json=LONG | {"max_tokens": 60}) for _ in range(12)])

    answers = asyncio.run(burst())
    statuses = [answer.status_code for answer in answers]
    assert set(statuses) == {200, 429}
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert int(refused.headers["Retry-After"]) >= 1
    assert refused.json()["error"]["type"] == "rate_limit_error"
    assert endpoint.metric("admission_rejections_total", reason="queue_full") == statuses.count(429)
    eventually(endpoint.idle)


def test_a_request_that_takes_too_long_is_504_and_leaves(strict: tuple[Endpoint, Path]) -> None:
    endpoint, _ = strict
    # Two samples on one seat: the second one waits for the first.
    body = LONG | {"n": 3}
    os.kill(endpoint.service.engine.pid, signal.SIGSTOP)
    try:
        status, answer = endpoint.post("/v1/chat/completions", body)
    finally:
        os.kill(endpoint.service.engine.pid, signal.SIGCONT)
    assert (status, answer["error"]["code"]) == (504, "timeout")
    eventually(endpoint.idle)


def test_a_stream_that_takes_too_long_ends_with_an_error_event(strict: tuple[Endpoint, Path]) -> None:
    endpoint, _ = strict
    events = []
    with endpoint.http.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as answer:
        for line in answer.iter_lines():
            if line and not events:
                os.kill(endpoint.service.engine.pid, signal.SIGSTOP)
            if line:
                events.append(line.removeprefix("data: "))
    os.kill(endpoint.service.engine.pid, signal.SIGCONT)
    assert events[-1] == "[DONE]"
    assert json.loads(events[-2])["error"]["code"] == "timeout"
    eventually(endpoint.idle)


def test_an_engine_killed_under_load_ends_streams_that_had_begun_and_comes_back_correct(tiny_checkpoint: Path) -> None:
    with serving(tiny_checkpoint) as endpoint:
        settings = CHAT | {"max_tokens": 8, "temperature": 0}
        before = endpoint.post("/v1/chat/completions", settings)[1]["choices"][0]["message"]["content"]
        whole: list[tuple[int, Any]] = []
        waiting = threading.Thread(target=lambda: whole.append(endpoint.post("/v1/chat/completions", LONG | {"n": 16})))
        with endpoint.http.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as answer:
            waiting.start()
            eventually(lambda: endpoint.service.engine.stats.running > 1)
            os.kill(endpoint.service.engine.pid, signal.SIGKILL)
            events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
        assert json.loads(events[-2])["error"]["code"] == "engine_dead"
        assert endpoint.http.get("/ready").status_code == 503
        assert endpoint.http.get("/health").status_code == 200
        waiting.join()
        assert whole[0][0] == 200
        assert [choice["finish_reason"] for choice in whole[0][1]["choices"]] == ["length"] * 16
        assert endpoint.http.get("/ready").status_code == 200
        after = endpoint.post("/v1/chat/completions", settings)[1]["choices"][0]["message"]["content"]
        assert after == before
        assert endpoint.metric("engine_restarts_total") == 1
        eventually(endpoint.idle)


def test_draining_lets_running_streams_finish_and_nothing_new_in(tiny_checkpoint: Path) -> None:
    with serving(tiny_checkpoint, drain_timeout=30) as endpoint:
        with endpoint.http.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            # Held, or a quick machine finishes the stream and the server is gone before anything new comes.
            os.kill(endpoint.service.engine.pid, signal.SIGSTOP)
            endpoint.service.stop()
            eventually(lambda: httpx.get(f"{endpoint.root}/ready").status_code == 503)
            late = httpx.post(f"{endpoint.url}/chat/completions", json=CHAT)
            assert late.status_code == 503
            assert int(late.headers["Retry-After"]) >= 1
            os.kill(endpoint.service.engine.pid, signal.SIGCONT)
            rest = [line for line in lines if line]
        assert rest[-1] == "data: [DONE]"
        assert '"finish_reason":"length"' in rest[-2]
        endpoint.service.join()


def test_what_has_not_finished_by_the_drain_limit_ends_with_an_error_event(tiny_checkpoint: Path) -> None:
    with serving(tiny_checkpoint, drain_timeout=0.3) as endpoint:
        with endpoint.http.stream("POST", "/v1/chat/completions", json=LONG | {"stream": True}) as answer:
            lines = answer.iter_lines()
            next(lines)
            os.kill(endpoint.service.engine.pid, signal.SIGSTOP)
            endpoint.service.stop()
            rest = [line.removeprefix("data: ") for line in lines if line]
        assert json.loads(rest[-2])["error"]["code"] == "not_ready"
        endpoint.service.join()
