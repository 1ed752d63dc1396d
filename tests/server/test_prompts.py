"""The prompt that a chat request becomes: every text that it holds, whatever form the model's template takes."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from plimsoll.checkpoint import open_checkpoint
from plimsoll.checkpoint.tokenizer import load_tokenizer
from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.parse import parse
from plimsoll.runtime.server.prompts import chat_prompt
from plimsoll.runtime.server.protocol import ChatCompletionRequest
from plimsoll.runtime.server.serving import Serving

PARTS = (
    "{% for m in messages %}[{{ m.role }}]{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def prompt_of(folder: Path, template: str, messages: list[dict[str, Any]], **fields: Any) -> str:
    path = folder / "template.jinja"
    path.write_text(template)
    tokenizer = load_tokenizer(open_checkpoint(folder), path)
    serving = cast(Serving, SimpleNamespace(tokenizer=tokenizer, longest_token=16))
    body = json.dumps({"model": "tiny", "messages": messages, **fields}).encode()
    ids = asyncio.run(chat_prompt(serving, parse(body, ChatCompletionRequest), 256))
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
