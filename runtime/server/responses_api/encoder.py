"""Parts of an answer to the output items of a response, and to the events that announce them."""

import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from plimsoll.runtime.server.blocks import Block, Blocks, Step
from plimsoll.runtime.server.errors import ApiError
from plimsoll.runtime.server.parts import Part, Said
from plimsoll.runtime.server.responses import TokenLogprob
from plimsoll.runtime.server.responses_api.objects import (
    Failure,
    FunctionCallItem,
    Incomplete,
    Item,
    ItemStatus,
    MessageItem,
    OutputText,
    ReasoningItem,
    ReasoningText,
    ResponseObject,
    ResponseUsage,
)
from plimsoll.runtime.server.responses_api.thoughts import sealed
from plimsoll.runtime.server.streaming import encode, named

PREFIXES = {"thought": "rs", "text": "msg", "call": "fc"}
DELTAS = {
    "thought": "response.reasoning_text.delta",
    "text": "response.output_text.delta",
    "call": "response.function_call_arguments.delta",
}


class Encoder:
    """One response, as far as it has come. Each method returns the events that it adds.

    Args:
        head: fields of `ResponseObject` that are known from the beginning.
        request_id: what ids of items are made from.
        encrypted: reasoning items repeat their thought as `encrypted_content`.
        spaces: namespace and own name of functions that came in a namespace, by the name that the model sees.
    """

    def __init__(
        self,
        head: Mapping[str, Any],
        request_id: str,
        *,
        encrypted: bool,
        spaces: Mapping[str, tuple[str, str]] = MappingProxyType({}),
    ) -> None:
        self.response = ResponseObject(**head, id=f"resp_{request_id}", status="in_progress", output=[])
        self.request_id, self.encrypted, self.spaces = request_id, encrypted, spaces
        self.begun = False
        self._blocks = Blocks()
        self._number = 0
        self._delta = b""
        """What each delta of the open item begins with."""
        self._logprobs: list[TokenLogprob] = []
        """Of the text that is open."""
        self._fresh: list[TokenLogprob] = []
        """Of the text that comes next."""

    def begin(self) -> bytes:
        """The events before the first item."""
        self.begun = True
        return self._lifecycle("response.created") + self._lifecycle("response.in_progress")

    def add(self, parts: list[Part], logprobs: Iterable[TokenLogprob] = ()) -> bytes:
        """The events of some parts, and of the log-probabilities of their tokens."""
        self._fresh += logprobs
        if parts and not any(isinstance(part, Said) for part in parts):
            # Those of thoughts and calls belong to no text.
            self._fresh.clear()
        return b"".join(map(self._step, self._blocks.add(parts)))

    def end(self, *, cut: bool, usage: ResponseUsage) -> bytes:
        """The last events.

        Args:
            cut: the answer ends at the limit of its tokens.
        """
        steps = list(self._blocks.end())
        data = b"".join(map(self._step, steps[:-1]))
        data += self._step(steps[-1], "incomplete" if cut else "completed")
        self.response.usage = usage
        self.response.status = "incomplete" if cut else "completed"
        if cut:
            self.response.incomplete_details = Incomplete("max_output_tokens")
        else:
            self.response.completed_at = int(time.time())
        return data + self._lifecycle(f"response.{self.response.status}")

    def fail(self, error: ApiError) -> bytes:
        """The last event of a response that fails after it has begun."""
        self.response.status = "failed"
        self.response.error = Failure(error.code or "server_error", error.message)
        return self._lifecycle("response.failed")

    def _step(self, step: Step, status: ItemStatus = "completed") -> bytes:
        if step.what == "opens":
            return self._opens(step.block)
        return self._grows(step) if step.what == "grows" else self._closes(step.block, status)

    def _opens(self, block: Block) -> bytes:
        item = self._item(block, "in_progress")
        data = self._event("response.output_item.added", output_index=block.index, item=item)
        if block.kind != "call":
            part = OutputText("") if block.kind == "text" else ReasoningText("")
            data += self._content("response.content_part.added", block, part=part)
        # All but the text itself, which comes last, and the number of the event.
        where: dict[str, Any] = {"item_id": item.id, "output_index": block.index} | (
            {} if block.kind == "call" else {"content_index": 0}
        )
        kind = DELTAS[block.kind]
        self._delta = named(kind, {"type": kind, **where})[:-3]
        self._logprobs = []
        return data

    def _grows(self, step: Step) -> bytes:
        data = self._delta + b',"sequence_number":%d' % self._number
        self._number += 1
        if step.block.kind == "text":
            fresh, self._fresh = self._fresh, []
            self._logprobs += fresh
            data += b',"logprobs":' + (encode(fresh) if fresh else b"[]")
        return data + b',"delta":' + encode(step.text) + b"}\n\n"

    def _closes(self, block: Block, status: ItemStatus) -> bytes:
        item = self._item(block, status)
        self.response.output.append(item)
        if isinstance(item, FunctionCallItem):
            data = self._event(
                "response.function_call_arguments.done", item_id=item.id, output_index=block.index,
                name=item.name, arguments=item.arguments,
            )  # fmt: skip
        elif isinstance(item, ReasoningItem):
            data = self._content("response.reasoning_text.done", block, text=block.text)
            data += self._content("response.content_part.done", block, part=item.content[0])
        else:
            part = item.content[0]
            data = self._content("response.output_text.done", block, text=block.text, logprobs=part.logprobs)
            data += self._content("response.content_part.done", block, part=part)
        return data + self._event("response.output_item.done", output_index=block.index, item=item)

    def _item(self, block: Block, status: ItemStatus) -> Item:
        item_id, done = self._id(block), status != "in_progress"
        if block.kind == "call":
            call_id = block.id or f"call_{self.request_id}_{block.index}"
            space, name = self.spaces.get(block.name, (msgspec.UNSET, block.name))
            return FunctionCallItem(item_id, call_id, name, block.text, status, space)
        if block.kind == "thought":
            content = [ReasoningText(block.text)] if done else []
            return ReasoningItem(item_id, status, content, sealed(block.text) if self.encrypted and done else None)
        return MessageItem(item_id, status, [OutputText(block.text, [], self._logprobs)] if done else [])

    def _id(self, block: Block) -> str:
        return f"{PREFIXES[block.kind]}_{self.request_id}_{block.index}"

    def _lifecycle(self, kind: str) -> bytes:
        return self._event(kind, response=self.response)

    def _content(self, kind: str, block: Block, **fields: Any) -> bytes:
        return self._event(kind, item_id=self._id(block), output_index=block.index, content_index=0, **fields)

    def _event(self, kind: str, **fields: Any) -> bytes:
        number, self._number = self._number, self._number + 1
        return named(kind, {"type": kind, "sequence_number": number, **fields})
