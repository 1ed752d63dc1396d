"""The prompt that a chat request becomes: every text that it holds, whatever form the model's template takes."""

import json
from pathlib import Path
from typing import Any

import pytest

from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.runtime.config import ServerConfig
from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.parse import parse
from plimsoll.runtime.server.prompts import Reader
from plimsoll.runtime.server.protocol import ChatCompletionRequest, CompletionRequest

PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def prompt_of(folder: Path, template: str, messages: list[dict[str, Any]], **fields: Any) -> str:
    path = folder / "template.jinja"
    path.write_text(template)
    tokenizer = load_tokenizer(open_checkpoint(folder), path)
    body = json.dumps({"model": "tiny", "messages": messages, **fields}).encode()
    reader = Reader(tokenizer, 320, 16, ServerConfig(served_name="tiny"))
    ids = reader.chat(parse(body, ChatCompletionRequest), 256, lambda field: None)
    return tokenizer.decode(ids, skip_special_tokens=False)


def test_two_messages_never_give_one_prompt(tiny_checkpoint: Path) -> None:
    for content in ("left", [{"type": "text", "text": "left"}], [{"type": "text", "text": t} for t in ("le", "ft")]):
        messages = [{"role": "developer", "content": "be brief"}, {"role": "user", "content": content}]
        assert prompt_of(tiny_checkpoint, PARTS, messages) == "[system]be brief[user]left[assistant]"
    strings = PARTS.replace("{% for part in m.content %}{{ part.text }}{% endfor %}", "{{ m.content }}")
    assert prompt_of(tiny_checkpoint, strings, messages) == "[system]be brief[user]le\nft[assistant]"


def test_a_template_that_prints_no_user_is_refused(tiny_checkpoint: Path) -> None:
    with pytest.raises(ApiError, match="prints no text of a user") as caught:
        prompt_of(tiny_checkpoint, "{{ bos_token }}hello", [{"role": "user", "content": "left"}])
    assert caught.value.status == 400


def test_thoughts_that_are_replayed_reach_templates_that_show_them(tiny_checkpoint: Path) -> None:
    shows = "{% for m in messages %}{{ m.role }}{{ m.reasoning_content or '' }}{{ m.content }}{% endfor %}"
    hello = {"role": "user", "content": "hi"}
    for name in ("reasoning_content", "reasoning"):
        turns = [hello, {"role": "assistant", "content": "yes", name: "thought"}, hello]
        assert prompt_of(tiny_checkpoint, shows, turns) == "userhiassistantthoughtyesuserhi"


def test_the_prompt_that_is_too_much_for_the_queue_ends_the_work_on_all(tiny_checkpoint: Path) -> None:
    reader = Reader(load_tokenizer(open_checkpoint(tiny_checkpoint)), 320, 16, ServerConfig(served_name="tiny"))
    # The last prompt would be refused for a token that the vocabulary has not, if it were looked at.
    body = json.dumps({"model": "tiny", "prompt": [*[[5] * 100] * 4, [9999]]}).encode()
    with pytest.raises(ApiError, match="first 3 prompts have 300, and this server queues at most 250") as caught:
        reader.completions(parse(body, CompletionRequest), 256, lambda field: None, 250)
    assert caught.value.param == "prompt"
