"""What the server keeps in memory: nothing that loading a tokenizer or reading bodies took."""

import contextlib
import itertools
import json
import multiprocessing
import shutil
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.runtime.config import EngineConfig, ServerConfig
from plimsoll.runtime.machine.heap import return_freed_memory
from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.service import Service
from tests.support.doors import doors, post
from tests.support.fuzz_readers import SEEDS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
MIB = 1 << 20


def held() -> int:
    return psutil.Process().memory_info().rss


def in_a_process(work: Callable[[Path], int], folder: Path) -> int:
    """Bytes that `work` finds, in a process whose heap nobody else changes."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=lambda: sender.send(work(folder)))
    process.start()
    sender.close()
    try:
        return int(receiver.recv())
    finally:
        process.join()


def service(folder: Path) -> Service:
    config = ServerConfig(served_name="tiny", port=0)
    return Service(EngineConfig(model=str(folder)), config, open_checkpoint(folder))


def left_by_loading(folder: Path) -> int:
    return_freed_memory()
    made = service(folder)
    loaded = held()
    return_freed_memory()
    made.serving.preparing.close()
    return loaded - held()


def test_what_loading_a_large_vocabulary_took_goes_back_before_processes_are_forked(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SEEDS / "shards", tmp_path / "model"))
    state = json.loads((folder / "tokenizer.json").read_bytes())
    letters = "abcdefghijklmnop"
    words = ["".join(word) for size in (2, 3, 4) for word in itertools.product(letters, repeat=size)]
    vocabulary = state["model"]["vocab"]
    for word in words:
        vocabulary.setdefault(word, len(vocabulary))
    state["model"]["merges"] += [[word[:-1], word[-1]] for word in words]
    (folder / "tokenizer.json").write_text(json.dumps(state))
    left = in_a_process(left_by_loading, folder)
    assert left < 8 * MIB, left / MIB


def left_by_bodies(folder: Path) -> int:
    from fastapi import FastAPI, Request

    from plimsoll.runtime.server.body import json_body

    made = service(folder)
    app = FastAPI()

    @app.post("/v1/completions")
    async def completions(request: Request) -> int:
        body = await json_body(request)
        with contextlib.suppress(ApiError):
            await made.serving.preparing.run("text", body, 256)
        return len(body)

    body = post(b" " * (16 * MIB), f"Content-Length: {16 * MIB}", "Connection: close")
    with doors(app) as server, ThreadPoolExecutor(3) as clients:
        before = held()
        for _ in range(2):
            list(clients.map(server.ask, [body] * 3))
        kept = held() - before
    made.serving.preparing.close()
    return kept


def test_bodies_that_were_refused_leave_nothing_behind() -> None:
    left = in_a_process(left_by_bodies, SEEDS / "shards")
    assert left < 24 * MIB, left / MIB
