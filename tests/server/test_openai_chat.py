"""/v1/chat/completions through the real openai client, on the real model and a tiny one."""

import math

import openai
import pytest

from tests.support.endpoint import Endpoint, eventually

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer in one short sentence."}]


def test_answers_the_question_and_counts_its_tokens(smol: Endpoint) -> None:
    answer = smol.openai.chat.completions.create(model="smol", messages=QUESTION, temperature=0, max_tokens=30)
    assert "Paris" in answer.choices[0].message.content
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.object == "chat.completion"
    assert answer.model == "smol"
    assert answer.system_fingerprint.startswith("plimsoll-")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 5 < usage.completion_tokens <= 30


def test_streams_the_same_text_as_it_answers_whole(smol: Endpoint) -> None:
    settings = {"model": "smol", "messages": QUESTION, "temperature": 0, "max_tokens": 24}
    whole = smol.openai.chat.completions.create(**settings)
    chunks = list(smol.openai.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert len({chunk.id for chunk in chunks}) == 1


def test_a_repeated_prompt_is_reported_as_cached(smol: Endpoint) -> None:
    long = [{"role": "user", "content": "Repeat after me. " * 60}]
    for _ in range(2):
        answer = smol.openai.chat.completions.create(model="smol", messages=long, max_tokens=1)
    cached = answer.usage.prompt_tokens_details.cached_tokens
    assert 0 < cached < answer.usage.prompt_tokens
    assert smol.metric("prefix_cache_hits_total") >= cached


def test_multibyte_text_never_streams_half_a_character(tiny: Endpoint) -> None:
    """Random weights emit bytes at random; every chunk must still be whole characters, and add up."""
    settings = {"model": "tiny", "messages": [{"role": "user", "content": "日本 😀"}], "max_tokens": 80, "seed": 5}
    whole = tiny.openai.chat.completions.create(**settings, extra_body={"ignore_eos": True})
    stream = tiny.openai.chat.completions.create(**settings, stream=True, extra_body={"ignore_eos": True})
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == whole.choices[0].message.content


def test_n_samples_differ_and_a_seed_brings_them_back(tiny: Endpoint) -> None:
    def sample() -> list[str]:
        answer = tiny.openai.chat.completions.create(model="tiny", messages=QUESTION, n=3, seed=7, max_tokens=12)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        return [choice.message.content for choice in answer.choices]

    first = sample()
    assert len(set(first)) == 3
    assert sample() == first


def test_streamed_samples_arrive_under_their_own_index(tiny: Endpoint) -> None:
    settings = {"model": "tiny", "messages": QUESTION, "n": 3, "seed": 7, "max_tokens": 12}
    whole = tiny.openai.chat.completions.create(**settings)
    texts = ["", "", ""]
    ends = []
    for chunk in tiny.openai.chat.completions.create(**settings, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends.append(choice.index)
    assert texts == [choice.message.content for choice in whole.choices]
    assert sorted(ends) == [0, 1, 2]


def test_logprobs_name_the_token_its_bytes_and_the_alternatives(tiny: Endpoint) -> None:
    answer = tiny.openai.chat.completions.create(
        model="tiny", messages=QUESTION, temperature=0, max_tokens=8, logprobs=True, top_logprobs=4,
        extra_body={"ignore_eos": True},
    )  # fmt: skip
    entries = answer.choices[0].logprobs.content
    assert len(entries) == 8
    assert (
        b"".join(bytes(entry.bytes) for entry in entries).decode("utf-8", "replace")
        == answer.choices[0].message.content
    )
    for entry in entries:
        assert len(entry.top_logprobs) == 4
        assert entry.logprob == entry.top_logprobs[0].logprob  # greedy takes the likeliest
        assert math.fsum(math.exp(top.logprob) for top in entry.top_logprobs) <= 1 + 1e-6


def test_streamed_logprobs_are_those_of_the_whole_answer(tiny: Endpoint) -> None:
    settings = {
        "model": "tiny",
        "messages": QUESTION,
        "temperature": 0,
        "max_tokens": 8,
        "logprobs": True,
        "top_logprobs": 1,
    }
    whole = tiny.openai.chat.completions.create(**settings)
    entries = []
    for chunk in tiny.openai.chat.completions.create(**settings, stream=True):
        if chunk.choices[0].logprobs:
            entries += chunk.choices[0].logprobs.content
    assert entries == whole.choices[0].logprobs.content


def test_a_stop_string_ends_the_answer_before_it(smol: Endpoint) -> None:
    settings = {"model": "smol", "messages": QUESTION, "temperature": 0, "max_tokens": 30}
    whole = smol.openai.chat.completions.create(**settings).choices[0].message.content
    stop = whole.split()[3]
    cut = smol.openai.chat.completions.create(**settings, stop=[stop]).choices[0]
    assert cut.message.content == whole[: whole.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.stop_reason == stop
    streamed = smol.openai.chat.completions.create(**settings, stop=stop, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in streamed) == cut.message.content
    kept = smol.openai.chat.completions.create(**settings, stop=stop, extra_body={"include_stop_str_in_output": True})
    assert kept.choices[0].message.content == cut.message.content + stop
    eventually(smol.idle)


def test_sampling_extras_of_vllm_work(tiny: Endpoint) -> None:
    def ask(**extra: object) -> str:
        answer = tiny.openai.chat.completions.create(
            model="tiny",
            messages=QUESTION,
            max_tokens=10,
            temperature=1.5,
            seed=3,
            extra_body={"ignore_eos": True, **extra},
        )
        return answer.choices[0].message.content

    greedy = tiny.openai.chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=10, temperature=0, extra_body={"ignore_eos": True}
    )
    assert ask(top_k=1) == greedy.choices[0].message.content
    assert ask(min_p=1.0) == greedy.choices[0].message.content
    assert ask() != ask(top_k=1)
    biased = tiny.openai.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=4, logit_bias={"70": 100})
    assert len(set(biased.choices[0].message.content)) == 1


def test_a_stop_token_ends_and_is_named(tiny: Endpoint) -> None:
    answer = tiny.openai.chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=9, logit_bias={"70": 100}, extra_body={"stop_token_ids": [70]}
    )
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].stop_reason == 70
    assert answer.usage.completion_tokens == 1
    kept = tiny.openai.chat.completions.create(
        model="tiny", messages=QUESTION, max_tokens=9, logit_bias={"70": 100},
        extra_body={"stop_token_ids": [70], "min_tokens": 3},
    )  # fmt: skip
    assert kept.usage.completion_tokens == 4


def test_an_assistants_beginning_is_continued(smol: Endpoint) -> None:
    begun = [*QUESTION, {"role": "assistant", "content": "The capital of France is"}]
    answer = smol.openai.chat.completions.create(
        model="smol", messages=begun, temperature=0, max_tokens=3, extra_body={"continue_final_message": True}
    )
    assert answer.choices[0].message.content.strip().startswith("Paris")


def test_text_parts_and_the_developer_role_are_understood(tiny: Endpoint) -> None:
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "this?"}]
    spelled = [
        [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": parts}],
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is\nthis?"}],
    ]
    answers = [
        tiny.openai.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=5)
        for messages in spelled
    ]
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


def test_an_answer_sent_back_by_the_client_is_accepted(tiny: Endpoint) -> None:
    answer = tiny.openai.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=4, temperature=0)
    history = [*QUESTION, answer.choices[0].message.model_dump(), {"role": "user", "content": "And of Spain?"}]
    assert tiny.openai.chat.completions.create(model="tiny", messages=history, max_tokens=4).choices


def test_a_chat_without_a_limit_may_fill_the_context(tiny: Endpoint) -> None:
    answer = tiny.openai.chat.completions.create(model="tiny", messages=QUESTION, extra_body={"ignore_eos": True})
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.total_tokens == 256


def test_prompt_logprobs_come_as_vllm_spells_them(tiny: Endpoint) -> None:
    status, answer = tiny.post(
        "/v1/chat/completions", {"model": "tiny", "messages": QUESTION, "max_tokens": 1, "prompt_logprobs": 1}
    )
    assert status == 200
    found = answer["prompt_logprobs"]
    assert len(found) == answer["usage"]["prompt_tokens"]
    assert found[0] is None
    assert all({"logprob", "rank", "decoded_token"} == set(item) for entry in found[1:] for item in entry.values())


def test_models_are_listed_and_looked_up(tiny: Endpoint) -> None:
    listed = tiny.openai.models.list().data
    assert [model.id for model in listed] == ["tiny"]
    assert tiny.openai.models.retrieve("tiny").max_model_len == 256
    with pytest.raises(openai.NotFoundError):
        tiny.openai.models.retrieve("other")
