"""The API server: raw JSON in, raw JSON out, every call bounded in time.

Only connection and credentials come from the `kubernetes` package; its model classes would cost memory and drop fields
they do not know.
"""

import os
import random
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec
import urllib3
from kubernetes import config as kubernetes_config
from kubernetes.client import ApiClient, Configuration

from plimsoll import __version__
from plimsoll.operator.kinds import Kind
from plimsoll.operator.metrics import Metrics
from plimsoll.operator.names import FIELD_MANAGER
from plimsoll.operator.shape import lenient

#: A write that a lost lease could still let through must end before another operator may take the lease.
WRITE_SECONDS = 4.0
READ_SECONDS = 30.0
#: In all, retries included; after that the work queue waits instead of a worker.
RETRY_SECONDS = 20.0
#: A resourceVersion that no object can have: what a store counts from is taken long before anything of ours is there.
_NEVER = "1"
_RETRIED = frozenset({429, 500, 502, 503, 504})
_METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


class ClusterError(Exception):
    """The API server said no, or nothing.

    Args:
        status: HTTP status; 0 when there was no answer.
        reason: the API server's own word: NotFound, Conflict, Invalid.
        after: seconds it asks to be left alone for.
    """

    def __init__(self, message: str, *, status: int = 0, reason: str = "", after: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.after = after


class UnavailableError(ClusterError):
    """No answer, or one that says to come back later."""


class NotFoundError(ClusterError):
    """No such object, or no such kind."""


class ConflictError(ClusterError):
    """The object has changed since it was read, or exists already."""


class GoneError(ClusterError):
    """A list's continuation has expired: begin again."""


class ForbiddenError(ClusterError):
    """A right is missing, a quota is used up, or an admission plugin refuses."""


class InvalidError(ClusterError):
    """The API server refuses what the object says."""


class NameTakenError(ClusterError):
    """Somebody else's object has the name that one of ours would have."""


class NotLeaderError(Exception):
    """Another operator may hold the lease: nothing is written."""


_CLASSES: Mapping[int, type[ClusterError]] = {
    400: InvalidError, 403: ForbiddenError, 404: NotFoundError, 405: NotFoundError, 409: ConflictError, 410: GoneError,
    422: InvalidError, **dict.fromkeys(_RETRIED, UnavailableError),
}  # fmt: skip


def connection() -> Configuration:
    """Address and credentials: those of $KUBECONFIG, of the pod's service account, or of ~/.kube/config.

    Raises:
        ClusterError: none of them is there.
    """
    made = Configuration()
    try:
        if "KUBECONFIG" not in os.environ and os.environ.get("KUBERNETES_SERVICE_HOST"):
            kubernetes_config.load_incluster_config(client_configuration=made)
        else:
            kubernetes_config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=made)
    except (kubernetes_config.ConfigException, OSError) as error:
        raise ClusterError(f"no cluster to connect to: {error}") from None
    return made


def credentials(configuration: Configuration) -> dict[str, str]:
    """Headers that authenticate a request now: tokens are renewed on the way."""
    settings: Mapping[str, Any] = configuration.auth_settings()
    return {item["key"]: item["value"] for item in settings.values() if item and item["in"] == "header"}


Listed = TypeVar("Listed")


class Cluster:
    """Calls to one API server, from any thread.

    Args:
        may_write: asked before each attempt to write; without the lease nothing is written.
    """

    def __init__(
        self,
        configuration: Configuration,
        metrics: Metrics,
        *,
        may_write: Callable[[], bool] = lambda: True,
        connections: int = 16,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        configuration.connection_pool_maxsize = connections
        self.configuration = configuration
        self.may_write = may_write
        self.answered_at = 0.0
        """Monotonic time of the last answer that was no complaint: whether the API server is there at all."""
        self._metrics = metrics
        self._sleep = sleep
        self._pool: urllib3.PoolManager = ApiClient(configuration).rest_client.pool_manager
        self._host = configuration.host.rstrip("/")
        self._refreshing = threading.Lock()

    def request(
        self,
        verb: str,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        content: str = "application/json",
        accept: str = "application/json",
        gated: bool = True,
        retry: bool = True,
        seconds: float | None = None,
    ) -> Any:
        """One call, repeated while the API server is away or busy.

        Args:
            gated: a write that only the leader may make.
            seconds: what one attempt may take.

        Raises:
            ClusterError: the subclass says what kind.
            NotLeaderError: the lease is not held.
        """
        writes = verb != "GET"
        url = self._host + path + (f"?{urllib.parse.urlencode(query)}" if query else "")
        data = None if body is None else msgspec.json.encode(body)
        seconds = seconds or (WRITE_SECONDS if writes else READ_SECONDS)
        until, waited = time.monotonic() + RETRY_SECONDS, 0.0
        pause = 0.1
        while True:
            if writes and gated and not self.may_write():
                raise NotLeaderError
            try:
                return self._once(verb, url, data, content, accept, seconds)
            except UnavailableError as error:
                wait = max(pause * random.uniform(0.5, 1.5), error.after or 0.0)
                waited += wait
                if not retry or waited > RETRY_SECONDS or time.monotonic() + wait > until:
                    raise
                pause = min(pause * 2, 5.0)
            self._sleep(wait)

    def _once(self, verb: str, url: str, data: bytes | None, content: str, accept: str, seconds: float) -> Any:
        headers = {"Accept": accept, "User-Agent": f"plimsoll-operator/{__version__}"}
        if data is not None:
            headers["Content-Type"] = content
        with self._refreshing:
            headers |= credentials(self.configuration)
        timeout = urllib3.Timeout(connect=min(3.0, seconds), read=seconds)
        asked = time.monotonic()
        try:
            answer = self._pool.request(verb, url, body=data, headers=headers, timeout=timeout, retries=False)
        except (urllib3.exceptions.HTTPError, OSError) as error:
            self._metrics.requests.labels(verb, "none").inc()
            raise UnavailableError(f"no answer from the API server: {_short(error)}") from None
        self._metrics.requests.labels(verb, str(answer.status)).inc()
        self._metrics.request_seconds.labels(verb).observe(time.monotonic() - asked)
        try:
            decoded = decode(answer.data) if answer.data else None
        except ValueError:
            decoded = None
            if answer.status < 400:
                raise UnavailableError("the API server's answer is no JSON", status=answer.status) from None
        if answer.status < 400:
            self.answered_at = time.monotonic()
            return decoded
        raise _error(answer.status, decoded, answer.headers.get("Retry-After"))

    def get(self, kind: Kind, namespace: str | None, name: str) -> dict[str, Any]:
        """Read one object. Raises ClusterError."""
        return self.request("GET", kind.path(namespace, name))

    def pages(
        self,
        kind: Kind,
        namespace: str | None = None,
        *,
        selector: str | None = None,
        fields: str | None = None,
        metadata_only: bool = False,
        limit: int = 250,
    ) -> Iterator[list[dict[str, Any]]]:
        """All objects of a kind, page by page.

        Raises:
            GoneError: the listing took so long that the API server forgot its beginning.
        """
        query = {"limit": str(limit)}
        if selector:
            query["labelSelector"] = selector
        if fields:
            query["fieldSelector"] = fields
        accept = _METADATA if metadata_only else "application/json"
        while True:
            page = self.request("GET", kind.path(namespace), query, accept=accept)
            yield page.get("items") or []
            more = (page.get("metadata") or {}).get("continue")
            if not more:
                return
            query["continue"] = more

    def apply(self, kind: Kind, body: Mapping[str, Any], *, new: bool = False) -> dict[str, Any]:
        """Server-side apply: fields that are ours read as in `body` afterwards, others stay.

        A POST would own what it sets as an update, beside what is applied later: a field that is left out of an apply
        would then stay for ever. An apply makes what is not there, and looks at a resourceVersion only of what is.

        Args:
            new: makes the object; one of that name that is there already is not touched.

        Raises:
            ConflictError: it is there already, though it is to be `new`; or it is not the one of the uid in `body`.
        """
        meta = body["metadata"]
        if new:
            body = {**body, "metadata": {**meta, "resourceVersion": _NEVER}}
        query = {"fieldManager": FIELD_MANAGER, "force": "true"}
        path = kind.path(meta.get("namespace"), meta["name"])
        return self.request("PATCH", path, query, body, content="application/apply-patch+yaml")

    def merge(
        self, kind: Kind, namespace: str | None, name: str, patch: Mapping[str, Any], subresource: str | None = None
    ) -> dict[str, Any]:
        """A merge patch; with metadata.resourceVersion in it, refused when the object has changed."""
        path = kind.path(namespace, name, subresource)
        query = {"fieldManager": FIELD_MANAGER}
        return self.request("PATCH", path, query, patch, content="application/merge-patch+json")

    def scale(self, kind: Kind, namespace: str, name: str, uid: str, before: int, replicas: int) -> dict[str, Any]:
        """Sets spec.replicas if this is still the object and still has `before`.

        The whole resourceVersion would be too strict: every pod that starts changes it.

        Raises:
            ConflictError: somebody else has set it meanwhile.
        """
        return self.swap(kind, namespace, name, uid, "/spec/replicas", before, replicas)

    def swap(
        self, kind: Kind, namespace: str, name: str, uid: str, path: str, before: Any, value: Any
    ) -> dict[str, Any]:
        """Sets the field at `path`, a JSON pointer, if this is still the object and the field still is `before`.

        Raises:
            ConflictError: somebody else has set it meanwhile.
        """
        patch = [
            {"op": "test", "path": "/metadata/uid", "value": uid},
            {"op": "test", "path": path, "value": before},
            {"op": "replace", "path": path, "value": value},
        ]
        query = {"fieldManager": FIELD_MANAGER}
        where = kind.path(namespace, name)
        try:
            return self.request("PATCH", where, query, patch, content="application/json-patch+json")
        except InvalidError as error:
            if "test" in str(error) or "the server rejected our request" in str(error):
                raise ConflictError(f"{kind.name} {namespace}/{name} was changed by another") from None
            raise

    def create(self, kind: Kind, body: Mapping[str, Any], *, gated: bool = True) -> dict[str, Any]:
        """Create an object and return it. Raises ClusterError."""
        path = kind.path(body["metadata"].get("namespace"))
        return self.request("POST", path, {"fieldManager": FIELD_MANAGER}, body, gated=gated)

    def delete(self, kind: Kind, namespace: str | None, name: str, uid: str | None = None) -> bool:
        """Deletes in the background; False: it was gone, or another of that name has come."""
        body: dict[str, Any] = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            self.request("DELETE", kind.path(namespace, name), body=body)
        except (NotFoundError, ConflictError):
            return False
        return True

    def serves(self, kind: Kind) -> bool:
        """Whether the API server has this kind."""
        try:
            found = self.request("GET", kind.root)
        except NotFoundError:
            return False
        return any(item.get("name") == kind.plural for item in found.get("resources") or ())


def read_again(read: Callable[[], Listed]) -> Listed:
    """What `read` lists, from the beginning once more where the API server has forgotten where it was."""
    try:
        return read()
    except GoneError:
        return read()


def decode(data: bytes) -> Any:
    """JSON, without what a decoder would refuse it for as a whole: what is nested too deeply, numbers out of range.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        return msgspec.json.decode(data)
    except (ValueError, RecursionError):
        return lenient(data)


def _short(error: BaseException) -> str:
    reason = getattr(error, "reason", None)
    return str(reason if isinstance(reason, Exception) else error)[:300]


def _error(status: int, body: Any, after: str | None) -> ClusterError:
    body = body if isinstance(body, dict) and body.get("kind") == "Status" else {}
    try:
        wait = min(float(after or (body.get("details") or {}).get("retryAfterSeconds") or 0), 10.0)
    except (TypeError, ValueError):
        wait = 0.0
    # NaN and what lies in the past are no time to wait.
    wait = wait if wait > 0 else 0.0
    kind = _CLASSES.get(status, ClusterError)
    message = str(body.get("message") or f"the API server answered {status}")[:1000]
    return kind(message, status=status, reason=str(body.get("reason") or ""), after=wait or None)
