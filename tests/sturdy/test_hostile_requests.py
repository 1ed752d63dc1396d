"""One hostile request harms itself alone: others are answered meanwhile, and memory stays where it was."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.server_process import ServerProcess, server_process

MIB = 1 << 20
TEMPLATE = (
    "{% if attack == 'loop' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    "{% elif attack == 'memory' %}{{ ('a' * 10 ** 9)|length }}{% endif %}"
    "{% for m in messages %}{{ m.content }}{% endfor %}"
)
CHAT: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
SECONDS = 120.0
"""For an answer to a client that does no harm; the loop that the template runs takes minutes."""


@pytest.fixture(scope="module")
def server(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("hostile-requests")
    template = folder / "template.jinja"
    template.write_text(TEMPLATE)
    options = ("--chat-template", str(template), "--request-timeout", "60", "--max-body-bytes", str(16 * MIB))
    with server_process(tiny_checkpoint, folder / "log", *options) as running:
        yield running


def peak(server: ServerProcess) -> int:
    """Most bytes that the endpoint's process ever held, as the kernel counts them."""
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def post(server: ServerProcess, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(f"{server.root}{path}", content=body, headers=headers, timeout=SECONDS)
    return answer.status_code, answer.json()


def test_a_template_that_loops_holds_up_neither_probes_nor_other_requests(server: ServerProcess) -> None:
    hostile = json.dumps(CHAT | {"chat_template_kwargs": {"attack": "loop"}}).encode()
    with ThreadPoolExecutor() as pool:
        answers = [pool.submit(post, server, "/v1/chat/completions", hostile) for _ in range(2)]
        while wait(answers, timeout=0.25).not_done:
            assert httpx.get(f"{server.root}/health", timeout=SECONDS).status_code == 200
            assert post(server, "/v1/chat/completions", json.dumps(CHAT).encode())[0] == 200
        for answer in answers:
            status, error = answer.result()
            assert (status, error["error"]["param"], error["error"]["code"]) == (400, "chat_template", "too_expensive")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="only Linux keeps the peak")
def test_the_endpoint_stays_small_whatever_it_is_sent(server: ServerProcess) -> None:
    assert post(server, "/v1/chat/completions", json.dumps(CHAT).encode())[0] == 200
    before = peak(server)
    lists = b"[" + b",".join([b"[]"] * (5 * MIB)) + b"]"
    for path, body, param in (
        ("/v1/completions", b'{"model":"tiny","prompt":' + lists + b"}", "prompt"),
        ("/v1/completions", b'{"model":"tiny","prompt":"x","metadata":' + lists + b"}", "metadata"),
        ("/v1/chat/completions", json.dumps(CHAT | {"chat_template_kwargs": {"attack": "memory"}}).encode(),
         "chat_template"),
    ):  # fmt: skip
        status, error = post(server, path, body)
        assert (status, error["error"]["param"]) == (400, param), error
    # The body itself, in parts and whole.
    assert peak(server) - before < 64 * MIB


def test_the_first_prompt_that_is_too_long_ends_the_work(server: ServerProcess) -> None:
    body = json.dumps({"model": "tiny", "prompt": ["ahoy " * 500, "", "x"]}).encode()
    status, error = post(server, "/v1/completions", body)
    assert (status, error["error"]["code"]) == (400, "context_length_exceeded")
