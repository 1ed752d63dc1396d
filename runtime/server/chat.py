"""POST /v1/chat/completions."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from plimsoll.runtime.output import TextDelta
from plimsoll.runtime.server.chat_run import ChatRun, Reply
from plimsoll.runtime.server.generation import Answer
from plimsoll.runtime.server.parts import Called, Part, Said, Thought
from plimsoll.runtime.server.protocol import ChatCompletionRequest
from plimsoll.runtime.server.responses import (
    ChatChoice,
    ChatCompletion,
    ChatLogprobs,
    ChatMessage,
    FunctionCall,
    ToolCall,
)
from plimsoll.runtime.server.serving import Serving
from plimsoll.runtime.server.streaming import DONE, MARKER, Frame, event
from plimsoll.runtime.server.token_ids import TokenIds


class Chat:
    """One chat request: either `complete` or `events`.

    Args:
        ids: the conversation as the model's template writes it.
        echo: what the answer's text begins with.

    Raises:
        ApiError: something that can be refused before the engine is asked.
    """

    def __init__(
        self, serving: Serving, request: ChatCompletionRequest, ids: list[int], request_id: str, echo: str = ""
    ) -> None:
        self.serving, self.request = serving, request
        self.run = ChatRun(serving, request, ids, request_id)
        self.head = serving.head(f"chatcmpl-{request_id}", self.run.info)
        self.echo = [Said(echo)] if echo else []
        self.texts = serving.texts.by_id if request.return_tokens_as_token_ids else serving.texts
        #: Clients of SGLang read the field also where there is no thought, or where it stays in the text.
        self.unsaid = {"reasoning_content": None} if self.run.thinks or not request.separate_reasoning else {}

    async def complete(self) -> ChatCompletion:
        """The whole answer, once every choice is complete."""
        replies = await self.run.finish()
        for reply in replies:
            reply.parts = [*self.echo, *reply.parts]
        return ChatCompletion(
            **self.head,
            choices=[self._choice(reply) for reply in replies],
            usage=self.run.usage(),
            prompt_logprobs=self.serving.texts.prompt(replies[0].answer.prompt_logprobs),
            **TokenIds(self.request.return_token_ids).prompt(replies[0].answer),
        )

    def _choice(self, reply: Reply) -> ChatChoice:
        answer = reply.answer
        return ChatChoice(
            index=answer.index,
            message=_message(reply, bool(self.unsaid)),
            logprobs=self.texts.chat(answer.shown_logprobs()) if self.request.logprobs else None,
            finish_reason=_ended(answer, bool(reply.calls)),  # type: ignore[arg-type]
            stop_reason=answer.stop_reason,
            matched_stop=answer.matched_stop,
            token_ids=answer.token_ids if self.request.return_token_ids else None,
        )

    async def events(self) -> AsyncGenerator[bytes]:
        """Server-sent events: the role, the text as it comes, the reason it ended, the usage if asked for."""
        options = self.request.stream_options
        usage = options is not None and options.include_usage
        counted = options is not None and usage and options.continuous_usage_stats
        token_ids = TokenIds(self.request.return_token_ids)
        running = counted or token_ids.wanted
        # With usage, OpenAI has the field in every chunk, null in all but the last.
        head = {**self.head, "object": "chat.completion.chunk"} | ({"usage": None} if usage else {})
        frames: dict[int, Frame] = {}
        called: set[int] = set()
        # As OpenAI: a text that is to come begins empty, and an answer that is a call has none.
        begun = {"role": "assistant", "content": None if self.request.must_call else ""}

        def chunk(
            answer: Answer, delta: dict[str, Any], logprobs: ChatLogprobs | None = None, without: int = 0
        ) -> dict[str, Any]:
            choice = {"index": answer.index, "delta": self.unsaid | delta, "logprobs": logprobs, "finish_reason": None}
            used = {"usage": self.run.usage().less(without)} if counted else {}
            if token_ids.wanted and delta.get("content") is not MARKER:
                choice |= token_ids.more(answer)
                used |= token_ids.prompt(answer)
            return {**head, **used, "choices": [choice]}

        def encoded(answer: Answer, parts: list[Part], delta: TextDelta) -> bytes:
            data = b""
            frame = frames.get(answer.index)
            if frame is None:
                # Its usage is that of a chunk without tokens.
                data = event(chunk(answer, begun, without=delta.num_tokens))
                frame = frames[answer.index] = Frame(chunk(answer, {"content": MARKER}))
            called.update(answer.index for part in parts if isinstance(part, Called))
            if news := answer.news(delta):
                first = parts[0] if parts else Said("")
                data += event(chunk(answer, _delta(first), self.texts.chat(news)))
                parts = parts[1:]
            for part in parts:
                if isinstance(part, Said) and not running:
                    data += frame.event(part.text)
                    continue
                data += event(chunk(answer, _delta(part)))
            if delta.finish_reason is not None:
                last = chunk(answer, {})
                ended = _ended(answer, answer.index in called)
                last["choices"][0] |= {"finish_reason": ended, "stop_reason": answer.stop_reason}
                last["choices"][0]["matched_stop"] = answer.matched_stop
                data += event(last)
            return data

        async with contextlib.aclosing(self.run.parts()) as pieces:
            async for answer, parts, delta in pieces:
                if answer.index not in frames:
                    parts = [*self.echo, *parts]
                if data := encoded(answer, parts, delta):
                    self.run.generation.sent = True
                    yield data
        tail = event({**head, "choices": [], "usage": self.run.usage()}) if usage else b""
        yield tail + DONE


def _ended(answer: Answer, called: bool) -> str | None:
    return "tool_calls" if called and answer.finish_reason == "stop" else answer.finish_reason


def _message(reply: Reply, named: bool) -> ChatMessage:
    message = ChatMessage(reply.content)
    if named:
        message.reasoning_content = None
    if reply.calls:
        calls = [ToolCall(call.id, FunctionCall(call.name, call.arguments)) for call in reply.calls]
        message.content, message.tool_calls = reply.content or None, calls
    if reply.thought:
        message.reasoning_content = message.reasoning = reply.thought
    return message


def _delta(part: Part) -> dict[str, Any]:
    """What one part adds, as a chunk has it."""
    if isinstance(part, Said):
        return {"content": part.text}
    if isinstance(part, Thought):
        # Clients read one name or the other.
        return {"reasoning_content": part.text, "reasoning": part.text}
    call: dict[str, Any] = {"index": part.index}
    if part.name:
        call |= {"id": part.id, "type": "function"}
    function = {"name": part.name} if part.name else {}
    return {"tool_calls": [{**call, "function": {**function, "arguments": part.arguments}}]}
