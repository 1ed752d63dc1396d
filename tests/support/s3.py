"""moto's S3 on loopback, over real HTTP, with the ways of failing that it lacks."""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

KEY, SECRET = "test-key-id", "test-secret-access-key"


@dataclass
class Store:
    """A running service. `requests`: method, path and Range of each; `cut`: path to bytes after which its first
    answer is dropped; `busy`: how many requests are told to come back later; `refused`: all requests are. `gate`: path
    to bytes after which its first answer stops until `opened`, and `reached` says that it has.
    """

    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    gate: dict[str, int] = field(default_factory=dict)
    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)
    busy: int = 0
    refused: bool = False

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to find it, and to be let in."""
        return {"AWS_ENDPOINT_URL": self.url, "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET}

    def client(self) -> Any:
        import boto3

        return boto3.client(
            "s3", endpoint_url=self.url, region_name="us-east-1", aws_access_key_id=KEY, aws_secret_access_key=SECRET
        )

    def put(self, bucket: str, files: dict[str, bytes], access: str = "private") -> None:
        """Make the bucket, if need be, and put these files into it. Args: access: a canned access control list."""
        client = self.client()
        client.create_bucket(Bucket=bucket, ACL=access)
        for name, data in files.items():
            client.put_object(Bucket=bucket, Key=name, Body=data, ACL=access)

    def ranges(self, path: str) -> list[str]:
        return [asked for method, at, asked in self.requests if method == "GET" and at == path and asked]


@contextmanager
def running_s3() -> Iterator[Store]:
    """Serve on a free port of 127.0.0.1."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    store = Store()
    inner = DomainDispatcherApplication(create_backend_app)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        path, method = environ["PATH_INFO"], environ["REQUEST_METHOD"]
        store.requests.append((method, path, environ.get("HTTP_RANGE")))
        if store.busy > 0 and method == "GET":
            store.busy -= 1
            return _error(start_response, "503 Slow Down", "SlowDown")
        if store.refused:
            return _error(start_response, "403 Forbidden", "AccessDenied")
        answer = inner(environ, start_response)
        if method == "GET" and path in store.cut:
            return [b"".join(answer)[: store.cut.pop(path)]]
        if method == "GET" and path in store.gate:
            return _gated(store, b"".join(answer), store.gate.pop(path))
        return answer  # type: ignore[no-any-return]

    class Quiet(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log(self, type: str, message: str, *args: Any) -> None:
            """Nothing."""

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
    server.daemon_threads = True  # type: ignore[attr-defined]
    store.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield store
    finally:
        store.opened.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _gated(store: Store, data: bytes, stop: int) -> Iterator[bytes]:
    yield data[:stop]
    store.reached.set()
    store.opened.wait(120)
    yield data[stop:]


def _error(start_response: Callable[..., Any], status: str, code: str) -> list[bytes]:
    body = f'<?xml version="1.0"?><Error><Code>{code}</Code><Message>no</Message></Error>'.encode()
    start_response(status, [("Content-Type", "application/xml"), ("Content-Length", str(len(body)))])
    return [body]
