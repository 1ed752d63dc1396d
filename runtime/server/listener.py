"""A port and the server behind it. Light: a pod's status port listens before anything heavy is imported."""

import contextlib
import functools
import ipaddress
import socket
from typing import Any

import uvicorn

from plimsoll.api.errors import SpecError
from plimsoll.runtime.server.connection import SEND_BUFFER, Connection, Pace
from plimsoll.runtime.server.sockets import bound

CLOSE_SECONDS = 5
"""Connections have so long to close once every request has ended."""

IDLE_SECONDS = 75
"""An idle connection is kept for so long: longer than proxies and clients keep theirs (nginx 60 s, httpx 5 s), so that
it is they who close it, and none of their requests meets a connection that we are just closing."""


class Http(uvicorn.Server):
    """uvicorn without its signal handlers: what runs is drained before the server stops listening."""

    @contextlib.contextmanager
    def capture_signals(self) -> Any:
        yield


def http_server(app: Any, connections: int) -> Http:
    """Serves an ASGI application on up to so many connections; bounded heads, no lifespan, no log of its own."""
    return Http(
        uvicorn.Config(
            app,
            http=functools.partial(Connection, limit=connections, pace=Pace()),  # type: ignore[arg-type]
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            # Who asks is of no interest, and a header that says so is only one more to parse.
            proxy_headers=False,
            timeout_keep_alive=IDLE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
    )


def listen(host: str, port: int, option: str = "server-port") -> socket.socket:
    """A listening socket; `port` 0 takes a free one, and host `::` every address of both families.

    Raises:
        SpecError: the address cannot be bound; `option` is where the port was given.
    """
    try:
        listener = bound(host, port)
    except (socket.gaierror, UnicodeError) as error:
        raise SpecError(f"is no address to listen on: {error}", field="server-name", value=host) from None
    except (OSError, OverflowError) as error:
        raise _refused(host, port, option, error) from None
    # What is accepted inherits it.
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
    try:
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise _refused(host, port, option, error) from None
    return listener


def is_local(listener: socket.socket) -> bool:
    """Whether only this machine reaches it."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def _refused(host: str, port: int, option: str, error: Exception) -> SpecError:
    return SpecError(
        f"cannot listen on {host} port {port}: {error}", field=option, fix=f"Choose another with --{option}"
    )
