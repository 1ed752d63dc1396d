"""Stands between the operator and the API server and does what networks and busy servers do: seeded, counted.

It delays, cuts before a request is passed on and after (so that it was carried out and nobody heard), cuts answers and
watches in the middle, passes a request on twice, and answers 409, 410, 429, 500, 503 and 504 itself. Plain HTTP on
loopback towards the operator; towards the API server it has the credentials of KUBECONFIG.
"""

import asyncio
import json
import logging
import random
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import yaml
from aiohttp import web

from plimsoll.operator.cluster import connection, credentials
from plimsoll.operator.watches import tls

#: What may happen to a request, likelier where it is named twice.
_BUSY = ("delay", "cut before", "429", "500", "503") * 2
_READS = (*_BUSY, "cut after", "cut after", "cut midway", "410")
_WRITES = (
    *("delay", "cut before", "cut after", "cut after", "cut midway", "twice", "twice"),
    *("409", "410", "429", "500", "500 after", "503", "504"),
)
#: A watch needs a list first: too many of these, and a dozen watches never all begin.
_WATCHES = (*_BUSY, "410", "nonsense")
_REASONS = {
    404: "NotFound", 409: "Conflict", 410: "Expired", 429: "TooManyRequests", 500: "InternalError",
    503: "ServiceUnavailable", 504: "Timeout",
}  # fmt: skip
#: A watch lives so long at most, divided by the rate of trouble; real ones are cut just as suddenly. Much less, and an
#: operator of a dozen watches does nothing but list.
WATCH_SECONDS = 6.0
DELAY_SECONDS = 1.5
_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "upgrade", "te", "content-encoding"}

# Connections that end in the middle are what this is for.
logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)


class FaultyProxy:
    """In front of the cluster of KUBECONFIG, in a thread of its own.

    Set `rate` to the share of requests that go wrong, `hidden` to a group the API server shall not have, `gone` to
    refuse every watch with 410, `nonsense` to follow what watches tell by what is no JSON, `down` to answer
    nothing at all. The same seed makes the same choices for the same order of requests.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rate, self.hidden = 0.0, ""
        self.gone = self.down = self.nonsense = False
        self.faults: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        """Watches refused by `gone`, by the plural of their kind."""
        self._random = random.Random(seed)
        self._upstream = connection()
        self._open: set[asyncio.Transport] = set()
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._port = 0
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        assert self._started.wait(10), "the proxy did not start"

    def kubeconfig(self, folder: Path) -> Path:
        """For the operator: this proxy, and no credentials."""
        cluster = {"name": "faulty", "cluster": {"server": f"http://127.0.0.1:{self._port}"}}
        context = {"name": "faulty", "context": {"cluster": "faulty", "user": "nobody"}}
        path = folder / "kubeconfig"
        found = {
            "apiVersion": "v1", "kind": "Config", "clusters": [cluster], "contexts": [context],
            "users": [{"name": "nobody", "user": {}}], "current-context": "faulty",
        }  # fmt: skip
        path.write_text(yaml.safe_dump(found))
        return path

    @contextmanager
    def away(self) -> Iterator[None]:
        """The API server cannot be reached, and every watch that is open ends without a word."""
        self.down = True
        self._loop.call_soon_threadsafe(lambda: [transport.abort() for transport in self._open])
        try:
            yield
        finally:
            self.down = False

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

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
        self._loop.close()

    async def _serve(self) -> None:
        self._client = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls(self._upstream), limit=0), auto_decompress=False,
            timeout=aiohttp.ClientTimeout(total=None),
        )  # fmt: skip
        application = web.Application(client_max_size=64 << 20)
        application.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self._port = self._runner.addresses[0][1]
        self._started.set()

    def _choose(self, faults: tuple[str, ...]) -> str:
        if self._random.random() >= self.rate:
            return ""
        found = self._random.choice(faults)
        self.faults[found] += 1
        return found

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        if self.down:
            return _cut(request)
        if self.hidden and request.path.startswith(f"/apis/{self.hidden}/"):
            return self._answer(404)
        watching = request.query.get("watch") in ("true", "1")
        fault = self._choose(_WATCHES if watching else _READS if request.method == "GET" else _WRITES)
        if fault == "delay":
            await asyncio.sleep(self._random.uniform(0.05, DELAY_SECONDS))
        elif fault == "cut before":
            return _cut(request)
        elif fault.isdecimal():
            return self._answer(int(fault))
        if watching:
            return await self._watch(request, body, nonsense=fault == "nonsense")
        if fault == "twice":
            async with self._pass_on(request, body) as first:
                await first.read()
        async with self._pass_on(request, body) as answer:
            data, status = await answer.read(), answer.status
            headers = {k: v for k, v in answer.headers.items() if k.lower() not in _HOP}
            if "Content-Encoding" in answer.headers:
                headers["Content-Encoding"] = answer.headers["Content-Encoding"]
        if fault == "cut after":
            return _cut(request)
        if fault == "500 after":
            return self._answer(500)
        if fault == "cut midway" and len(data) > 1:
            half = web.StreamResponse(status=status, headers={**headers, "Content-Length": str(len(data))})
            await half.prepare(request)
            await half.write(data[: self._random.randrange(1, len(data))])
            return _cut(request, half)
        return web.Response(status=status, headers=headers, body=data)

    def _pass_on(self, request: web.Request, body: bytes) -> "aiohttp.client._RequestContextManager":
        headers = {k: v for k, v in request.headers.items() if k.lower() not in _HOP}
        url = f"{self._upstream.host}{request.raw_path}"
        return self._client.request(
            request.method, url, data=body or None, headers=headers | credentials(self._upstream)
        )

    async def _watch(self, request: web.Request, body: bytes, *, nonsense: bool) -> web.StreamResponse:
        """Passed on as it comes. In troubled times each one is cut, sometimes in the middle of a line, or expires."""
        clock = asyncio.get_running_loop().time
        begun, life = clock(), self._random.uniform(0.2, WATCH_SECONDS)
        expired = json.dumps({"type": "ERROR", "object": _status(410)}).encode() + b"\n"
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        self._open.add(transport)
        try:
            async with self._pass_on(request, body) as answer:
                stream = web.StreamResponse(status=answer.status, headers={"Content-Type": "application/json"})
                await stream.prepare(request)
                if self.gone:
                    await stream.write(expired)
                    self.refused[request.path.rsplit("/", 1)[1]] += 1
                    return stream
                while True:
                    try:
                        chunk = await asyncio.wait_for(answer.content.readany(), 0.5)
                    except TimeoutError:
                        chunk = None
                    if self.down:
                        return _cut(request, stream)
                    if self.rate and clock() - begun > life / self.rate:
                        self.faults["watch cut"] += 1
                        if self._random.random() < 0.3:
                            await stream.write(expired)
                        elif chunk:
                            await stream.write(chunk[: len(chunk) // 2])
                        return _cut(request, stream)
                    if chunk == b"":
                        await stream.write_eof()
                        return stream
                    if chunk:
                        await stream.write(chunk)
                        if nonsense or self.nonsense:
                            nonsense = False
                            await stream.write(b'{"type": "MODIFIED", "obj\n')
        finally:
            self._open.discard(transport)

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
