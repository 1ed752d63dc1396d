"""vLLM's additions that show tokens: their ids beside the text, and in place of it."""

import json
from itertools import chain
from typing import Any

import pytest

from tests.support.endpoint import Endpoint

HELLO = [{"role": "user", "content": "hi"}]
CHAT: dict[str, Any] = {"model": "tiny", "messages": HELLO, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
TEXT: dict[str, Any] = {"model": "tiny", "prompt": [7, 9, 11], "max_tokens": 6, "temperature": 0, "ignore_eos": True}


def streamed(tiny: Endpoint, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    with tiny.http.stream("POST", path, json=body | {"stream": True}) as answer:
        assert answer.status_code == 200
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("extra", [{}, {"logprobs": True}, {"stream_options": {"include_usage": True}}, {"n": 2}])
def test_ids_of_a_chat_come_whole_and_in_pieces(tiny: Endpoint, extra: dict[str, Any]) -> None:
    whole = tiny.post("/v1/chat/completions", CHAT | {"return_token_ids": True, "n": extra.get("n", 1)})[1]
    plain = tiny.post("/v1/chat/completions", CHAT | {"n": extra.get("n", 1)})[1]
    # vLLM's clients read the fields without asking whether they are there.
    assert (plain["prompt_token_ids"], plain["choices"][0]["token_ids"]) == (None, None)
    assert len(whole["prompt_token_ids"]) == whole["usage"]["prompt_tokens"]
    chunks = streamed(tiny, "/v1/chat/completions", CHAT | {"return_token_ids": True} | extra)
    for choice, before in zip(whole["choices"], plain["choices"], strict=True):
        assert len(choice["token_ids"]) == 6
        assert choice["message"] == before["message"]
        mine = [chunk for chunk in chunks if chunk["choices"] and chunk["choices"][0]["index"] == choice["index"]]
        assert mine[0]["prompt_token_ids"] == whole["prompt_token_ids"]
        assert not any("prompt_token_ids" in chunk for chunk in mine[1:])
        assert list(chain(*(chunk["choices"][0].get("token_ids", []) for chunk in mine))) == choice["token_ids"]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in mine)
        assert text == choice["message"]["content"]


@pytest.mark.parametrize("extra", [{}, {"logprobs": 1}, {"echo": True}, {"prompt": [[7, 9, 11], [5]]}])
def test_ids_of_a_completion_come_whole_and_in_pieces(tiny: Endpoint, extra: dict[str, Any]) -> None:
    whole = tiny.post("/v1/completions", TEXT | {"return_token_ids": True} | extra)[1]
    plain = tiny.post("/v1/completions", TEXT | extra)[1]["choices"][0]
    assert (plain["prompt_token_ids"], plain["token_ids"]) == (None, None)
    prompts = extra.get("prompt", [TEXT["prompt"]])
    chunks = streamed(tiny, "/v1/completions", TEXT | {"return_token_ids": True} | extra)
    for choice, prompt in zip(whole["choices"], prompts, strict=True):
        assert (choice["prompt_token_ids"], len(choice["token_ids"])) == (prompt, 6)
        mine = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert mine[0]["prompt_token_ids"] == prompt
        assert not any("prompt_token_ids" in one for one in mine[1:])
        assert list(chain(*(one["token_ids"] for one in mine))) == choice["token_ids"]
        assert "".join(one["text"] for one in mine) == choice["text"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_token_that_ended_an_answer_is_among_its_ids(tiny: Endpoint, stream: bool) -> None:
    ids = tiny.post("/v1/completions", TEXT | {"return_token_ids": True})[1]["choices"][0]["token_ids"]
    end = next(token for token in ids if token != ids[0])
    expected = ids[: ids.index(end) + 1]
    body = TEXT | {"return_token_ids": True, "stop_token_ids": [end]}
    chunks = streamed(tiny, "/v1/completions", body) if stream else [tiny.post("/v1/completions", body)[1]]
    assert list(chain(*(chunk["choices"][0]["token_ids"] for chunk in chunks))) == expected
    assert chunks[-1]["choices"][0]["stop_reason"] == end


def test_tokens_are_spelled_by_their_ids(tiny: Endpoint) -> None:
    extra = {"return_tokens_as_token_ids": True, "return_token_ids": True}
    chat = tiny.post("/v1/chat/completions", CHAT | extra | {"logprobs": True, "top_logprobs": 2})[1]["choices"][0]
    spelled = [f"token_id:{token}" for token in chat["token_ids"]]
    assert [entry["token"] for entry in chat["logprobs"]["content"]] == spelled
    assert all(
        top["token"].startswith("token_id:") for entry in chat["logprobs"]["content"] for top in entry["top_logprobs"]
    )
    text = tiny.post("/v1/completions", TEXT | extra | {"logprobs": 2, "echo": True})[1]["choices"][0]
    assert text["logprobs"]["tokens"] == [f"token_id:{token}" for token in [*TEXT["prompt"], *text["token_ids"]]]
    assert len(text["logprobs"]["top_logprobs"][-1]) in (2, 3)


def test_a_chat_may_begin_with_what_it_continues(tiny: Endpoint) -> None:
    talk = [*HELLO, {"role": "assistant", "content": "The sky"}]
    settings = {"messages": talk, "add_generation_prompt": False, "continue_final_message": True}
    plain = tiny.post("/v1/chat/completions", CHAT | settings)[1]["choices"][0]["message"]["content"]
    echoed = tiny.post("/v1/chat/completions", CHAT | settings | {"echo": True})[1]["choices"][0]["message"]["content"]
    assert echoed == "The sky" + plain
    chunks = streamed(tiny, "/v1/chat/completions", CHAT | settings | {"echo": True})
    assert "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks) == echoed
    # A user's words are none of the answer.
    asked = tiny.post("/v1/chat/completions", CHAT | {"echo": True})[1]["choices"][0]["message"]
    assert asked == tiny.post("/v1/chat/completions", CHAT)[1]["choices"][0]["message"]


@pytest.mark.parametrize("asked", [[300], [300, 17, 300], list(range(128))])
def test_log_probabilities_of_chosen_tokens(tiny: Endpoint, asked: list[int]) -> None:
    """`logprob_token_ids`: these tokens and the sampled one, once each, in place of the likeliest."""
    wish = {"logprob_token_ids": asked, "return_tokens_as_token_ids": True}
    names = [f"token_id:{token}" for token in dict.fromkeys(asked)]
    likeliest = {"logprobs": True, "top_logprobs": 20, "return_tokens_as_token_ids": True}
    usual = tiny.post("/v1/chat/completions", CHAT | likeliest)[1]["choices"][0]
    body = CHAT | wish | {"logprobs": True, "top_logprobs": 3}
    whole = tiny.post("/v1/chat/completions", body)[1]["choices"][0]
    assert whole["message"] == usual["message"]
    assert len(whole["logprobs"]["content"]) == 6
    for shown, likely in zip(whole["logprobs"]["content"], usual["logprobs"]["content"], strict=True):
        found = {entry["token"]: entry["logprob"] for entry in shown["top_logprobs"]}
        assert list(found) == list(dict.fromkeys([shown["token"], *names]))
        known = {entry["token"]: entry["logprob"] for entry in likely["top_logprobs"]}
        rest = min(known.values())
        assert all(known[token] == value if token in known else value <= rest for token, value in found.items())
    chunks = streamed(tiny, "/v1/chat/completions", body)
    sent = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {}).get("content", [])]
    assert sent == whole["logprobs"]["content"]
    top = tiny.post("/v1/completions", TEXT | wish | {"logprobs": 0})[1]["choices"][0]["logprobs"]
    assert [set(entry) for entry in top["top_logprobs"]] == [{*names, token} for token in top["tokens"]]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/chat/completions", CHAT | {"logprob_token_ids": [5]}, "needs logprobs: true"),
        ("/v1/completions", TEXT | {"logprob_token_ids": [5]}, "needs logprobs"),
        ("/v1/completions", TEXT | {"logprob_token_ids": [320], "logprobs": 1}, "out of vocabulary"),
        ("/v1/completions", TEXT | {"logprob_token_ids": [5] * 129, "logprobs": 1}, "at most 128"),
        ("/v1/completions", TEXT | {"logprob_token_ids": [5], "logprobs": 1, "max_tokens": 0, "echo": True}, "or more"),
    ],
)
def test_chosen_tokens_that_have_no_log_probabilities_are_refused(
    tiny: Endpoint, path: str, body: dict[str, Any], words: str
) -> None:
    status, found = tiny.post(path, body)
    assert (status, found["error"]["param"]) == (400, "logprob_token_ids")
    assert words in found["error"]["message"]


def test_the_token_that_ends_an_answer_has_log_probabilities_beside_its_id(tiny: Endpoint) -> None:
    ending = {"ignore_eos": False, "min_tokens": 2, "logit_bias": {"2": 100}, "logprobs": True}
    plain = tiny.post("/v1/chat/completions", CHAT | ending)[1]["choices"][0]
    assert (plain["finish_reason"], plain["stop_reason"], plain["matched_stop"]) == ("stop", None, 2)
    assert len(plain["logprobs"]["content"]) == 2
    body = CHAT | ending | {"return_token_ids": True}
    whole = tiny.post("/v1/chat/completions", body)[1]["choices"][0]
    content = whole["logprobs"]["content"]
    assert (whole["token_ids"][-1], len(whole["token_ids"]), content[:2]) == (2, 3, plain["logprobs"]["content"])
    assert content[2]["token"] == "<|im_end|>"
    chunks = streamed(tiny, "/v1/chat/completions", body)
    assert [
        entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {}).get("content", [])
    ] == content
    assert chunks[-1]["choices"][0]["matched_stop"] == 2
    body = TEXT | ending | {"return_token_ids": True, "logprobs": 1}
    text = tiny.post("/v1/completions", body)[1]["choices"][0]
    assert len(text["logprobs"]["tokens"]) == len(text["token_ids"]) == 3
    chunks = streamed(tiny, "/v1/completions", body)
    assert (
        list(chain(*((c["choices"][0]["logprobs"] or {}).get("tokens", []) for c in chunks)))
        == text["logprobs"]["tokens"]
    )
