"""What browsers and probes ask that no OpenAI client does: preflights, HEAD, pages, and bodies of other kinds."""

import re
from html.parser import HTMLParser

import httpx
import pytest

from plimsoll.runtime.server.pages import LINKS
from tests.support.endpoint import Endpoint

HERE, THERE = "http://localhost:3000", "https://app.example"
BODY = b'{"model":"tiny","prompt":"hi","max_tokens":1}'


def preflight(endpoint: Endpoint, origin: str, path: str = "/v1/chat/completions") -> httpx.Response:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST",
               "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang"}  # fmt: skip
    return httpx.options(endpoint.root + path, headers=headers)


def test_any_page_may_ask_a_server_with_keys(keyed: Endpoint) -> None:
    for origin in (HERE, THERE, "null"):
        answer = preflight(keyed, origin)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, origin)
        assert {"POST", "DELETE"} <= set(answer.headers["Access-Control-Allow-Methods"].split(", "))
        assert "authorization" in answer.headers["Access-Control-Allow-Headers"]
        assert "Origin" in answer.headers["Vary"]
    for key, status in (("secret", 200), ("wrong", 401)):
        headers = {"Origin": THERE, "Authorization": f"Bearer {key}"}
        shown = httpx.post(f"{keyed.url}/completions", content=BODY,
                           headers={**headers, "Content-Type": "application/json"})  # fmt: skip
        # A page reads errors too.
        assert (shown.status_code, shown.headers["Access-Control-Allow-Origin"]) == (status, THERE)
        assert "X-Request-Id" in shown.headers["Access-Control-Expose-Headers"]


def test_only_pages_of_this_machine_may_ask_a_server_without_keys(tiny: Endpoint) -> None:
    for origin in (HERE, "http://127.0.0.1:8080", "http://[::1]:5173", "https://chat.localhost"):
        answer = preflight(tiny, origin)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, origin)
    for origin in (THERE, "null", "http://localhost.example", "http://127.0.0.1.example", "http://notlocalhost"):
        answer = preflight(tiny, origin)
        assert answer.status_code == 403
        assert "--allowed-origins" in answer.json()["error"]["message"]
        assert "Access-Control-Allow-Origin" not in answer.headers
        assert "Access-Control-Allow-Origin" not in httpx.get(f"{tiny.url}/models", headers={"Origin": origin}).headers
    with tiny.http.stream("POST", "/v1/completions", headers={"Origin": HERE}, json={
            "model": "tiny", "prompt": "hi", "max_tokens": 1, "stream": True}) as stream:  # fmt: skip
        assert stream.headers["Access-Control-Allow-Origin"] == HERE


@pytest.mark.parametrize(
    "path", ["/health", "/ready", "/version", "/metrics", "/v1/models", "/v1/models/tiny", "/", "/docs"]
)
def test_head_is_answered_as_get_is_without_the_body(tiny: Endpoint, path: str) -> None:
    whole, head = tiny.http.get(path), tiny.http.head(path)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Type"] == whole.headers["Content-Type"]
    assert tiny.http.head("/v1/models/other").status_code == 404
    assert tiny.http.head("/v1/completions").status_code == 405


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200), ("application/json; charset=utf-8", 200), ('Application/JSON;charset="UTF-8"', 200),
        ("application/vnd.api+json", 200), ("application/json; odata=verbose", 200), ("text/plain", 415), (None, 415),
        ("application/x-www-form-urlencoded", 415), ("multipart/form-data; boundary=x", 415), ("text/json", 415),
        ("application/json; charset=utf-16", 415), ("application/jsonx", 415), ("text/plain; application/json", 415),
        ("application/json, text/plain", 415),
    ],
)  # fmt: skip
def test_only_a_body_that_is_declared_as_json_is_read(tiny: Endpoint, kind: str | None, status: int) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    for path, body in (("/v1/completions", BODY), ("/v1/chat/completions", BODY)):
        answer = tiny.http.post(path, content=body, headers=headers)
        if status == 415:
            error = answer.json()["error"]
            assert (answer.status_code, error["code"]) == (415, "unsupported_media_type")
            assert "application/json" in error["message"]
        else:
            assert answer.status_code == (200 if path == "/v1/completions" else 400)


class Loads(HTMLParser):
    """What a page would load or run."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe", "object"):
            self.found.append(tag)
        self.found += [name for name, _ in attrs if name.startswith("on") or name in ("src", "style")]


def test_the_documentation_needs_nothing_from_elsewhere(tiny: Endpoint) -> None:
    answer = tiny.http.get("/docs")
    page = answer.text
    loads = Loads()
    loads.feed(page)
    assert not loads.found
    assert "//" not in re.sub(r"curl .*?</pre>", "", page, flags=re.DOTALL)
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'; style-src 'sha256-")
    schemas = tiny.http.get("/openapi.json").json()["components"]["schemas"]
    for schema in ("ChatCompletionRequest", "CompletionRequest"):
        for field in schemas[schema]["properties"]:
            assert f"<code>{field}</code>" in page
    assert "number, 0 to 2" in page


def test_the_root_says_what_is_here(tiny: Endpoint) -> None:
    found = tiny.http.get("/").json()
    assert found["model"] == "tiny"
    assert found["links"] == LINKS
    for path in found["links"].values():
        assert tiny.http.get(path).status_code in (200, 405)
