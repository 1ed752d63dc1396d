"""What goes back, in OpenAI's shapes. msgspec encodes these; /docs shows their schemas."""

from typing import Literal

import msgspec

FinishedBy = Literal["stop", "length", "tool_calls"]


class PromptDetails(msgspec.Struct):
    """Details of the prompt's tokens."""

    cached_tokens: int
    """Prompt tokens that came from the prefix cache."""


class CompletionDetails(msgspec.Struct):
    """Details of the answer's tokens."""

    reasoning_tokens: int
    """Tokens of thoughts."""


class Usage(msgspec.Struct):
    """Tokens that a request used."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails | msgspec.UnsetType = msgspec.UNSET
    """With models that think."""
    reasoning_tokens: int | msgspec.UnsetType = msgspec.UNSET
    """SGLang's place for the same number."""

    def less(self, tokens: int) -> "Usage":
        """The usage before the last `tokens` of the answer."""
        if not tokens:
            return self
        left = self.completion_tokens - tokens
        found = msgspec.structs.replace(self, completion_tokens=left, total_tokens=self.total_tokens - tokens)
        if isinstance(self.completion_tokens_details, CompletionDetails):
            thought = min(self.completion_tokens_details.reasoning_tokens, left)
            found.completion_tokens_details, found.reasoning_tokens = CompletionDetails(thought), thought
        return found


class TopLogprob(msgspec.Struct):
    """A candidate token, its log-probability and its UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    """A token of the answer, with the likeliest candidates at its position."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct):
    """Log-probabilities of a chat answer, token by token."""

    content: list[TokenLogprob]
    refusal: None = None


class PromptLogprob(msgspec.Struct):
    """As vLLM has it: one candidate for one position of the prompt."""

    logprob: float
    rank: int
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class FunctionCall(msgspec.Struct):
    """The name of a function, and its arguments as JSON text."""

    name: str
    arguments: str


class ToolCall(msgspec.Struct):
    """A call of a function."""

    id: str
    function: FunctionCall
    type: Literal["function"] = "function"


class ChatMessage(msgspec.Struct):
    """The message that the model answers."""

    content: str | None
    """Null where the model only calls functions."""
    role: Literal["assistant"] = "assistant"
    refusal: None = None
    reasoning_content: str | msgspec.UnsetType | None = msgspec.UNSET
    """What the model thought first; null where a model that thinks did not."""
    reasoning: str | msgspec.UnsetType = msgspec.UNSET
    """The same under its other name."""
    tool_calls: list[ToolCall] | msgspec.UnsetType = msgspec.UNSET
    """The functions that the model calls."""


class ChatChoice(msgspec.Struct):
    """One of the `n` answers of a chat request."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishedBy
    stop_reason: int | str | None
    """vLLM's addition: the stop string or the token id that ended the answer, if one of the request's own did."""
    matched_stop: int | str | None = None
    """SGLang's addition: the same, and the token id of the model's own end of text."""
    token_ids: list[int] | None = None
    """With vLLM's `return_token_ids`."""


class Head(msgspec.Struct):
    """What every answer begins with."""

    id: str
    created: int
    model: str
    system_fingerprint: str


class ChatCompletion(Head):
    """Answer of `POST /v1/chat/completions`."""

    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None = None
    prompt_token_ids: list[int] | None = None
    """With vLLM's `return_token_ids`."""
    object: Literal["chat.completion"] = "chat.completion"


class CompletionLogprobs(msgspec.Struct):
    """Log-probabilities of a completion, one list entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]
    """Where each token begins in the choice's text, in characters."""

    def extend(self, more: "CompletionLogprobs") -> None:
        """Append the entries of `more`."""
        self.tokens += more.tokens
        self.token_logprobs += more.token_logprobs
        self.top_logprobs += more.top_logprobs
        self.text_offset += more.text_offset


class CompletionChoice(msgspec.Struct):
    """One of the `n` answers to one prompt."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishedBy
    stop_reason: int | str | None
    matched_stop: int | str | None = None
    prompt_logprobs: PromptLogprobs | None = None
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    """With vLLM's `return_token_ids`."""


class Completion(Head):
    """Answer of `POST /v1/completions`."""

    choices: list[CompletionChoice]
    usage: Usage
    object: Literal["text_completion"] = "text_completion"


class Model(msgspec.Struct):
    """The served model, as `/v1/models` lists it."""

    id: str
    created: int
    max_model_len: int | None
    """Longest prompt and answer together, in tokens; null until the model is loaded."""
    root: str
    """vLLM's and SGLang's: the model that adapters belong to, which is this one."""
    parent: None = None
    object: Literal["model"] = "model"
    owned_by: str = "plimsoll"


class ModelList(msgspec.Struct):
    """Answer of `GET /v1/models`."""

    data: list[Model]
    models: list[None] = []
    """Codex reads what it knows of a model from here, and logs an error where the field is missing."""
    object: Literal["list"] = "list"


class ErrorDetail(msgspec.Struct):
    """What is wrong, with the field at fault in `param`."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(msgspec.Struct):
    """Body of every answer that is an error."""

    error: ErrorDetail


class Health(msgspec.Struct):
    """Body of the probes' answers."""

    status: str


class Version(msgspec.Struct):
    """Answer of `GET /version`."""

    version: str
    kernels: str | None
    """Which table of kernels the engine runs, once it is up."""
