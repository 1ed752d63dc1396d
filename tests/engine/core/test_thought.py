"""Where a thought begins and ends, its tokens, and the tokens that close it: the text cut into tokens in every way."""

import itertools
from collections.abc import Iterator

import pytest

from plimsoll.runtime.engine.core.sampling_params import ThoughtBudget
from plimsoll.runtime.engine.core.thought import Spelling, ThoughtLimit, ThoughtState
from plimsoll.runtime.messages import Vocabulary
from plimsoll.runtime.server.parsing.reader import AnswerReader
from plimsoll.runtime.server.parsing.thoughts import THOUGHTS
from plimsoll.runtime.server.parts import Thought

GRANITE = THOUGHTS["granite"]


def state(name: str = "think", *, opened: bool = False) -> ThoughtState:
    signs = THOUGHTS[name]
    return ThoughtState((signs.begin, *signs.begins), signs.end, open=opened)


def taken(pieces: list[str], found: ThoughtState) -> ThoughtState:
    for piece in pieces:
        found.take(piece.encode())
    return found


@pytest.mark.parametrize(
    ("pieces", "opened", "tokens", "over"),
    [
        (["<think>", "a", "b", "</think>", "c"], False, 2, True),
        (["\n", "<think>", "\n", "a", "b"], False, 3, False),
        (["<thi", "nk>a", "b", "c</", "thi", "nk>\n", "d"], False, 1, True),
        (["<think>", "</think>"], False, 0, True),
        (["<think></think>"], False, 0, True),
        (["Yes", "<think>", "a"], False, 0, True),
        (["<thin", " air"], False, 0, True),
        (["a", "b", "</think>", "c"], True, 2, True),
        (["<think>", "a", "</think>"], True, 1, True),
        (["\n", "<", "/think>", "c"], True, 1, True),
        (["\n", "<", "a", "</", "think>"], True, 3, True),
        (["</think>"], True, 0, True),
        (["a", "", "b"], True, 3, False),
        (["\u3000", "\n", "<think>", "a"], False, 1, False),
        (["\u3000", "\n", "a", "</think>"], True, 3, True),
    ],
)  # fmt: skip
def test_tokens_between_the_signs_are_counted(pieces: list[str], opened: bool, tokens: int, over: bool) -> None:
    found = taken(pieces, state(opened=opened))
    assert (found.tokens, found.over) == (tokens, over)


def test_a_sign_of_several_words_is_found_however_it_is_cut() -> None:
    text = f"{GRANITE.begins[0]} So. Here is my re... {GRANITE.end} Done."
    for size in range(1, 40):
        pieces = [text[at : at + size] for at in range(0, len(text), size)]
        found = taken(pieces, state("granite"))
        assert found.over
        # Exactly the tokens between those that hold a part of a sign.
        begin, end = len(GRANITE.begins[0]), text.index(GRANITE.end)
        inside = [at for at in range(0, len(text), size) if at >= begin and at + size <= end]
        assert found.tokens == len(inside)


def test_it_agrees_with_the_reader_of_the_text() -> None:
    texts = ["<think>", "</think>", "<", "think>", "\n", "a", " ", "</th", "ink>"]
    for opened, *pieces in itertools.product((True, False), *[texts] * 3):
        assert isinstance(opened, bool)
        found = taken([str(piece) for piece in pieces], state(opened=opened))
        reader = AnswerReader(thoughts=THOUGHTS["think"], thinking=opened)
        parts = [part for piece in pieces for part in reader.read(str(piece))]
        thought = "".join(part.text for part in parts if isinstance(part, Thought))
        assert not thought or found.tokens, pieces


def limit(budget: int, *, opened: bool) -> ThoughtLimit:
    texts = ["<think>", "</think>", "\n", "\n\n", "a", "<|end|>"]
    spelling = Spelling(Vocabulary(tokens="".join(texts).encode(), sizes=list(map(len, texts)), special_ids=[5]))
    given = ThoughtBudget(tokens=budget, begins=("<think>",), end="</think>", open=opened, close=(1, 3))
    return ThoughtLimit(given, spelling.of(given))


def answer(found: ThoughtLimit, model: Iterator[int], most: int) -> list[int]:
    """Tokens of an answer: what is forced, else what the model chooses."""
    tokens: list[int] = []
    while len(tokens) < most:
        tokens.append(next(model) if found.forced is None else found.forced)
        found.take(tokens[-1])
    return tokens


@pytest.mark.parametrize(
    ("budget", "opened", "expected"),
    [
        (0, True, [1, 3, 4, 4]), (1, True, [4, 1, 3, 4]), (3, True, [4, 4, 4, 1, 3, 4]),
    ],
)  # fmt: skip
def test_a_thought_that_the_prompt_began_is_closed_at_its_budget(budget, opened, expected) -> None:
    assert answer(limit(budget, opened=opened), itertools.repeat(4), len(expected)) == expected


def test_a_thought_that_the_model_begins_is_closed_and_only_the_first() -> None:
    wishes = itertools.chain([0], itertools.repeat(4, 2), [0], itertools.repeat(4))
    assert answer(limit(1, opened=False), wishes, 11) == [0, 4, 1, 3, 4, 0, 4, 4, 4, 4, 4]
    assert answer(limit(0, opened=False), iter([2, 0, 4]), 5) == [2, 0, 1, 3, 4]


def test_neither_a_thought_that_ends_in_time_nor_an_answer_without_one_is_touched() -> None:
    for budget in (2, 9):
        assert answer(limit(budget, opened=False), iter([0, 4, 1, 2, *[4] * 20]), 24) == [0, 4, 1, 2, *[4] * 20]
    assert answer(limit(0, opened=False), itertools.repeat(4), 20) == [4] * 20
    # A control token is no text.
    assert answer(limit(1, opened=False), iter([5, 0, 4, 4]), 6) == [5, 0, 4, 1, 3, 4]


@pytest.mark.parametrize("opened", [True, False])
def test_nothing_is_kept_of_a_text_that_says_nothing(opened: bool) -> None:
    for text in ("", "\n", "a"):
        found = state(opened=opened)
        taken([text] * 20_000, found)
        assert found.tokens == (20_000 if opened else 0)
        assert sum(len(piece) + 1 for piece in (*found._head, *found._tail)) < 40


def test_a_character_in_several_tokens_is_one() -> None:
    found = state()
    for byte in "\u3000<think>\u3000é</think>x".encode():
        found.take(bytes([byte]))
    assert (found.tokens, found.over) == (5, True)
    for text in ("日<think>a", "\N{ZERO WIDTH SPACE}<think>a"):
        found = state()
        for byte in text.encode():
            found.take(bytes([byte]))
        assert (found.tokens, found.over) == (0, True)
