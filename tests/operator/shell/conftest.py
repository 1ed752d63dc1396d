"""A small API server that fails on request, and real objects as a cluster gave them."""

import copy
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import Configuration

from plimsoll.operator import kinds
from plimsoll.operator.cluster import Cluster
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.watch_cache import Cache

OBJECTS = Path(__file__).parent / "objects"


def merged(base: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    result = dict(base) if isinstance(base, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


class Api:
    """Objects by path over real HTTP. `faults` are used up one a request, before it or instead of its answer.

    A fault is `cut` (no answer), `lost` (done, but the answer never comes), `garbage`, or (status, headers).
    """

    def __init__(self) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.faults: list[Any] = []
        self.requests: list[tuple[str, str]] = []
        self.pages: dict[str, list[dict[str, Any]]] = {}
        self.forbidden: set[str] = set()
        """Parts of paths that nobody has a right to."""
        self.broken: set[str] = set()
        """Parts of paths whose admission webhook is away."""
        self._version = 100
        self._lock = threading.Lock()
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def handle_any(self) -> None:
                api.answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"

    def put(self, kind: kinds.Kind, body: dict[str, Any]) -> dict[str, Any]:
        """As if somebody else had written it."""
        meta = body["metadata"]
        with self._lock:
            return self._store(kind.path(meta.get("namespace"), meta["name"]), copy.deepcopy(body))

    def under(self, prefix: str) -> list[dict[str, Any]]:
        """What is stored below this path, in the order it came: a copy of the list, for requests may be running."""
        with self._lock:
            return [one for path, one in self.objects.items() if path.startswith(prefix)]

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        url = urllib.parse.urlsplit(request.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        length = int(request.headers.get("Content-Length") or 0)
        body = json.loads(request.rfile.read(length)) if length else None
        with self._lock:
            self.requests.append((request.command, request.path))
            if any(part in request.path for part in self.forbidden):
                return self._send(request, 403, {"kind": "Status", "message": f"{url.path} is forbidden"}, {})
            if any(part in request.path for part in self.broken):
                return self._send(request, 500, {"kind": "Status", "message": "failed calling webhook"}, {})
            fault = self.faults.pop(0) if self.faults else None
            if fault == "cut":
                return self._cut(request)
            if isinstance(fault, tuple):
                return self._send(request, fault[0], {"kind": "Status", "message": f"made up {fault[0]}"}, fault[1])
            content = request.headers.get("Content-Type", "")
            status, found = self._do(request.command, url.path, query, content, body)
        if fault == "lost":
            return self._cut(request)
        return self._send(request, status, found, {}, b"<html>" if fault == "garbage" else None)

    def _do(self, verb: str, path: str, query: dict[str, str], content: str, body: Any) -> tuple[int, Any]:
        path = path.removesuffix("/status")
        known = self.objects.get(path)
        if verb == "GET" and known is None and path in self.pages:
            pages = self.pages[path]
            at = int(query.get("continue") or 0)
            more = str(at + 1) if at + 1 < len(pages) else ""
            return 200, {"metadata": {"resourceVersion": "1", "continue": more}, "items": pages[at]}
        if verb == "GET" and known is None and path.endswith("/events"):
            # A kind that every API server has: a collection of none is no error.
            uid = query.get("fieldSelector", "").removeprefix("involvedObject.uid=")
            items = [one for where, one in self.objects.items() if where.startswith(f"{path}/")]
            found = [one for one in items if not uid or one["involvedObject"]["uid"] == uid]
            return 200, {"metadata": {"resourceVersion": "1"}, "items": found}
        if verb == "POST":
            path = f"{path}/{body['metadata']['name']}"
            if path in self.objects:
                return 409, {"kind": "Status", "reason": "AlreadyExists", "message": "exists"}
            return 201, self._store(path, body)
        if verb == "PATCH" and "apply" in content:
            if not self._meant(body["metadata"], known):
                return 409, {"kind": "Status", "reason": "Conflict", "message": "has changed"}
            return 200, self._store(path, merged(known or {}, body))
        if known is None:
            return 404, {"kind": "Status", "reason": "NotFound", "message": "not found"}
        if verb == "GET":
            return 200, known
        if verb == "DELETE":
            uid = ((body or {}).get("preconditions") or {}).get("uid")
            if uid and uid != known["metadata"]["uid"]:
                return 409, {"kind": "Status", "reason": "Conflict", "message": "another uid"}
            return 200, self.objects.pop(path)
        if isinstance(body, list):
            return self._json_patch(path, known, body)
        version = body["metadata"].get("resourceVersion") if "metadata" in body else None
        if version and version != known["metadata"]["resourceVersion"]:
            return 409, {"kind": "Status", "reason": "Conflict", "message": "has changed"}
        return 200, self._store(path, body if verb == "PUT" else merged(known, body))

    @staticmethod
    def _meant(about: dict[str, Any], known: dict[str, Any] | None) -> bool:
        """Whether an apply is of this object: Kubernetes looks at a version only of what is there, at a uid always."""
        live = (known or {}).get("metadata", {})
        if about.get("uid", live.get("uid")) != live.get("uid"):
            return False
        return not live or about.get("resourceVersion", live["resourceVersion"]) == live["resourceVersion"]

    def _json_patch(self, path: str, known: dict[str, Any], operations: list[dict[str, Any]]) -> tuple[int, Any]:
        made = copy.deepcopy(known)
        for one in operations:
            _, part, field = one["path"].split("/")
            if one["op"] == "test" and made[part].get(field) != one["value"]:
                return 422, {"kind": "Status", "reason": "Invalid", "message": "the server rejected our request"}
            made[part][field] = one["value"]
        return 200, self._store(path, made)

    def _store(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        known = self.objects.get(path)
        if known is not None:
            body["metadata"]["resourceVersion"] = known["metadata"]["resourceVersion"]
            body["metadata"]["uid"] = known["metadata"]["uid"]
            if body == known:
                return known
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        body["metadata"].setdefault("uid", f"uid-{self._version}")
        self.objects[path] = copy.deepcopy(body)
        return self.objects[path]

    @staticmethod
    def _send(
        request: BaseHTTPRequestHandler, status: int, body: Any, headers: dict[str, str], raw: bytes | None = None
    ) -> None:
        data = raw or json.dumps(body).encode()
        request.send_response(status)
        for name, value in {**headers, "Content-Type": "application/json", "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)

    @staticmethod
    def _cut(request: BaseHTTPRequestHandler) -> None:
        request.close_connection = True
        request.connection.close()


@pytest.fixture
def api() -> Iterator[Api]:
    made = Api()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture
def metrics() -> Metrics:
    return Metrics()


@pytest.fixture
def naps() -> list[float]:
    """Seconds that the client would have slept."""
    return []


@pytest.fixture
def cluster(api: Api, metrics: Metrics, naps: list[float]) -> Cluster:
    configuration = Configuration()
    configuration.host = api.url
    return Cluster(configuration, metrics, sleep=naps.append)


@pytest.fixture
def real() -> Callable[[str], dict[str, Any]]:
    """An object as a Kubernetes 1.34 gave it, by file name."""
    return lambda name: json.loads((OBJECTS / f"{name}.json").read_text())


@pytest.fixture
def woken() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def cache(woken: list[tuple[str, str]]) -> Cache:
    """Tells `woken` of every deployment that an event concerns; a spec's source is its own key."""
    return Cache(woken.append, lambda namespace, spec: (spec.get("model") or {}).get("source"))


def bare(kind: kinds.Kind, name: str, version: int = 1, *, uid: str = "", **more: Any) -> dict[str, Any]:
    """The least that is an object."""
    meta = {"name": name, "namespace": "ns", "uid": uid or f"uid-{name}", "resourceVersion": str(version)}
    meta |= more.pop("metadata", {})
    return {"apiVersion": kind.api_version, "kind": kind.name, "metadata": meta, **more}


@pytest.fixture
def make() -> Callable[..., dict[str, Any]]:
    return bare
