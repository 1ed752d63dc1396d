"""A chat at work in the engine: what chat completions, and every route that speaks of a conversation, run through."""

import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field

from plimsoll.runtime.engine.core.thought import ThoughtState
from plimsoll.runtime.output import TextDelta
from plimsoll.runtime.server.generation import Answer, Generation
from plimsoll.runtime.server.params import answer_length, check_queue, sampling_params
from plimsoll.runtime.server.parts import Called, Part, PartReader, Said, Thought, merged
from plimsoll.runtime.server.protocol import ChatCompletionRequest
from plimsoll.runtime.server.reading import reader_of, shown, thought_of
from plimsoll.runtime.server.responses import CompletionDetails, Usage
from plimsoll.runtime.server.serving import Serving


@dataclass
class Reply:
    """One whole answer."""

    answer: Answer
    parts: list[Part] = field(default_factory=list)
    """In order, neighbours of one kind merged."""

    @property
    def content(self) -> str:
        """What the model says."""
        return "".join(part.text for part in self.parts if isinstance(part, Said))

    @property
    def thought(self) -> str:
        """What the model thought."""
        return "".join(part.text for part in self.parts if isinstance(part, Thought))

    @property
    def calls(self) -> list[Called]:
        """The functions that the model calls, with whole arguments."""
        return [part for part in self.parts if isinstance(part, Called)]


class ChatRun:
    """Runs one chat: either `finish` or `parts`.

    Args:
        request: what to run. Its messages are gone; `ids` are what the model's template made of them.
        ids: token ids of the conversation.

    Attributes:
        thinks: whether the model thinks before it answers.
        generation: the sequences; set its `sent` once the client has got a part of an answer.

    Raises:
        ApiError: something that can be refused before the engine is asked.
    """

    def __init__(self, serving: Serving, request: ChatCompletionRequest, ids: list[int], request_id: str) -> None:
        self.request = request
        self.info = serving.known_engine()
        max_tokens = answer_length(request, len(ids), self.info.model_len, strict=serving.config.strict)
        logprobs = (request.top_logprobs or 0) if request.logprobs else None
        work = [
            (ids, sampling_params(request, max_tokens, index, logprobs=logprobs, defaults=serving.defaults))
            for index in range(request.n)
        ]
        check_queue(work, request.n, "n", serving.engine.config)
        self.thinks = request.reading is not None and request.reading.reasoning_parser is not None
        special = shown(request.reading, serving.tokenizer)
        self._hidden = serving.tokenizer.special_ids - special if request.skip_special_tokens else frozenset()
        self._token_bytes = serving.tokenizer.token_bytes
        self.generation = Generation(
            serving, request_id, work, samples=request.n, n=request.n, shown=special, ends=request.return_token_ids
        )
        self._readers: dict[int, tuple[Answer, PartReader, ThoughtState | None]] = {}

    async def parts(self) -> AsyncGenerator[tuple[Answer, list[Part], TextDelta]]:
        """What each answer gained, in parts and as text. Raises ApiError as `Generation.deltas` does."""
        async with contextlib.aclosing(self.generation.deltas()) as deltas:
            async for answer, delta in deltas:
                yield answer, self._read(answer, delta), delta

    async def finish(self) -> list[Reply]:
        """The whole answers, by index. Raises ApiError as `Generation.deltas` does."""
        found: dict[int, Reply] = {}
        async with contextlib.aclosing(self.parts()) as pieces:
            async for answer, parts, delta in pieces:
                reply = found.get(answer.index)
                if reply is None or reply.answer is not answer:
                    # An engine that was started again begins again.
                    reply = found[answer.index] = Reply(answer)
                reply.parts += parts
                if delta.logprobs:
                    answer.logprobs.extend(delta.logprobs)
        for reply in found.values():
            reply.parts = merged(reply.parts)
        return [found[answer.index] for answer in self.generation.answers]

    def usage(self) -> Usage:
        """Tokens so far."""
        used = self.generation.usage()
        if self.thinks:
            thought = sum(answer.thought for answer in self.generation.answers)
            used.completion_tokens_details, used.reasoning_tokens = CompletionDetails(thought), thought
        return used

    def _read(self, answer: Answer, delta: TextDelta) -> list[Part]:
        known = self._readers.get(answer.index)
        if known is None or known[0] is not answer:
            reading = self.request.reading
            reader = reader_of(reading, whole=not self.request.stream)
            known = self._readers[answer.index] = answer, reader, thought_of(reading)
        _, reader, thought = known
        if thought is not None and not thought.over:
            for token in delta.token_ids:
                thought.take(b"" if token in self._hidden else self._token_bytes(token))
            answer.thought = thought.tokens
        parts = reader.read(delta.text)
        if delta.finish_reason is not None:
            parts = parts + reader.end()
        return [part for part in parts if self._wanted(part)]

    def _wanted(self, part: Part) -> bool:
        if isinstance(part, Thought):
            return self.request.include_reasoning
        return not isinstance(part, Called) or self.request.parallel_tool_calls or not part.index
