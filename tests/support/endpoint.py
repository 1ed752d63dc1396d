"""A served model for tests: the real engine process behind the real HTTP server, on loopback."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai

from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.runtime.config import EngineConfig, ServerConfig
from plimsoll.runtime.server.service import Service
from tests.support.dialects import events_of

#: What tiny test models get: small enough to fill, large enough to serve.
SMALL: dict[str, Any] = {
    "precision": "float32",
    "memory": 4 << 30,
    "kv_cache_bytes": 8 << 20,
    "block_size": 16,
    # Tests share their cores; threads that wait for each other would wait for the other tests too.
    "threads": 1,
}


class Endpoint:
    """A running service, and clients of it."""

    def __init__(self, service: Service, key: str = "unused") -> None:
        self.service = service
        self.url = service.url
        self.root = service.url.removesuffix("/v1")
        self.model = service.config.served_name
        self.openai = openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=60)
        self.anthropic = anthropic.Anthropic(base_url=self.root, api_key=key, max_retries=0, timeout=60)
        self.http = httpx.Client(base_url=self.root, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def metric(self, name: str, **labels: str) -> float:
        """The value of one series of /metrics, the sum where several match `labels`."""
        page = self.http.get("/metrics").text
        found = []
        for match in re.finditer(rf"^plimsoll:{re.escape(name)}\{{(.*)\}} (\S+)$", page, re.MULTILINE):
            if all(f'{key}="{value}"' in match[1] for key, value in labels.items()):
                found.append(float(match[2]))
        assert found, f"no series plimsoll:{name} {labels}"
        return sum(found)

    def idle(self) -> bool:
        """Whether nothing runs or waits and every block is free or cached."""
        stats = self.service.engine.stats
        return not stats.running and not stats.waiting and stats.blocks_free + stats.blocks_cached == stats.blocks_total

    def post(self, path: str, body: Any) -> tuple[int, dict[str, Any]]:
        """Status and JSON of a request that need not be one the openai client would send."""
        content = body if isinstance(body, bytes) else json.dumps(body)
        answer = self.http.post(path, content=content, headers={"Content-Type": "application/json"})
        return answer.status_code, answer.json()

    def events(self, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
        """The events of a streamed answer whose events have names."""
        answer = self.http.post(path, json={"model": self.model, "stream": True} | body)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        return events_of(answer.content)


def eventually(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Waits for something another process does; fails with the condition's name."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.02)


@contextlib.contextmanager
def serving(path: Path, engine: dict[str, Any] | None = None, **server: Any) -> Iterator[Endpoint]:
    """Serves a checkpoint until the block ends; `engine` and `server` are fields of the two configurations."""
    config = ServerConfig(**({"served_name": "tiny", "port": 0, "drain_timeout": 1.0} | server))
    service = Service(EngineConfig(model=str(path), **(SMALL | (engine or {}))), config, open_checkpoint(path))
    service.start()
    try:
        service.settled.wait()
        if service.error:
            raise service.error
        yield Endpoint(service)
    finally:
        service.stop()
        service.join()
