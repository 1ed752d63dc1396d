"""Incremental text against the whole answer decoded at once, and stop strings against their definition."""

import codecs
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from plimsoll.checkpoint.open import open_checkpoint
from plimsoll.checkpoint.tokenizer import Tokenizer, load_tokenizer
from plimsoll.runtime.engine.core.sampling_params import SamplingParams
from plimsoll.runtime.messages import Logprob, TokenLogprobs, TokenOutput
from plimsoll.runtime.output import OutputProcessor, StopStrings, TextDelta
from tests.support.checkpoints import tokenizer_json

TEXTS = [
    "Plain words, then more of them.",
    "👨‍👩‍👧‍👦 families, flags 🇯🇵🇫🇷 and skin 👍🏽 tones",
    "日本語と中文混じり、東京は晴れ。",
    "ภาษาไทยไม่มีช่องว่างระหว่างคำ",
    "Привет, straße, naïve café, עברית, العربية",
    "a\x00b\ttab\r\nnew line\n\n   spaces ",
]


@pytest.fixture(scope="module")
def smollm2(smollm2_gguf: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(smollm2_gguf))


@pytest.fixture(scope="module")
def tiny() -> Tokenizer:
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(tokenizer_json())), [0])


@pytest.fixture(scope="module")
def byte_fallback() -> Tokenizer:
    """Sentencepiece's way: `▁` for a space and one token a byte for what the vocabulary lacks."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a", "é", "▁日"]
    backend = Backend(models.BPE({token: i for i, token in enumerate(tokens)}, [("▁", "a")], byte_fallback=True))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    return Tokenizer(fast, [2])


def process(
    tokenizer: Tokenizer, ids: list[int], params: SamplingParams | None = None, sizes: tuple[int, ...] = (1,)
) -> list[TextDelta]:
    """Deltas of an answer that comes in pieces of the given sizes, in turn, and ends by length."""
    processor = OutputProcessor(tokenizer, params or SamplingParams())
    deltas, at, turn = [], 0, 0
    while at < len(ids):
        size = sizes[turn % len(sizes)]
        deltas.append(processor.add(TokenOutput(request_id="r", token_ids=ids[at : at + size])))
        at, turn = at + size, turn + 1
    deltas.append(processor.add(TokenOutput(request_id="r", finish_reason="length")))
    return deltas


def joined(deltas: list[TextDelta]) -> str:
    return "".join(delta.text for delta in deltas)


def random_ids(vocabulary: int) -> st.SearchStrategy[list[int]]:
    return st.lists(st.integers(0, vocabulary - 1), max_size=60)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), hide=st.booleans())
def test_pieces_of_the_real_tokenizer_make_the_whole(smollm2: Tokenizer, data: st.DataObject, hide: bool) -> None:
    ids = data.draw(random_ids(smollm2.vocab_size))
    deltas = process(smollm2, ids, SamplingParams(skip_special_tokens=hide), (1, 3))
    assert joined(deltas) == smollm2.decode(ids, skip_special_tokens=hide)
    assert [token for delta in deltas for token in delta.token_ids] == ids


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), hide=st.booleans())
def test_broken_characters_become_what_decoding_makes_of_them(tiny: Tokenizer, data: st.DataObject, hide: bool) -> None:
    """Four in five of this vocabulary's tokens are single bytes: nearly nothing it says at random is UTF-8."""
    ids = data.draw(random_ids(tiny.vocab_size))
    assert joined(process(tiny, ids, SamplingParams(skip_special_tokens=hide))) == tiny.decode(ids, hide)


@settings(max_examples=120, deadline=None)
@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=40), sizes=st.tuples(st.integers(1, 4)))
def test_any_text_comes_out_as_it_went_in(text: str, sizes: tuple[int, ...]) -> None:
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(tokenizer_json())), [0])
    ids = [token for token in tokenizer.encode(text, add_special_tokens=False) if token not in tokenizer.special_ids]
    whole = b"".join(tokenizer.token_bytes(token) for token in ids).decode()
    assert joined(process(tokenizer, ids, sizes=sizes)) == whole


@pytest.mark.parametrize("text", TEXTS)
def test_no_piece_holds_half_a_character(smollm2: Tokenizer, byte_fallback: Tokenizer, text: str) -> None:
    for tokenizer in (smollm2, byte_fallback):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if tokenizer is byte_fallback:
            ids = [3 + byte for byte in text.encode()]
        deltas = process(tokenizer, ids)
        assert joined(deltas) == text == tokenizer.decode(ids)
        # Whole characters come as soon as their last byte is there.
        decoder = codecs.getincrementaldecoder("utf-8")()
        assert [delta.text for delta in deltas[:-1]] == [decoder.decode(tokenizer.token_bytes(token)) for token in ids]


def test_an_unfinished_character_is_flushed_at_the_end(tiny: Tokenizer) -> None:
    ids = tiny.encode("a😀", add_special_tokens=False)[:-1]
    assert joined(process(tiny, ids)) == "a�"


def stopped(text: str, stops: list[str], *, include: bool) -> tuple[str, str | None]:
    """By definition: the shortest beginning of the text that ends with a stop string, the longest such string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@settings(max_examples=120, deadline=None)
@given(
    text=st.text("ab¢", max_size=30),
    stops=st.lists(st.text("ab¢", min_size=1, max_size=5), min_size=1, max_size=4),
    cuts=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    include=st.booleans(),
)
def test_stop_strings_cut_where_they_are_first_complete(
    text: str, stops: list[str], cuts: list[int], include: bool
) -> None:
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=Backend.from_str(tokenizer_json())), [0])
    ids = tokenizer.encode(text, add_special_tokens=False)
    deltas = process(tokenizer, ids, SamplingParams(stop=tuple(stops), include_stop_str_in_output=include), tuple(cuts))
    expected, stop = stopped(text, stops, include=include)
    assert joined(deltas) == expected
    last = next(delta for delta in deltas if delta.finish_reason)
    assert (last.finish_reason, last.stop_reason) == (("stop", stop) if stop else ("length", None))
    used = [token for delta in deltas for token in delta.token_ids]
    assert used == ids[: len(used)]
    assert sum(delta.num_tokens for delta in deltas) == len(used)
    if stop:
        said = tokenizer.decode(used)
        end = len(expected) if include else len(expected) + len(stop)
        assert len(tokenizer.decode(used[:-1]).rstrip("�")) < end <= len(said)


@settings(max_examples=120, deadline=None)
@given(text=st.text("ab", max_size=20), stops=st.lists(st.text("ab", min_size=1, max_size=5), min_size=1, max_size=3))
def test_only_what_may_become_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    automaton, read = StopStrings(stops), ""
    for character in text:
        read += character
        if automaton.find(character) is not None:
            return
        beginnings = [n for stop in stops for n in range(len(stop)) if read.endswith(stop[:n])]
        assert automaton.held == max(beginnings)


def test_held_text_is_given_out_at_the_end(tiny: Tokenizer) -> None:
    processor = OutputProcessor(tiny, SamplingParams(stop=("END",)))
    ids = tiny.encode("the EN", add_special_tokens=False)
    first = processor.add(TokenOutput(request_id="r", token_ids=ids))
    last = processor.add(TokenOutput(request_id="r", finish_reason="stop", stop_token_id=0))
    assert (first.text, last.text) == ("the ", "EN")
    assert (last.finish_reason, last.stop_reason, last.num_tokens) == ("stop", 0, 1)


def test_nothing_comes_after_the_end(tiny: Tokenizer) -> None:
    processor = OutputProcessor(tiny, SamplingParams(stop=(".",)))
    ids = tiny.encode("Yes. No.", add_special_tokens=False)
    assert processor.add(TokenOutput(request_id="r", token_ids=ids)).text == "Yes"
    assert processor.finished
    assert processor.add(TokenOutput(request_id="r", token_ids=ids, finish_reason="length")) == TextDelta()


@pytest.mark.parametrize(("include", "text"), [(False, "Yes"), (True, "Yes.")])
def test_an_ordinary_stop_token_shows_only_when_asked_for(tiny: Tokenizer, include: bool, text: str) -> None:
    ids = tiny.encode("Yes.", add_special_tokens=False)
    params = SamplingParams(stop_token_ids=(ids[-1],), include_stop_str_in_output=include)
    output = TokenOutput(request_id="r", token_ids=ids, finish_reason="stop", stop_token_id=ids[-1])
    delta = OutputProcessor(tiny, params).add(output)
    assert (delta.text, delta.stop_reason, delta.num_tokens) == (text, ids[-1], len(ids))


def test_logprobs_stop_with_the_text(tiny: Tokenizer) -> None:
    ids = tiny.encode("one two three", add_special_tokens=False)
    entries = [TokenLogprobs(Logprob(token, -0.5, 1), []) for token in ids]
    processor = OutputProcessor(tiny, SamplingParams(stop=("two",), logprobs=0))
    delta = processor.add(TokenOutput(request_id="r", token_ids=ids, logprobs=entries))
    assert delta.text == "one "
    assert delta.logprobs == entries[: len(delta.token_ids)]
    assert "two" in tiny.decode(delta.token_ids)
    assert len(delta.token_ids) < len(ids)


def test_special_tokens_never_complete_a_stop_string_when_hidden(tiny: Tokenizer) -> None:
    ids = [*tiny.encode("a", add_special_tokens=False), 2, *tiny.encode("b", add_special_tokens=False)]
    stop = ("<|im_end|>",)
    assert joined(process(tiny, ids, SamplingParams(stop=stop))) == "ab"
    assert joined(process(tiny, ids, SamplingParams(stop=stop, skip_special_tokens=False))) == "a"


def test_a_long_answer_of_bytes_that_never_make_a_character_costs_little(tiny: Tokenizer) -> None:
    """What is kept between tokens does not grow: at most the three bytes of an unfinished character."""
    [lead] = [token for token in range(tiny.vocab_size) if tiny.token_bytes(token) == b"\xf0"]
    assert joined(process(tiny, [lead] * 20_000)) == "�" * 20_000
