"""What every route works with: one engine, one tokenizer, one served name."""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

import plimsoll
from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.runtime.config import ServerConfig
from plimsoll.runtime.engine.transport.client import EngineClient, EngineDead
from plimsoll.runtime.machine.heap import return_freed_memory
from plimsoll.runtime.messages import EngineReady
from plimsoll.runtime.server.asgi import IGNORED, PARTITION
from plimsoll.runtime.server.body import json_body
from plimsoll.runtime.server.drain import Gate
from plimsoll.runtime.server.errors import ApiError, not_ready, shutting_down
from plimsoll.runtime.server.metrics import Metrics
from plimsoll.runtime.server.preparer import Prepared, Preparer, Route
from plimsoll.runtime.server.preparing import Preparing
from plimsoll.runtime.server.protocol import Sampling
from plimsoll.runtime.server.tokens import TokenTexts
from plimsoll.runtime.vocabulary import vocabulary_of


def partition(key: str, salt: str) -> str:
    """Names the part of the prefix cache for requests of one key and one `cache_salt`; empty where there is neither."""
    return hashlib.sha256(f"{key}:{salt}".encode()).hexdigest() if key or salt else ""


@dataclass
class Serving:
    """What the routes need to serve requests."""

    engine: EngineClient
    tokenizer: Tokenizer
    config: ServerConfig
    metrics: Metrics
    defaults: Mapping[str, float]
    """Sampling defaults of the checkpoint, by request field."""
    vocab_size: int
    """Rows of the model's embedding: token ids below it can be computed."""
    digest: str
    """Identifies the checkpoint served."""
    gate: Gate = field(default_factory=Gate)
    created: int = field(default_factory=lambda: int(time.time()))
    held: int = 0
    """Sequences that wait for an engine to be started again."""
    longest_token: int = field(init=False)
    """Bytes of the longest token in the vocabulary."""
    texts: TokenTexts = field(init=False)
    preparing: Preparing = field(init=False)

    def __post_init__(self) -> None:
        self.texts = TokenTexts(self.tokenizer)
        vocabulary = vocabulary_of(self.tokenizer)
        self.longest_token = max(vocabulary.sizes)
        self.engine.vocabulary = vocabulary
        preparer = Preparer(self.tokenizer, self.engine.config, self.config, self.vocab_size, self.longest_token)
        # What the vocabulary took while it was read is not for the processes that are forked now.
        return_freed_memory()
        self.preparing = Preparing(preparer, self.config.request_timeout)

    async def prepare(self, route: Route, request: Request) -> Prepared:
        """What the body of a request asks for, and its prompts. Raises ApiError.

        The response will name the fields that have no effect.
        """
        found = await self._prepared(route, await json_body(request))
        request.scope[IGNORED] = found.ignored
        run = found.request if found.chat is None else found.chat
        if isinstance(run, Sampling):
            run.partition = partition(request.scope.get(PARTITION, ""), run.cache_salt or "")
        return found

    async def _prepared(self, route: Route, body: bytearray) -> Prepared:
        known = self.engine.info if self.engine.failure is None else None
        found = await self.preparing.run(route, body, None if known is None else known.model_len)
        if known is None:
            raise self._not_loaded()
        return found

    def known_engine(self) -> EngineReady:
        """What the engine said when it last was ready. While it is started again, a request is checked by that.

        Raises ApiError 503 while the model loads for the first time, and where no engine will run any more.
        """
        info = self.engine.info
        if info is None or self.engine.failure is not None:
            raise self._not_loaded()
        return info

    def _not_loaded(self) -> ApiError:
        self.metrics.rejected("not_ready")
        return not_ready("The model is not loaded yet; try again shortly.")

    async def await_engine(self, sequences: int) -> None:
        """Holds a request of so many sequences until an engine takes it.

        Raises ApiError 503 where none does within `restart_timeout`, and where as many sequences wait as the engine's
        queue may hold.
        """
        if self.engine.ready:
            return
        try:
            if self.held + sequences > self.engine.config.most_sequences:
                raise EngineDead("too many requests wait for the engine")
            self.held += sequences
            try:
                await self.engine.available(self.config.restart_timeout)
            finally:
                self.held -= sequences
        except EngineDead:
            if self.gate.closed:
                raise shutting_down() from None
            self.metrics.rejected("not_ready")
            raise not_ready("The engine is being started again; try again shortly.") from None

    def head(self, response_id: str, info: EngineReady) -> dict[str, Any]:
        """What every response and every chunk of one begins with."""
        return {
            "id": response_id,
            "created": int(time.time()),
            "model": self.config.served_name,
            "system_fingerprint": self.fingerprint(info),
        }

    def fingerprint(self, info: EngineReady) -> str:
        """OpenAI's system_fingerprint: the same while everything that decides an answer is the same."""
        parts = "\0".join((plimsoll.__version__, self.digest, info.precision, info.kernels, info.determinism.digest))
        if info.ranks:
            # Sums over ranks round otherwise than sums on one.
            parts += f"\0{len(info.ranks)}"
        return f"plimsoll-{hashlib.sha256(parts.encode()).hexdigest()[:12]}"
