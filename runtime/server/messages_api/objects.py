"""What `/v1/messages` answers, in Anthropic's shapes."""

from typing import Any, Literal

import msgspec

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]
SIGNATURE = "unsigned"
"""Of every thought: clients want one that is not empty. Nothing is signed, and nothing is verified."""


class TextBlock(msgspec.Struct, tag_field="type", tag="text"):
    """What the model says."""

    text: str


class ThinkingBlock(msgspec.Struct, tag_field="type", tag="thinking"):
    """What the model thought before it went on."""

    thinking: str
    signature: str
    """Means nothing here: no thought is signed or verified."""


class ToolUseBlock(msgspec.Struct, tag_field="type", tag="tool_use"):
    """A tool that the model calls."""

    id: str
    name: str
    input: dict[str, Any]


ContentBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageUsage(msgspec.Struct):
    """Tokens that a message used. The prompt's are the sum of the three kinds of input tokens."""

    input_tokens: int
    """Prompt tokens that did not come from the prefix cache."""
    cache_read_input_tokens: int
    """Prompt tokens that came from the prefix cache."""
    output_tokens: int
    cache_creation_input_tokens: int = 0
    """0: writing to the cache costs nothing here."""


class MessageObject(msgspec.Struct):
    """Answer of `POST /v1/messages`."""

    id: str
    model: str
    content: list[ContentBlock]
    usage: MessageUsage
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    """Which of `stop_sequences` ended the answer."""
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"


class TokenCount(msgspec.Struct):
    """Answer of `POST /v1/messages/count_tokens`."""

    input_tokens: int


class MessagesErrorDetail(msgspec.Struct):
    """What is wrong."""

    type: str
    message: str


class MessagesError(msgspec.Struct):
    """Body of every answer of `/v1/messages` that is an error."""

    error: MessagesErrorDetail
    request_id: str
    type: Literal["error"] = "error"
