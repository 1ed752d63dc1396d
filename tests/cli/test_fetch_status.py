"""The status page of a fetch, and what it leaves behind."""

import socket
from collections.abc import Iterator

import httpx
import pytest

from plimsoll.checkpoint.progress import Progress
from plimsoll.cli.fetch import pages
from plimsoll.cli.status_page import serve_status
from plimsoll.runtime.server.listener import listen
from tests.support.addresses import has_ipv6


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_a_page_is_reached_by_both_families(address: str) -> None:
    if address == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    page = serve_status(0, {})
    with socket.create_connection((address, page.socket.getsockname()[1]), timeout=30) as reader:
        reader.sendall(b"GET /live HTTP/1.0\r\n\r\n")
        assert b" 200 " in b"".join(iter(lambda: reader.recv(4096), b""))
    page.shutdown()
    page.server_close()


def test_head_is_answered_without_a_body() -> None:
    page = serve_status(0, {})
    answer = httpx.head(f"http://127.0.0.1:{page.socket.getsockname()[1]}/live")
    assert (answer.status_code, answer.content, int(answer.headers["Content-Length"])) == (200, b"", 13)
    page.shutdown()
    page.server_close()


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
    listen("::", port).close()


@pytest.fixture
def port() -> Iterator[int]:
    """Of a page that says it fetches."""
    server = serve_status(0, pages(Progress()))
    yield server.socket.getsockname()[1]
    server.shutdown()
    server.server_close()


def status_of(port: int, *headers: str) -> int:
    """Of a GET of /status with these headers."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as client:
        client.sendall("\r\n".join(["GET /status HTTP/1.1", *headers, "", ""]).encode())
        return int(b"".join(iter(lambda: client.recv(4096), b"")).split()[1])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([], 200), (["Host: 10.0.0.7:8001"], 200), (["Host: [fd00::7]:8001"], 200), (["Host: localhost"], 200),
        (["Host: 10.0.0.7", "Origin: http://localhost:3000"], 200), (["Host: ::1"], 403),
        (["Host: rebound.example:8001"], 403), (["Host: 10.0.0.7", "Host: rebound.example"], 403),
        (["Host: 10.0.0.7", "Origin: https://site.example"], 403), (["Host: 10.0.0.7", "Origin: null"], 403),
        (["Host: 10.0.0.7", "Origin: http://localhost.site.example"], 403),
        (["Host: 10.0.0.7", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: no-cors"], 403),
        (["Host: 10.0.0.7", *(f"X-{n}: {'x' * 90}" for n in range(50)), "Origin: https://site.example"], 403),
    ],
)  # fmt: skip
def test_no_page_of_another_site_reads_it(port: int, headers: list[str], status: int) -> None:
    assert status_of(port, *headers) == status
