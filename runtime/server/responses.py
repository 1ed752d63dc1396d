"""What goes back, in OpenAI's shapes. msgspec encodes these; /docs shows their schemas."""

from typing import Literal

import msgspec

FinishedBy = Literal["stop", "length"]


class PromptDetails(msgspec.Struct):
    cached_tokens: int
    """Prompt tokens that came from the prefix cache."""


class Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails


class TopLogprob(msgspec.Struct):
    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    content: list[TokenLogprob]
    refusal: None = None


class PromptLogprob(msgspec.Struct):
    """As vLLM has it: one candidate for one position of the prompt."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class ChatMessage(msgspec.Struct):
    content: str
    role: Literal["assistant"] = "assistant"
    refusal: None = None


class ChatChoice(msgspec.Struct):
    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishedBy
    stop_reason: int | str | None
    """vLLM's addition: the stop string or the token id that ended the answer, if one of the request's own did."""


class Head(msgspec.Struct):
    """What every answer begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(Head):
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    object: Literal["chat.completion"] = "chat.completion"


class CompletionLogprobs(msgspec.Struct):
    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where each token begins in the choice's text, in characters."""

    def extend(self, more: "CompletionLogprobs") -> None:
        self.tokens += more.tokens
        self.token_logprobs += more.token_logprobs
        self.top_logprobs += more.top_logprobs
        self.text_offset += more.text_offset


class CompletionChoice(msgspec.Struct):
    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishedBy
    stop_reason: int | str | None
    prompt_logprobs: PromptLogprobs | None = None


class Completion(Head):
    choices: list[CompletionChoice]
    usage: Usage
    object: Literal["text_completion"] = "text_completion"


class Model(msgspec.Struct):
    id: str
    created: int
    max_model_len: int | None
    """Longest prompt and answer together, in tokens; null until the model is loaded."""
    object: Literal["model"] = "model"
    owned_by: str = "plimsoll"


class ModelList(msgspec.Struct):
    data: list[Model]
    object: Literal["list"] = "list"


class ErrorDetail(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    error: ErrorDetail


class Health(msgspec.Struct):
    status: str


class Version(msgspec.Struct):
    version: str
    kernels: str | None
    """Which table of kernels the engine runs, once it is up."""
