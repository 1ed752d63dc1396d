"""`/tokenize` and `/detokenize`: what a text or a conversation is in tokens, as vLLM and llama-server have it."""

from typing import Any

import httpx
import pytest

from tests.support.endpoint import Endpoint

TALK = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "straße 😀"}]


@pytest.mark.parametrize("text", ["", "The quick brown fox", "straße 😀 日本", "<|im_start|>user", "word " * 500])
def test_a_text_becomes_tokens_and_text_again(tiny: Endpoint, text: str) -> None:
    status, found = tiny.post("/tokenize", {"model": "tiny", "prompt": text, "return_token_strs": True})
    assert status == 200
    tokenizer = tiny.service.serving.tokenizer
    assert found["tokens"] == tokenizer.encode(text)
    assert (found["count"], found["max_model_len"]) == (len(found["tokens"]), 256)
    assert found["token_strs"] == tokenizer.convert_ids_to_tokens(found["tokens"])
    assert tiny.post("/detokenize", {"model": "tiny", "tokens": found["tokens"]}) == (200, {"prompt": text})
    assert tiny.post("/detokenize", {"tokens": found["tokens"]}) == (200, {"prompt": text, "content": text})
    assert tiny.post("/tokenize", {"prompt": text})[1]["token_strs"] is None


@pytest.mark.parametrize("text", ["", "The quick brown fox", "straße 😀"])
def test_llama_servers_clients_get_their_shapes(tiny: Endpoint, text: str) -> None:
    tokenizer = tiny.service.serving.tokenizer
    for extra, special in (({}, False), ({"add_special": True}, True), ({"parse_special": True}, False)):
        found = tiny.post("/tokenize", {"content": text, **extra})[1]
        assert found["tokens"] == tokenizer.encode(text, add_special_tokens=special)
    pieces = tiny.post("/tokenize", {"content": text, "with_pieces": True})[1]["tokens"]
    assert [piece["id"] for piece in pieces] == tokenizer.encode(text, add_special_tokens=False)
    raw = [piece["piece"].encode() if isinstance(piece["piece"], str) else bytes(piece["piece"]) for piece in pieces]
    assert b"".join(raw).decode() == text


@pytest.mark.parametrize(
    "extra",
    [
        {}, {"add_generation_prompt": False}, {"chat_template_kwargs": {"a": 1}},
        {"messages": [*TALK, {"role": "assistant", "content": "Yes"}], "add_generation_prompt": False,
         "continue_final_message": True},
        {"messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}]}]},
    ],
)  # fmt: skip
def test_a_conversation_is_tokenized_as_the_chat_route_does(tiny: Endpoint, extra: dict[str, Any]) -> None:
    found = tiny.post("/tokenize", {"messages": TALK} | extra)[1]
    chat = {"model": "tiny", "messages": TALK, "max_tokens": 1, "return_token_ids": True} | extra
    assert found["tokens"] == tiny.post("/v1/chat/completions", chat)[1]["prompt_token_ids"]


@pytest.mark.parametrize(
    ("path", "body", "param", "status"),
    [
        ("/tokenize", {}, "prompt", 400), ("/tokenize", {"prompt": "a", "messages": TALK}, "prompt", 400),
        ("/tokenize", {"content": "a", "prompt": "a"}, "prompt", 400),
        ("/tokenize", {"content": ["a"]}, "content", 400),
        ("/tokenize", {"content": "a", "parse_special": False}, "parse_special", 400),
        ("/tokenize", {"content": "x" * 100_000}, "prompt", 400),
        ("/tokenize", {"prompt": 5}, "prompt", 400), ("/tokenize", {"prompt": "a", "model": "other"}, "model", 404),
        ("/tokenize", {"messages": []}, "messages", 400), ("/tokenize", {"messages": "hi"}, "messages", 400),
        ("/tokenize", {"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", 400),
        ("/tokenize", {"messages": TALK, "chat_template": "none"}, "chat_template", 400),
        ("/tokenize", {"prompt": "a", "temperature": 1}, "temperature", 400),
        ("/tokenize", {"prompt": "x" * 100_000}, "prompt", 400), ("/detokenize", {}, "tokens", 400),
        ("/detokenize", {"tokens": [320]}, "tokens", 400), ("/detokenize", {"tokens": [-1]}, "tokens[0]", 400),
        ("/detokenize", {"tokens": ["a"]}, "tokens[0]", 400), ("/detokenize", {"tokens": "a"}, "tokens", 400),
        ("/detokenize", {"tokens": [5], "model": "other"}, "model", 404),
    ],
)  # fmt: skip
def test_what_cannot_be_tokenized_is_named(
    tiny: Endpoint, path: str, body: dict[str, Any], param: str, status: int
) -> None:
    found, answer = tiny.post(path, body)
    assert (found, answer["error"]["param"]) == (status, param), answer


def test_both_routes_need_a_key_where_others_do(keyed: Endpoint) -> None:
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]})):
        assert httpx.post(keyed.root + path, json=body).status_code == 401
        assert keyed.post(path, body)[0] == 200


def test_the_list_of_models_suits_openais_client_continue_and_codex(tiny: Endpoint) -> None:
    [model] = tiny.openai.models.list().data
    assert (model.id, model.max_model_len, model.root, model.parent) == ("tiny", 256, "tiny", None)
    assert tiny.http.get("/v1/models").json()["models"] == []
