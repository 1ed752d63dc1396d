"""Random JSON schemas on a served model: how many answers that end by themselves parse and validate.

    python -m benchmarks.grammars MODEL [--schemas 200] [--seed 0] [--max-tokens 200]

Exits with 1 where an answer that ended by itself does not match its schema.
"""

import argparse
import json
import random
import time
from collections import Counter
from typing import Any

import jsonschema

from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.llm import LLM
from plimsoll.runtime.server.constraints import schema_grammar

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


def main() -> int:
    """Prints one line a fault, and the counts. Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--schemas", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max-tokens", type=int, default=200)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    schemas = [random_schema(rng) for _ in range(args.schemas)]
    messages = [[{"role": "user", "content": f"Give an example of: {json.dumps(schema)}"}] for schema in schemas]
    params = [
        SamplingParams(max_tokens=args.max_tokens, seed=index, grammar=schema_grammar(schema))
        for index, schema in enumerate(schemas)
    ]
    counts: Counter[str] = Counter()
    began = time.monotonic()
    with LLM(args.model, kv_cache_bytes=128 << 20, max_model_len=2048) as llm:
        results = llm.chat(messages, params)
    for schema, result in zip(schemas, results, strict=True):
        answer = result.outputs[0]
        outcome = str(answer.finish_reason)
        if outcome == "stop":
            try:
                jsonschema.validate(json.loads(answer.text), schema)
                outcome = "valid"
            except (ValueError, jsonschema.ValidationError):
                outcome = "wrong"
        if outcome in ("wrong", "error", "rejected"):
            print(outcome, json.dumps(schema), repr(answer.text), answer.error or "")
        counts[outcome] += 1
    print(dict(counts), f"{time.monotonic() - began:.0f} s")
    return 1 if counts["wrong"] or counts["error"] or counts["rejected"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
