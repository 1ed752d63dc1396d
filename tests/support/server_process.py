"""`plimsoll serve` as a process of its own: its log in a file, its memory and its engine's to be measured."""

import contextlib
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from tests.support.endpoint import eventually
from tests.support.processes import engines

#: What tiny test models get, as `tests.support.endpoint.SMALL`.
OPTIONS = (
    "--server-port", "0", "--model-name", "tiny", "--threads", "1", "--memory", "4Gi", "--kv-cache-bytes", "8Mi",
    "--cache-block-seq-len", "16", "--dtype", "float32", "--drain-timeout", "1",
)  # fmt: skip


class ServerProcess:
    """A running server whose model has loaded."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path, key: str) -> None:
        self.process, self.log = process, log
        eventually(lambda: process.poll() is not None or self._url() is not None, 120)
        url = self._url()
        assert url is not None, f"the server ended: {self.words()}"
        self.root = url
        self.headers = {"Authorization": f"Bearer {key}"}
        self.http = httpx.Client(base_url=url, headers=self.headers, timeout=60)
        self.port = int(url.rpartition(":")[2])

    def _url(self) -> str | None:
        found = re.search(r"Ready tiny at (http://[\d.:]+)/v1", self.words())
        return None if found is None else found[1]

    def words(self) -> str:
        """All that the server and its engine have written to stderr."""
        return self.log.read_text(errors="replace")

    @property
    def server(self) -> psutil.Process:
        return psutil.Process(self.process.pid)

    @property
    def engine(self) -> psutil.Process:
        """The engine's process; there must be exactly one."""
        [engine] = engines(self.process.pid)
        return engine

    def metrics(self) -> dict[str, float]:
        """Every series of /metrics without buckets; series of one name are added up."""
        found: dict[str, float] = {}
        for name, value in re.findall(r"^plimsoll:(\w+)\{.*\} (\S+)$", self.http.get("/metrics").text, re.MULTILINE):
            found[name] = found.get(name, 0.0) + float(value)
        return found

    def idle(self) -> bool:
        """Whether nothing runs or waits and every block is free or cached."""
        seen = self.metrics()
        assert seen["kv_cache_blocks"] > 0
        return (
            seen["num_requests_running"] == seen["num_requests_waiting"] == 0
            and seen["kv_cache_blocks_free"] + seen["kv_cache_blocks_cached"] == seen["kv_cache_blocks"]
        )

    def say(self, *parts: bytes) -> bytes:
        """Sends bytes as they are on a connection of their own and reads until the server closes it."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            heard = b""
            # A server that has said no may close before it has read everything.
            with contextlib.suppress(ConnectionError):
                for part in parts:
                    connection.sendall(part)
            with contextlib.suppress(ConnectionError):
                while data := connection.recv(1 << 16):
                    heard += data
            return heard

    def post(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        answer = self.http.post(path, json=body)
        return answer.status_code, answer.json()


def answers(heard: bytes) -> list[tuple[int, bytes]]:
    """(status, body) of each of the HTTP/1.1 responses in `heard`; every one has a Content-Length."""
    found = []
    while heard:
        head, _, rest = heard.partition(b"\r\n\r\n")
        length = re.search(rb"(?i)^content-length: (\d+)$", head.replace(b"\r\n", b"\n"), re.MULTILINE)
        assert length is not None, head
        found.append((int(head.split(b" ", 2)[1]), rest[: int(length[1])]))
        heard = rest[int(length[1]) :]
    return found


@contextlib.contextmanager
def server_process(model: Path, log: Path, *options: str, key: str = "unused") -> Iterator[ServerProcess]:
    """Serves until the block ends, and then ends it as an operator would: SIGTERM, exit status 0."""
    command = [sys.executable, "-m", "plimsoll.cli.main", "serve", str(model), *OPTIONS, *options]
    with (
        log.open("w") as words,
        subprocess.Popen(command, stderr=words, stdin=subprocess.DEVNULL, text=True) as process,
    ):
        try:
            running = ServerProcess(process, log, key)
            yield running
            running.http.close()
            process.terminate()
            assert process.wait(30) == 0
        finally:
            if process.poll() is None:
                process.kill()
