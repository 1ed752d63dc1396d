"""From what a request says to token ids, without holding up the streams that are running."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

from plimsoll.checkpoint.chat_template import ChatTemplateError
from plimsoll.runtime.server.errors import ApiError, bad_request
from plimsoll.runtime.server.params import check_vocabulary
from plimsoll.runtime.server.protocol import ChatCompletionRequest, CompletionRequest
from plimsoll.runtime.server.serving import Serving

#: What transformers' `apply_chat_template` takes by name: ours to set, or nothing a template could use.
RESERVED = frozenset(
    "add_generation_prompt chat_template continue_final_message conversation documents max_length messages padding "
    "return_assistant_tokens_mask return_dict return_tensors self tokenize tokenizer_kwargs tools truncation".split()
)
#: Characters up to which tokenising takes less time than asking a thread to do it.
SHORT = 2000
#: One thread: tokenising is work for a processor that the engine wants too.
_thread = ThreadPoolExecutor(1, "tokenise")


async def _tokenised(characters: int, call: Callable[[], list[int]]) -> list[int]:
    if characters <= SHORT:
        return call()
    return await asyncio.get_running_loop().run_in_executor(_thread, call)


def _too_long(param: str, characters: int, model_len: int) -> ApiError:
    return bad_request(
        f"This model's maximum context length is {model_len} tokens; {characters} characters cannot fit it. "
        f"Please shorten the {param}.",
        param,
        "context_length_exceeded",
    )


async def chat_prompt(serving: Serving, request: ChatCompletionRequest, model_len: int) -> list[int]:
    """The conversation as the model's template writes it, tokenised.

    Raises:
        ApiError: 400 when the template refuses the conversation, or it cannot fit.
    """
    if taken := RESERVED & request.chat_template_kwargs.keys():
        name = sorted(taken)[0]
        raise bad_request(f"chat_template_kwargs may not set {name}.", f"chat_template_kwargs.{name}", "invalid_value")
    messages: list[dict[str, Any]] = []
    for turn in request.messages:
        # OpenAI renamed the role; templates of open models know the old name.
        role = "system" if turn.role == "developer" else turn.role
        extras = {"name": turn.name, "reasoning_content": turn.reasoning_content or turn.reasoning}
        messages.append({"role": role, "content": turn.content} | {key: text for key, text in extras.items() if text})
    if request.continue_final_message and (messages[-1]["role"] != "assistant" or not messages[-1]["content"]):
        raise bad_request(
            "continue_final_message needs an assistant's message with text at the end.",
            "continue_final_message",
            "invalid_value",
        )
    characters = sum(
        _characters(message["content"]) + len(message.get("reasoning_content", "")) for message in messages
    )
    # A token stands for at most so many bytes: too many characters are too long however they are split.
    if characters > model_len * serving.longest_token:
        raise _too_long("messages", characters, model_len)
    try:
        return await _tokenised(
            characters,
            lambda: serving.tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=request.add_generation_prompt and not request.continue_final_message,
                continue_final_message=request.continue_final_message,
                chat_template=request.chat_template,
                **request.chat_template_kwargs,
            ),
        )
    except ChatTemplateError as error:
        message = error.message[:1].upper() + error.message[1:] + (f". {error.fix}" if error.fix else "")
        param = error.field if error.field == "chat_template" else "messages"
        raise bad_request(message, param, "invalid_value") from None


def _characters(content: str | list[dict[str, str]]) -> int:
    return len(content) if isinstance(content, str) else sum(len(part["text"]) for part in content)


async def completion_prompts(
    serving: Serving, request: CompletionRequest, model_len: int
) -> list[tuple[str, list[int]]]:
    """Text and token ids of every prompt.

    Raises:
        ApiError: 400 for a prompt that is empty, cannot fit, or names a token that the vocabulary has not.
    """
    found: list[tuple[str, list[int]]] = []
    for prompt in request.prompt:
        if isinstance(prompt, str):
            if len(prompt) > model_len * serving.longest_token:
                raise _too_long("prompt", len(prompt), model_len)
            text = prompt
            ids = await _tokenised(
                len(text),
                partial(serving.tokenizer.encode, text, add_special_tokens=request.add_special_tokens),
            )
        else:
            check_vocabulary("prompt", prompt, serving.vocab_size)
            ids = prompt
            echoed = request.echo and len(ids) <= model_len
            text = serving.tokenizer.decode(ids, skip_special_tokens=False) if echoed else ""
        if not ids:
            raise bad_request("prompt must not be empty: there is nothing to continue.", "prompt", "invalid_value")
        found.append((text, ids))
    return found
