"""Request heads by generators: numbers of every shape, names of every kind of host and page, on the real layers.

Each is answered below 500 or hung up on at once, and what a server without keys must not answer is a 400 or 403.
"""

import itertools
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from plimsoll.api.hosts import is_loopback
from plimsoll.runtime.server.visitors import Visitors
from tests.support.doors import Doors, doors, get, post

BODY = b"{}"
LOCAL = ("localhost", "LOCALHOST", "localhost.", "app.localhost", "127.0.0.1", "127.1.2.3", "[::1]",
         "[0:0:0:0:0:0:0:1]", "[::ffff:127.0.0.1]")  # fmt: skip
FOREIGN = (
    "evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.localhost.example", "notlocalhost",
    "localhost@evil.example", "evil.example#localhost", "localhost/evil", "0.0.0.0", "[::]", "[::ffff:0.0.0.0]",
    "10.0.0.1", "192.168.1.1", "169.254.169.254", "[fe80::1]", "[fd00::1]", "[2001:db8::1]", "127.1", "2130706433",
    "0x7f000001", "0177.0.0.1", "127.0.0.1,evil.example", "[::1", "::1", "[::1]evil", "[localhost]", ".localhost",
    "", " ", "localhost:", "localhost:port", "localhost:-1", "localhost:123456", "localhost:80:80", "local host",
    "lоcalhost".encode().decode("latin-1"), "x" * 5000, "localhost\tevil.example", "127.0.0.0x1", "xn--localhost-",
    "[::1%25lo]", "[::1%lo]", "localhost..", "%6cocalhost",
)  # fmt: skip
PORTS = ("", ":80", ":8000", ":65535")
PAGES = (
    "null", "NULL", "https://evil.example", "http://localhost.evil.example", "http://127.0.0.1.evil.example:8000",
    "http://evil.example:8000", "file://", "chrome-extension://abc", "http://0.0.0.0:8000", "http://10.0.0.1",
    "http://localhost@evil.example", "http://evil.example/http://localhost", "http://localhost evil", "", "localhost",
    "http://[::]:8000", "ftp://localhost", "http://localhost,http://evil.example", "http://", "://localhost",
    "http://localhost:8000/", "http://localhost?x", "http://localhost#x", "javascript:localhost", "data://localhost",
)  # fmt: skip


@pytest.fixture(scope="module")
def keyless() -> Iterator[Doors]:
    with doors() as server:
        yield server


def numbers() -> Iterator[bytes]:
    """What a header that is read as a number might say."""
    for digits in (17, 18, 19, 20, 21, 39, 309, 4300, 4301, 5001, 20_000):
        for digit in (b"0", b"1", b"9"):
            yield digit * digits
            yield b"0" * digits + b"2"
    for sign, number in itertools.product((b"-", b"+", b"0x", b"0b", b" ", b"\t"), (b"0", b"2", b"9" * 30)):
        yield sign + number
    yield from (b"", b"1e3", b"2.0", b"2,2", b"2, 3", b"2 2", b"1_0", b"nan", b"inf", "²".encode(), "٢".encode())
    for space in (b"\t", b" ", b" \t "):
        yield from (b"2" + space, space + b"2" + space, b"0" * 5001 + b"2" + space)
    yield from (b"2;3", b"(2)", b"2\x00", b"2\x0b", b"\xff" * 10, b"two", b'"2"')


def test_no_content_length_is_a_failure_of_the_server(keyless: Doors) -> None:
    for number in numbers():
        status = keyless.status(post(BODY, "Connection: close", f"Content-Length: {number.decode('latin-1')}"))
        good = re.fullmatch(rb"[ \t]*0*2[ \t]*", number) is not None
        none = re.fullmatch(rb"[ \t]*0+[ \t]*", number) is not None
        assert status == 200 if good or none else status in (400, 413), number[:60]
        if re.fullmatch(rb"[1-9]\d{20,}", number):
            # The HTTP parser itself refuses a number of 2**64 or more.
            assert status == 400


@pytest.mark.parametrize("encoding", ["chunked", "gzip", "identity", "chunked, chunked", "gzip, chunked", "xchunked",
                                      "chunked;q=1", "", "CHUNKED", "chunked\x0b", "\xff"])  # fmt: skip
def test_two_ways_to_say_how_long_a_body_is_are_refused(keyless: Doors, encoding: str) -> None:
    body = b"2\r\n{}\r\n0\r\n\r\n"
    for number in (b"2", b"0", b"12", b"9" * 30, b"0" * 5001 + b"2", b"-1", b"x"):
        for first in (True, False):
            lines = [f"Transfer-Encoding: {encoding}", f"Content-Length: {number.decode()}"]
            status = keyless.status(post(body, "Connection: close", *(lines if first else reversed(lines))))
            assert status in (400, 413), (encoding, number[:20])
    alone = keyless.status(post(body, "Connection: close", f"Transfer-Encoding: {encoding}"))
    assert alone in ((200,) if encoding.lower() == "chunked" else (200, 400))


@pytest.mark.parametrize("name", ["Expect", "Keep-Alive", "Upgrade", "Range", "If-Modified-Since", "Date", "Age",
                                  "X-Forwarded-For", "X-Forwarded-Proto", "Forwarded", "Max-Forwards", "TE", "Cookie",
                                  "Sec-WebSocket-Version", "Authorization", "Accept", "If-Range", "Via"])  # fmt: skip
def test_no_other_header_is_a_failure_of_the_server(keyless: Doors, name: str) -> None:
    for number in numbers():
        assert keyless.status(get("/health", f"{name}: {number.decode('latin-1')}")) in (200, 400), number[:60]


@pytest.mark.parametrize("host", LOCAL)
def test_a_keyless_server_on_loopback_answers_to_every_name_of_loopback(keyless: Doors, host: str) -> None:
    for port in PORTS:
        assert keyless.status(get(host=host + port)) == 200
        assert keyless.status(get(f"http://{host}{port}/health")) == 200
        assert keyless.status(get("/health", f"Origin: http://{host.lower()}{port}")) == 200


@pytest.mark.parametrize("host", FOREIGN)
def test_a_keyless_server_on_loopback_answers_to_no_other_name(keyless: Doors, host: str) -> None:
    for port in PORTS if ":" not in host or host.startswith("[") else ("",):
        name = host + port
        if name.strip() in (":80", ":8000", ":65535"):
            continue
        for method in ("GET", "POST", "OPTIONS", "HEAD"):
            assert keyless.status(get(host=name).replace(b"GET", method.encode())) in (400, 403), name[:80]
        # The target's own host counts as well.
        assert "/" in name or keyless.status(get(f"http://{name}/health")) in (400, 403), name[:80]


@pytest.mark.parametrize("page", PAGES)
def test_a_keyless_server_answers_no_page_of_elsewhere(keyless: Doors, page: str) -> None:
    headers = [f"Origin: {page}"]
    for more in ([], ["Upgrade: websocket", "Sec-WebSocket-Version: 13"], ["Accept: text/event-stream"]):
        heard = keyless.ask(get("/health", *headers, *more))
        assert heard.startswith(b"HTTP/1.1 403 ")
        assert b"access-control-allow-origin" not in heard.lower()
    for kind in ("text/plain", "application/json", "application/x-www-form-urlencoded"):
        lines = (*headers, f"Content-Type: {kind}", f"Content-Length: {len(BODY)}", "Connection: close")
        assert keyless.status(post(BODY, *lines)) == 403
    asked = ("Access-Control-Request-Method: POST", "Access-Control-Request-Private-Network: true")
    heard = keyless.ask(get("/health", *headers, *asked).replace(b"GET", b"OPTIONS"))
    assert heard.startswith(b"HTTP/1.1 403 ")
    assert b"access-control-allow" not in heard.lower()


def test_a_host_that_is_missing_or_there_twice_is_refused(keyless: Doors) -> None:
    assert keyless.status(get(host=None)) == 400
    assert keyless.status(get("/health", "Host: localhost")) == 400
    assert keyless.status(get("/health", "Host: evil.example")) == 400
    assert keyless.status(get("/health", "Origin: http://localhost", "Origin: https://evil.example")) == 403
    assert keyless.status(get("/health", "Origin: http://localhost", "Origin: http://localhost")) == 403


def test_what_a_page_loads_without_naming_itself_is_refused_and_a_link_is_not(keyless: Doors) -> None:
    for mode in ("no-cors", "cors", "websocket", "same-origin"):
        assert keyless.status(get("/health", "Sec-Fetch-Site: cross-site", f"Sec-Fetch-Mode: {mode}")) == 403
    assert keyless.status(get("/health", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: navigate")) == 200
    for site in ("same-origin", "same-site", "none"):
        assert keyless.status(get("/health", f"Sec-Fetch-Site: {site}", "Sec-Fetch-Mode: no-cors")) == 200


def test_what_its_owner_allows_is_answered() -> None:
    with doors(allowed_origins=("https://app.example",), allowed_hosts=("llm.example",)) as server:
        heard = server.ask(get("/health", "Origin: https://app.example", host="llm.example:8000"))
        assert heard.startswith(b"HTTP/1.1 200 ")
        assert b"access-control-allow-origin: https://app.example" in heard.lower()
        assert server.status(get("/health", "Origin: https://other.example")) == 403
        assert server.status(get(host="other.example")) == 403
        assert server.status(get(host="localhost")) == 200
    with doors(allowed_origins=("*",), allowed_hosts=("*",)) as server:
        assert server.status(get("/health", "Origin: null", host="any.example")) == 200


def test_origins_that_are_named_are_the_only_ones_of_a_server_with_keys(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    with doors(api_keys_file=str(keys), allowed_origins=("https://app.example",)) as server:
        for origin, status in (("https://app.example", 200), ("https://other.example", 403), ("http://localhost", 403)):
            asks = get("/v1/models", f"Origin: {origin}", "Access-Control-Request-Method: POST")
            # A preflight brings no key.
            heard = server.ask(asks.replace(b"GET", b"OPTIONS", 1)).lower()
            assert heard.startswith(b"http/1.1 %d" % status)
            assert (b"access-control-allow-origin" in heard) == (status == 200)
            heard = server.ask(get("/v1/models", f"Origin: {origin}", "Authorization: Bearer secret")).lower()
            assert (b"access-control-allow-origin" in heard) == (status == 200)


def test_a_keyless_server_of_a_network_goes_by_any_name_and_still_refuses_pages() -> None:
    with doors(host="0.0.0.0") as server:
        for host in (
            "smollm2",
            "smollm2.models",
            "smollm2.models.svc.cluster.local:8000",
            "10.1.2.3:8000",
            "[fd00::7]",
        ):
            assert server.status(get(host=host)) == 200
            assert server.status(get("/health", "Origin: http://evil.example:8000", host=host)) == 403
        assert server.status(get("/health", "Origin: http://evil.example:8000", host="evil.example:8000")) == 403


def test_a_server_with_keys_leaves_it_to_them(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("secret\n")
    with doors(api_keys_file=str(keys)) as server:
        for host, page in (("evil.example", "https://evil.example"), ("10.0.0.1:8000", "null")):
            asked = (f"Origin: {page}", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Mode: cors")
            assert server.status(get("/v1/models", *asked, "Authorization: Bearer secret", host=host)) == 200
            assert server.status(get("/v1/models", *asked, host=host)) == 401
        assert server.status(get(host=None)) == 400


def test_random_hosts_and_pages_never_raise_and_are_never_loopback() -> None:
    draw = random.Random(1)
    pieces = ["localhost", "127.0.0.1", "::1", "[", "]", ":", ".", "@", "/", "%", "0", "x", "evil.example", "\x00",
              "\xff", " ", "http", "://", "null", ",", "\r", "-", "_"]  # fmt: skip
    for _ in range(2000):
        text = "".join(draw.choices(pieces, k=draw.randint(0, 6)))
        scope = {"headers": [(b"host", text.encode("latin-1")), (b"origin", text.encode("latin-1"))],
                 "http_version": "1.1"}  # fmt: skip
        refusal = Visitors(hosts=()).refusal(scope)
        assert refusal is None or refusal.status in (400, 403)
        if is_loopback(text):
            assert re.fullmatch(
                r"([x0_-][x0_.-]*\.)?.*localhost\.?(:\d+)?|127\.0\.0\.1[0-9.]*(:\d+)?|\[::1\](:\d+)?", text
            )
