"""What a request may say: OpenAI's fields, the sampling fields vLLM adds, and nothing else.

A field that is unknown, or known and not run here, is refused by name; a value that cannot change an answer here
(`user: "me"`, `store: true`) is accepted (see `neutral`). docs/serving.md and docs/request-fields.md list them all.
"""

from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PrivateAttr, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from plimsoll.runtime.engine.core.sampling_params import MOST_SCORED, ThoughtBudget
from plimsoll.runtime.server.functions import MOST, AllowedTools, Choice, NamedTool, Reading, Tool
from plimsoll.runtime.server.message import Message
from plimsoll.runtime.server.neutral import without_ignored
from plimsoll.runtime.server.strict import Strict
from plimsoll.runtime.server.values import BadWords, Bias, Flag, Prompts, Real, Stops, Whole

INT31 = 2**31 - 1
Token = Annotated[Whole, Field(ge=0, le=INT31)]
Budget = Annotated[Whole, Field(ge=-1, le=INT31)]

#: Fields of a request that constrain its answer. At most one of them may.
CONSTRAINTS = (
    "response_format", "structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar",
    "json_schema", "regex", "ebnf", "grammar",
)  # fmt: skip

#: vLLM's name of the tokens that a thought may have, then those of Qwen and llama.cpp.
BUDGETS = ("thinking_token_budget", "thinking_budget", "thinking_budget_tokens", "reasoning_budget")


class StreamOptions(Strict):
    """`stream_options` of a request."""

    include_usage: Flag = False
    continuous_usage_stats: Flag = False
    """vLLM's: with `include_usage`, what was used so far in every chunk."""
    include_obfuscation: Literal[False] = False

    @model_validator(mode="before")
    @classmethod
    def _absent(cls, data: Any) -> Any:
        """Null is the same as absent."""
        return {name: value for name, value in data.items() if value is not None} if isinstance(data, dict) else data


class Body(Strict):
    """A whole request. The validation context is a set that gets the names of fields without effect, or None."""

    @model_validator(mode="before")
    @classmethod
    def _neutral(cls, data: Any, info: ValidationInfo) -> Any:
        """Null is the same as absent, and what cannot change an answer is dropped."""
        return without_ignored(data, cls.model_fields, info.context) if isinstance(data, dict) else data


class JsonSchema(Strict):
    """`response_format.json_schema`. The answer matches the schema whether or not it is `strict`."""

    name: str = Field("", max_length=256)
    description: str | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    """`response_format`. `schema` is llama.cpp's."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | bool | None = Field(None, alias="schema")


class StructuredOutputs(Strict):
    """vLLM's `structured_outputs`."""

    # `json` is a method of pydantic's own, which it deprecates.
    model_config = ConfigDict(protected_namespaces=())

    json_: dict[str, Any] | bool | str | None = Field(None, alias="json")
    regex: str | None = None
    choice: list[str] | None = Field(None, min_length=1)
    grammar: str | None = None
    json_object: bool | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False
    whitespace_pattern: str | None = None


class Constrained(Body):
    """What an answer must match: one of these fields, but for the pattern, which goes with `guided_json`."""

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | bool | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = Field(None, min_length=1)
    guided_grammar: str | None = None
    guided_whitespace_pattern: str | None = None
    json_schema: dict[str, Any] | bool | str | None = None
    regex: str | None = None
    ebnf: str | None = None
    grammar: str | None = None

    _constraint: str | None = PrivateAttr(None)

    @property
    def constraint(self) -> str | None:
        """The llguidance grammar that each answer matches: what the fields above come to."""
        return self._constraint

    def constrain(self, grammar: str | None) -> None:
        """Sets `constraint`, and lets go of what it was made of."""
        self._constraint = grammar
        for name in CONSTRAINTS:
            setattr(self, name, None)


class Sampling(Constrained):
    """Fields both routes share. Ranges are OpenAI's where it has the field, vLLM's where it has not."""

    model: str | None = None
    """None is the model that is served: there is no other."""
    stream: Flag = False
    stream_options: StreamOptions | None = None
    n: Whole = Field(1, ge=1, le=INT31)
    temperature: Real = Field(1.0, ge=0, le=2)
    top_p: Real = Field(1.0, gt=0, le=1)
    presence_penalty: Real = Field(0.0, ge=-2, le=2)
    frequency_penalty: Real = Field(0.0, ge=-2, le=2)
    seed: Whole | None = Field(None, ge=-(2**63), le=2**63 - 1)
    stop: Stops = Field(default_factory=list)
    logit_bias: Bias = Field(default_factory=dict)
    top_k: Whole = Field(0, ge=-1, le=INT31)
    min_p: Real = Field(0.0, ge=0, le=1)
    repetition_penalty: Real = Field(1.0, ge=1e-9, le=1e9)
    min_tokens: Whole = Field(0, ge=0, le=INT31)
    stop_token_ids: list[Token] = Field(default_factory=list, max_length=64)
    allowed_token_ids: list[Token] | None = Field(None, min_length=1)
    bad_words: BadWords = Field(default_factory=list)
    ignore_eos: Flag = False
    include_stop_str_in_output: Flag = False
    skip_special_tokens: Flag = True
    prompt_logprobs: Whole | None = Field(None, ge=0, le=INT31)
    truncate_prompt_tokens: Whole | None = Field(None, ge=-1, le=INT31)
    truncation_side: Literal["left", "right"] = "left"
    cache_salt: str | None = Field(None, min_length=1, max_length=1024)
    priority: Real | None = Field(None, ge=-(2.0**53), le=2.0**53)

    _bad_tokens: list[list[int]] = PrivateAttr(default_factory=list)
    _partition: str = PrivateAttr("")

    @property
    def bad_tokens(self) -> list[list[int]]:
        """Token ids of `bad_words`, once they are tokenized."""
        return self._bad_tokens

    @bad_tokens.setter
    def bad_tokens(self, ids: list[list[int]]) -> None:
        """Set by what tokenizes the request."""
        self._bad_tokens = ids

    @property
    def partition(self) -> str:
        """Of the prefix cache; empty for the one of requests without a key and a salt."""
        return self._partition

    @partition.setter
    def partition(self, name: str) -> None:
        """Set by what knows the request's key."""
        self._partition = name

    @model_validator(mode="after")
    def _together(self) -> "Sampling":
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError("stream_options", "stream_options: is only allowed with stream: true")
        if self.truncate_prompt_tokens == 0:
            raise PydanticCustomError(
                "truncate_prompt_tokens", "truncate_prompt_tokens: must be at least 1, or -1 for what the context holds"
            )
        if self.prompt_logprobs is not None and self.stream:
            raise PydanticCustomError("prompt_logprobs", "prompt_logprobs: is not available with stream: true")
        return self


class Returned(Sampling):
    """vLLM's additions to what an answer shows of its tokens."""

    return_token_ids: Flag = False
    return_tokens_as_token_ids: Flag = False
    logprob_token_ids: list[Token] = Field(default_factory=list, max_length=MOST_SCORED)
    """Tokens whose log-probabilities each position shows, in place of the likeliest ones."""


class ChatCompletionRequest(Returned):
    """Body of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=4096)
    logprobs: Flag = False
    top_logprobs: Whole | None = Field(None, ge=0, le=INT31)
    max_tokens: Whole | None = Field(None, ge=1, le=INT31)
    max_completion_tokens: Whole | None = Field(None, ge=1, le=INT31)
    add_generation_prompt: Flag = True
    continue_final_message: Flag = False
    echo: Flag = False
    add_special_tokens: Flag = False
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=32)
    tools: list[Tool] = Field(default_factory=list, max_length=MOST)
    tool_choice: Choice | None = None
    parallel_tool_calls: Flag = True
    reasoning_effort: str | None = Field(None, max_length=32)
    include_reasoning: Flag = True
    separate_reasoning: Flag = True
    thinking_token_budget: Budget | None = None
    """Tokens that a thought may have; -1 is no limit."""
    thinking_budget: Budget | None = None
    thinking_budget_tokens: Budget | None = None
    reasoning_budget: Budget | None = None
    _reading: Reading | None = PrivateAttr(None)
    _thought: ThoughtBudget | None = PrivateAttr(None)
    _budget_name: str = PrivateAttr("")
    _unheard: set[str] = PrivateAttr(default_factory=set)

    @property
    def unheard(self) -> set[str]:
        """Fields that have no effect with the served model, whose template does not know them."""
        return self._unheard

    @property
    def reading(self) -> Reading | None:
        """How answers are taken apart; None where all of their text is said."""
        return self._reading

    def read_by(self, reading: Reading | None) -> None:
        """Sets `reading`."""
        self._reading = reading

    @property
    def thought(self) -> ThoughtBudget | None:
        """What `thinking_token_budget` comes to with the served model."""
        return self._thought

    @property
    def budget_name(self) -> str:
        """What the client calls `thinking_token_budget`."""
        return self._budget_name

    @budget_name.setter
    def budget_name(self, name: str) -> None:
        """Set by a route that has another name for it."""
        self._budget_name = name

    def limit_thought(self, budget: ThoughtBudget | None) -> None:
        """Sets `thought`."""
        self._thought = budget

    def spend(self) -> None:
        """Lets go of all that was only of use for the prompt."""
        self.messages, self.tools, self.chat_template_kwargs = [], [], {}

    @property
    def offered(self) -> list[Tool]:
        """The functions that the model may call."""
        choice = self.tool_choice
        if choice == "none":
            return []
        if isinstance(choice, NamedTool):
            names = {choice.function.name}
        elif isinstance(choice, AllowedTools):
            names = {tool.function.name for tool in choice.allowed_tools.tools}
        else:
            return self.tools
        return [tool for tool in self.tools if tool.function.name in names]

    @property
    def must_call(self) -> bool:
        """An answer has to be a call."""
        choice = self.tool_choice
        if isinstance(choice, AllowedTools):
            return choice.allowed_tools.mode == "required"
        return choice == "required" or isinstance(choice, NamedTool)

    @model_validator(mode="after")
    def _budget(self) -> "ChatCompletionRequest":
        given = {name: value for name in BUDGETS if (value := getattr(self, name)) is not None}
        if len(set(given.values())) > 1:
            raise PydanticCustomError(
                "budget", "{name}: differs from {first}, which means the same. Send one of them",
                {"first": next(iter(given)), "name": list(given)[-1]},
            )  # fmt: skip
        for name, value in list(given.items())[:1]:
            self.thinking_token_budget, self._budget_name = value, name
        return self

    @model_validator(mode="after")
    def _tools(self) -> "ChatCompletionRequest":
        names = [tool.function.name for tool in self.tools]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise PydanticCustomError("tools", "tools: two functions have the name {name}", {"name": repr(doubled[0])})
        if self.must_call and not self.tools:
            raise PydanticCustomError("tool_choice", "tool_choice: asks for a call, and tools is empty")
        choice = self.tool_choice
        wanted = [choice] if isinstance(choice, NamedTool) else []
        wanted += choice.allowed_tools.tools if isinstance(choice, AllowedTools) else []
        if unknown := [tool.function.name for tool in wanted if tool.function.name not in names]:
            raise PydanticCustomError(
                "tool_choice",
                "tool_choice: Tool {name} not found in tools list",
                {"name": repr(unknown[0][:64])},
            )
        return self

    @model_validator(mode="after")
    def _coherent(self) -> "ChatCompletionRequest":
        for name in ("top_logprobs", "logprob_token_ids"):
            if getattr(self, name) and not self.logprobs:
                raise PydanticCustomError(name, "{name}: needs logprobs: true", {"name": name})
        if (
            self.continue_final_message
            and self.add_generation_prompt
            and "add_generation_prompt" in self.model_fields_set
        ):
            raise PydanticCustomError(
                "continue_final_message", "continue_final_message: cannot go with add_generation_prompt: true"
            )
        return self


class CompletionRequest(Returned):
    """Body of `POST /v1/completions`."""

    prompt: Prompts
    max_tokens: Whole = Field(16, ge=0, le=INT31)
    max_completion_tokens: Whole | None = Field(None, ge=1, le=INT31)
    """The same under a chat's name, as LMDeploy's client sends it beside the other."""
    best_of: Whole | None = Field(None, ge=1, le=INT31)
    echo: Flag = False
    logprobs: Whole | None = Field(None, ge=0, le=INT31)
    add_special_tokens: Flag = True

    @model_validator(mode="after")
    def _coherent(self) -> "CompletionRequest":
        if self.max_completion_tokens is not None:
            self.max_tokens = self.max_completion_tokens
        if self.max_tokens == 0 and not self.echo:
            raise PydanticCustomError("max_tokens", "max_tokens: 0 is only of use with echo: true")
        if self.logprob_token_ids and self.logprobs is None:
            raise PydanticCustomError("logprob_token_ids", "logprob_token_ids: needs logprobs")
        if self.logprob_token_ids and not self.max_tokens:
            raise PydanticCustomError("logprob_token_ids", "logprob_token_ids: needs max_tokens of 1 or more")
        if self.best_of is not None and self.best_of < self.n:
            raise PydanticCustomError("best_of", "best_of: must be at least n")
        if self.best_of is not None and self.best_of > self.n and self.stream:
            raise PydanticCustomError("best_of", "best_of: cannot choose among answers that are streamed")
        return self
