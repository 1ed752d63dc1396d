"""How long a stream pauses while others send schemas that are costly to compile.

    python -m benchmarks.grammar_pauses MODEL [--tokens 256] [--clients 16]

One stream runs alone, then beside clients that send the same requests without a schema, then beside clients whose
every request has a costly schema that the server has not seen. Prints the gaps between the stream's tokens.
"""

import argparse
import itertools
import json
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import httpx

from benchmarks.over_http import free_port, server

TURNS = [{"role": "user", "content": "Tell me a long story."}]


def nested(depth: int) -> dict[str, Any]:
    """Objects in objects, of three properties each."""
    found: dict[str, Any] = {"type": "string"}
    for level in range(depth):
        found = {"type": "object", "properties": {f"{name}{level}": found for name in "ab"} | {"c": {"type": "number"}}}
    return found


COSTLY: tuple[dict[str, Any], ...] = (
    {"type": "string", "pattern": "^(a*)*b{1,1000}$"},
    {"type": "string", "pattern": "^([a-z]{1,100}-){1,100}$"},
    {"type": "string", "minLength": 10**6},
    {"type": "array", "minItems": 10**6, "items": {"type": "integer"}},
    {"enum": [f"value {number * 7919 % 100003}" for number in range(3000)]},
    {"anyOf": [{"type": "object", "properties": {f"p{number}": {"type": "number"}}} for number in range(300)]},
    {"type": "object", "properties": {f"p{number}": {"type": "number", "minimum": number} for number in range(300)}},
    nested(8),
    {"allOf": [{"type": "object", "properties": {f"p{n}": {"pattern": f"^[a-f]{{1,{n + 1}}}$"}}} for n in range(40)]},
)


def gaps(client: httpx.Client, tokens: int) -> list[float]:
    """Seconds between the tokens of one stream."""
    body = {"messages": TURNS, "max_tokens": tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    times = []
    with client.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        times.extend(time.perf_counter() for line in answer.iter_lines() if line.startswith("data: {"))
    return [after - before for before, after in itertools.pairwise(times)]


def beside(client: httpx.Client, tokens: int, clients: int, body: Callable[[int], dict[str, Any]]) -> str:
    """The gaps of one stream while `clients` others send `body(0)`, `body(1)` and so on until it ends."""
    ended, numbers, statuses = threading.Event(), itertools.count(), Counter[int]()

    def send() -> None:
        while not ended.is_set():
            statuses[client.post("/v1/chat/completions", json=body(next(numbers))).status_code] += 1

    threads = [threading.Thread(target=send) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        found = sorted(gaps(client, tokens))
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    half, most = statistics.median(found), found[-1]
    late = found[int(len(found) * 0.99)]
    return f"median {half * 1e3:.0f} ms, p99 {late * 1e3:.0f} ms, longest {most * 1e3:.0f} ms, others {dict(statuses)}"


def main() -> int:
    """Prints one line for each company of the stream. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        sys.executable, "-m", "plimsoll.cli.main", "serve", args.model, "--server-port", url.rpartition(":")[2],
        "--session-len", "2048", "--kv-cache-bytes", "256Mi", "--threads", str(args.threads), "--drain-timeout", "1",
    ]  # fmt: skip

    def plain(number: int) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": f"Say {number}."}], "max_tokens": 4}

    def costly(number: int) -> dict[str, Any]:
        # A title makes the schema one that no cache holds.
        schema = COSTLY[number % len(COSTLY)] | {"title": str(number)}
        return plain(number) | {"response_format": {"type": "json_schema", "json_schema": {"schema": schema}}}

    limits = httpx.Limits(max_connections=None)
    with server(command, url, "/ready", args.threads), httpx.Client(base_url=url, timeout=300, limits=limits) as client:
        # The vocabulary's trie is made with the first grammar.
        client.post("/v1/chat/completions", json=plain(0) | {"response_format": {"type": "json_object"}})
        for number in range(len(COSTLY)):
            began = time.perf_counter()
            answer = client.post("/v1/chat/completions", json=costly(number))
            words = answer.json()["error"]["message"][:90] if answer.status_code != 200 else ""
            name = json.dumps(COSTLY[number])[:60]
            print(f"{time.perf_counter() - began:.2f} s, {answer.status_code} {words} {name}", flush=True)
        gaps(client, 8)
        print("alone:", beside(client, args.tokens, 0, plain), flush=True)
        print("beside plain requests:", beside(client, args.tokens, args.clients, plain), flush=True)
        print("beside costly schemas:", beside(client, args.tokens, args.clients, costly), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
