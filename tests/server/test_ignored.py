"""Each row of the table of fields without effect: what is accepted and named, what is refused, what the page says."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from plimsoll.runtime.server.neutral import MESSAGE_LABELS, NEUTRAL, Neutral
from plimsoll.runtime.server.protocol import ChatCompletionRequest
from tests.support.endpoint import Endpoint

PAGE = Path(__file__).parents[2] / "docs" / "request-fields.md"
HELLO = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 1, "temperature": 0}
#: Fields that the chat route runs are rows for others.
ROWS = [name for name in NEUTRAL if name not in ChatCompletionRequest.model_fields]


def accepted(row: Neutral) -> Iterator[Any]:
    yield from row.values
    if row.also is not None:
        yield row.also.example


def asked(tiny: Endpoint, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any], str]:
    answer = tiny.http.post(path, json=body)
    return answer.status_code, answer.json(), answer.headers.get("x-plimsoll-ignored", "")


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_accepted_and_named_or_refused_and_named(tiny: Endpoint, name: str) -> None:
    row = NEUTRAL[name]
    for value in accepted(row):
        assert asked(tiny, "/v1/chat/completions", CHAT | {name: value})[::2] == (200, name)
    assert asked(tiny, "/v1/chat/completions", CHAT | {name: None})[::2] == (200, "")
    other = {"no": "such value"}
    if row.holds(other):
        return
    status, answer, ignored = asked(tiny, "/v1/chat/completions", CHAT | {name: other})
    assert (status, answer["error"]["param"], answer["error"]["code"], ignored) == (
        400, name, "unsupported_parameter", "",
    )  # fmt: skip
    assert answer["error"]["message"].endswith(f" {row.fix}.")


def test_several_are_named_in_order_on_every_route_streamed_or_not(tiny: Endpoint) -> None:
    extra = {"user": "me", "metadata": {"a": "b"}, "store": True, "seed": 1, "verbosity": "high", "logit_bias": None}
    named = "metadata, store, user, verbosity"
    for path, body in (
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"model": "tiny", "prompt": "hi", "max_tokens": 1}),
    ):
        assert asked(tiny, path, body | extra)[::2] == (200, named)
        with tiny.http.stream("POST", path, json=body | extra | {"stream": True}) as stream:
            assert stream.headers["x-plimsoll-ignored"] == named
        assert "x-plimsoll-ignored" not in tiny.http.post(path, json=body).headers
        # A page may read the header.
        local = tiny.http.post(path, json=body | extra, headers={"Origin": "http://localhost:3000"})
        assert "X-Plimsoll-Ignored" in local.headers["Access-Control-Expose-Headers"]


def test_other_routes_name_theirs(tiny: Endpoint) -> None:
    body = {"model": "tiny", "input": "hi", "max_output_tokens": 1, "truncation": "auto", "context_management": None}
    assert asked(tiny, "/v1/responses", body | {"text": {"verbosity": "low"}})[::2] == (
        200,
        "text.verbosity, truncation",
    )
    claude = {"model": "tiny", "messages": HELLO, "max_tokens": 1, "inference_geo": "eu", "service_tier": "auto"}
    assert asked(tiny, "/v1/messages", claude)[::2] == (200, "inference_geo, service_tier")
    assert asked(tiny, "/v1/messages/count_tokens", {"model": "tiny", "messages": HELLO, "user": "me"})[2] == "user"


def test_names_that_a_client_makes_up_neither_break_the_header_nor_fill_it(tiny: Endpoint) -> None:
    claude = {"model": "tiny", "messages": HELLO, "max_tokens": 1}
    status, _, ignored = asked(tiny, "/v1/messages", claude | {"\u00e9, b\r\nSet-Cookie: a=b": 1})
    assert (status, ignored) == (200, "???b??Set-Cookie:?a=b")
    status, _, ignored = asked(tiny, "/v1/messages", claude | {f"{index:03}" + "x" * 37: 1 for index in range(200)})
    assert status == 200
    assert len(ignored) <= 1024 + 5
    assert ignored.startswith("000xxx")
    assert ignored.endswith("x, ...")


@pytest.mark.parametrize("label", sorted(MESSAGE_LABELS))
def test_labels_of_messages_and_parts_are_named_by_their_place(tiny: Endpoint, label: str) -> None:
    part = {"type": "text", "text": "hi", label: {"type": "ephemeral"}}
    turns = [{"role": "user", "content": "a", label: "x"}, {"role": "assistant", "content": [part], label: None}]
    found = asked(tiny, "/v1/chat/completions", CHAT | {"messages": [*turns, *HELLO]})
    assert found[::2] == (200, ", ".join(sorted([f"messages[].content[].{label}", f"messages[].{label}"])))


def test_a_refused_request_names_nothing_and_no_value_reaches_the_header(tiny: Endpoint) -> None:
    status, _, ignored = asked(tiny, "/v1/chat/completions", CHAT | {"user": "x\r\nSet-Cookie: a=b", "n": 0})
    assert (status, ignored) == (400, "")
    assert asked(tiny, "/v1/chat/completions", CHAT | {"user": "x\r\nSet-Cookie: a=b"})[::2] == (200, "user")


def row_of(name: str, row: Neutral) -> str:
    """One row of the page."""
    values = ", ".join(f"`{json.dumps(value)}`" for value in row.values)
    words = ", ".join(filter(None, (values, row.also.words if row.also else ""))) or "none"
    other = "" if row.also is not None and row.also.words == "any value" else row.fix
    return f"| `{name}` | {words} | {other} |".replace("  ", " ")


def test_the_page_has_the_table() -> None:
    written = [line for line in PAGE.read_text().splitlines() if re.match(r"\| `[a-z]", line)]
    expected = [row_of(name, row) for name, row in sorted(NEUTRAL.items())]
    expected += [
        f"| `messages[].{name}`, `messages[].content[].{name}` | any value | |" for name in sorted(MESSAGE_LABELS)
    ]
    assert written == expected, "\n".join(expected)
