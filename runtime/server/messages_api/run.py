"""POST /v1/messages."""

import contextlib
from collections.abc import AsyncGenerator

from plimsoll.runtime.server.chat_run import ChatRun
from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.generation import Answer
from plimsoll.runtime.server.messages_api.encoder import Encoder
from plimsoll.runtime.server.messages_api.errors import encoded
from plimsoll.runtime.server.messages_api.objects import MessageObject, MessageUsage
from plimsoll.runtime.server.messages_api.request import NAMES, MessagesRequest
from plimsoll.runtime.server.protocol import ChatCompletionRequest
from plimsoll.runtime.server.serving import Serving


class MessageRun:
    """One message: either `complete` or `events`.

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
        request: MessagesRequest,
        chat: ChatCompletionRequest,
        ids: list[int],
        request_id: str,
    ) -> None:
        self.request_id = request_id
        self.run = ChatRun(serving, chat, ids, request_id)
        self.encoder = Encoder(request_id, serving.config.served_name, show_thoughts=request.show_thoughts)

    async def complete(self) -> MessageObject:
        """The whole message."""
        [reply] = await self.run.finish()
        self.encoder.add(reply.parts)
        self._end(reply.answer)
        return self.encoder.message

    async def events(self) -> AsyncGenerator[bytes]:
        """Server-sent events: each block as it comes, then why the message ended."""
        async with contextlib.aclosing(self.run.parts()) as pieces:
            async for answer, parts, delta in pieces:
                data = b"" if self.encoder.begun else self.encoder.begin(self._usage())
                data += self.encoder.add(parts)
                if delta.finish_reason is not None:
                    data += self._end(answer)
                if data:
                    self.run.generation.sent = True
                    yield data

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that fails."""
        return b"event: error\ndata: " + encoded(error.renamed(NAMES), self.request_id) + b"\n\n"

    def _end(self, answer: Answer) -> bytes:
        stopped = answer.stop_reason if isinstance(answer.stop_reason, str) else None
        return self.encoder.end(cut=answer.finish_reason == "length", stop_sequence=stopped, usage=self._usage())

    def _usage(self) -> MessageUsage:
        used = self.run.usage()
        cached = used.prompt_tokens_details.cached_tokens
        return MessageUsage(used.prompt_tokens - cached, cached, used.completion_tokens)
