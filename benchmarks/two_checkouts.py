"""Two checkouts of this repository beside each other: what a change costs, over HTTP.

    python -m benchmarks.two_checkouts MODEL OLD NEW [OPTION of `plimsoll serve` …]

Starts a server of each, asks both in turns, each first as often as second, and prints medians and the median ratio of
pairs (above 1: NEW is faster). Leave the machine alone meanwhile.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from statistics import median

import httpx

from benchmarks.over_http import free_port, server

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


def serve(checkout: str, port: int, model: str, options: list[str]) -> list[str]:
    """The command of a server with that checkout's code; `-P` keeps this folder's code out."""
    command = ["env", f"PYTHONPATH={checkout}", sys.executable, "-P", "-m", "plimsoll.cli.main", "serve", model]
    return [*command, "--model-name", "m", "--server-port", str(port), "--kv-cache-bytes", "1Gi", *options]


def main() -> None:
    """Measures and prints a line for each kind of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "old", "new"):
        parser.add_argument(name, type=lambda given: str(Path(given).resolve()))
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of `plimsoll serve`")
    asked = parser.parse_args()
    checkouts = (asked.old, asked.new)
    threads, ports = os.cpu_count() or 1, (free_port(), free_port())
    commands = [
        serve(checkout, port, asked.model, asked.options) for checkout, port in zip(checkouts, ports, strict=True)
    ]
    first, second = (f"http://127.0.0.1:{port}" for port in ports)
    with server(commands[0], first, "/ready", threads), server(commands[1], second, "/ready", threads):
        for url in (first, second):
            many(url, 16, 4)
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
