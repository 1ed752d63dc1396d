"""POST /v1/responses."""

import contextlib
import time
from collections.abc import AsyncGenerator
from functools import partial

import msgspec

from plimsoll.runtime.output import TextDelta
from plimsoll.runtime.server.chat_run import ChatRun
from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.generation import Answer
from plimsoll.runtime.server.parts import Part
from plimsoll.runtime.server.protocol import ChatCompletionRequest
from plimsoll.runtime.server.responses_api.encoder import Encoder
from plimsoll.runtime.server.responses_api.objects import InputDetails, OutputDetails, ResponseObject, ResponseUsage
from plimsoll.runtime.server.responses_api.request import ENCRYPTED, NAMES, ResponsesRequest
from plimsoll.runtime.server.serving import Serving


class ResponseRun:
    """One response: either `complete` or `events`.

    Args:
        request: as the client sent it.
        chat: the chat completion that runs.
        ids: the conversation as the model's template writes it.

    Raises:
        ApiError: something that can be refused before the engine is asked.
    """

    def __init__(
        self,
        serving: Serving,
        request: ResponsesRequest,
        chat: ChatCompletionRequest,
        ids: list[int],
        request_id: str,
    ) -> None:
        self.serving = serving
        self.run = ChatRun(serving, chat, ids, request_id)
        sampled = {
            name: getattr(chat, name) if name in chat.model_fields_set else serving.defaults.get(name, 1.0)
            for name in ("temperature", "top_p")
        }
        head = {"created_at": int(time.time()), "model": serving.config.served_name} | request.repeated() | sampled
        self._encoder = partial(
            Encoder, head, request_id, encrypted=ENCRYPTED in request.include, spaces=request.spaces
        )
        self.encoder = self._encoder()

    async def complete(self) -> ResponseObject:
        """The whole response."""
        current: Answer | None = None
        async with contextlib.aclosing(self.run.parts()) as pieces:
            async for answer, parts, delta in pieces:
                if answer is not current:
                    # An engine that was started again begins again.
                    current, self.encoder = answer, self._encoder()
                self._add(answer, parts, delta)
        return self.encoder.response

    async def events(self) -> AsyncGenerator[bytes]:
        """Server-sent events: each item as it comes, and the whole response at the end."""
        async with contextlib.aclosing(self.run.parts()) as pieces:
            async for answer, parts, delta in pieces:
                data = b"" if self.encoder.begun else self.encoder.begin()
                data += self._add(answer, parts, delta)
                if data:
                    self.run.generation.sent = True
                    yield data

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that fails."""
        return self.encoder.fail(error.renamed(NAMES))

    def _add(self, answer: Answer, parts: list[Part], delta: TextDelta) -> bytes:
        logprobs = self.serving.texts.chat(delta.logprobs).content if delta.logprobs else []
        data = self.encoder.add(parts, logprobs)
        if delta.finish_reason is None:
            return data
        return data + self.encoder.end(cut=answer.finish_reason == "length", usage=self._usage())

    def _usage(self) -> ResponseUsage:
        used = self.run.usage()
        thought = used.completion_tokens_details
        return ResponseUsage(
            used.prompt_tokens,
            InputDetails(used.prompt_tokens_details.cached_tokens),
            used.completion_tokens,
            OutputDetails(0 if isinstance(thought, msgspec.UnsetType) else thought.reasoning_tokens),
            used.total_tokens,
        )
