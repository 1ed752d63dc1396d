"""Pages for a person with a browser: what is here (`/`), and what a request may say (`/docs`).

Written by the server from its own OpenAPI document: no script and nothing from elsewhere, so they work without a
network and under the strictest Content-Security-Policy.
"""

import base64
import hashlib
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60em;margin:2em auto;padding:0 1em;color-scheme:light dark}"
    "table{border-collapse:collapse;width:100%}td,th{text-align:left;vertical-align:top;padding:.25em .8em .25em 0;"
    "border-bottom:1px solid #8884}code,pre{font:14px/1.5 ui-monospace,monospace}pre{overflow:auto;padding:.8em;"
    "border:1px solid #8884}h2{margin-top:2em}"
)
_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
#: Nothing may be loaded or run, and the one style is this one.
HEADERS = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_HASH}'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
}
LINKS = {
    "documentation": "/docs", "openapi": "/openapi.json", "models": "/v1/models", "chat": "/v1/chat/completions",
    "completions": "/v1/completions", "responses": "/v1/responses", "messages": "/v1/messages", "tokenize": "/tokenize",
    "detokenize": "/detokenize", "health": "/health",
    "ready": "/ready", "metrics": "/metrics", "version": "/version",
}  # fmt: skip


def docs(document: Mapping[str, Any], model: str) -> str:
    """`document` is OpenAPI's; `model` the served name, for an example."""
    body = "".join(_routes(document))
    example = (
        'curl -H "Content-Type: application/json" http://HOST:PORT/v1/chat/completions \\\n'
        f'  -d \'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}\''
    )
    return _page(
        f"{document['info']['title']} {document['info']['version']}",
        f"<p>{escape(document['info']['description'])} <a href='/openapi.json'>OpenAPI document</a></p>"
        f"<pre>{escape(example)}</pre>{body}",
    )


def _page(title: str, body: str) -> str:
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>"
        f"<h1>{escape(title)}</h1>{body}</html>"
    )


def _routes(document: Mapping[str, Any]) -> Iterator[str]:
    schemas = document["components"]["schemas"]
    for path, methods in document["paths"].items():
        for method, route in methods.items():
            yield f"<h2><code>{method.upper()} {escape(path)}</code></h2><p>{escape(route.get('description', ''))}</p>"
            for content in route.get("requestBody", {}).get("content", {}).values():
                yield _fields(schemas[_name(content["schema"])], schemas)
            yield "<table><tr><th>status<th>meaning</tr>"
            for status, answer in route["responses"].items():
                yield f"<tr><td>{escape(status)}<td>{escape(answer.get('description', ''))}</tr>"
            yield "</table>"


def _fields(schema: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    required = schema.get("required", ())
    rows = [
        f"<tr><td><code>{escape(name)}</code><td>{escape(_type(field, schemas))}<td>"
        f"{'required' if name in required else escape(_default(field))}<td>{escape(field.get('description', ''))}</tr>"
        for name, field in schema["properties"].items()
    ]
    return f"<table><tr><th>field<th>type<th>default<th></tr>{''.join(rows)}</table>"


def _default(field: Mapping[str, Any]) -> str:
    return str(field["default"]) if field.get("default") is not None else ""


def _name(schema: Mapping[str, Any]) -> str:
    return str(schema["$ref"].rpartition("/")[2])


def _type(field: Mapping[str, Any], schemas: Mapping[str, Any]) -> str:
    """In words, with the range: `integer, 0 to 5`."""
    if "$ref" in field:
        inner = schemas[_name(field)]
        return f"object of {', '.join(inner['properties'])}" if "properties" in inner else _type(inner, schemas)
    if "anyOf" in field:
        return " or ".join(_type(one, schemas) for one in field["anyOf"] if one.get("type") != "null")
    if "enum" in field or "const" in field:
        return " or ".join(str(one) for one in field.get("enum", [field.get("const")]))
    if field.get("type") == "array":
        return f"list of {_type(field.get('items', {}), schemas)}"
    least = field.get("minimum", field.get("exclusiveMinimum"))
    above = "above " if "exclusiveMinimum" in field else ""
    words = str(field.get("type", "any"))
    if least is not None and "maximum" in field:
        return f"{words}, {above}{least} to {field['maximum']}"
    return words if least is None else f"{words}, {above}{least} or more"
