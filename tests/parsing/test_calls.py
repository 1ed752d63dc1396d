"""Calls as each family of models writes them, whole, in any pieces, and damaged."""

import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plimsoll.runtime.server.parsing.formats import FAMILIES
from plimsoll.runtime.server.parsing.reader import AnswerReader
from plimsoll.runtime.server.parsing.thoughts import THOUGHTS
from plimsoll.runtime.server.parts import Called, Part, Said, Thought, merged
from tests.support.model_calls import FUNCTIONS, GOLDEN, PARIS, TIME, Expected

#: What damaged calls are made of, besides the signs of their family.
BITS = '{"name":"get_time" "arguments":{ } ] [ get_time( ) = , " \' : \\ \n call: { -1e tru \\u12'.split(" ")
IDS = [f"{family}-{index}" for index, (family, *_) in enumerate(GOLDEN)]


def read(pieces: list[str], family: str | None, *, whole: bool = False, thinking: str | None = None) -> list[Part]:
    """The parts of an answer that comes in these pieces, with ids that do not differ."""
    reader = AnswerReader(
        family=None if family is None else FAMILIES[family],
        functions=FUNCTIONS,
        whole=whole,
        thoughts=None if thinking is None else THOUGHTS[thinking],
    )
    found = [part for piece in pieces for part in reader.read(piece)] + reader.end()
    for part in found:
        assert not isinstance(part, Called) or bool(part.id) == bool(part.name)
    return [replace(part, id="") if isinstance(part, Called) else part for part in merged(found)]


def said_and_called(parts: list[Part]) -> Expected:
    return [(part.name, json.loads(part.arguments)) if isinstance(part, Called) else part.text for part in parts]


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[begin:end] for begin, end in itertools.pairwise(edges)]


@pytest.mark.parametrize(("family", "text", "expected"), GOLDEN, ids=IDS)
def test_a_family_is_read_as_its_models_write(family: str, text: str, expected: Expected) -> None:
    assert said_and_called(read([text], family, whole=True)) == expected
    letters = read(list(text), family)
    assert said_and_called(letters) == expected
    assert [part.index for part in letters if isinstance(part, Called)] == list(
        range(sum(isinstance(part, Called) for part in letters))
    )


def test_every_family_has_an_example() -> None:
    assert {family for family, *_ in GOLDEN} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_arguments_come_in_pieces_as_they_are_written(family: str) -> None:
    text = next(text for name, text, expected in GOLDEN if name == family and PARIS in expected)
    reader = AnswerReader(family=FAMILIES[family], functions=FUNCTIONS)
    pieces = [(i, part) for i, letter in enumerate(text) for part in reader.read(letter) if isinstance(part, Called)]
    assert pieces[0][1].name == "get_weather"
    assert len(pieces) > 2
    assert pieces[0][0] < text.index("Paris") < pieces[-1][0]


@settings(max_examples=120)
@given(data=st.data(), whole=st.booleans())
def test_any_cut_gives_the_same_parts(data: st.DataObject, whole: bool) -> None:
    family, text, _ = data.draw(st.sampled_from(GOLDEN))
    # Damage as well: what is broken must not depend on the cut either.
    end = data.draw(st.integers(0, len(text)))
    again = data.draw(st.sampled_from(["", text, "x", "\n", "}"]))
    text = text[:end] + again
    places = data.draw(st.lists(st.integers(0, 10_000), max_size=6))
    assert read(cut(text, places), family, whole=whole) == read([text], family, whole=whole)


@settings(max_examples=150)
@given(data=st.data(), whole=st.booleans())
def test_garbage_never_raises_and_no_word_is_lost(data: st.DataObject, whole: bool) -> None:
    family = data.draw(st.sampled_from(sorted(FAMILIES)))
    signs = sorted(FAMILIES[family].texts)
    bits = st.one_of(
        st.sampled_from(signs),
        st.sampled_from(BITS),
        st.integers(100, 999).map(lambda number: f" word{number} "),
    )  # fmt: skip
    text = "".join(data.draw(st.lists(bits, max_size=14)))
    parts = read(cut(text, data.draw(st.lists(st.integers(0, 10_000), max_size=5))), family, whole=whole)
    seen = " ".join(f"{part.name} {part.arguments}" if isinstance(part, Called) else part.text for part in parts)
    for word in (word for word in text.split() if word.startswith("word") and word.isalnum()):
        assert word in seen
    if whole:
        for part in parts:
            assert not isinstance(part, Called) or isinstance(json.loads(part.arguments), dict)
    if not any(isinstance(part, Called) for part in parts):
        assert "".join(part.text for part in parts) == text


@pytest.mark.parametrize("family", FAMILIES)
def test_a_call_that_breaks_off_is_text_where_the_answer_is_whole(family: str) -> None:
    text = next(text for name, text, expected in GOLDEN if name == family and PARIS in expected)
    broken = text[: text.index("Paris") + 2]
    assert "".join(part.text for part in read([broken], family, whole=True) if isinstance(part, Said)) == broken


@pytest.mark.parametrize("name", THOUGHTS)
@pytest.mark.parametrize("open_already", [False, True])
def test_a_thought_is_apart_from_the_answer(name: str, open_already: bool) -> None:
    thoughts = THOUGHTS[name]
    begin, end = thoughts.said or ("", "")
    text = f"\nHm: 1 < 2, so </thin.\n\n{thoughts.end}\n\n{begin}It is 2.\n{end}"
    for pieces in ([text], list(text)):
        reader = AnswerReader(thoughts=thoughts, thinking=open_already)
        if not open_already:
            pieces = [thoughts.begin, *pieces]
        parts = merged([part for piece in pieces for part in reader.read(piece)] + reader.end())
        assert parts == [Thought("Hm: 1 < 2, so </thin."), Said("It is 2.\n")]


def test_a_thought_is_followed_by_calls() -> None:
    text = '<think>\nI need <tool_call> here.\n</think>\n\nOne moment.\n<tool_call>\n{"name": "get_time"}\n</tool_call>'
    for pieces in ([text], list(text)):
        parts = read(pieces, "hermes", thinking="think")
        assert parts[:2] == [Thought("I need <tool_call> here."), Said("One moment.")]
        assert said_and_called(parts[2:]) == [TIME]


def test_an_answer_without_a_thought_is_the_answer() -> None:
    assert read(list(" 4 <think>"), None, thinking="think") == [Said(" 4 <think>")]


def test_an_unfinished_thought_stays_a_thought() -> None:
    assert read(["<thi", "nk>So"], None, thinking="think") == [Thought("So")]


def test_mistrals_ids_have_nine_letters_and_digits() -> None:
    parts = AnswerReader(family=FAMILIES["mistral"], functions=FUNCTIONS).read("[TOOL_CALLS]get_time[ARGS]{}")
    assert isinstance(parts[0], Called)
    assert len(parts[0].id) == 9
    assert parts[0].id.isalnum()
