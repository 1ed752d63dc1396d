"""/v1/completions through the real openai client."""

import json

import pytest

from plimsoll.runtime.server.responses import CompletionLogprobs
from plimsoll.runtime.server.streaming import MARKER, Frame
from tests.support.endpoint import Endpoint

FOX = "The quick brown fox"


def test_text_and_token_ids_of_the_same_prompt_continue_alike(tiny: Endpoint) -> None:
    ids = tiny.service.tokenizer.encode(FOX)
    answers = [
        tiny.openai.completions.create(model="tiny", prompt=prompt, max_tokens=6, temperature=0).choices[0].text
        for prompt in (FOX, ids, [FOX], [ids])
    ]
    assert len(set(answers)) == 1


def test_several_prompts_and_samples_are_numbered_prompt_by_prompt(tiny: Endpoint) -> None:
    prompts = [FOX, "Paris is"]
    answer = tiny.openai.completions.create(model="tiny", prompt=prompts, n=2, max_tokens=5, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    for number, prompt in enumerate(prompts):
        alone = tiny.openai.completions.create(model="tiny", prompt=prompt, n=2, max_tokens=5, seed=1)
        assert [choice.text for choice in alone.choices] == [
            choice.text for choice in answer.choices[2 * number : 2 * number + 2]
        ]
    count = sum(len(tiny.service.tokenizer.encode(prompt)) for prompt in prompts)
    assert answer.usage.prompt_tokens == count


def test_streamed_completions_add_up_to_the_whole(tiny: Endpoint) -> None:
    settings = {"model": "tiny", "prompt": [FOX, "Paris is"], "max_tokens": 7, "temperature": 0}
    whole = tiny.openai.completions.create(**settings)
    texts = ["", ""]
    chunks = list(tiny.openai.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == [choice.text for choice in whole.choices]
    assert chunks[-1].usage == whole.usage


def test_echo_returns_the_prompt_with_its_logprobs(tiny: Endpoint) -> None:
    answer = tiny.openai.completions.create(
        model="tiny", prompt=FOX, max_tokens=3, temperature=0, echo=True, logprobs=2, extra_body={"ignore_eos": True}
    )
    choice = answer.choices[0]
    assert choice.text.startswith(FOX)
    found = choice.logprobs
    count = answer.usage.prompt_tokens
    assert len(found.tokens) == len(found.token_logprobs) == len(found.top_logprobs) == count + 3
    assert "".join(found.tokens[:count]) == FOX
    assert found.token_logprobs[0] is None
    assert [next(iter(top)) for top in found.top_logprobs[1:]] == found.tokens[1:]
    assert all(value <= 0 for value in found.token_logprobs[1:])
    assert found.text_offset[:2] == [0, len(found.tokens[0])]


def begins(text: str, found: object) -> None:
    """Each token's text stands where its offset says; of a character that spans tokens, the whole character does."""
    for token, offset in zip(found.tokens, found.text_offset, strict=True):
        # Half a character shows as U+FFFD by itself.
        assert "\ufffd" in token or text.startswith(token, offset), (token, offset)
    assert found.text_offset == sorted(found.text_offset)
    assert found.text_offset[-1] < len(text)


@pytest.mark.parametrize("stream", [False, True])
def test_offsets_index_the_text_where_characters_span_tokens(tiny: Endpoint, stream: bool) -> None:
    prompt = "naïve 日本 😀 end"
    settings = {"model": "tiny", "prompt": prompt, "echo": True, "logprobs": 0, "max_tokens": 24, "seed": 5}
    made = tiny.openai.completions.create(**settings, stream=stream, extra_body={"ignore_eos": True})
    choices = [chunk.choices[0] for chunk in made] if stream else made.choices
    text = "".join(choice.text for choice in choices)
    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.tokens]
    offsets = [offset for choice in choices if choice.logprobs for offset in choice.logprobs.text_offset]
    begins(text, CompletionLogprobs(tokens, [], [], offsets))
    ids = tiny.service.tokenizer.encode(prompt)
    raw = [tiny.service.tokenizer.token_bytes(token) for token in ids]
    for index in range(len(ids)):
        # Cut in the middle of a character, the bytes before it end with what stands for that one.
        assert len(b"".join(raw[:index]).decode("utf-8", "ignore")) == offsets[index]


def test_an_echoed_prompt_of_token_ids_keeps_its_special_tokens(tiny: Endpoint) -> None:
    tokenizer = tiny.service.tokenizer
    special = min(tokenizer.special_ids)
    ids = [special, *tokenizer.encode(FOX, add_special_tokens=False), special, *tokenizer.encode(" end", False)]
    settings = {"model": "tiny", "echo": True, "logprobs": 0, "max_tokens": 2, "temperature": 0}
    choice = tiny.openai.completions.create(prompt=ids, **settings).choices[0]
    name = tokenizer.token_bytes(special).decode()
    assert choice.text.startswith(f"{name}{FOX}{name} end")
    begins(choice.text, choice.logprobs)
    assert choice.logprobs.tokens[: len(ids)] == [tokenizer.token_bytes(token).decode() for token in ids]
    alone = tiny.openai.completions.create(model="tiny", prompt=ids, echo=True, max_tokens=0).choices[0]
    assert alone.text == f"{name}{FOX}{name} end"


def test_echo_alone_scores_a_prompt_and_generates_nothing(tiny: Endpoint) -> None:
    settings = {"model": "tiny", "prompt": FOX, "echo": True, "logprobs": 1}
    scored = tiny.openai.completions.create(**settings, max_tokens=0)
    longer = tiny.openai.completions.create(**settings, max_tokens=2)
    assert scored.choices[0].text == FOX
    assert scored.choices[0].finish_reason == "length"
    assert scored.usage.completion_tokens == 0
    count = len(scored.choices[0].logprobs.tokens)
    assert longer.choices[0].logprobs.token_logprobs[1:count] == pytest.approx(
        scored.choices[0].logprobs.token_logprobs[1:], abs=1e-5
    )
    assert tiny.openai.completions.create(model="tiny", prompt=FOX, echo=True, max_tokens=0).choices[0].text == FOX


def test_streamed_echo_sends_the_prompt_first(tiny: Endpoint) -> None:
    settings = {"model": "tiny", "prompt": FOX, "echo": True, "logprobs": 1, "max_tokens": 4, "temperature": 0}
    whole = tiny.openai.completions.create(**settings).choices[0]
    chunks = [chunk.choices[0] for chunk in tiny.openai.completions.create(**settings, stream=True)]
    assert chunks[0].text == FOX
    assert "".join(chunk.text for chunk in chunks) == whole.text
    tokens = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.tokens]
    offsets = [offset for chunk in chunks if chunk.logprobs for offset in chunk.logprobs.text_offset]
    assert tokens == whole.logprobs.tokens
    assert offsets == whole.logprobs.text_offset


def test_a_stream_has_one_line_for_each_event_however_a_client_splits_it(tiny: Endpoint) -> None:
    prompt = "one\u2028two\u2029three\x85four"
    body = {"model": "tiny", "prompt": prompt, "echo": True, "stream": True, "max_tokens": 1}
    raw = tiny.http.post("/v1/completions", json=body).content
    assert raw.decode().splitlines() == raw.decode().split("\n")[:-1]
    chunks = tiny.openai.completions.create(model="tiny", prompt=prompt, echo=True, stream=True, max_tokens=1)
    assert next(iter(chunks)).choices[0].text == prompt
    generated = Frame({"text": MARKER}).event(prompt)
    assert len(generated.decode().splitlines()) == 2
    assert json.loads(generated.removeprefix(b"data: "))["text"] == prompt


def test_best_of_returns_the_likeliest(tiny: Endpoint) -> None:
    def mean(choice: object) -> float:
        values = choice.logprobs.token_logprobs
        return sum(values) / len(values)

    settings = {"model": "tiny", "prompt": FOX, "max_tokens": 6, "seed": 11, "logprobs": 0}
    every = tiny.openai.completions.create(**settings, n=4)
    best = tiny.openai.completions.create(**settings, n=1, best_of=4)
    assert best.choices[0].text == max(every.choices, key=mean).text
    assert best.usage.completion_tokens == every.usage.completion_tokens
    plain = tiny.openai.completions.create(model="tiny", prompt=FOX, max_tokens=6, seed=11, best_of=4)
    assert plain.choices[0].text == best.choices[0].text
    assert plain.choices[0].logprobs is None


def test_sixteen_tokens_are_the_default(tiny: Endpoint) -> None:
    answer = tiny.openai.completions.create(model="tiny", prompt=FOX, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16
