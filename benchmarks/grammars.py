"""Random JSON schemas on a served model: how many answers that end by themselves parse and validate.

    python -m benchmarks.grammars MODEL [--schemas 200] [--seed 0] [--max-tokens 200] [--streams 16]

Each schema is asked for twice, once as `json_schema` and once as the parameters of a required tool; every second
request is streamed. Exits with 1 where an answer that ended by itself does not match its schema.
"""

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import jsonschema

from benchmarks.over_http import free_port, server

#: Not `FormatChecker()`, whose `time` is that of draft 3, without a zone.
FORMATS_CHECKED = jsonschema.Draft202012Validator.FORMAT_CHECKER
FORMATS = ("date", "time", "date-time", "uuid", "ipv4", "email")
PATTERNS = ("^[A-Z]{2,5}$", "^[a-z]+-[0-9]{1,4}$", "^(red|green|blue)$", r"^\d{3}-\d{4}$")
TREE = {
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 8},
                "children": {"type": "array", "maxItems": 2, "items": {"$ref": "#/$defs/node"}},
            },
            "required": ["name"],
            "additionalProperties": False,
        }
    },
    "$ref": "#/$defs/node",
}


def random_schema(rng: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of JSONSchemaBench's kinds: nested objects, enums, patterns, ranges, arrays, unions, recursion."""
    kinds = ["string", "pattern", "format", "enum", "integer", "number", "boolean", "const"]
    if depth == 0:
        kinds = ["object", "object", "object", "array", "tree"]
    elif depth < 3:
        kinds += ["object", "array", "anyOf", "nullable"]
    kind = rng.choice(kinds)
    low = rng.randint(-50, 50)
    simple: dict[str, Any] = {
        "string": {"type": "string", "minLength": rng.randint(0, 3), "maxLength": rng.randint(4, 20)},
        "pattern": {"type": "string", "pattern": rng.choice(PATTERNS)},
        "format": {"type": "string", "format": rng.choice(FORMATS)},
        "enum": {"enum": rng.sample(["a", "b", 1, 2.5, None, True, "x y", "é"], rng.randint(1, 5))},
        "integer": {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 500)},
        "number": {"type": "number", "minimum": low, "exclusiveMaximum": low + 10},
        "boolean": {"type": "boolean"},
        "const": {"const": rng.choice(["fixed", 7, {"k": [1, 2]}])},
        "tree": TREE,
    }
    if kind in simple:
        return dict(simple[kind])
    if kind == "array":
        return {"type": "array", "items": random_schema(rng, depth + 1), "minItems": rng.randint(0, 2), "maxItems": 3}
    if kind == "anyOf":
        return {"anyOf": [random_schema(rng, depth + 1) for _ in range(rng.randint(2, 3))]}
    if kind == "nullable":
        return {"type": ["string", "null"], "maxLength": 6}
    names = rng.sample(["id", "name", "tags", "size", "when", "owner", "note", "ok"], rng.randint(1, 4))
    required = [name for name in names if rng.random() < 0.7]
    properties = {name: random_schema(rng, depth + 1) for name in names}
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def constrained(schema: dict[str, Any], way: str) -> dict[str, Any]:
    """The fields of a request that ask for an answer after `schema`."""
    if way == "schema":
        return {"response_format": {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}}
    function = {"name": "answer", "parameters": parameters(schema)}
    return {"tools": [{"type": "function", "function": function}], "tool_choice": "required",
            "parallel_tool_calls": False}  # fmt: skip


def parameters(schema: dict[str, Any]) -> dict[str, Any]:
    """An object that holds a value of `schema`: what a function takes is an object."""
    value = {name: part for name, part in schema.items() if name != "$defs"}
    shared = {"$defs": schema["$defs"]} if "$defs" in schema else {}
    return shared | {
        "type": "object", "properties": {"value": value}, "required": ["value"], "additionalProperties": False,
    }  # fmt: skip


def pieces(choice: Mapping[str, Any]) -> str:
    """The text of a message, or of a part of a stream: the arguments of its call, or its content."""
    calls = choice.get("tool_calls") or []
    return "".join(call["function"].get("arguments") or "" for call in calls) or choice.get("content") or ""


def ask(client: httpx.Client, way: str, tokens: int, index: int, schema: dict[str, Any]) -> tuple[str, str]:
    """The reason why the answer ended, and its text. An error's reason is its status."""
    body = {
        "messages": [{"role": "user", "content": f"Give an example of: {json.dumps(schema)}"}],
        "max_tokens": tokens, "seed": index, "stream": bool(index % 2), **constrained(schema, way),
    }  # fmt: skip
    answer = client.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        return str(answer.status_code), answer.text
    if not body["stream"]:
        [choice] = answer.json()["choices"]
        return choice["finish_reason"], pieces(choice["message"])
    reason, text = "no reason", ""
    for line in answer.text.splitlines():
        if line.startswith("data: {"):
            event = json.loads(line.removeprefix("data: "))
            if "error" in event:
                return "error", line
            for choice in event["choices"]:
                text += pieces(choice["delta"])
                reason = choice["finish_reason"] or reason
    return reason, text


def outcome(way: str, schema: dict[str, Any], reason: str, text: str) -> str:
    """`valid` or `wrong` for an answer that ended by itself, or else the reason why it ended."""
    if reason != {"schema": "stop", "call": "tool_calls"}[way]:
        return reason
    try:
        wanted = schema if way == "schema" else parameters(schema)
        jsonschema.validate(json.loads(text), wanted, format_checker=FORMATS_CHECKED)
    except (ValueError, jsonschema.ValidationError):
        return "wrong"
    return "valid"


def main() -> int:
    """Prints one line a fault, and the counts. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=200)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    schemas = [random_schema(rng) for _ in range(args.schemas)]
    url = f"http://127.0.0.1:{free_port()}"
    command = [
        sys.executable, "-m", "plimsoll.cli.main", "serve", args.model, "--server-port", url.rpartition(":")[2],
        "--session-len", "2048", "--kv-cache-bytes", "256Mi", "--threads", str(args.threads), "--drain-timeout", "1",
    ]  # fmt: skip
    faults = 0
    with server(command, url, "/ready", args.threads), httpx.Client(base_url=url, timeout=600) as client:
        for way in ("schema", "call"):
            began, counts = time.monotonic(), Counter[str]()
            with ThreadPoolExecutor(args.streams) as pool:
                answers = pool.map(partial(ask, client, way, args.max_tokens), range(len(schemas)), schemas)
                for schema, (reason, text) in zip(schemas, answers, strict=True):
                    found = outcome(way, schema, reason, text)
                    counts[found] += 1
                    if found not in ("valid", "length"):
                        faults += 1
                        print(found, json.dumps(schema), repr(text), flush=True)
            print(way, dict(counts), f"{time.monotonic() - began:.0f} s", flush=True)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
