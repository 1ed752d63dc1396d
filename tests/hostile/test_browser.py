"""A real Chromium opens a page of another origin, which tries all a page can: a server without keys does none of it."""

import contextlib
import html
import json
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from plimsoll.runtime.server.asgi import Receive, Scope, Send
from tests.support.doors import doors, echo

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: install it, or name it in CHROMIUM"
)

#: Tries each way to ask TARGET, and leaves in the page what it could read.
SCRIPT = """
const found = {}, body = '{"model":"tiny","prompt":"hi"}', post = TARGET + "/v1/completions";
const later = (make) => new Promise(done => { make(done); setTimeout(() => done("nothing"), 1500); });
async function attempt(name, work) {
  try { found[name] = String(await work()); } catch (error) { found[name] = "refused"; }
}
const read = async answer => (answer.type === "opaque" ? "opaque" : answer.status + " " + await answer.text());
async function all() {
  for (const mode of ["cors", "no-cors", "same-origin"]) {
    await attempt(`get ${mode}`, async () => read(await fetch(TARGET + "/get", {mode})));
    for (const kind of ["application/json", "text/plain", "application/x-www-form-urlencoded",
                        "multipart/form-data; boundary=x", "text/plain; application/json"])
      await attempt(`post ${mode} ${kind}`, async () =>
        read(await fetch(post, {mode, method: "POST", body, headers: {"Content-Type": kind}})));
    await attempt(`blob ${mode}`, async () => read(await fetch(post, {mode, method: "POST", body: new Blob([body])})));
  }
  for (const method of ["PUT", "DELETE", "OPTIONS", "HEAD"])
    await attempt(method, async () => read(await fetch(post, {method})));
  await attempt("header", async () => read(await fetch(TARGET + "/get", {headers: {"X-Custom": "1"}})));
  await attempt("credentials", async () => read(await fetch(TARGET + "/get", {credentials: "include"})));
  await attempt("beacon", async () => { navigator.sendBeacon(post, body); return "sent"; });
  await attempt("image", () => later(done => { const one = new Image();
    one.onload = () => done("loaded"); one.onerror = () => done("refused"); one.src = TARGET + "/image"; }));
  await attempt("script", () => later(done => { const one = document.createElement("script");
    one.onload = () => done("loaded"); one.onerror = () => done("refused"); one.src = TARGET + "/script";
    document.head.append(one); }));
  await attempt("events", () => later(done => { const one = new EventSource(TARGET + "/events");
    one.onmessage = one.onopen = () => done("open"); one.onerror = () => { one.close(); done("refused"); }; }));
  await attempt("socket", () => later(done => { const one = new WebSocket(TARGET.replace("http", "ws") + "/socket");
    one.onopen = () => done("open"); one.onerror = () => done("refused"); }));
  for (const enctype of ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
    await attempt(`form ${enctype}`, () => later(done => {
      const frame = document.createElement("iframe"), form = document.createElement("form");
      frame.name = enctype; document.body.append(frame, form);
      Object.assign(form, {method: "POST", action: post, enctype, target: enctype});
      const field = document.createElement("input"); field.name = body; form.append(field);
      frame.onload = () => { try { done(frame.contentDocument.body.textContent || "blank"); }
                             catch (error) { done("refused"); } };
      form.submit(); }));
  document.body.innerHTML = "";
  const out = document.createElement("pre"); out.id = "found"; out.textContent = JSON.stringify(found);
  document.body.append(out);
}
all();
"""


@contextlib.contextmanager
def page(target: str) -> Iterator[int]:
    """A web server whose one page attacks `target`; yields its port."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            text = (
                f"<!doctype html><meta charset=utf-8><body><script>const TARGET={json.dumps(target)};{SCRIPT}</script>"
            )
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def opened(url: str, profile: Path) -> str:
    """The page as the browser has it in the end; every name of `.test` is this machine, as after a rebinding."""
    command = [
        str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-proxy-server",
        f"--user-data-dir={profile}", "--host-resolver-rules=MAP *.test 127.0.0.1", "--virtual-time-budget=30000",
        "--dump-dom", url,
    ]  # fmt: skip
    return html.unescape(subprocess.run(command, capture_output=True, text=True, timeout=120).stdout)


def attempts(url: str, profile: Path) -> dict[str, str]:
    text = opened(url, profile)
    found = re.search(r'<pre id="found">(.*?)</pre>', text, re.DOTALL)
    assert found is not None, text[-500:]
    return json.loads(found[1])


class Noted:
    """The routes, and what has reached them."""

    def __init__(self) -> None:
        self.reached: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.reached.append(f"{scope['method']} {scope['path']}")
        await echo(scope, receive, send)


def test_a_page_of_elsewhere_gets_nothing_read_and_nothing_done(tmp_path: Path) -> None:
    routes = Noted()
    with doors(routes) as server:
        with page(f"http://127.0.0.1:{server.port}") as port:
            found = attempts(f"http://evil.test:{port}/", tmp_path / "elsewhere")
        assert len(found) > 30
        # No answer is shown; `opaque` is one that the page cannot look into, and `sent` only says that it left.
        assert set(found.values()) <= {"refused", "opaque", "sent", "nothing"}, found
        assert routes.reached == []
        # After a rebinding the server's own pages would be of the same origin, and Host alone gives it away.
        assert "host_not_allowed" in opened(f"http://rebound.test:{server.port}/get", tmp_path / "rebound")
        assert routes.reached == []


def test_a_page_that_is_allowed_gets_its_answers(tmp_path: Path) -> None:
    routes = Noted()
    with doors(routes, allowed_origins=("*",)) as server, page(f"http://127.0.0.1:{server.port}") as port:
        found = attempts(f"http://evil.test:{port}/", tmp_path / "allowed")
        assert found["post cors application/json"] == "200 30 bytes"
        assert found["get cors"] == "200 0 bytes"
        assert "POST /v1/completions" in routes.reached
