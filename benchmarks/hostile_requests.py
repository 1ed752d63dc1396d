"""What hostile requests do to everybody else: probes, a stream that runs, and the memory of the endpoint.

    python -m benchmarks.hostile_requests [--model FILE.gguf] [--seconds 15] [--only NAME]

Starts `plimsoll serve` and attacks it, one kind of request after the other, by several clients at once. Meanwhile
another client asks for /health 50 times a second, and a third one has an answer streamed. Printed are the 99th
percentile and the longest of the probes, the longest pause of the stream, what the attackers were answered, and the
peak memory of the endpoint's processes without the engine: in control groups of its own where these can be made, else
as the sum of their proportional set sizes.
"""

import argparse
import asyncio
import collections
import contextlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import httpx
import psutil

from plimsoll.api.budget import SERVER_BYTES
from plimsoll.cli import demo_model
from plimsoll.runtime.machine.cgroup import groups

MIB = 1 << 20
CLIENTS = 6
TEMPLATE = (
    "{% if attack == 'loop' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    "{% elif attack == 'memory' %}{{ ('a' * 10 ** 9)|length }}{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n"
)
HELLO = [{"role": "user", "content": "hello"}]


def chat(**fields: Any) -> tuple[str, bytes]:
    return "/v1/chat/completions", json.dumps({"model": "demo", "messages": HELLO, "max_tokens": 1, **fields}).encode()


def text(prompt: Any) -> tuple[str, bytes]:
    return "/v1/completions", json.dumps({"model": "demo", "prompt": prompt, "max_tokens": 1}).encode()


def attacks() -> dict[str, list[tuple[str, bytes]]]:
    """Requests of each kind, by the kind's name."""
    size = 16 * MIB - 200
    empty = b"[" + b",".join([b"[]"] * (size // 3)) + b"]"
    bias = b"{" + b",".join(b'"%d":1' % token for token in range(1_400_000)) + b"}"
    unknown = b",".join(b'"k%d":1' % number for number in range(1_200_000))
    return {
        "none": [],
        "bodies": [
            ("/v1/completions", b'{"model":"demo","prompt":' + empty + b"}"),
            ("/v1/completions", b'{"model":"demo","prompt":"x","logit_bias":' + bias + b"}"),
            ("/v1/completions", b'{"model":"demo","prompt":"x","metadata":' + empty + b"}"),
            ("/v1/completions", b'{"model":"demo","prompt":"x",' + unknown + b"}"),
            text("\U0001f600" + "a" * size),
        ],
        "templates": [chat(chat_template_kwargs={"attack": kind}) for kind in ("loop", "memory")],
        "prompts": [text(["hello world " * 18_000] * 64), text("a" * 600_000), text(["hello world " * 3_000] * 64)],
    }


async def stalled_body(host: str, port: int) -> str:
    """Sends nearly all of a body of the largest size, and waits for the server to give it up."""
    size = 16 * MIB
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n" % size
        )
        for _ in range(size // MIB - 1):
            writer.write(b" " * MIB)
            await writer.drain()
        return (await reader.readline()).decode().strip() or "hung up on"
    finally:
        writer.transport.abort()


async def unread_answers(host: str, port: int) -> str:
    """Asks for pages and for an answer, one after the other on one connection, and reads none of it."""
    _, writer = await asyncio.open_connection(host, port, limit=1)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    path, body = chat(max_tokens=200, stream=True, logprobs=True, top_logprobs=20)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}"
    try:
        writer.write(head.encode() + b"\r\n\r\n" + body)
        while True:
            # Few enough at once; a connection that was reset cannot be written to.
            await asyncio.sleep(0.1)
            writer.write(b"GET /docs HTTP/1.1\r\nHost: localhost\r\n\r\n" * 8)
            await writer.drain()
    finally:
        writer.transport.abort()


#: Clients that stall: how many at once, and what each of them does over and over.
STALLS = {"stalled": (60, stalled_body), "unread": (200, unread_answers)}


async def stall(url: str, work: Callable[[str, int], Awaitable[str]], seen: collections.Counter[str]) -> None:
    host, _, port = url.removeprefix("http://").partition(":")
    while True:
        try:
            seen[await work(host, int(port))] += 1
        except OSError:
            seen["hung up on"] += 1


class Groups:
    """Control groups for the endpoint and for its engine; without them memory is added up by process."""

    def __init__(self) -> None:
        base = next((group for group in groups("memory") if group.is_dir()), None)
        self.folders: list[Path] = []
        with contextlib.suppress(OSError, AttributeError):
            for name in ("hostile-endpoint", "hostile-engine"):
                folder = base / name  # type: ignore[operator]
                folder.mkdir(exist_ok=True)
                self.folders.append(folder)

    def add(self, place: int, pid: int) -> None:
        if len(self.folders) == 2:
            (self.folders[place] / "cgroup.procs").write_text(str(pid))

    def peak(self) -> int | None:
        for name in ("memory.peak", "memory.max_usage_in_bytes"):
            with contextlib.suppress(OSError, IndexError):
                return int((self.folders[0] / name).read_text())
        return None

    def close(self) -> None:
        for folder in self.folders:
            with contextlib.suppress(OSError):
                folder.rmdir()


@contextlib.contextmanager
def server(model: Path, log: Path, made: Groups) -> Iterator[tuple[psutil.Process, str]]:
    template = log.with_name("template.jinja")
    template.write_text(TEMPLATE)
    command = [sys.executable, "-m", "plimsoll.cli.main", "serve", str(model), "--server-port", "0",
               "--model-name", "demo", "--chat-template", str(template), "--kv-cache-bytes", "256Mi",
               "--max-body-bytes", str(16 * MIB), "--drain-timeout", "1"]  # fmt: skip
    with log.open("w") as words, subprocess.Popen(command, stdout=words, stderr=words) as process:
        made.add(0, process.pid)
        endpoint, moved = psutil.Process(process.pid), False
        try:
            while "Ready demo at " not in log.read_text():
                assert process.poll() is None, log.read_text()
                for child in [] if moved else endpoint.children():
                    with contextlib.suppress(psutil.Error):
                        if "plimsoll.runtime.engine.transport.process" in child.cmdline():
                            made.add(1, child.pid)
                            moved = True
                time.sleep(0.01)
            yield endpoint, "http://" + log.read_text().split("Ready demo at http://")[1].split("/v1")[0]
        finally:
            process.terminate()
            process.wait(60)


def shared_bytes(endpoint: psutil.Process) -> int:
    """Proportional set sizes of the endpoint's processes, the engine's not among them."""
    found = 0
    for process in (endpoint, *endpoint.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            if "plimsoll.runtime.engine.transport.process" not in process.cmdline():
                found += process.memory_full_info().pss
    return found


async def probe(client: httpx.AsyncClient, taken: list[float]) -> None:
    while True:
        began = time.perf_counter()
        assert (await client.get("/health")).status_code == 200
        taken.append(time.perf_counter() - began)
        await asyncio.sleep(0.02)


async def stream(client: httpx.AsyncClient, pauses: list[float]) -> None:
    body = {"model": "demo", "prompt": "Once upon a time", "max_tokens": 1000, "ignore_eos": True, "stream": True}
    while True:
        last = None
        async with client.stream("POST", "/v1/completions", json=body) as answer:
            async for _ in answer.aiter_lines():
                now = time.perf_counter()
                if last is not None:
                    pauses.append(now - last)
                last = now


async def attack(client: httpx.AsyncClient, requests: list[tuple[str, bytes]], seen: collections.Counter[str]) -> None:
    while requests:
        for path, body in requests:
            try:
                answer = await client.post(path, content=body, headers={"Content-Type": "application/json"})
            except httpx.TransportError as error:
                # Refused before the whole body was sent.
                seen[type(error).__name__] += 1
                continue
            seen[f"{answer.status_code} {(answer.json().get('error') or {}).get('code', 'served')}"] += 1


async def attackers(url: str, name: str, report: Connection) -> None:
    """All clients of one attack. Sends every half second what they have been answered so far."""
    seen = collections.Counter[str]()
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        if name in STALLS:
            count, work = STALLS[name]
            tasks = [asyncio.create_task(stall(url, work, seen)) for _ in range(count)]
        else:
            tasks = [asyncio.create_task(attack(client, attacks()[name], seen)) for _ in range(CLIENTS)]
        while not any(task.done() and task.exception() for task in tasks):
            report.send(seen)
            await asyncio.sleep(0.5)
        await asyncio.gather(*tasks)


def run_attackers(url: str, name: str, report: Connection) -> None:
    asyncio.run(attackers(url, name, report))


async def scene(endpoint: psutil.Process, url: str, name: str, seconds: float) -> str:
    taken, pauses, seen, most = list[float](), list[float](), collections.Counter[str](), 0
    receiver, sender = multiprocessing.Pipe(duplex=False)
    # In a process of their own: what they do must not be in what the others measure.
    attacking = multiprocessing.get_context("spawn").Process(target=run_attackers, args=(url, name, sender))
    async with httpx.AsyncClient(base_url=url, timeout=600) as client:
        tasks = [asyncio.create_task(one) for one in (probe(client, taken), stream(client, pauses))]
        attacking.start()
        try:
            while not receiver.poll():
                assert attacking.is_alive()
                await asyncio.sleep(0.1)
            taken.clear()
            pauses.clear()
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                await asyncio.sleep(0.25)
                most = max(most, await asyncio.to_thread(shared_bytes, endpoint))
                while receiver.poll():
                    seen = receiver.recv()
            assert attacking.is_alive(), f"the attack {name} has ended"
        finally:
            attacking.kill()
            attacking.join()
        for task in tasks:
            if task.done() and (error := task.exception()):
                raise error
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    taken.sort()
    p99, longest = taken[int(len(taken) * 0.99)] * 1000, taken[-1] * 1000
    answers = ", ".join(f"{count} × {what}" for what, count in seen.most_common()) or "no attack"
    return (
        f"/health p99 {p99:6.1f} ms, longest {longest:6.1f} ms; stream's longest pause {max(pauses) * 1000:6.0f} ms, "
        f"{len(pauses) / seconds:5.1f} events/s; {most / MIB:.0f} MiB; {answers}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--only", choices=[*attacks(), *STALLS])
    options = parser.parse_args()
    model = options.model or demo_model.fetch(Path(".cache/plimsoll"))
    made = Groups()
    try:
        with tempfile.TemporaryDirectory() as folder, server(model, Path(folder) / "log", made) as (endpoint, url):
            for name in (*attacks(), *STALLS):
                if options.only in (None, name):
                    print(f"{name:10}", asyncio.run(scene(endpoint, url, name, options.seconds)), flush=True)
            peak = made.peak()
            print(f"peak of the endpoint's control group: {'unknown' if peak is None else f'{peak / MIB:.0f} MiB'}, "
                  f"allowed {SERVER_BYTES / MIB:.0f} MiB")  # fmt: skip
    finally:
        made.close()


if __name__ == "__main__":
    main()
