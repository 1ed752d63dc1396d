"""Kill or stop a random rank of a serving group at a random instant, under load, and see what is left.

    python -m benchmarks.rank_kills MODEL [--tp 3] [--kills 50] [--hang-timeout 2] [--seconds 900]

Four clients send requests to `plimsoll serve MODEL --tp N`; every second request is streamed. A row of the table is one
SIGKILL or SIGSTOP: seconds until all ranks of the group are gone, and until a new group is ready. Exits 1 where a group
lives longer than 5 seconds, a request ends in another way than an answer, a 503 or an error in its stream, or a
process, a shared memory, a descriptor or the port is left. The server counts a group as steady at once: it goes on
after many quick kills.
"""

import argparse
import json
import os
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import httpx
import psutil

CLIENTS = 4
SEGMENT = "memfd:plimsoll-group"
GONE_SECONDS = 5.0
READY_SECONDS = 90.0
SERVE = (
    "import sys; from plimsoll.runtime.engine.transport import client; client.STEADY_SECONDS = 0.0; "
    "from plimsoll.cli.main import main; main(sys.argv[1:])"
)


class Clients:
    """Threads that send one request after the other, and count how each ended."""

    def __init__(self, url: str, seed: int) -> None:
        self.ends: Counter[str] = Counter()
        self._url = url
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(seed + index,)) for index in range(CLIENTS)]
        for thread in self._threads:
            thread.start()

    @property
    def lost(self) -> int:
        """Requests that ended in no way that a server may end one."""
        return sum(count for end, count in list(self.ends.items()) if end.startswith("LOST"))

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _work(self, seed: int) -> None:
        draw, sent = random.Random(seed), 0
        with httpx.Client(base_url=self._url, timeout=120) as http:
            while not self._stop.is_set():
                sent += 1
                words = " ".join(draw.choices(("sea", "ship", "wind", "harbour", "night"), k=draw.randint(1, 60)))
                body = {"model": "m", "prompt": words, "max_tokens": draw.randint(20, 200), "ignore_eos": True}
                try:
                    end = _streamed(http, body) if sent % 2 else _whole(http, body)
                except httpx.HTTPError as error:
                    end = f"LOST: {type(error).__name__}"
                self.ends[end] += 1
                if end == "503" or end.startswith("LOST"):
                    time.sleep(0.1)


def _whole(http: httpx.Client, body: dict[str, object]) -> str:
    answer = http.post("/v1/completions", json=body)
    if answer.status_code == 200:
        return "answered" if answer.json()["choices"][0]["finish_reason"] == "length" else "LOST: no end"
    return str(answer.status_code) if answer.status_code == 503 else f"LOST: status {answer.status_code}"


def _streamed(http: httpx.Client, body: dict[str, object]) -> str:
    end = "LOST: cut"
    with http.stream("POST", "/v1/completions", json=body | {"stream": True}) as answer:
        if answer.status_code != 200:
            return "503" if answer.status_code == 503 else f"LOST: status {answer.status_code}"
        for line in answer.iter_lines():
            if not line.startswith("data: ") or line == "data: [DONE]":
                continue
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                end = "error in its stream"
            elif event["choices"] and event["choices"][0]["finish_reason"] == "length":
                end = "answered"
    return end


def ranks(server: psutil.Process) -> list[psutil.Process]:
    """Processes of the group, rank 0 first; the others in the order of their start."""
    found = []
    for engine in server.children():
        if "plimsoll.runtime.engine.transport.process" in _words(engine):
            others = [one for one in engine.children() if "plimsoll.runtime.engine.worker.rank_process" in _words(one)]
            found = [engine, *sorted(others, key=lambda one: one.pid)]
    return found


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def segments(pids: Iterable[int]) -> set[str]:
    """Inodes of the groups' shared memories that these processes hold, mapped or open."""
    found = set()
    for pid in pids:
        try:
            found |= set(re.findall(rf"(\d+)\s+/{SEGMENT}", Path(f"/proc/{pid}/maps").read_text()))
            links = [link for link in Path(f"/proc/{pid}/fd").iterdir() if SEGMENT in os.readlink(link)]
            found |= {str(link.stat().st_ino) for link in links}
        except OSError:
            continue
    return found


def _ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5).status_code == 200
    except httpx.HTTPError:
        return False


def wait(condition: object, bound: float) -> float:
    """Seconds until `condition()` holds. Raises SystemExit after `bound`."""
    began = time.monotonic()
    while not condition():  # type: ignore[operator]
        if time.monotonic() - began > bound:
            raise SystemExit(f"waited {bound:g} s in vain")
        time.sleep(0.02)
    return time.monotonic() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tp", type=int, default=3)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--hang-timeout", type=float, default=2.0)
    parser.add_argument("--seconds", type=float, default=900.0, help="begin no kill after so long")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        sys.executable, "-c", SERVE, "serve", asked.model, "--tp", str(asked.tp), "--server-port", str(port),
        "--model-name", "m", "--kv-cache-bytes", "64Mi", "--memory", "2Gi", "--cache-block-seq-len", "16",
        "--hang-timeout", str(asked.hang_timeout), "--drain-timeout", "5",
    ]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    server = psutil.Process(process.pid)
    seen: set[psutil.Process] = set()
    held: set[str] = set()
    try:
        wait(lambda: process.poll() is not None or _ready(url), READY_SECONDS)
        clients = Clients(url, asked.seed)
        try:
            failed = strike(asked, server, url, seen, held)
        finally:
            clients.close()
        process.send_signal(signal.SIGTERM)
        failed = process.wait(30) != 0 or failed
    finally:
        if process.poll() is None:
            process.kill()
    left = [one.pid for one in seen if lives(one)]
    kept = held & segments(psutil.pids())
    with socket.socket() as probe:
        open_port = probe.connect_ex(("127.0.0.1", port)) == 0
    print("requests:", ", ".join(f"{count} {end}" for end, count in clients.ends.most_common()))
    words = f"{len(kept)} of {len(held)} shared memories, {'the port' if open_port else 'no port'}"
    print(f"left: {len(left)} of {len(seen)} processes, {words}")
    raise SystemExit(bool(failed or left or kept or open_port or clients.lost))


def strike(
    asked: argparse.Namespace, server: psutil.Process, url: str, seen: set[psutil.Process], held: set[str]
) -> bool:
    """All kills; prints them, and adds processes to `seen` and shared memories to `held`. Whether one went wrong."""
    draw, began, failed = random.Random(asked.seed), time.monotonic(), False
    descriptors: list[int] = []
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    print("kill  rank  signal   gone s  ready s  descriptors of the server", flush=True)
    for kill in range(asked.kills):
        if time.monotonic() - began > asked.seconds:
            break
        time.sleep(draw.uniform(0.1, 1.5))
        old = ranks(server)
        seen |= {server, *server.children(recursive=True)}
        held |= segments(one.pid for one in old)
        rank, how = draw.randrange(len(old)), draw.choice((signal.SIGKILL, signal.SIGSTOP))
        old[rank].send_signal(how)
        gone = wait(lambda: not any(map(lives, old)), READY_SECONDS)  # noqa: B023
        ready = gone + wait(lambda: len(ranks(server)) == asked.tp and _ready(url), READY_SECONDS)
        descriptors.append(server.num_fds())
        found.setdefault((how.name, "rank 0" if rank == 0 else "another rank"), []).append((gone, ready))
        failed = failed or gone > GONE_SECONDS
        print(f"{kill + 1:4}  {rank:4}  {how.name}  {gone:7.2f}  {ready:7.2f}  {descriptors[-1]}", flush=True)
    print("\n| what | times | all ranks gone, s: median, most | ready again, s: median, most |\n|---|---|---|---|")
    for (how, whom), times in sorted(found.items()):
        parts = [f"{statistics.median(each):.1f}, {max(each):.1f}" for each in zip(*times, strict=True)]
        print(f"| {how} of {whom} | {len(times)} | {parts[0]} | {parts[1]} |")
    # Connections of clients come and go; a descriptor for each group would be far more.
    return failed or descriptors[-1] - descriptors[0] > 2 * CLIENTS


if __name__ == "__main__":
    main()
