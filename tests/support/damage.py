"""Damage to checkpoints: in bytes, in values of JSON, and in the entries of a GGUF header."""

import copy
import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NASTY: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 2**16, 2**31 - 1, 2**31, 2**63, 10**40, -(10**40), 0.0, -0.5, 1.5, 1e-320,
    1e308, "", "x", "../../etc/passwd", "\x00", "LlamaForCausalLM", [], [0], [None], ["a", 1], [[[]]], {},
    {"rope_type": "yarn"},
    {"rope_type": "linear", "factor": -1}, {"rope_type": "llama3", "factor": "8"}, {"type": "dynamic", "factor": 0},
    {"rope_type": ["x"], "factor": {}}, {"a": {"b": {}}}, "🦀" * 50, "a" * 10_000,
)  # fmt: skip
_HUGE = (0, 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)
#: struct codes of GGUF's scalars by their number; 8 is a string and 9 an array.
_CODES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def damage_json(rng: random.Random, value: Any) -> None:
    """Change one place of a JSON value, at any depth, in place."""
    while isinstance(value, dict | list) and value:
        key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        below = value[key]
        if isinstance(below, dict | list) and below and rng.random() < 0.7:
            value = below
            continue
        if rng.random() < 0.2:
            del value[key]
        else:
            # A copy: it may be damaged next, and put into itself.
            value[key] = copy.deepcopy(rng.choice(NASTY))
        return


def damage_bytes(rng: random.Random, path: Path, first: int | None = None) -> None:
    """Flip, cut, insert or repeat bytes, among the first `first` of them where that is given."""
    data = bytearray(path.read_bytes())
    end = min(first or len(data), len(data))
    match rng.randrange(5):
        case 0:
            del data[rng.randrange(end) :]
        case 1:
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(end)] = rng.randrange(256)
        case 2:
            at = rng.randrange(end)
            data[at:at] = rng.randbytes(rng.randint(1, 40))
        case 3:
            at = rng.randrange(end)
            del data[at : at + rng.randint(1, 40)]
        case 4:
            at = rng.randrange(max(1, end - 8))
            data[at : at + 8] = struct.pack("<Q", rng.choice(_HUGE))
    path.write_bytes(data)


def gguf_parts(data: bytes) -> tuple[list[bytes], list[bytes], bytes]:
    """(metadata entries, rows of the tensor table, the rest) of a sound GGUF file, each part as it is stored."""
    tensors, entries = struct.unpack_from("<QQ", data, 8)
    at = 24
    found: list[bytes] = []
    for _ in range(entries):
        end = _after_value(data, _after_text(data, at))
        found.append(data[at:end])
        at = end
    rows: list[bytes] = []
    for _ in range(tensors):
        end = _after_text(data, at)
        end += 4 + 8 * struct.unpack_from("<I", data, end)[0] + 12
        rows.append(data[at:end])
        at = end
    return found, rows, data[at:]


def gguf_of(entries: list[bytes], rows: list[bytes], rest: bytes) -> bytes:
    """The file of these parts, its data aligned."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(rows), len(entries)) + b"".join(entries) + b"".join(rows)
    return head + bytes(-len(head) % 32) + rest.lstrip(b"\0")


def _after_text(data: bytes, at: int) -> int:
    return int(at + 8 + struct.unpack_from("<Q", data, at)[0])


def _after_value(data: bytes, at: int) -> int:
    kind, at = struct.unpack_from("<I", data, at)[0], at + 4
    if kind in _CODES:
        return int(at + struct.calcsize("<" + _CODES[kind]))
    if kind == 8:
        return _after_text(data, at)
    element, count = struct.unpack_from("<IQ", data, at)
    at += 12
    if element in _CODES:
        return int(at + count * struct.calcsize("<" + _CODES[element]))
    for _ in range(count):
        at = _after_text(data, at)
    return at


def gguf_text(value: bytes) -> bytes:
    """A string as GGUF stores it."""
    return struct.pack("<Q", len(value)) + value


def gguf_value(rng: random.Random) -> bytes:
    """A metadata value of any type, with its type before it."""
    kind = rng.choice((*_CODES, 8, 8, 9, 9))
    if kind == 8:
        words = (b"", b"llama", b"gpt2", b"yarn", b"{{ 1 / 0 }}", b"{% for", "é🦀".encode(), b"x" * 5000)
        return struct.pack("<I", kind) + gguf_text(rng.choice(words))
    if kind == 9:
        element, count = rng.choice((*_CODES, 8)), rng.choice((0, 1, 2, 3, 320))
        return struct.pack("<IIQ", kind, element, count) + b"".join(_scalar(rng, element) for _ in range(count))
    return struct.pack("<I", kind) + _scalar(rng, kind)


def _scalar(rng: random.Random, kind: int) -> bytes:
    if kind == 8:
        return gguf_text(rng.choice((b"", b"a", b"a b", b"<s>", b"b" * 300)))
    code = "<" + _CODES[kind]
    if code in ("<f", "<d"):
        return struct.pack(code, rng.choice((0.0, -1.0, 1.5, 1e30, float("nan"), float("inf"), 1e-38)))
    width = struct.calcsize(code)
    return rng.choice((bytes(width), b"\1" + bytes(width - 1), b"\xff" * width, rng.randbytes(width)))


def damaged_gguf(rng: random.Random, data: bytes) -> bytes:
    """A sound layout with senseless entries: what a careful enemy writes."""
    entries, rows, rest = gguf_parts(data)
    for _ in range(rng.randint(1, 3)):
        _damage_entries(rng, entries, rows)
    return gguf_of(entries, rows, rest)


def _damage_entries(rng: random.Random, entries: list[bytes], rows: list[bytes]) -> None:
    index = rng.randrange(len(entries))
    key = entries[index][: _after_text(entries[index], 0)]
    row = rng.randrange(len(rows))
    match rng.randrange(8):
        case 0:
            entries[index] = key + gguf_value(rng)
        case 1:
            entries.append(gguf_text(rng.choice(_MORE_KEYS)) + gguf_value(rng))
        case 2 if len(entries) > 1:
            del entries[index]
        case 3:
            entries.append(rng.choice(entries))
        case 4 if len(rows) > 1:
            del rows[row]
        case 5:
            rows.append(rng.choice(rows))
        case 6:
            changed = bytearray(rows[row])
            at = rng.randrange(_after_text(bytes(changed), 0), len(changed) - 7)
            changed[at : at + 8] = struct.pack("<Q", rng.choice(_HUGE))
            rows[row] = bytes(changed)
        case _:
            changed = bytearray(entries[index])
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(len(changed))] = rng.randrange(256)
            entries[index] = bytes(changed)


_MORE_KEYS = (
    b"general.alignment", b"split.count", b"split.no", b"split.tensors.count", b"llama.expert_count",
    b"llama.rope.scaling.type", b"llama.rope.scaling.factor", b"llama.rope.scaling.original_context_length",
    b"llama.attention.sliding_window", b"llama.vocab_size", b"tokenizer.ggml.scores", b"tokenizer.ggml.eot_token_id",
    b"tokenizer.ggml.token_type", b"tokenizer.ggml.add_bos_token", b"tokenizer.chat_template.tool_use",
    b"llama.attention.key_length", b"llama.attention.head_count", b"llama.feed_forward_length",
)  # fmt: skip


def damaged_header(rng: random.Random, data: bytes) -> bytes:
    """A safetensors file with a changed header, whose stated length mostly holds."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    for _ in range(rng.randint(1, 3)):
        damage_json(rng, header)
    text = json.dumps(header).encode()
    stated = rng.choice([len(text)] * 5 + [0, 1, len(text) - 1, len(text) + 1, 2**31, 2**63])
    return stated.to_bytes(8, "little") + text + data[8 + length :]


def files_below(folder: Path) -> Iterator[Path]:
    """Plain files, in a fixed order."""
    yield from sorted(path for path in folder.rglob("*") if path.is_file())
