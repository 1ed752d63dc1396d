"""Requests whose answers a grammar constrains, in the engine: alone, together, preempted, hostile."""

import json
import re
from pathlib import Path
from typing import Any, cast

import llguidance
import pytest

from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import Tokenizer, load_tokenizer
from plimsoll.runtime.engine.engine import Engine
from plimsoll.runtime.engine.worker.grammars import Matcher, tokenizer_of
from plimsoll.runtime.grammar import compiled
from plimsoll.runtime.vocabulary import vocabulary_of
from tests.support.checkpoints import TURN_END, VOCAB_SIZE
from tests.support.engines import Result, make_engine, make_request, run, run_alone

BLOCK_BYTES = 2 * 2 * 2 * 16 * 4 * 16
PROMPT = [5, 9, 33, 140, 7]
WORDS = "start: /[a-f]{3,9}( [0-9]{1,4}){2}/"
SCHEMA = json.dumps({"grammars": [{"json_schema": {"type": "object", "properties": {"a": {"type": "integer"}}}}]})
GRAMMARS = (WORDS, SCHEMA, 'start: ("yes" | "no" "!"*) x\nx: "(" x ")" | "é"', 'start: /.{0,12}/ "\\n"')


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> Tokenizer:
    return load_tokenizer(open_checkpoint(tiny_llama))


def build(model: Path, tokenizer: Tokenizer, **options: Any) -> Engine:
    engine = make_engine(model, **({"num_blocks": 32, "block_bytes": BLOCK_BYTES, "max_model_len": 128} | options))
    engine.learn(vocabulary_of(tokenizer))
    return engine


@pytest.fixture(scope="module")
def engine(tiny_llama: Path, tokenizer: Tokenizer) -> Engine:
    return build(tiny_llama, tokenizer)


def text(tokenizer: Tokenizer, result: Result) -> str:
    return b"".join(tokenizer.token_bytes(token) for token in result.token_ids).decode()


@pytest.mark.parametrize("grammar", GRAMMARS)
def test_every_token_is_one_that_the_grammar_allows_and_the_end_one_where_it_accepts(engine, tokenizer, grammar):
    trie = tokenizer_of(vocabulary_of(tokenizer), VOCAB_SIZE, (TURN_END,))
    names = [str(seed) for seed in range(12)]
    requests = [
        make_request(n, PROMPT, 60, grammar=grammar, seed=int(n), temperature=1.5, ignore_eos=False, logprobs=1)
        for n in names
    ]
    for result in run(engine, requests).values():
        matcher = compiled(grammar, trie)
        assert matcher.try_consume_tokens(result.token_ids) == len(result.token_ids)
        assert len(result.logprobs) == len(result.token_ids)
        assert result.finish_reason in ("stop", "length")
        if result.finish_reason == "stop":
            assert matcher.is_accepting()


def test_a_row_with_a_grammar_changes_no_other_and_none_changes_it(engine):
    plain = [make_request(f"p{i}", [*PROMPT, i], 12, temperature=i / 4, seed=i) for i in range(5)]
    bound = [make_request(f"g{i}", [*PROMPT, i], 40, grammar=WORDS, temperature=i / 4, seed=i) for i in range(5)]
    together = run(engine, [one for pair in zip(plain, bound, strict=True) for one in pair])
    for request in (*plain, *bound):
        assert run_alone(engine, request).token_ids == together[request.request_id].token_ids


def test_preempted_requests_go_on_where_their_grammars_were(tiny_llama, tokenizer):
    small = build(tiny_llama, tokenizer, num_blocks=9, max_model_len=96)
    requests = [
        make_request(i, [*PROMPT, i] * 3, 60, grammar="start: /[a-d]{40,50}/", seed=i, temperature=1.0)
        for i in range(4)
    ]
    together = run(small, requests)
    assert small.stats.preemptions
    for request in requests:
        result = together[request.request_id]
        assert re.fullmatch("[a-d]{40,50}", text(tokenizer, result)), result
        assert run_alone(small, request).token_ids == result.token_ids


@pytest.mark.parametrize(
    ("grammar", "params", "expected"),
    [
        ('start: "abc"', {"ignore_eos": True, "min_tokens": 20}, "abc"), ('start: ""', {"ignore_eos": True}, ""),
        ('start: "ab"', {"min_tokens": 9, "ignore_eos": False}, "ab"),
        ('start: "ab" | "cd"', {"logit_bias": {TURN_END: 100.0}, "repetition_penalty": 2.0}, "(ab|cd)"),
        ('start: /x{3}/', {"frequency_penalty": 2.0, "presence_penalty": 2.0, "top_k": 1}, "xxx"),
    ],
)  # fmt: skip
def test_an_answer_ends_where_nothing_may_follow(engine, tokenizer, grammar, params, expected):
    result = run_alone(engine, make_request("a", PROMPT, 60, grammar=grammar, **params))
    assert (result.finish_reason, result.error) == ("stop", None)
    assert re.fullmatch(expected, text(tokenizer, result))


@pytest.mark.parametrize(
    ("grammar", "words"),
    [
        ('start: "a" b', "unknown name"), ("{}", "llguidance's JSON"), ("start: <[999]>", "too large"),
        ('start: a\na: a "x"', "no token can follow"),
    ],
)  # fmt: skip
def test_a_grammar_that_cannot_go_on_ends_its_own_request_alone(engine, grammar, words):
    good = make_request("good", PROMPT, 6)
    bad = make_request("bad", PROMPT, 100, grammar=grammar, temperature=1.0, seed=1, ignore_eos=False)
    results = run(engine, [bad, good])
    assert results["good"].finish_reason == "length"
    assert results["bad"].finish_reason == "rejected"
    assert words in (results["bad"].error or "")


def test_a_request_that_waits_for_its_grammar_can_be_aborted(engine):
    engine.add(make_request("a", PROMPT, grammar=WORDS + "\n// another"))
    engine.abort(["a"])
    assert [output.finish_reason for output in engine.step()] == ["abort"]
    engine.check_integrity()
    assert not engine.has_work


def test_without_a_vocabulary_a_grammar_is_refused(tiny_llama):
    bare = make_engine(tiny_llama, num_blocks=8, block_bytes=BLOCK_BYTES, max_model_len=64)
    result = run_alone(bare, make_request("a", PROMPT, grammar=WORDS))
    assert (result.finish_reason, result.error) == ("rejected", "grammar: this engine was given no vocabulary")


def test_the_vocabulary_is_the_one_that_llguidance_is_given(tokenizer):
    trie = tokenizer_of(vocabulary_of(tokenizer), VOCAB_SIZE + 9, (TURN_END,))
    assert isinstance(trie, llguidance.LLTokenizer)
    assert trie.vocab_size == VOCAB_SIZE + 9
    ids = tokenizer.encode("The quick é")
    assert trie.decode_str(ids) == "The quick é"
    assert trie.is_special_token(TURN_END)


def test_a_mask_that_cannot_be_computed_allows_nothing() -> None:
    class Broken:
        def unsafe_compute_mask_ptr(self, address: int, size: int) -> None:
            raise ValueError("a fault")

    matcher = Matcher(cast(llguidance.LLMatcher, Broken()), (), 8)
    matcher.compute()
    assert matcher.mask() == bytes(8)
