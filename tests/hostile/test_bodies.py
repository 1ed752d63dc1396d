"""Bodies of JSON that would become gigabytes of objects: refused by the field, in little time and memory."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from plimsoll.runtime.server.counts import FIELDS, Most, check_counts
from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.preparer import Route
from plimsoll.runtime.server.protocol import ChatCompletionRequest, CompletionRequest
from tests.support.preparing import Prepare, preparing

#: More than any field may hold, and more than the parser nests.
COUNT = 9_000
ITEMS = (b"[]", b"{}", b"[[]]", b"1", b'""', b"null", b'{"a":[]}', b"1.5", b'"\\""')
HEADS: dict[Route, bytes] = {
    "chat": b'{"model":"tiny","messages":[{"role":"user","content":"hi"}],',
    "text": b'{"model":"tiny","prompt":"hi",',
}
OTHERS = ("metadata", "tools", "functions", "user", "response_format", "no_such_field", "k" * 5000, 'quo\\"ted')


def shapes() -> Iterator[bytes]:
    """JSON values that hold `COUNT` others or more."""
    for item in ITEMS:
        yield b"[" + b",".join([item] * COUNT) + b"]"
        yield b'{"x":[' + b" , ".join([item] * COUNT) + b"]}"
    yield b"{" + b",".join(b'"%d":1' % number for number in range(COUNT)) + b"}"
    yield b"[" * COUNT + b"]" * COUNT
    yield b'{"a":' * COUNT + b"1" + b"}" * COUNT


def bodies() -> Iterator[tuple[Route, str, bytes]]:
    """A route, a field of it, and a body in which that field holds too much."""
    kinds: tuple[tuple[Route, type], ...] = (("chat", ChatCompletionRequest), ("text", CompletionRequest))
    made = list(shapes())
    for number, ((route, kind), value) in enumerate(itertools.product(kinds, made)):
        fields = [*kind.model_fields, *OTHERS]
        # Each shape in some fields, and each field with some shapes: all pairs take half a minute.
        for field in (*fields[number % 8 :: 8], "messages" if route == "chat" else "prompt"):
            head = b'{"model":"tiny",' if field in ("model", "messages", "prompt") else HEADS[route]
            yield route, field, head + b'"%s":%s}' % (field.encode(), value)


@pytest.fixture(scope="module")
def prepare(tokenizer_folder: Path) -> Iterator[Prepare]:
    with preparing(tokenizer_folder) as found:
        yield found


def test_a_field_with_too_many_values_is_named(prepare: Prepare) -> None:
    seen = 0
    for route, field, body in bodies():
        error = prepare(route, body)
        name = json.loads(f'"{field}"')[:80]
        assert isinstance(error, ApiError), (field, body[:100])
        assert error.status == 400
        assert (error.param or "").replace("\\", "").partition("[")[0][:80] == name, error.message
        assert 0 < len(error.message) < 1000
        seen += 1
    assert seen > 200


def test_bodies_of_sixteen_megabytes_are_refused(prepare: Prepare) -> None:
    size = 16 << 20
    text = json.dumps("\U0001f600" + "a" * (size - 100), ensure_ascii=False).encode()
    for body in (
        b'{"model":"tiny","prompt":[' + b"[]," * (size // 3) + b"[]]}",
        b'{"model":"tiny","prompt":' + b"1" * size + b"}",
        b'{"model":"tiny","prompt":' + text + b"}",
        b'{"model":"tiny","prompt":"' + b"\\ud83d\\ude00" * (size // 12) + b'"}',
        b'{"model":"tiny","prompt":["' + b'a","' * (size // 4) + b'"]}',
        b" " * size,
        b'"' + b"\\" * size,
    ):
        error = prepare("text", body)
        assert isinstance(error, ApiError), body[:60]
        assert error.status == 400
        assert not isinstance(prepare.text(), ApiError)


def test_what_is_inside_of_strings_does_not_count() -> None:
    limits = {"prompt": Most(4, 4)}
    text = json.dumps('",{[' * 1000 + "\\")
    check_counts(f'{{"prompt": {text}, "x": 1}}'.encode(), limits)
    check_counts(f'{{"prompt": ["a", {text}]}}'.encode(), limits)
    with pytest.raises(ApiError, match="prompt"):
        check_counts(f'{{"x": 1, "prompt": ["a", {text}, [], []]}}'.encode(), limits)


def test_the_body_itself_has_a_limit_of_fields() -> None:
    check_counts(json.dumps(dict.fromkeys(map(str, range(FIELDS)), ",")).encode(), {})
    with pytest.raises(ApiError, match=f"more than {FIELDS} fields") as caught:
        check_counts(json.dumps(dict.fromkeys(map(str, range(FIELDS + 1)), 1)).encode(), {})
    assert caught.value.param == str(FIELDS)
