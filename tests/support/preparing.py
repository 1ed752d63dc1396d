"""Requests prepared by real forked processes, without a server or an engine."""

import asyncio
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.runtime.config import EngineConfig, ServerConfig
from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.preparer import Prepared, Preparer, Route
from plimsoll.runtime.server.preparing import Preparing

MODEL_LEN = 256


class Prepare:
    """Calls a Preparing as the server does."""

    def __init__(self, preparing: Preparing, loop: asyncio.Runner) -> None:
        self.preparing, self._loop = preparing, loop

    def __call__(self, route: Route, body: bytes) -> Prepared | ApiError:
        """What the request becomes, or its refusal."""
        try:
            return self._loop.run(self.preparing.run(route, bytearray(body), MODEL_LEN))
        except ApiError as error:
            return error

    def chat(self, content: Any = "hi", **fields: Any) -> Prepared | ApiError:
        turns = [{"role": "user", "content": content}]
        return self("chat", json.dumps({"model": "tiny", "messages": turns, **fields}).encode())

    def text(self, prompt: Any = "hi", **fields: Any) -> Prepared | ApiError:
        return self("text", json.dumps({"model": "tiny", "prompt": prompt, **fields}).encode())


@contextlib.contextmanager
def preparing(folder: Path, seconds: float = 10.0, templates: dict[str, str] | None = None) -> Iterator[Prepare]:
    """Prepares requests by a folder's tokenizer, with its own chat template or others, until the block ends."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    if templates is not None:
        fast.chat_template = templates
    tokenizer = Tokenizer(fast, [2])
    longest = max(len(tokenizer.token_bytes(token)) for token in range(tokenizer.vocab_size))
    config = ServerConfig(served_name="tiny")
    preparer = Preparer(tokenizer, EngineConfig(model=str(folder)), config, tokenizer.vocab_size, longest)
    running = Preparing(preparer, 60.0, seconds)
    try:
        with asyncio.Runner() as loop:
            yield Prepare(running, loop)
    finally:
        running.close()
