"""Bytes changed at random, as a fuzzer without a look at the code changes them."""

import random

#: Bytes and words that parsers of text and of lengths trip over.
WORDS = (
    b"\x00", b"\xff" * 4, b"\xff" * 8, b"\x7f\xff\xff\xff", b"\x80" + b"\x00" * 7, b"\n", b"\r\n", b"\r",
    b'"', b"\\", b"{", b"}", b"[", b"]", b",", b":", b"null", b"NaN", b"1e999",
    b"-1", b"9" * 40, b"\xed\xa0\x80", b"\xef\xbb\xbf", b"data:",
    b"\\ud800", b"text", b"messages", b"\xe2\x80\xa8",
)  # fmt: skip


def mutated(honest: bytes, draw: random.Random) -> bytes:
    """One to four changes: bytes turned, cut out, doubled, moved, or replaced by one of `WORDS`."""
    data = bytearray(honest)
    for _ in range(draw.randint(1, 4)):
        start = draw.randrange(len(data) + 1)
        stop = min(len(data), start + draw.choice((0, 1, 1, 2, 4, 8, 64)))
        kind = draw.randrange(6)
        if kind == 0 and start < len(data):
            data[start] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[start:stop] = draw.randbytes(stop - start)
        elif kind == 2:
            data[start:stop] = draw.choice(WORDS)
        elif kind == 3:
            del data[start : draw.choice((stop, stop, len(data)))]
        elif kind == 4:
            data[start:start] = data[start:stop] * draw.randint(1, 9)
        else:
            there = draw.randrange(len(data) + 1)
            data[there:there] = data[start:stop]
    return bytes(data)
