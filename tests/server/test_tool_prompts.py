"""Tools, calls and results in a prompt: by the template's own means where it has some, else in words of ours."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.runtime.config import ServerConfig
from plimsoll.runtime.server.functions import Reading
from plimsoll.runtime.server.parse import parse
from plimsoll.runtime.server.prompts import Reader
from plimsoll.runtime.server.protocol import ChatCompletionRequest
from tests.support.checkpoints import CHAT_TEMPLATE
from tests.support.family_templates import GEMMA_2
from tests.support.tool_templates import DEEPSEEK_R1_CALLS, LLAMA_3_1, MISTRAL_TOOLS, PHI_4_MINI, QWEN_TOOLS

TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object", "properties": {}}}}
USER = {"role": "user", "content": "Rain?"}
CALLED = [
    USER,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_0123456789abcdef",
                "type": "function",
                "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'},
            }
        ],
    },
    {"role": "tool", "tool_call_id": "call_0123456789abcdef", "content": "wet"},
]
Prompt = Callable[..., tuple[str, Reading | None]]


@pytest.fixture(scope="module")
def prompt(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Prompt:
    """Renders by a template; returns the prompt and how an answer to it is read."""
    path = tmp_path_factory.mktemp("templates") / "template.jinja"

    def render(template: str, messages: list[dict[str, Any]], **fields: Any) -> tuple[str, Reading | None]:
        path.write_text(template)
        tokenizer = load_tokenizer(open_checkpoint(tiny_checkpoint), path)
        body = json.dumps({"model": "tiny", "messages": messages, **fields}).encode()
        request = parse(body, ChatCompletionRequest)
        config = ServerConfig(served_name="tiny")
        ids = Reader(tokenizer, 320, 16, config).chat(request, 2048, lambda field: None)
        return tokenizer.decode(ids, skip_special_tokens=False), request.reading

    return render


@pytest.mark.parametrize(
    ("template", "parser", "shown"),
    [
        (QWEN_TOOLS, "hermes", '{"name": "get_weather", "arguments": {"city": "Paris"}}'),
        (MISTRAL_TOOLS, "mistral", '{"name": "get_weather", "arguments": {"city": "Paris"}}'),
        (DEEPSEEK_R1_CALLS, "hermes", 'get_weather\n```json\n{"city": "Paris"}\n```'),
        (PHI_4_MINI, "phi4_mini", '{"name": "get_weather", "arguments": {"city": "Paris"}}'),
        (LLAMA_3_1, "llama3_json", '{"name": "get_weather", "parameters": {"city": "Paris"}}'),
        (CHAT_TEMPLATE, "hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'),
        (GEMMA_2, "hermes", '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris"}}\n</tool_call>'),
    ],
)
def test_tools_calls_and_results_reach_every_template(prompt: Prompt, template: str, parser: str, shown: str) -> None:
    text, reading = prompt(template, CALLED, tools=[TOOL])
    assert shown in text
    assert "wet" in text
    # Mistral's prints them before the last message of a user alone, and there is none.
    assert "parameters" in text or template is MISTRAL_TOOLS
    assert reading is not None
    assert reading.tool_parser == parser
    first, _ = prompt(template, [USER], tools=[TOOL])
    assert "get_weather" in first
    assert "Rain?" in first


def test_a_template_without_tools_gets_them_in_the_words_of_hermes_after_the_system_message(prompt: Prompt) -> None:
    text, reading = prompt(CHAT_TEMPLATE, [{"role": "system", "content": "Be brief."}, USER], tools=[TOOL])
    assert text.startswith("<|im_start|>system\nBe brief.\n\n# Tools\n\nYou may call one or more functions")
    assert json.dumps(TOOL) in text
    assert text.endswith("<|im_start|>user\nRain?<|im_end|>\n<|im_start|>assistant\n")
    assert reading == Reading("hermes", None, False, {"get_weather": TOOL["function"]["parameters"]})


def test_results_in_a_row_are_one_turn_of_the_user(prompt: Prompt) -> None:
    text, _ = prompt(CHAT_TEMPLATE, [*CALLED, {**CALLED[2], "content": [{"type": "text", "text": "cold"}]}])
    assert "<|im_start|>user\n<tool_response>\nwet\n</tool_response>\n<tool_response>\ncold\n</tool_response>" in text


def test_ids_become_what_mistrals_template_takes_the_same_in_call_and_result(prompt: Prompt) -> None:
    text, _ = prompt(MISTRAL_TOOLS, CALLED, tools=[TOOL])
    used = text.partition('"call_id": "')[2][:9]
    assert len(used) == 9
    assert text.count(f'"{used}"') == 2


def test_no_tools_reach_the_prompt_where_none_may_be_called(prompt: Prompt) -> None:
    plain = prompt(QWEN_TOOLS, [USER])
    assert prompt(QWEN_TOOLS, [USER], tools=[TOOL], tool_choice="none") == plain


def test_arguments_that_are_no_json_are_replayed_as_they_are(prompt: Prompt) -> None:
    broken = json.loads(json.dumps(CALLED).replace('\\"Paris\\"}', "oops"))
    assert "oops" in prompt(QWEN_TOOLS, broken, tools=[TOOL])[0]


def test_effort_reaches_templates_that_know_how_to_think_and_no_others(prompt: Prompt) -> None:
    off = prompt(QWEN_TOOLS, [USER], reasoning_effort="none")[0]
    assert off.endswith("<think>\n\n</think>\n\n")
    assert prompt(QWEN_TOOLS, [USER], reasoning_effort="high")[0] == prompt(QWEN_TOOLS, [USER])[0]
    assert prompt(QWEN_TOOLS, [USER], chat_template_kwargs={"enable_thinking": False})[0] == off
    assert prompt("{{ reasoning_effort }}:{{ messages[0].content }}", [USER], reasoning_effort="low")[0] == "low:Rain?"
    assert prompt(CHAT_TEMPLATE, [USER], reasoning_effort="low") == prompt(CHAT_TEMPLATE, [USER])


def test_a_thought_that_the_template_opens_is_known(prompt: Prompt) -> None:
    reading = prompt(DEEPSEEK_R1_CALLS, [USER])[1]
    assert reading == Reading(None, "think", True, {})
    assert prompt(QWEN_TOOLS, [USER])[1] == Reading(None, "think", False, {})
    assert prompt(QWEN_TOOLS, [USER], separate_reasoning=False)[1] is None
