"""A proxy between the operator and the API server that does what networks and busy API servers do, by a seed."""

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import urllib3
import yaml
from kubernetes.client import ApiClient

from plimsoll.operator.cluster import connection, credentials

_DROPPED = {"host", "connection", "content-length", "transfer-encoding", "accept-encoding", "authorization"}


class FaultyProxy:
    """Plain HTTP in front of the cluster of KUBECONFIG, with its credentials.

    Set `rate` to the share of requests that go wrong, `hidden` to a group the API server shall not have, `gone` to
    refuse every watch with 410, `nonsense` to follow what watches tell by what is no JSON, `down` to answer
    nothing at all.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rate = 0.0
        self.hidden = ""
        self.gone = False
        self.down = False
        self.nonsense = False
        self.faults: dict[str, int] = {}
        self._random = random.Random(seed)
        self._configuration = connection()
        self._configuration.connection_pool_maxsize = 64
        self._pool: urllib3.PoolManager = ApiClient(self._configuration).rest_client.pool_manager
        self._streams: set[BaseHTTPRequestHandler] = set()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def handle_any(self) -> None:
                try:
                    proxy._serve(self)
                except (OSError, urllib3.exceptions.HTTPError):
                    proxy._cut(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                """Cut connections are the point of it."""

        self._server = Server(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def kubeconfig(self, folder: Path) -> Path:
        """A file that leads here."""
        path = folder / "kubeconfig"
        server = f"http://127.0.0.1:{self._server.server_address[1]}"
        found = {
            "apiVersion": "v1", "kind": "Config", "current-context": "faulty",
            "clusters": [{"name": "faulty", "cluster": {"server": server}}],
            "users": [{"name": "faulty", "user": {}}],
            "contexts": [{"name": "faulty", "context": {"cluster": "faulty", "user": "faulty"}}],
        }  # fmt: skip
        path.write_text(yaml.safe_dump(found))
        return path

    def cut_watches(self) -> None:
        """Ends every stream that is open now, without a word."""
        for stream in list(self._streams):
            self._cut(stream)

    @contextmanager
    def away(self) -> Iterator[None]:
        """The API server cannot be reached."""
        self.down = True
        self.cut_watches()
        try:
            yield
        finally:
            self.down = False

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _fault(self, kind: str) -> str:
        if self._random.random() >= self.rate:
            return ""
        choices = {
            "watch": ["cut", "500", "429", "short", "short", "garbage", "gone"],
            "read": ["cut", "lost", "slow", "500", "429", "503"],
            "write": ["cut", "lost", "lost", "slow", "twice", "409", "429", "500", "504"],
        }[kind]
        found = self._random.choice(choices)
        self.faults[found] = self.faults.get(found, 0) + 1
        return found

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        length = int(request.headers.get("Content-Length") or 0)
        body = request.rfile.read(length) if length else None
        url = urlsplit(request.path)
        watching = parse_qs(url.query).get("watch") == ["true"]
        if self.down:
            return self._cut(request)
        if self.hidden and url.path.startswith(f"/apis/{self.hidden}/"):
            return self._status(request, 404)
        fault = self._fault("watch" if watching else "read" if request.command == "GET" else "write")
        if fault == "cut":
            return self._cut(request)
        if fault.isdecimal():
            return self._status(request, int(fault))
        if watching:
            return self._watch(request, fault)
        if fault == "slow":
            time.sleep(self._random.uniform(0.1, 1.0))
        answer = self._forward(request, body)
        if fault == "twice":
            answer = self._forward(request, body)
        if fault == "lost":
            return self._cut(request)
        return self._send(request, answer.status, answer.data, answer.headers.get("Content-Type", "application/json"))

    def _forward(
        self, request: BaseHTTPRequestHandler, body: bytes | None, stream: bool = False
    ) -> urllib3.BaseHTTPResponse:
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _DROPPED}
        headers |= credentials(self._configuration)
        url = self._configuration.host.rstrip("/") + request.path
        return self._pool.request(
            request.command, url, body=body, headers=headers, preload_content=not stream, retries=False, timeout=300.0
        )

    def _watch(self, request: BaseHTTPRequestHandler, fault: str) -> None:
        if fault == "gone" or self.gone:
            status = {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old resource version"}
            return self._send(request, 200, json.dumps({"type": "ERROR", "object": status}).encode() + b"\n")
        upstream = self._forward(request, None, stream=True)
        request.send_response(upstream.status)
        request.send_header("Content-Type", "application/json")
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        left = self._random.randint(0, 12) if fault == "short" else -1
        self._streams.add(request)
        try:
            for chunk in upstream.stream(65536):
                if left == 0 or self.down:
                    break
                left -= 1
                self._chunk(request, chunk)
                if fault == "garbage" or self.nonsense:
                    self._chunk(request, b'{"type": "MODIFIED", "obj\n')
                    fault = ""
            else:
                self._chunk(request, b"")
                return
        finally:
            self._streams.discard(request)
            upstream.close()
        self._cut(request)

    @staticmethod
    def _chunk(request: BaseHTTPRequestHandler, data: bytes) -> None:
        request.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        request.wfile.flush()

    def _status(self, request: BaseHTTPRequestHandler, status: int) -> None:
        body = {"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "message": "by the proxy"}
        self._send(request, status, json.dumps(body).encode())

    @staticmethod
    def _send(request: BaseHTTPRequestHandler, status: int, data: bytes, content: str = "application/json") -> None:
        request.send_response(status)
        request.send_header("Content-Type", content)
        request.send_header("Content-Length", str(len(data)))
        if status == 429:
            request.send_header("Retry-After", "1")
        request.end_headers()
        request.wfile.write(data)

    @staticmethod
    def _cut(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        with suppress(OSError):
            request.connection.shutdown(socket.SHUT_RDWR)
