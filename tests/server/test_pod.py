"""`plimsoll pod`: true answers from the first moment, observed beside predicted, and last words where they are read."""

import asyncio
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from plimsoll.operator.parse_page import page_of
from plimsoll.runtime.server.pod import last_words
from plimsoll.runtime.server.status_port import STARTING_SECONDS, StatusPort
from tests.support.endpoint import eventually
from tests.support.pod_process import PodProcess, manifest, pod_process
from tests.support.processes import engines

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture(scope="module")
def pod(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodProcess]:
    with pod_process(tmp_path_factory.mktemp("pod"), manifest(tiny_checkpoint)) as running:
        yield running.ready()
        running.process.terminate()
        assert running.wait() == 0
        assert not running.words.exists()


def test_a_pod_tells_what_it_does_while_it_loads(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pod_process(tmp_path / "pod", manifest(tiny_checkpoint)) as pod:
        url, seen = pod.status_url, []
        with httpx.Client(base_url=url, timeout=10) as client:

            def ready() -> bool:
                # In this order: what is true of the page stays true of the probes after it.
                page = client.get("/status").json()
                live, is_ready = client.get("/live"), client.get("/ready")
                seen.append((page["phase"], live.status_code, is_ready.status_code))
                assert (page["phase"] != "ready") or is_ready.status_code == 200
                return is_ready.status_code == 200

            eventually(ready, 120)
            page = client.get("/status").json()
        assert seen[0] == ("loading", 200, 503)
        assert {live for _, live, _ in seen} == {200}
        weights, load = page["observed"]["weights"], page["startup"]["load"]
        assert load["bytes"] == load["total"] == page["predicted"]["weights"] == weights > 0
        assert all(page["startup"][phase]["seconds"] >= 0 for phase in ("start", "load", "warmup"))
        pod.process.terminate()
        assert pod.wait() == 0


def test_what_is_observed_stands_beside_what_was_predicted(pod: PodProcess) -> None:
    answer = openai.OpenAI(base_url=pod.url, api_key="unused").chat.completions.create(**CHAT, max_tokens=4)
    assert answer.choices[0].message
    page = pod.status()
    assert page["phase"] == "ready"
    assert page["version"]
    assert page["model"] == "tiny"
    assert page["observed"]["kvCache"] == page["predicted"]["kvCache"]
    assert page["observed"]["peak"] >= pod.engine.memory_info().rss * 0.5
    assert (page["running"], page["waiting"], page["inFlight"], page["cacheUsage"]) == (0, 0, 0, 0)
    serving = page["serving"]
    assert serving["kernels"]
    assert serving.get("digest", "").startswith("sha256:") == serving["deterministic"] != ("reason" in serving)
    assert page_of(page, 1.0, None).serving == serving
    assert page["restarts"] == 0


def test_a_pod_runs_the_draft_that_lies_beside_its_model(tiny_checkpoint: Path, tmp_path: Path) -> None:
    draft = {"speculativeTokens": 4, "draft": {"source": f"file://{tiny_checkpoint}"}}
    with pod_process(tmp_path, manifest(tiny_checkpoint, serving=draft)) as running:
        pod = running.ready()
        page = pod.status()
        assert page["observed"]["draft"] == page["predicted"]["draft"] == page["observed"]["weights"]
        asked = CHAT | {"max_tokens": 20, "extra_body": {"ignore_eos": True}, "temperature": 0}
        openai.OpenAI(base_url=pod.url, api_key="unused").chat.completions.create(**asked)
        metrics = httpx.get(f"{pod.status_url}/metrics").text
        found = re.search(r"spec_decode_num_accepted_tokens_total{.*} (\S+)", metrics)
        assert found is not None
        assert float(found[1]) > 10
        pod.process.terminate()
        assert pod.wait() == 0


def test_requests_in_flight_and_the_cache_they_take_are_seen(pod: PodProcess) -> None:
    asked = CHAT | {"max_tokens": 200, "ignore_eos": True, "stream": True}
    for _ in range(20):
        with httpx.stream("POST", f"{pod.url}/chat/completions", json=asked) as stream:
            lines = stream.iter_lines()
            next(lines)
            os.kill(pod.engine.pid, signal.SIGSTOP)
            try:
                page = pod.status()
            finally:
                os.kill(pod.engine.pid, signal.SIGCONT)
            list(lines)
        # On a busy machine the answer may be whole before the engine stops.
        if page["running"]:
            break
    assert (page["running"], page["inFlight"]) == (1, 1)
    assert 0 < page["cacheUsage"] <= 1


def test_the_status_port_has_five_pages_and_nothing_else(pod: PodProcess) -> None:
    url = pod.status_url
    assert httpx.get(f"{url}/live").status_code == httpx.get(f"{url}/ready").status_code == 200
    assert httpx.head(f"{url}/ready").status_code == 200
    page = httpx.get(f"{url}/metrics")
    assert "\nplimsoll:num_requests_running{" in page.text
    assert page.headers["content-type"].startswith("text/plain; version=")
    for path in ("/", "/v1/models", "/v1/chat/completions", "/docs", "/health", "/live/", "//live", "/drain/"):
        assert httpx.get(url + path).status_code == 404, path
    refused = {"/live": "POST", "/ready": "PATCH", "/status": "OPTIONS", "/metrics": "DELETE", "/drain": "HEAD"}
    for path, method in refused.items():
        answer = httpx.request(method, url + path)
        assert answer.status_code == 405, (method, path)
        assert answer.headers["allow"]
    for headers in ({"Origin": "http://elsewhere"}, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}):
        answer = httpx.get(f"{url}/drain", headers=headers)
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    for quiet in ("-1", "x", "nan", "1e9", "%00"):
        assert httpx.get(f"{url}/drain?quiet={quiet}").status_code == 400, quiet
    assert pod.get("/ready").status_code == 200


class Hung:
    """As much of a service as /live looks at."""

    begun = True

    def __init__(self, alive: bool) -> None:
        self.engine, self.alive = self, alive


def test_what_does_not_move_is_not_live() -> None:
    page = StatusPort(time.monotonic())
    assert page.alive
    assert not StatusPort(time.monotonic() - STARTING_SECONDS - 1).alive, "it has been reading headers for ever"
    for alive in (True, False):
        page.service = Hung(alive)  # type: ignore[assignment]
        assert asyncio.run(page._answer("GET", "/live", b""))[0] == (200 if alive else 503)


def test_an_engine_that_dies_in_service_is_started_again(pod: PodProcess) -> None:
    os.kill(pod.engine.pid, signal.SIGKILL)
    eventually(lambda: pod.get("/ready").status_code == 503)
    assert pod.get("/live").status_code == 200
    assert pod.status()["phase"] in ("loading", "warming", "ready")
    pod.ready()
    assert pod.status()["restarts"] == 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("memory", "needs"),
        ("absent", "there is no such file or folder"),
        ("weights", "model.safetensors"),
        ("field", "unknown field"),
        ("json", "is not valid YAML"),
        ("unset", "is not set"),
        ("elsewhere", "a pod opens what is mounted"),
        ("keys", "api-keys"),
    ],
)
def test_a_refusal_leaves_plain_words_and_no_traceback(
    tiny_checkpoint: Path, tmp_path: Path, damage: str, words: str
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_checkpoint, model)
    given = manifest(model)
    if damage == "memory":
        given["spec"]["accelerator"]["memory"] = "64Mi"
    elif damage == "absent":
        given["spec"]["model"]["source"] = f"file://{tmp_path}/nothing"
    elif damage == "weights":
        (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:5000])
    elif damage == "field":
        given["spec"]["kvCahce"] = {}
    elif damage == "elsewhere":
        given["spec"]["model"]["source"] = "hf://org/name"
    elif damage == "keys":
        given["spec"]["serving"] = {"apiKeysFile": str(tmp_path / "no-keys")}
    text = {"json": "{", "unset": ""}.get(damage, json.dumps(given))
    with pod_process(tmp_path / "pod", text) as pod:
        assert pod.wait() == 1
        assert words in pod.words.read_text()
        assert "Traceback" not in pod.log.read_text() + pod.words.read_text()
        assert pod.lines()[-1]["event"] == "stopped"


def test_an_engine_that_dies_while_it_loads_ends_the_pod_with_the_reason(tiny_checkpoint: Path, tmp_path: Path) -> None:
    with pod_process(tmp_path / "pod", manifest(tiny_checkpoint)) as pod:
        assert pod.url
        eventually(lambda: bool(engines(pod.process.pid)))
        os.kill(pod.engine.pid, signal.SIGKILL)
        assert pod.wait() == 1
        assert "the engine died while it loaded: killed by signal 9" in pod.words.read_text()


def test_sigterm_while_it_loads_ends_a_pod_at_once(tiny_checkpoint: Path, tmp_path: Path) -> None:
    for event in ("listening", "loading"):
        with pod_process(tmp_path / event, manifest(tiny_checkpoint)) as pod:
            pod._said(event)
            began = time.monotonic()
            pod.process.terminate()
            assert pod.wait() == 0
            # Quicker than the seconds without a request that a pod in service waits for.
            assert time.monotonic() - began < 5
            assert not pod.words.exists()


def test_last_words_are_cut_to_what_kubernetes_keeps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLIMSOLL_TERMINATION_LOG", str(tmp_path / "log"))
    last_words("ж" * 5000)
    assert (tmp_path / "log").read_bytes().decode("utf-8", "ignore") == "ж" * 2048
    monkeypatch.setenv("PLIMSOLL_TERMINATION_LOG", str(tmp_path / "no" / "folder"))
    last_words("lost, and no reason to fail")
