"""What a request may say: OpenAI's fields, the sampling fields vLLM adds, and nothing else.

A field that is unknown, or known and not run here, is refused by name; a field that could only mean what happens
anyway (`tools: []`, `store: false`) is accepted. docs/serving.md lists them all.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

#: OpenAI's and vLLM's fields that mean nothing here when they hold one of these values; any other is refused.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "reasoning_effort": (),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "verbosity": (),
    "web_search_options": (),
}
#: Labels for OpenAI's own books: they never change an answer, there or here.
LABELS = ("metadata", "prompt_cache_key", "safety_identifier", "user")

INT31 = 2**31 - 1
#: Longest stop string, and most of them; each is searched for in every piece of text.
MAX_STOP_CHARS, MAX_STOPS = 256, 16


def _stops(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise PydanticCustomError("stop", "must be a string or a list of strings")
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise PydanticCustomError("stop", f"takes up to {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters")
    return stops


def _bias(value: Any) -> Any:
    if not isinstance(value, dict):
        raise PydanticCustomError("logit_bias", "must be an object from token ids to numbers")
    found: dict[int, float] = {}
    for key, bias in value.items():
        if not (isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 10):
            raise PydanticCustomError("logit_bias", "keys must be token ids")
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise PydanticCustomError("logit_bias", "values must be numbers from -100 to 100")
        found[int(key)] = float(bias)
    return found


def _text(value: Any) -> Any:
    """A message's content as one string; text parts are joined by a newline, as vLLM joins them."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    for part in value:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            named = kind if isinstance(kind, str) else "?"
            raise PydanticCustomError(
                "content", "parts of type {kind} are not supported; only text is", {"kind": repr(named[:32])}
            )
        if set(part) != {"type", "text"} or not isinstance(part["text"], str):
            raise PydanticCustomError("content", "a text part holds `type` and a string `text`, and nothing else")
    return "\n".join(part["text"] for part in value)


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


def _prompts(value: Any) -> Any:
    """One list of prompts, each a string or a list of token ids."""
    prompts = [value] if isinstance(value, str) or _is_tokens(value) else value
    if not isinstance(prompts, list) or not prompts:
        raise PydanticCustomError("prompt", "must be a string, a list of strings, token ids, or a list of those lists")
    if not all(isinstance(prompt, str) for prompt in prompts) and not all(_is_tokens(prompt) for prompt in prompts):
        raise PydanticCustomError("prompt", "must hold strings only, or non-empty lists of token ids only")
    return prompts


STRING = {"type": "string"}
WORDS = {**STRING, "minLength": 1}
TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}

Stops = Annotated[
    list[str],
    BeforeValidator(_stops),
    WithJsonSchema(
        {
            "anyOf": [
                {**STRING, "minLength": 1, "maxLength": MAX_STOP_CHARS},
                {
                    "type": "array",
                    "items": {**STRING, "minLength": 1, "maxLength": MAX_STOP_CHARS},
                    "maxItems": MAX_STOPS,
                },
            ]
        }
    ),
]
Bias = Annotated[
    dict[int, float],
    BeforeValidator(_bias),
    WithJsonSchema({"type": "object", "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}),
]  # fmt: skip
TextPart = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": STRING},
    "required": ["type", "text"],
    "additionalProperties": False,
}
Content = Annotated[
    str | None,
    BeforeValidator(_text),
    WithJsonSchema({"anyOf": [STRING, {"type": "array", "items": TextPart}]}),
]
Prompts = Annotated[
    list[str] | list[list[int]],
    BeforeValidator(_prompts),
    WithJsonSchema({"anyOf": [WORDS, {"type": "array", "items": WORDS, "minItems": 1}, TOKENS,
                              {"type": "array", "items": TOKENS, "minItems": 1}]}),
]  # fmt: skip


class Strict(BaseModel):
    """Nothing unknown, nothing coerced, no NaN."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class Sampling(Strict):
    """Fields both routes share. Ranges are OpenAI's where it has the field, vLLM's where it has not."""

    model: str
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=INT31)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Stops = Field(default_factory=list)
    logit_bias: Bias = Field(default_factory=dict)
    top_k: int = Field(0, ge=-1, le=INT31)
    min_p: float = Field(0.0, ge=0, le=1)
    repetition_penalty: float = Field(1.0, ge=0.01, le=100)
    min_tokens: int = Field(0, ge=0, le=INT31)
    stop_token_ids: list[Annotated[int, Field(ge=0, le=INT31)]] = Field(default_factory=list, max_length=64)
    ignore_eos: bool = False
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    prompt_logprobs: int | None = Field(None, ge=0, le=INT31)

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, data: Any) -> Any:
        """Null is the same as absent, and what could only mean what happens anyway is dropped."""
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            if value is None or name in LABELS:
                continue
            if name in NEUTRAL and any(value is given or value == given for given in NEUTRAL[name]):
                continue
            kept[name] = value
        return kept

    @model_validator(mode="after")
    def _together(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options: is only allowed with stream: true")
        if self.prompt_logprobs is not None and self.stream:
            raise PydanticCustomError("prompt_logprobs", "prompt_logprobs: is not available with stream: true")
        return self


class Message(Strict):
    """One turn. A null field is an absent one: clients send an answer back with `refusal: null` and the like."""

    # `content` has a default so that its absence gets the same words as a null; a message has to have it.
    model_config = ConfigDict(json_schema_extra={"required": ["role", "content"]})

    role: Literal["system", "developer", "user", "assistant"]
    content: Content = None
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _absent(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if name == "content" or value not in (None, [])}

    @model_validator(mode="after")
    def _said(self) -> "Message":
        if self.content is None:
            raise PydanticCustomError("content", "content: must be a string or a list of text parts")
        return self


class ChatCompletionRequest(Sampling):
    messages: list[Message] = Field(min_length=1, max_length=4096)
    logprobs: bool = False
    top_logprobs: int | None = Field(None, ge=0, le=INT31)
    max_tokens: int | None = Field(None, ge=1, le=INT31)
    max_completion_tokens: int | None = Field(None, ge=1, le=INT31)
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=32)

    @model_validator(mode="after")
    def _coherent(self) -> "ChatCompletionRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise PydanticCustomError("top_logprobs", "top_logprobs: needs logprobs: true")
        if self.max_tokens is not None and self.max_completion_tokens not in (None, self.max_tokens):
            raise PydanticCustomError("max_tokens", "max_tokens: is the old name of max_completion_tokens; send one")
        if (
            self.continue_final_message
            and self.add_generation_prompt
            and "add_generation_prompt" in self.model_fields_set
        ):
            raise PydanticCustomError(
                "continue_final_message", "continue_final_message: cannot go with add_generation_prompt: true"
            )
        return self


class CompletionRequest(Sampling):
    prompt: Prompts
    max_tokens: int = Field(16, ge=0, le=INT31)
    best_of: int | None = Field(None, ge=1, le=INT31)
    echo: bool = False
    logprobs: int | None = Field(None, ge=0, le=INT31)
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _coherent(self) -> "CompletionRequest":
        if self.max_tokens == 0 and not self.echo:
            raise PydanticCustomError("max_tokens", "max_tokens: 0 is only of use with echo: true")
        if self.best_of is not None and self.best_of < self.n:
            raise PydanticCustomError("best_of", "best_of: must be at least n")
        if self.best_of is not None and self.best_of > self.n and self.stream:
            raise PydanticCustomError("best_of", "best_of: cannot choose among answers that are streamed")
        return self
