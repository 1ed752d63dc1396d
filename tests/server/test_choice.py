"""Fields that limit which tokens may come, and which tokens of a prompt count."""

from itertools import pairwise
from typing import Any

import pytest

from tests.support.endpoint import Endpoint

TEXT: dict[str, Any] = {"model": "tiny", "prompt": [7, 9, 11], "max_tokens": 12, "ignore_eos": True}
LONG = list(range(4, 304))


def ids_of(endpoint: Endpoint, body: dict[str, Any]) -> list[list[int]]:
    """Ids of the tokens of every choice."""
    status, answer = endpoint.post("/v1/completions", body | {"return_token_ids": True})
    assert status == 200, answer
    return [choice["token_ids"] for choice in answer["choices"]]


def test_only_allowed_tokens_come(tiny: Endpoint) -> None:
    allowed = [100, 101, 140, 70]
    for settings in ({"temperature": 0}, {"temperature": 1.5, "seed": 3, "n": 3}, {"temperature": 1, "top_k": 2}):
        for ids in ids_of(tiny, TEXT | settings | {"allowed_token_ids": allowed}):
            assert len(ids) == 12
            assert set(ids) <= set(allowed)
    assert ids_of(tiny, TEXT | {"allowed_token_ids": [101.0]}) == [[101] * 12]
    banned = {"allowed_token_ids": [100, 101], "logit_bias": {"100": -100, "101": 0}, "temperature": 0}
    assert ids_of(tiny, TEXT | banned) == [[101] * 12]
    assert ids_of(tiny, TEXT | {"temperature": 0}) == ids_of(tiny, TEXT | {"temperature": 0, "allowed_token_ids": None})


def test_a_bad_word_does_not_come(tiny: Endpoint) -> None:
    greedy = TEXT | {"temperature": 0}
    [plain] = ids_of(tiny, greedy)
    texts = tiny.service.serving.texts
    tokenizer = tiny.service.serving.tokenizer
    word = next(texts[token][0] for token in plain if tokenizer.encode(texts[token][0].lstrip()) == [token])
    [without] = ids_of(tiny, greedy | {"bad_words": [word]})
    assert tokenizer.encode(word)[0] in plain
    assert tokenizer.encode(word)[0] not in without
    # Alone and beside others.
    together = [*([word] * 3), "zebra crossing"]
    assert ids_of(tiny, greedy | {"bad_words": together, "n": 1}) == [without]


def test_a_bad_word_of_several_tokens_is_not_completed(tiny: Endpoint) -> None:
    tokenizer, allowed = tiny.service.serving.tokenizer, {}
    first, second = tokenizer.encode("q")[0], tokenizer.encode("7")[0]
    assert tokenizer.encode("q7") == [first, second]
    body = TEXT | {"allowed_token_ids": [first, second], "temperature": 1, "n": 8, "max_tokens": 40, "seed": 1}
    before = ids_of(tiny, body)
    allowed = ids_of(tiny, body | {"bad_words": ["q7"]})
    pairs = [pair for ids in before for pair in pairwise(ids)]
    assert (first, second) in pairs
    assert (first, second) not in [pair for ids in allowed for pair in pairwise(ids)]
    # Each of the two still comes.
    assert {first, second} <= {token for ids in allowed for token in ids}


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("allowed_token_ids", [], "at least 1"), ("allowed_token_ids", [320], "token 320"),
        ("allowed_token_ids", ["x"], "integer"), ("bad_words", [""], "1 to 256"), ("bad_words", [" "], "1 to 256"),
        ("bad_words", "no", "list of strings"), ("bad_words", ["a"] * 65, "up to 64"),
        ("bad_words", ["a" * 257], "256"),
        ("truncate_prompt_tokens", 0, "-1"), ("truncate_prompt_tokens", -2, "-1"),
        ("truncate_prompt_tokens", 257, "256 tokens"), ("truncate_prompt_tokens", 1.5, "integer"),
        ("truncation_side", "middle", "left"), ("cache_salt", "", "1 character"), ("cache_salt", 5, "string"),
        ("cache_salt", "x" * 1025, "1024"),
    ],
)  # fmt: skip
def test_a_wrong_limit_is_named(tiny: Endpoint, field: str, value: Any, words: str) -> None:
    chat = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 2}
    for path, body in (("/v1/completions", TEXT), ("/v1/chat/completions", chat)):
        status, answer = tiny.post(path, body | {field: value})
        assert (status, answer["error"]["param"].partition("[")[0]) == (400, field)
        assert words in answer["error"]["message"]


def test_fields_that_leave_no_token_are_a_fault_of_the_request(tiny: Endpoint) -> None:
    none_left = {"allowed_token_ids": [101], "stop_token_ids": [101], "min_tokens": 1}
    status, answer = tiny.post("/v1/completions", TEXT | none_left)
    assert (status, answer["error"]["code"]) == (400, "rejected")
    assert "allowed_token_ids" in answer["error"]["message"]


def test_a_prompt_is_cut_to_its_end_or_its_beginning(tiny: Endpoint) -> None:
    body = TEXT | {"temperature": 0, "prompt": LONG, "echo": True}
    for extra, kept in (
        ({"truncate_prompt_tokens": 10}, LONG[-10:]),
        ({"truncate_prompt_tokens": 10, "truncation_side": "right"}, LONG[:10]),
        ({"truncate_prompt_tokens": -1, "max_tokens": 12}, LONG[-244:]),
    ):
        cut = tiny.post("/v1/completions", body | extra)[1]
        whole = tiny.post("/v1/completions", body | {"prompt": kept})[1]
        assert (cut["choices"], cut["usage"]["prompt_tokens"]) == (whole["choices"], len(kept))
    # Text is cut too, one that is far too long included.
    words = "word " * 5000
    cut = tiny.post("/v1/completions", TEXT | {"prompt": words, "truncate_prompt_tokens": 20})[1]
    assert cut["usage"]["prompt_tokens"] == 20
    chat = {"model": "tiny", "messages": [{"role": "user", "content": words}], "max_tokens": 2}
    assert tiny.post("/v1/chat/completions", chat)[0] == 400
    assert tiny.post("/v1/chat/completions", chat | {"truncate_prompt_tokens": 20})[1]["usage"]["prompt_tokens"] == 20
