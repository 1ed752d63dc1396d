"""The status page of a command that works in a pod: what probes and the operator read while it goes on."""

from collections.abc import Callable, Mapping
from email.message import Message

from plimsoll.api.errors import SpecError
from plimsoll.api.hosts import host_of, is_address, is_loopback
from plimsoll.operator.bounded_server import BoundedHandler, BoundedServer
from plimsoll.runtime.server.sockets import ANY, bound

#: (HTTP status, JSON) of one page at this moment.
Answer = tuple[int, bytes]
LIVE: Answer = 200, b'{"live":true}'
UNKNOWN: Answer = 404, b'{"error":"no such page"}'
FOREIGN: Answer = 403, b'{"error":"pages of other sites may not read this, and names but localhost are not answered"}'


def serve_status(port: int, pages: Mapping[str, Callable[[], Answer]]) -> BoundedServer:
    """Answer GET of each of `pages` by path, and /live, on every address, from a thread, until `shutdown`.

    Raises:
        SpecError: the port is taken.
    """

    class Page(BoundedHandler):
        def page(self) -> tuple[int, str, bytes]:
            path = self.path.partition("?")[0]
            if _is_foreign(self.headers):
                status, data = FOREIGN
            else:
                status, data = LIVE if path == "/live" else pages.get(path, lambda: UNKNOWN)()
            return status, "application/json", data

    try:
        listener = bound(ANY, port)
    except OSError as error:
        raise SpecError(f"cannot be listened on: {error.strerror}", field="--status-port", value=port) from None
    server = BoundedServer(listener, Page)
    server.start("status")
    return server


def _is_foreign(headers: Message) -> bool:
    """Whether a page of another site may be behind a request.

    It gives its origin, or its browser says that it is of another site, or it goes by a name that was made to point
    here. Kubelets, operators and scrapers go by the pod's address.
    """
    origins, sites = headers.get_all("Origin", []), headers.get_all("Sec-Fetch-Site", [])
    if not all(is_loopback(host_of(origin) or "") for origin in origins) or "cross-site" in sites:
        return True
    return not all(is_loopback(host) or is_address(host) for host in headers.get_all("Host", []))
