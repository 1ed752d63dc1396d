"""A stand-in for the Hugging Face hub: the endpoints huggingface_hub calls, and its ways of failing."""

import contextlib
import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What the hub holds and how it behaves. `repos`: name to files; every repository has the branch `main`, and the
    names of datasets begin with `datasets/`.

    `gated`: repositories refused without the right token. `cut`: file to the number of bytes after which its first
    download is dropped. `sent`: body bytes of each file that left the hub. `ranges`: Range headers seen for each file.
    `gate`: file to the number of bytes after which its first download stops until `opened`; `reached` says that it has.
    `elsewhere`: an address that files are redirected to. `lfs`: whether the listing tells SHA-256 sums.
    """

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    token: str = "hf_stand_in"
    cut: dict[str, int] = field(default_factory=dict)
    gate: dict[str, int] = field(default_factory=dict)
    reached: threading.Event = field(default_factory=threading.Event)
    opened: threading.Event = field(default_factory=threading.Event)
    elsewhere: str | None = None
    lfs: bool = True
    status: int | None = None
    url: str = ""
    sent: Counter[str] = field(default_factory=Counter)
    requests: list[str] = field(default_factory=list)
    ranges: dict[str, list[str]] = field(default_factory=dict)

    def commit(self, repo: str) -> str:
        """The commit of `main`: forty hexadecimal digits that follow from the files."""
        digest = hashlib.sha1(repo.encode())
        for name, data in sorted(self.repos[repo].items()):
            digest.update(name.encode() + data)
        return digest.hexdigest()


@contextmanager
def running_hub(hub: Hub, address: str = "127.0.0.1") -> Iterator[Hub]:
    """Serve `hub` on a free port of `address`; sets `hub.url`."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer((address, 0), handler)
    server.daemon_threads = True
    hub.url = f"http://{address}:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if self.hub.status is not None:
            return self._send(self.hub.status, b"{}", body)
        parts = path.strip("/").split("/")
        if parts[:2] == ["api", "models"] and len(parts) >= 4:
            repo = "/".join(parts[2:4])
            if self._allowed(repo, body):
                self._api(repo, parts[4:], body)
        elif parts[:2] == ["api", "datasets"] and len(parts) >= 4:
            repo = "/".join(parts[1:4])
            if self._allowed(repo, body):
                self._api(repo, parts[4:], body)
        elif parts[:1] == ["datasets"] and len(parts) >= 6 and parts[3] == "resolve":
            repo = "/".join(parts[:3])
            if self._allowed(repo, body):
                self._file(repo, parts[4], "/".join(parts[5:]), body)
        elif len(parts) >= 5 and parts[2] == "resolve":
            repo = "/".join(parts[:2])
            if self._allowed(repo, body):
                self._file(repo, parts[3], "/".join(parts[4:]), body)
        else:
            self._send(404, b"{}", body)

    def _allowed(self, repo: str, body: bool) -> bool:
        if repo not in self.hub.repos:
            self._send(404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
            return False
        if repo in self.hub.gated and self.headers.get("Authorization") != f"Bearer {self.hub.token}":
            self._send(401, b"{}", body, {"X-Error-Code": "GatedRepo"})
            return False
        return True

    def _revision_known(self, repo: str, revision: str, body: bool) -> bool:
        if revision in ("main", self.hub.commit(repo)):
            return True
        self._send(404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        return False

    def _api(self, repo: str, rest: list[str], body: bool) -> None:
        kind, revision = (rest[0], rest[1]) if len(rest) >= 2 else ("revision", "main")
        if not self._revision_known(repo, revision, body):
            return
        files = self.hub.repos[repo]
        if kind == "tree":
            below = "/".join(rest[2:])
            recursive = "recursive=true" in urlsplit(self.path).query.lower()
            answer: object = [
                self._listed(name, data)
                for name, data in files.items()
                if recursive or name.rpartition("/")[0] == below
            ]
        else:
            answer = {
                "id": repo,
                "modelId": repo,
                "sha": self.hub.commit(repo),
                "private": False,
                "gated": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "siblings": [{"rfilename": name} for name in files],
            }
        self._send(200, json.dumps(answer).encode(), body, {"Content-Type": "application/json"})

    def _listed(self, name: str, data: bytes) -> dict[str, object]:
        entry: dict[str, object] = {"type": "file", "path": name, "size": len(data)}
        if self.hub.lfs and name.endswith((".safetensors", ".gguf", ".bin")):
            entry["lfs"] = {"size": len(data), "oid": hashlib.sha256(data).hexdigest(), "pointerSize": 134}
        return entry | {"oid": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()}

    def _file(self, repo: str, revision: str, name: str, body: bool) -> None:
        if not self._revision_known(repo, revision, body):
            return
        data = self.hub.repos[repo].get(name)
        headers = {"X-Repo-Commit": self.hub.commit(repo)}
        if data is None:
            return self._send(404, b"{}", body, headers | {"X-Error-Code": "EntryNotFound"})
        headers |= {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "Accept-Ranges": "bytes"}
        if self.hub.elsewhere:
            return self._send(302, b"", body, {"Location": f"{self.hub.elsewhere}{self.path}"})
        start, stop = 0, len(data)
        asked = self.headers.get("Range")
        if asked and body:
            self.hub.ranges.setdefault(name, []).append(asked)
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, stop = int(first), min(len(data), int(last) + 1 if last else len(data))
            headers["Content-Range"] = f"bytes {start}-{stop - 1}/{len(data)}"
        part = data[start:stop]
        if body and name in self.hub.gate:
            return self._send_gated(part, self.hub.gate.pop(name), 206 if asked else 200, headers, name)
        keep = self.hub.cut.pop(name, None) if body else None
        sent = part if keep is None else part[:keep]
        if body:
            self.hub.sent[name] += len(sent)
        self._send(206 if asked and body else 200, sent, body, headers, length=len(part))
        if keep is not None:
            # The length promised more: the client sees the connection drop in the middle of the body.
            self.close_connection = True

    def _send_gated(self, part: bytes, stop: int, status: int, headers: dict[str, str], name: str) -> None:
        self._send(status, part[:stop], True, headers, length=len(part))
        self.wfile.flush()
        self.hub.sent[name] += len(part[:stop])
        self.hub.reached.set()
        self.hub.opened.wait(120)
        with contextlib.suppress(OSError):
            self.wfile.write(part[stop:])
            self.hub.sent[name] += len(part[stop:])

    def _send(
        self, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) if length is None else length))
        self.end_headers()
        if body:
            self.wfile.write(data)
