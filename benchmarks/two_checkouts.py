"""Two checkouts of this repository beside each other: what a change costs, over HTTP.

    python -m benchmarks.two_checkouts MODEL OLD NEW [OPTION of `plimsoll serve` …]

Starts a server of each, asks both in turns, each first as often as second, and prints medians and the median ratio of
pairs (above 1: NEW is faster). Leave the machine alone meanwhile.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from statistics import median

import httpx

from benchmarks.over_http import free_port

START_SECONDS = 180.0
NUMBERS = count()


def ask(url: str, tokens: int, words: int) -> None:
    """A greedy chat of so many tokens; its prompt begins with a number of its own, so that no cache has it."""
    content = f"{next(NUMBERS)} " + "ship and line " * (words // 3)
    body = {"model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": tokens}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body | {"temperature": 0, "ignore_eos": True}, timeout=300)
    answer.raise_for_status()
    assert answer.json()["usage"]["completion_tokens"] == tokens


def many(url: str, streams: int, tokens: int) -> None:
    """So many chats at once."""
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(lambda _: ask(url, tokens, 24), range(streams)))


WORK: dict[str, tuple[int, Callable[[str], None]]] = {
    "1 token": (40, lambda url: ask(url, 1, 24)),
    "1 token after 300 words": (8, lambda url: ask(url, 1, 300)),
    "64 tokens": (6, lambda url: ask(url, 64, 24)),
    "16 chats of 48 tokens": (4, lambda url: many(url, 16, 48)),
}
"""Times, and what is timed."""


@contextmanager
def serving(checkout: str, model: str, options: list[str]) -> Iterator[str]:
    """The URL of a server with that checkout's code, warm."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "plimsoll.cli.main",
        "serve",
        model,
        "--model-name",
        "m",
        "--server-port",
        str(port),
    ]
    command += ["--kv-cache-bytes", "1Gi", *options]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=checkout, env={**os.environ, "PYTHONPATH": checkout}, **quiet)  # type: ignore[call-overload]
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    try:
        while True:
            try:
                many(url, 16, 4)
                break
            except httpx.HTTPError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    """Measures and prints a line for each kind of work."""
    model, old, new, *options = sys.argv[1:]
    model, old, new = (str(Path(one).resolve()) for one in (model, old, new))
    with serving(old, model, options) as first, serving(new, model, options) as second:
        print("| work | old, ms | new, ms | old / new, median of pairs |\n|---|---|---|---|")
        for name, (times, work) in WORK.items():
            spent: dict[str, list[float]] = {first: [], second: []}
            for turn in range(times):
                for url in (first, second) if turn % 2 else (second, first):
                    began = time.perf_counter()
                    work(url)
                    spent[url].append(time.perf_counter() - began)
            ratio = median(a / b for a, b in zip(spent[first], spent[second], strict=True))
            print(
                f"| {name} | {median(spent[first]) * 1000:.0f} | {median(spent[second]) * 1000:.0f} | {ratio:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
