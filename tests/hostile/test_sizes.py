"""Counts and lengths that are cheap to write and dear to read: refused before objects are made of them."""

import json
import resource
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from plimsoll.api.errors import CheckpointError
from plimsoll.checkpoint.gguf_file import MAX_ARRAY, MAX_ENTRIES, MAX_TEXT_BYTES, GgufFile
from plimsoll.checkpoint.json_file import MAX_JSON_BYTES, MAX_JSON_VALUES, parse_object, read_object
from plimsoll.checkpoint.safetensors_file import read_header
from plimsoll.checkpoint.vocabulary import LONGEST_TOKEN, MOST_CHARACTERS, MOST_TOKENS, check_sizes
from tests.support.bounded import refusal

MIB = 1 << 20
#: More values than any JSON of a model has, at little cost: what is refused is no object yet.
MANY = MAX_JSON_VALUES + 1
#: A refusal makes no object of what it refuses: it costs the bytes that were read, and little more.
MEMORY = 256 * MIB

BOMBS: dict[str, Callable[[], bytes]] = {
    "lists": lambda: b'{"a": [' + b",".join([b"[]"] * MANY) + b"]}",
    "objects": lambda: b'{"a": [' + b",".join([b"{}"] * MANY) + b"]}",
    "numbers": lambda: b'{"a": [' + b"0," * MANY + b"0]}",
    "keys": lambda: b"{" + b",".join(b'"%d":0' % number for number in range(MANY // 2 + 1)) + b"}",
    "nested lists": lambda: b'{"a": ' + b"[" * 1_000_000 + b"]" * 1_000_000 + b"}",
    "nested objects": lambda: b'{"a":' * 1_000_000 + b"0" + b"}" * 1_000_000,
    "digits": lambda: b'{"a": ' + b"9" * 10_000_000 + b"}",
    "open string": lambda: b'{"a": "' + b"x" * 10_000_000,
    "not text": lambda: b'{"a": "\xff\xfe"}',
    "two of one key": lambda: b'{"a": 1, "a": 2}',
    "not a number": lambda: b'{"a": NaN}',
}  # fmt: skip


def grown() -> int:
    """Bytes of this process at their highest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("bomb", BOMBS)
def test_json_that_explodes_is_refused_by_its_size(bomb: str, tmp_path: Path) -> None:
    text = BOMBS[bomb]()
    before = grown()
    error = refusal(parse_object, text, "config.json")
    assert isinstance(error, CheckpointError)
    assert error.field == "config.json"
    assert len(str(error)) < 500
    assert grown() - before < MEMORY
    (tmp_path / "config.json").write_bytes(text)
    assert refusal(read_object, tmp_path / "config.json") is not None


def test_a_file_of_more_bytes_than_any_json_of_a_model_is_not_read(tmp_path: Path) -> None:
    with open(tmp_path / "config.json", "wb") as file:
        file.truncate(MAX_JSON_BYTES + 1)
    error = refusal(read_object, tmp_path / "config.json")
    assert error is not None
    assert (error.field, "is larger than" in str(error)) == (str(tmp_path / "config.json"), True)


def test_an_index_of_a_large_model_is_read() -> None:
    names = {f"layers.{number}.down_proj.weight": "a" for number in range(200_000)}
    assert len(parse_object(json.dumps({"weight_map": names}).encode(), "index")["weight_map"]) == 200_000


def safetensors(path: Path, header: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    return path


def test_half_a_million_tensors_are_refused(tmp_path: Path) -> None:
    entry = b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    header = b"{" + b",".join(entry % number for number in range(500_000)) + b"}"
    error = refusal(read_header, safetensors(tmp_path / "model.safetensors", header))
    assert error is not None
    assert str(tmp_path) in str(error.field)


NUMBERS = (-1, 1 << 31, 1 << 63, 10**30, 1.5, 1e308, True, None, "1", [], {})


@pytest.mark.parametrize("place", ["shape", "begin", "end", "dtype", "whole"])
def test_a_tensor_of_any_value_is_refused_by_its_name(place: str, tmp_path: Path) -> None:
    for number, value in enumerate(NUMBERS):
        entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
        changed: object = {
            "shape": {**entry, "shape": [value]}, "begin": {**entry, "data_offsets": [value, 4]},
            "end": {**entry, "data_offsets": [0, value]}, "dtype": {**entry, "dtype": value}, "whole": value,
        }[place]  # fmt: skip
        path = safetensors(tmp_path / f"{number}.safetensors", json.dumps({"weight": changed}).encode())
        path.write_bytes(path.read_bytes() + bytes(4))
        error = refusal(read_header, path)
        assert error is not None, value
        assert path.name in str(error.field)


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def gguf(path: Path, entries: list[bytes], tensors: int = 0, counted: int | None = None) -> Path:
    head = b"GGUF" + struct.pack("<IQQ", 3, tensors, len(entries) if counted is None else counted)
    path.write_bytes(head + b"".join(entries) + bytes(64))
    return path


def hostile_ggufs() -> Iterator[tuple[list[bytes], int, int | None]]:
    """(metadata entries, tensors, entries that the header counts)."""
    for count in (1 << 16, 1 << 32, (1 << 64) - 1):
        yield [], count, None
        yield [], 0, count
        yield [text(b"a") + struct.pack("<I", 8) + struct.pack("<Q", count)], 0, None
        yield [struct.pack("<Q", count) + b"a"], 0, None
        for kind in (*range(14), 99):
            yield [text(b"a") + struct.pack("<IIQ", 9, kind, count)], 0, None
    for kind in (13, 255, 1 << 31):
        yield [text(b"a") + struct.pack("<I", kind)], 0, None
    yield [text(b"%d" % number) + struct.pack("<I", 8) + text(bytes(MIB)) for number in range(70)], 0, None
    yield [text(b"a") + struct.pack("<II", 4, 1)] * 2, 0, None
    yield [text(b"split.count") + struct.pack("<IQ", 10, (1 << 64) - 1)], 0, None
    yield [text(b"general.alignment") + struct.pack("<Ii", 5, -8)], 0, None
    yield [text(b"general.alignment") + struct.pack("<IQ", 10, 1 << 63)], 0, None
    yield [text(b"\xff\xfe") + struct.pack("<II", 4, 1)], 0, None


def test_every_hostile_header_of_gguf_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    before = grown()
    for entries, tensors, counted in hostile_ggufs():
        error = refusal(GgufFile, gguf(path, entries, tensors, counted))
        assert error is not None, (entries[:1], tensors, counted)
        assert "model.gguf" in str(error.field)
        assert len(str(error)) < 500
    assert grown() - before < MEMORY


@pytest.mark.parametrize(
    ("entries", "tensors", "counted", "what"),
    [
        ([], MAX_ENTRIES + 1, None, "tensors"),
        ([], 0, MAX_ENTRIES + 1, "metadata entries"),
        ([text(b"a") + struct.pack("<IIQ", 9, 0, MAX_ARRAY + 1)], 0, None, "array elements"),
        ([struct.pack("<Q", MAX_TEXT_BYTES + 1)], 0, None, "bytes in a string"),
    ],
)
def test_a_count_of_gguf_is_refused_before_what_it_counts_is_read(
    entries: list[bytes], tensors: int, counted: int | None, what: str, tmp_path: Path
) -> None:
    error = refusal(GgufFile, gguf(tmp_path / "model.gguf", entries, tensors, counted))
    assert error is not None
    assert f"counts more {what} than" in str(error)


@pytest.mark.parametrize(
    ("tokens", "words"),
    [
        (["a", "b" * 200_000], "token 1 is longer"),
        (["x" * LONGEST_TOKEN] * (MOST_CHARACTERS // LONGEST_TOKEN + 1), "characters"),
        (["a"] * (MOST_TOKENS + 1), "tokens"),
    ],
)
def test_a_vocabulary_that_takes_hours_to_merge_is_refused(tokens: list[str], words: str) -> None:
    error = refusal(check_sizes, tokens, "model.gguf: tokenizer.ggml.tokens")
    assert error is not None
    assert words in str(error)
    assert error.field == "model.gguf: tokenizer.ggml.tokens"
