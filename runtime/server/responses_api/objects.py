"""What `/v1/responses` answers, in OpenAI's shapes."""

from typing import Any, Literal

import msgspec

from plimsoll.runtime.server.responses import TokenLogprob

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, tag_field="type", tag="output_text"):
    """The text of a message."""

    text: str
    annotations: list[Any] = []
    logprobs: list[TokenLogprob] = []


class ReasoningText(msgspec.Struct, tag_field="type", tag="reasoning_text"):
    """The text of a thought."""

    text: str


class MessageItem(msgspec.Struct, tag_field="type", tag="message"):
    """What the model says."""

    id: str
    status: ItemStatus
    content: list[OutputText]
    role: Literal["assistant"] = "assistant"


class ReasoningItem(msgspec.Struct, tag_field="type", tag="reasoning"):
    """What the model thought before it went on."""

    id: str
    status: ItemStatus
    content: list[ReasoningText]
    encrypted_content: str | None = None
    """The thought once more, to be replayed; where `include` asks for it. It is encoded, not encrypted."""
    summary: list[Any] = []
    """Empty: thoughts are given whole."""


class FunctionCallItem(msgspec.Struct, tag_field="type", tag="function_call"):
    """A function that the model calls."""

    id: str
    call_id: str
    """What the output of the function is sent with."""
    name: str
    arguments: str
    """JSON text."""
    status: ItemStatus
    namespace: str | msgspec.UnsetType = msgspec.UNSET
    """Of the function, where it came in one."""


Item = MessageItem | ReasoningItem | FunctionCallItem


class InputDetails(msgspec.Struct):
    """Details of the prompt's tokens."""

    cached_tokens: int
    """Prompt tokens that came from the prefix cache."""
    cache_write_tokens: int = 0
    """0: writing to the cache costs nothing here."""


class OutputDetails(msgspec.Struct):
    """Details of the answer's tokens."""

    reasoning_tokens: int


class ResponseUsage(msgspec.Struct):
    """Tokens that a response used."""

    input_tokens: int
    input_tokens_details: InputDetails
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class Incomplete(msgspec.Struct):
    """Why an answer ends before its end."""

    reason: Literal["max_output_tokens"]


class Failure(msgspec.Struct):
    """Why a response failed."""

    code: str
    message: str


class ResponseObject(msgspec.Struct):
    """Answer of `POST /v1/responses`. What the request said is repeated."""

    id: str
    created_at: int
    model: str
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    output: list[Item]
    instructions: str | None
    tools: list[Any]
    tool_choice: Any
    parallel_tool_calls: bool
    temperature: float
    top_p: float
    max_output_tokens: int | None
    text: dict[str, Any]
    reasoning: dict[str, Any]
    metadata: dict[str, Any]
    top_logprobs: int
    user: str | None
    prompt_cache_key: str | None
    safety_identifier: str | None
    completed_at: int | None = None
    error: Failure | None = None
    incomplete_details: Incomplete | None = None
    usage: ResponseUsage | None = None
    object: Literal["response"] = "response"
    background: Literal[False] = False
    previous_response_id: None = None
    service_tier: Literal["default"] = "default"
    store: Literal[False] = False
    """Nothing is stored, also where the request asks for it."""
    truncation: Literal["disabled"] = "disabled"
