"""Parts of an answer to the blocks of a message, and to the events that announce them."""

from typing import Any

import pydantic_core

from plimsoll.runtime.server.blocks import Block, Blocks, Step
from plimsoll.runtime.server.messages_api.objects import (
    SIGNATURE,
    ContentBlock,
    MessageObject,
    MessageUsage,
    StopReason,
    TextBlock,
    ThinkingBlock,
    ToolUseBlock,
)
from plimsoll.runtime.server.parts import Part
from plimsoll.runtime.server.streaming import MARKER, encode, named

DELTAS = {
    "thought": {"type": "thinking_delta", "thinking": MARKER},
    "text": {"type": "text_delta", "text": MARKER},
    "call": {"type": "input_json_delta", "partial_json": MARKER},
}


class Encoder:
    """One message, as far as it has come. Each method returns the events that it adds.

    Args:
        request_id: what ids are made from.
        model: the served name.
        show_thoughts: thoughts are given, rather than that there were some.
    """

    def __init__(self, request_id: str, model: str, *, show_thoughts: bool) -> None:
        self.message = MessageObject(f"msg_{request_id}", model, [], MessageUsage(0, 0, 0))
        self.request_id, self.show_thoughts = request_id, show_thoughts
        self.begun = self._pinged = False
        self._blocks = Blocks()
        self._head, self._tail = b"", b""
        """What is around the text of each delta of the open block."""

    def begin(self, usage: MessageUsage) -> bytes:
        """The event before the first block; `usage` has the tokens of the prompt."""
        self.begun = True
        self.message.usage = usage
        return _event("message_start", message=self.message)

    def add(self, parts: list[Part]) -> bytes:
        """The events of some parts."""
        return b"".join(map(self._step, self._blocks.add(parts)))

    def end(self, *, cut: bool, stop_sequence: str | None, usage: MessageUsage) -> bytes:
        """The last events.

        Args:
            cut: the answer ends at the limit of its tokens.
            stop_sequence: which of the request's own ended it.
        """
        data = b"".join(map(self._step, self._blocks.end()))
        message = self.message
        message.usage = usage
        message.stop_sequence = None if cut else stop_sequence
        message.stop_reason = _reason(message.content, cut, stop_sequence)
        reason = {"stop_reason": message.stop_reason, "stop_sequence": message.stop_sequence}
        return data + _event("message_delta", delta=reason, usage=usage) + _event("message_stop")

    def _step(self, step: Step) -> bytes:
        if step.what == "opens":
            return self._opens(step.block)
        if step.what == "closes":
            return self._closes(step.block)
        hidden = step.block.kind == "thought" and not self.show_thoughts
        return b"" if hidden else self._head + encode(step.text) + self._tail

    def _opens(self, block: Block) -> bytes:
        data = _event("content_block_start", index=block.index, content_block=self._content(block, begun=True))
        if not self._pinged:
            # Anthropic's server sends one here, and some clients wait for it.
            self._pinged = True
            data += _event("ping")
        delta = {"type": "content_block_delta", "index": block.index, "delta": DELTAS[block.kind]}
        frame = named("content_block_delta", delta)
        self._head, _, self._tail = frame.partition(encode(MARKER))
        return data

    def _closes(self, block: Block) -> bytes:
        self.message.content.append(self._content(block))
        data = b""
        if block.kind == "thought":
            signature = {"type": "signature_delta", "signature": SIGNATURE}
            data = _event("content_block_delta", index=block.index, delta=signature)
        return data + _event("content_block_stop", index=block.index)

    def _content(self, block: Block, begun: bool = False) -> ContentBlock:
        """The block as it is; without its text and its signature where it has only `begun`."""
        text = "" if begun else block.text
        if block.kind == "text":
            return TextBlock(text)
        if block.kind == "thought":
            return ThinkingBlock(text if self.show_thoughts else "", "" if begun else SIGNATURE)
        return ToolUseBlock(block.id or f"toolu_{self.request_id}_{block.index}", block.name, _input(text))


def _reason(content: list[ContentBlock], cut: bool, stop_sequence: str | None) -> StopReason:
    if cut:
        return "max_tokens"
    if stop_sequence is not None:
        return "stop_sequence"
    return "tool_use" if any(isinstance(block, ToolUseBlock) for block in content) else "end_turn"


def _input(arguments: str) -> dict[str, Any]:
    """The arguments as an object; of those that are cut, what has come, as clients read a stream."""
    if not arguments:
        return {}
    try:
        found = pydantic_core.from_json(arguments, allow_partial="trailing-strings")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _event(kind: str, **fields: Any) -> bytes:
    return named(kind, {"type": kind, **fields})
