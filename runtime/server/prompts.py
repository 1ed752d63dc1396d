"""From what a request says to token ids."""

from collections.abc import Callable, Mapping
from typing import Any

from plimsoll.checkpoint import tool_turns
from plimsoll.checkpoint.chat_template import ChatTemplateError
from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.runtime.config import ServerConfig
from plimsoll.runtime.server.errors import bad_request, invalid_value
from plimsoll.runtime.server.params import answer_length, check_vocabulary
from plimsoll.runtime.server.protocol import ChatCompletionRequest, CompletionRequest, Sampling
from plimsoll.runtime.server.reading import reading_of, template_variables

#: What transformers' `apply_chat_template` takes by name: ours to set, or nothing a template could use.
RESERVED = frozenset(
    "add_generation_prompt chat_template continue_final_message conversation documents max_length messages padding "
    "return_assistant_tokens_mask return_dict return_tensors self tokenize tokenizer_kwargs tools truncation".split()
)
#: Gets the field that is worked on next.
Note = Callable[[str | None], None]


class Reader:
    """Turns conversations and texts into token ids.

    Args:
        vocab_size: rows of the model's embedding.
        longest_token: bytes of the longest token in the vocabulary. A token stands for at most so many bytes: too
            many characters are too long however they are split.
        config: of the server.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, longest_token: int, config: ServerConfig) -> None:
        self.tokenizer, self.vocab_size, self.longest_token = tokenizer, vocab_size, longest_token
        self.config, self.strict = config, config.strict

    def chat(self, request: ChatCompletionRequest, model_len: int, note: Note) -> list[int]:
        """The conversation as the model's template writes it, tokenized; the request's `reading` is set.

        Raises:
            ApiError: 400 when the template refuses the conversation, or it cannot fit.
        """
        if taken := RESERVED & request.chat_template_kwargs.keys():
            name = sorted(taken)[0]
            raise invalid_value(
                f"chat_template_kwargs may not set {name}. Leave it out.", f"chat_template_kwargs.{name}"
            )
        request.bad_tokens = self._bad_tokens(request)
        messages = _messages(request)
        whole = request.truncate_prompt_tokens is None
        if whole:
            self._check_length("messages", sum(map(_characters, messages)), model_len)
        self._check_length("chat_template_kwargs", _characters(request.chat_template_kwargs), model_len)
        tools = [] if request.tool_choice == "none" else [tool.model_dump(exclude_unset=True) for tool in request.tools]
        self._check_length("tools", _characters(tools), model_len)
        note("chat_template")

        def render(turns: list[dict[str, Any]], offered: list[dict[str, Any]] | None) -> str:
            return self.tokenizer.render_chat_template(
                turns,
                add_generation_prompt=request.add_generation_prompt and not request.continue_final_message,
                continue_final_message=request.continue_final_message,
                chat_template=request.chat_template,
                **variables,
                **({"tools": offered} if offered else {}),
            )

        try:
            source = self.tokenizer.template_source(request.chat_template, bool(tools))
            variables = template_variables(request, source)
            rendered, own_words = tool_turns.rendered(messages, tools, render)
            request.read_by(reading_of(request, self.tokenizer, self.config, rendered, own_words=own_words))
        except ChatTemplateError as error:
            if isinstance(error.__cause__, MemoryError):
                raise error.__cause__ from None
            message = error.message[:1].upper() + error.message[1:] + (f". {error.fix}" if error.fix else "")
            param = error.field if error.field == "chat_template" else "messages"
            raise invalid_value(message, param) from None
        if whole:
            self._check_length("messages", len(rendered), model_len)
        note("messages")
        ids = self.tokenizer.encode(rendered, add_special_tokens=request.add_special_tokens)
        return _truncated(request, ids, model_len)

    def text(self, prompt: str, add_special_tokens: bool, model_len: int, note: Note) -> list[int]:
        """Token ids of a text. Raises ApiError 400 where it could not fit however it is split."""
        self._check_length("prompt", len(prompt), model_len)
        note("prompt")
        return self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)

    def decoded(self, ids: list[int]) -> str:
        """Text of token ids, special tokens included. Raises ApiError 400 for one that the vocabulary has not."""
        check_vocabulary("tokens", ids, self.vocab_size)
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def completions(
        self, request: CompletionRequest, model_len: int, note: Note, queued_tokens: int
    ) -> list[tuple[str, list[int]]]:
        """Text and token ids of every prompt; the text is empty where it is not echoed.

        Args:
            queued_tokens: the most that several prompts may have together.

        Raises:
            ApiError: 400 for a prompt that is empty, cannot fit, or names a token that the vocabulary has not, and for
                prompts that are too many tokens together. The first such prompt ends the work.
        """
        request.bad_tokens = self._bad_tokens(request)
        note("prompt")
        found: list[tuple[str, list[int]]] = []
        tokens = 0
        for prompt in request.prompt:
            if isinstance(prompt, str):
                if request.truncate_prompt_tokens is None:
                    self._check_length("prompt", len(prompt), model_len)
                given = self.tokenizer.encode(prompt, add_special_tokens=request.add_special_tokens)
            else:
                check_vocabulary("prompt", prompt, self.vocab_size)
                given = prompt
            ids = _truncated(request, given, model_len)
            text = ""
            if request.echo and isinstance(prompt, str) and len(ids) == len(given):
                text = prompt
            elif request.echo and len(ids) <= model_len:
                text = self.tokenizer.decode(ids, skip_special_tokens=False)
            if not ids:
                raise invalid_value("prompt must not be empty: there is nothing to continue.", "prompt")
            answer_length(request, len(ids), model_len, strict=self.strict)
            found.append((text, ids))
            tokens += len(ids)
            if len(found) > 1 and tokens > queued_tokens:
                raise invalid_value(
                    f"Too many prompt tokens: the first {len(found)} prompts have {tokens}, and this server queues at "
                    f"most {queued_tokens}. Send fewer, or shorter ones.",
                    "prompt",
                )
        return found

    def _bad_tokens(self, request: Sampling) -> list[list[int]]:
        """Token ids of `bad_words`, as they are written at the beginning of a text and, as in vLLM, after a space."""
        found: dict[tuple[int, ...], None] = {}
        for word in request.bad_words:
            for text in (word.lstrip(), " " + word.lstrip()):
                ids = self.tokenizer.encode(text, add_special_tokens=False)
                if ids:
                    found[tuple(ids)] = None
        return [list(ids) for ids in found]

    def _check_length(self, param: str, characters: int, model_len: int) -> None:
        if characters > model_len * self.longest_token:
            raise bad_request(
                f"This model's maximum context length is {model_len} tokens; {characters} characters cannot fit it. "
                f"Please shorten the {param}.",
                param,
                "context_length_exceeded",
            )


def _truncated(request: Sampling, ids: list[int], model_len: int) -> list[int]:
    """The last `truncate_prompt_tokens` of a prompt, or the first.

    -1 is as many as the context holds beside the answer. Raises ApiError 400 for more than the context.
    """
    most = request.truncate_prompt_tokens
    if most is None:
        return ids
    if most > model_len:
        raise invalid_value(
            f"Invalid value for truncate_prompt_tokens: above this model's context of {model_len} tokens "
            f"(found {most}).",
            "truncate_prompt_tokens",
        )
    if most == -1:
        answer = getattr(request, "max_completion_tokens", None) or getattr(request, "max_tokens", None) or 1
        most = max(1, model_len - answer)
    return ids[-most:] if request.truncation_side == "left" else ids[:most]


def _messages(request: ChatCompletionRequest) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    called: dict[str, str] = {}
    for turn in request.messages:
        # OpenAI renamed the role; templates of open models know the old name.
        role = "system" if turn.role == "developer" else turn.role
        extras: dict[str, Any] = {"name": turn.name, "reasoning_content": turn.reasoning_content or turn.reasoning}
        if turn.role == "tool":
            extras |= {"tool_call_id": turn.tool_call_id, "name": turn.name or called.get(turn.tool_call_id or "")}
        for call in turn.tool_calls or ():
            called[call.id or ""] = call.function.name
        extras["tool_calls"] = [call.for_template() for call in turn.tool_calls or ()]
        messages.append(
            {"role": role, "content": turn.content} | {key: given for key, given in extras.items() if given}
        )
    if request.continue_final_message and (messages[-1]["role"] != "assistant" or not messages[-1]["content"]):
        raise invalid_value(
            "continue_final_message needs an assistant's message with text at the end of messages. Add one, or leave "
            "the field out.",
            "continue_final_message",
        )
    return messages


def echoed(request: ChatCompletionRequest) -> str:
    """What a chat's answer begins with: the last message, where the request wants it and it is an assistant's."""
    content = request.messages[-1].content
    if not request.echo or request.messages[-1].role != "assistant" or not content:
        return ""
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content)


def _characters(value: Any) -> int:
    """Characters of all strings in a JSON value, names of fields included."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, Mapping):
        return sum(len(name) + _characters(inside) for name, inside in value.items())
    return sum(map(_characters, value)) if isinstance(value, list) else 0
