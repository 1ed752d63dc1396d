"""Stands between the operator and the API server and makes trouble: seeded, counted, and calm on demand.

It delays, cuts before a request is passed on and after (so that it was carried out and nobody heard), cuts answers and
watches in the middle, passes a request on twice, and answers 409, 410, 429, 500 and 503 itself. Plain HTTP on loopback
towards the operator; towards the API server it has the credentials of KUBECONFIG.
"""

import asyncio
import json
import logging
import random
import ssl
import threading
from collections import Counter
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web
from kubernetes.client import Configuration

#: How likely each trouble is, of a hundred requests; what is left is passed on untouched.
CHANCES = {
    "delay": 8, "cut before": 4, "cut after": 4, "cut midway": 2, "twice": 5,
    "409": 3, "410": 1, "429": 3, "500": 3, "503": 3, "500 after": 2,
}  # fmt: skip
_REASONS = {409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable"}
#: A watch lives so long at most while there is trouble; real ones are cut just as suddenly.
WATCH_SECONDS = 6.0
DELAY_SECONDS = 1.5
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade", "te", "content-encoding"}


# Connections that end in the middle are what this is for.
logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


class Proxy:
    """One proxy, in a thread of its own.

    Args:
        upstream: address and credentials of the API server.
        seed: the same seed makes the same choices for the same order of requests.
    """

    def __init__(self, upstream: Configuration, seed: int) -> None:
        self.upstream, self.troubled = upstream, True
        self.made: Counter[str] = Counter()
        self.port = 0
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def start(self) -> None:
        self._thread.start()
        assert self._started.wait(10), "the proxy did not start"

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def calm(self) -> None:
        """From now on everything is passed on, and nothing else happens."""
        self.troubled = False

    def kubeconfig(self, folder: Path) -> Path:
        """For the operator: this proxy, and no credentials."""
        cluster = {"name": "faulty", "cluster": {"server": f"http://127.0.0.1:{self.port}"}}
        context = {"name": "faulty", "context": {"cluster": "faulty", "user": "nobody"}}
        path = folder / "kubeconfig"
        found = {
            "apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context],
            "users": [{"name": "nobody", "user": {}}], "current-context": "faulty",
        }  # fmt: skip
        path.write_text(yaml.safe_dump(found))
        return path

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.run_until_complete(self._client.close())
        left = asyncio.all_tasks(self._loop)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))

    async def _serve(self) -> None:
        tls = ssl.create_default_context(cafile=self.upstream.ssl_ca_cert)
        if self.upstream.cert_file:
            tls.load_cert_chain(self.upstream.cert_file, self.upstream.key_file)
        headers = {a["key"]: a["value"] for a in self.upstream.auth_settings().values() if a and a["in"] == "header"}
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=0), headers=headers, auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )  # fmt: skip
        application = web.Application(client_max_size=64 << 20)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.port = self._runner.addresses[0][1]
        self._started.set()

    def _choose(self) -> str:
        if not self.troubled:
            return ""
        number = self._random.uniform(0, 100)
        for trouble, chance in CHANCES.items():
            number -= chance
            if number < 0:
                return trouble
        return ""

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        trouble = self._choose()
        body = await request.read()
        if trouble:
            self.made[trouble] += 1
        if trouble == "delay":
            await asyncio.sleep(self._random.uniform(0.05, DELAY_SECONDS))
        elif trouble == "cut before":
            return _cut(request)
        elif trouble.isdecimal():
            return self._answer(int(trouble))
        if request.query.get("watch") in ("true", "1"):
            return await self._watch(request, body)
        if trouble == "twice":
            async with self._pass_on(request, body) as first:
                await first.read()
        async with self._pass_on(request, body) as answer:
            data = await answer.read()
            headers = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
            if "Content-Encoding" in answer.headers:
                headers["Content-Encoding"] = answer.headers["Content-Encoding"]
            status = answer.status
        if trouble == "cut after":
            return _cut(request)
        if trouble == "500 after":
            return self._answer(500)
        if trouble == "cut midway" and len(data) > 1:
            half = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(data))})
            await half.prepare(request)
            await half.write(data[: self._random.randrange(1, len(data))])
            return _cut(request, half)
        return web.Response(status=status, headers=headers, body=data)

    def _pass_on(self, request: web.Request, body: bytes) -> "aiohttp.client._RequestContextManager":
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        return self._client.request(
            request.method, f"{self.upstream.host}{request.raw_path}", data=body or None, headers=headers
        )

    async def _watch(self, request: web.Request, body: bytes) -> web.StreamResponse:
        """Passed on as it comes. In troubled times each one is cut, sometimes in the middle of a line, or expires."""
        until = asyncio.get_running_loop().time() + self._random.uniform(0.2, WATCH_SECONDS)
        async with self._pass_on(request, body) as answer:
            stream = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
            await stream.prepare(request)
            while True:
                try:
                    chunk = await asyncio.wait_for(answer.content.readany(), 0.5)
                except TimeoutError:
                    chunk = None
                if self.troubled and asyncio.get_running_loop().time() > until:
                    self.made["watch cut"] += 1
                    if self._random.random() < 0.3:
                        gone = {"type": "ERROR", "object": _status(410)}
                        await stream.write(json.dumps(gone).encode() + b"\n")
                    elif chunk:
                        await stream.write(chunk[: len(chunk) // 2])
                    return _cut(request, stream)
                if chunk == b"":
                    await stream.write_eof()
                    return stream
                if chunk:
                    await stream.write(chunk)

    def _answer(self, status: int) -> web.Response:
        headers = {"Retry-After": "1"} if status in (429, 503) and self._random.random() < 0.5 else {}
        return web.json_response(_status(status), status=status, headers=headers)


def _status(code: int) -> dict[str, object]:
    return {
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": _REASONS[code], "message": f"the proxy makes trouble: {code}",
    }  # fmt: skip


def _cut(request: web.Request, answer: web.StreamResponse | None = None) -> web.StreamResponse:
    """Ends the connection without a word."""
    if request.transport is not None:
        request.transport.abort()
    return answer or web.Response(status=500)
