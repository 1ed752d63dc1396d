"""POST /v1/chat/completions."""

import contextlib
from collections.abc import AsyncGenerator
from typing import Any

from plimsoll.runtime.output import TextDelta
from plimsoll.runtime.server.generation import Answer, Generation
from plimsoll.runtime.server.params import answer_length, check_queue, sampling_params
from plimsoll.runtime.server.protocol import ChatCompletionRequest
from plimsoll.runtime.server.responses import ChatChoice, ChatCompletion, ChatLogprobs, ChatMessage
from plimsoll.runtime.server.serving import Serving
from plimsoll.runtime.server.streaming import DONE, MARKER, Frame, event


class Chat:
    """One chat request: either `complete` or `events`.

    Args:
        ids: the conversation as the model's template writes it.

    Raises:
        ApiError: something that can be refused before the engine is asked.
    """

    def __init__(self, serving: Serving, request: ChatCompletionRequest, ids: list[int], request_id: str) -> None:
        self.serving, self.request, self.request_id = serving, request, request_id
        info = serving.known_engine()
        max_tokens = answer_length(request, len(ids), info.model_len, strict=serving.config.strict)
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        work = [
            (ids, sampling_params(request, max_tokens, index, logprobs=logprobs, defaults=serving.defaults))
            for index in range(request.n)
        ]
        check_queue(work, request.n, "n", serving.engine.config)
        self.generation = Generation(serving, self.request_id, work, samples=request.n, n=request.n)
        self.head = serving.head(f"chatcmpl-{self.request_id}", info)

    async def complete(self) -> ChatCompletion:
        """The whole answer, once every choice is complete."""
        answers = await self.generation.finish()
        choices = [
            ChatChoice(
                index=answer.index,
                message=ChatMessage("".join(answer.text)),
                logprobs=self.serving.texts.chat(answer.logprobs) if self.request.logprobs else None,
                finish_reason=answer.finish_reason,  # type: ignore[arg-type]
                stop_reason=answer.stop_reason,
            )
            for answer in answers
        ]
        return ChatCompletion(
            **self.head,
            choices=choices,
            usage=self.generation.usage(),
            prompt_logprobs=self.serving.texts.prompt(answers[0].prompt_logprobs),
        )

    async def events(self) -> AsyncGenerator[bytes]:
        """Server-sent events: the role, the text as it comes, the reason it ended, the usage if asked for."""
        options = self.request.stream_options
        usage = options is not None and options.include_usage
        running = options is not None and usage and options.continuous_usage_stats
        # With usage, OpenAI has the field in every chunk, null in all but the last.
        head = {**self.head, "object": "chat.completion.chunk"} | ({"usage": None} if usage else {})
        frames: dict[int, Frame] = {}

        def chunk(answer: Answer, delta: dict[str, Any], logprobs: ChatLogprobs | None = None) -> dict[str, Any]:
            choice = {"index": answer.index, "delta": delta, "logprobs": logprobs, "finish_reason": None}
            used = {"usage": self.generation.usage()} if running else {}
            return {**head, **used, "choices": [choice]}

        def encoded(answer: Answer, delta: TextDelta) -> bytes:
            data = b""
            frame = frames.get(answer.index)
            if frame is None:
                data = event(chunk(answer, {"role": "assistant", "content": ""}))
                frame = frames[answer.index] = Frame(chunk(answer, {"content": MARKER}))
            if delta.logprobs:
                data += event(chunk(answer, {"content": delta.text}, self.serving.texts.chat(delta.logprobs)))
            elif delta.text:
                data += event(chunk(answer, {"content": delta.text})) if running else frame.event(delta.text)
            if delta.finish_reason is not None:
                last = chunk(answer, {})
                last["choices"][0] |= {"finish_reason": answer.finish_reason, "stop_reason": answer.stop_reason}
                data += event(last)
            return data

        async with contextlib.aclosing(self.generation.deltas()) as deltas:
            async for answer, delta in deltas:
                if data := encoded(answer, delta):
                    self.generation.sent = True
                    yield data
        tail = event({**head, "choices": [], "usage": self.generation.usage()}) if usage else b""
        yield tail + DONE
