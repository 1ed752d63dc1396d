"""Offsets against plain decoding, for every way to cut bytes into tokens."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from plimsoll.runtime.server.offsets import Offsets, prompt_offsets

PIECES = st.lists(st.binary(min_size=0, max_size=4), max_size=12)
HALVES = st.lists(st.sampled_from(["é", "日", "😀", "\ufffd", "a"]).map(str.encode), max_size=5).map(b"".join)


@given(PIECES)
def test_counts_as_decoding_the_whole_does(pieces: list[bytes]) -> None:
    counted = Offsets(3)
    places = [counted.add(piece) for piece in pieces]
    whole = b"".join(pieces).decode("utf-8", "replace")
    assert places == sorted(places)
    assert all(3 <= place <= 3 + len(whole) for place in places)
    if not counted.within:
        assert counted.characters == 3 + len(whole)


@given(HALVES, st.data())
def test_a_piece_begins_at_the_character_that_holds_its_first_byte(raw: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(raw)), max_size=6)) | {0, len(raw)})
    counted, text = Offsets(), raw.decode()
    holders = [index for index, character in enumerate(text) for _ in character.encode()]
    for start, end in pairwise(cuts):
        assert counted.add(raw[start:end]) == holders[start]


def test_bytes_that_make_no_character_count_as_what_stands_for_them() -> None:
    counted = Offsets()
    assert [counted.add(piece) for piece in (b"a\xe2", b"b", b"\xf0\x9f", b"\xf0", b"\x9f\x98\x80", b"c")] == [
        0, 2, 3, 4, 4, 5,
    ]  # fmt: skip


WORDS = (b"<s>", b" Hello", b" world", b"\xe6\x97", b"\xa5")


class Sentences:
    """What a sentencepiece tokenizer has: a beginning of text that is added, and a space before the first word."""

    special_ids = frozenset({0})

    def token_bytes(self, token: int) -> bytes:
        return WORDS[token]


def test_what_a_tokenizer_adds_takes_no_place() -> None:
    tokenizer = Sentences()
    assert prompt_offsets("Hello world", [0, 1, 2], tokenizer) == [0, 0, 5]
    assert prompt_offsets("<s>Hello", [0, 1], tokenizer) == [0, 3]
    assert prompt_offsets("<s> Hello", [0, 0, 1], tokenizer) == [0, 3, 3]
    assert prompt_offsets("日 world", [0, 3, 4, 2], tokenizer) == [0, 0, 0, 1]
