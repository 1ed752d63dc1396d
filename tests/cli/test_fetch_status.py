"""The status page of a fetch, and what it leaves behind."""

import socket

import httpx

from plimsoll.checkpoint.progress import Progress
from plimsoll.cli.fetch import pages
from plimsoll.cli.status_page import serve_status
from plimsoll.runtime.server.listener import listen


def test_the_pods_server_takes_the_port_where_a_fetch_was_just_asked() -> None:
    fetching = serve_status(0, pages(Progress()))
    port = fetching.socket.getsockname()[1]
    with socket.create_connection(("127.0.0.1", port)) as reader:
        # The page closes first, so that its end of the connection lingers.
        reader.sendall(b"GET /status HTTP/1.0\r\n\r\n")
        assert b" 200 " in b"".join(iter(lambda: reader.recv(4096), b""))
    assert httpx.get(f"http://127.0.0.1:{port}/live").json() == {"live": True}
    fetching.shutdown()
    fetching.server_close()
    listen("0.0.0.0", port).close()
