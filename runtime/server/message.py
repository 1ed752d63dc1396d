"""One message of a conversation, as a chat request holds it."""

from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from plimsoll.runtime.server.functions import Call
from plimsoll.runtime.server.neutral import MESSAGE_LABELS, MESSAGES, note
from plimsoll.runtime.server.strict import Strict
from plimsoll.runtime.server.values import Content


class Message(Strict):
    """One turn. A null field is an absent one: clients send an answer back with `refusal: null` and the like."""

    # `content` has a default so that its absence gets the same words as a null; only an assistant's may be null.
    model_config = ConfigDict(json_schema_extra={"required": ["role", "content"]})

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content = None
    name: str | None = None
    tool_calls: list[Call] | None = Field(None, max_length=256)
    """Functions that an assistant called."""
    tool_call_id: str | None = None
    """Of the call whose result a message of role `tool` is."""
    reasoning_content: str | None = None
    """What an assistant thought before it answered, replayed; templates that show thoughts of earlier turns read it."""
    reasoning: str | None = None
    """The same under its other name."""

    @model_validator(mode="before")
    @classmethod
    def _absent(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if name == "content" or (name not in MESSAGE_LABELS and value not in (None, [], {})):
                kept[name] = value
            elif value not in (None, [], {}):
                note(info.context, f"{MESSAGES}.{name}")
        return kept

    @model_validator(mode="after")
    def _said(self) -> "Message":
        if self.content is None and self.role in ("assistant", "tool"):
            # An answer that was all thought or calls, or none at all; a function that gave nothing back.
            self.content = ""
        if self.content is None:
            raise PydanticCustomError("content", "content: must be a string or a list of text parts")
        if self.tool_calls and self.role != "assistant":
            raise PydanticCustomError("tool_calls", "tool_calls: are an assistant's")
        if self.role == "tool" and self.tool_call_id is None:
            raise PydanticCustomError("tool_call_id", "tool_call_id: is missing; it names the call of this result")
        return self
