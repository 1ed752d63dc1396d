"""Body of `POST /v1/messages`."""

from typing import Annotated, Any

from pydantic import Field, ValidationInfo, WithJsonSchema, model_validator

from plimsoll.runtime.server.errors import bad_request
from plimsoll.runtime.server.given import QUOTED, Given
from plimsoll.runtime.server.messages_api.conversation import conversation
from plimsoll.runtime.server.messages_api.tools import tools
from plimsoll.runtime.server.neutral import NEUTRAL, note
from plimsoll.runtime.server.parse import checked
from plimsoll.runtime.server.protocol import INT31, ChatCompletionRequest, Sampling
from plimsoll.runtime.server.values import STRING, Stops, Whole

#: Fields of a message that a chat completion has by the same name.
SHARED = Sampling.model_fields.keys() - {
    "model", "stream_options", "n", "logit_bias", "prompt_logprobs", "stop",
}  # fmt: skip
#: What a chat completion calls its fields, as patterns, and what they are called here.
NAMES = {
    "reasoning_effort": "output_config.effort",
    r"response_format(?:\.json_schema)?": "output_config.format",
    "stop": "stop_sequences",
    r"(tools\[\d+\])\.function\.parameters": r"\1.input_schema",
    r"(tools\[\d+\])\.function": r"\1",
}

Object = Annotated[Any, WithJsonSchema({"type": "object"})]
Objects = Annotated[Any, WithJsonSchema({"type": "array", "items": {"type": "object"}})]
System = Annotated[Any, WithJsonSchema({"anyOf": [STRING, {"type": "array", "items": {"type": "object"}}]})]


class CountRequest(Sampling):
    """Body of `POST /v1/messages/count_tokens`. A field that this server does not know is ignored, and named in the
    response's `x-plimsoll-ignored`: agents send fields that only Anthropic's server has."""

    messages: Objects
    system: System = None
    tools: Objects = Field(default_factory=list)
    tool_choice: Object = None
    thinking: Object = None
    output_config: Object = None
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=32)
    n: Annotated[Whole, Field(ge=1, le=1)] = 1
    prompt_logprobs: None = None
    stream_options: None = None

    @model_validator(mode="before")
    @classmethod
    def _tolerant(cls, data: Any, info: ValidationInfo) -> Any:
        if not isinstance(data, dict):
            return data
        kept = {}
        for name, value in data.items():
            # A field that another route's clients know is refused where it would change the answer.
            if name in cls.model_fields or name in NEUTRAL:
                kept[name] = value
            elif value is not None:
                note(info.context, name[:QUOTED])
        return kept

    @property
    def show_thoughts(self) -> bool:
        """Thoughts are given, rather than that there were some."""
        return not isinstance(self.thinking, dict) or self.thinking.get("display") != "omitted"

    def chat(self, ignored: set[str] | None = None) -> ChatCompletionRequest:
        """The chat completion that this asks for.

        Args:
            ignored: gets the names of fields that are accepted and have no effect here.

        Raises:
            ApiError: 400 that names the field, in this request's words.
        """
        found = tools(self.tools, self.tool_choice)
        for kind in found.skipped:
            note(ignored, f"tools[].{kind[:QUOTED]}")
        messages = conversation(self.system, self.messages)
        asked: dict[str, Any] = {"messages": messages}
        asked |= {name: getattr(self, name) for name in SHARED if name in self.model_fields_set}
        if self.logit_bias:
            asked["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        if found.tools:
            asked |= {"tools": found.tools, "tool_choice": found.choice}
            if not found.parallel:
                asked["parallel_tool_calls"] = False
        if messages and messages[-1]["role"] == "assistant":
            asked |= _continued(messages[-1])
        settings = self._thinking() | self.chat_template_kwargs
        asked |= self._budget(ignored)
        asked |= (
            self._answer() | self._effort() | self._format() | ({"chat_template_kwargs": settings} if settings else {})
        )
        chat = checked({"model": self.model} | asked, ChatCompletionRequest)
        chat.budget_name = "thinking.budget_tokens"
        return chat

    def _answer(self) -> dict[str, Any]:
        """How the answer ends: nothing for a request that only counts."""
        return {}

    def _thinking(self) -> dict[str, Any]:
        """What the model's template gets: those that know no thoughts do not read it."""
        if self.thinking is None:
            return {}
        thinking = Given(self.thinking, "thinking")
        kind = thinking.one_of("type", "enabled", "disabled", "adaptive", "between_tools")
        # Where the model may choose, its template says how it thinks.
        return {"enable_thinking": kind == "enabled"} if kind in ("enabled", "disabled") else {}

    def _budget(self, ignored: set[str] | None) -> dict[str, Any]:
        thinking = Given({} if self.thinking is None else self.thinking, "thinking")
        if "budget_tokens" not in thinking:
            return {}
        budget = thinking.whole("budget_tokens", 0)
        if thinking.get("type") == "disabled":
            note(ignored, "thinking.budget_tokens")
            return {}
        return {"thinking_token_budget": budget}

    def _effort(self) -> dict[str, Any]:
        config = Given({} if self.output_config is None else self.output_config, "output_config")
        if "effort" not in config:
            return {}
        return {"reasoning_effort": config.one_of("effort", "low", "medium", "high", "xhigh", "max")}

    def _format(self) -> dict[str, Any]:
        config = Given({} if self.output_config is None else self.output_config, "output_config")
        if "format" not in config:
            return {}
        given = config.object("format")
        given.one_of("type", "json_schema")
        schema = {"name": "answer", "schema": given.object("schema").fields, "strict": True}
        return {"response_format": {"type": "json_schema", "json_schema": schema}}

    def spend(self) -> None:
        """Lets go of all that was only of use for the prompt and the constraint."""
        self.constrain(None)
        self.messages, self.tools, self.chat_template_kwargs = [], [], {}
        self.system = self.output_config = None


class MessagesRequest(CountRequest):
    """Body of `POST /v1/messages`. A field that this server does not know is ignored, and named in the response's
    `x-plimsoll-ignored`: agents send fields that only Anthropic's server has."""

    max_tokens: Whole = Field(ge=1, le=INT31)
    stop_sequences: Stops = Field(default_factory=list)

    def _answer(self) -> dict[str, Any]:
        stops = [*self.stop, *self.stop_sequences]
        return {"max_tokens": self.max_tokens} | ({"stop": stops} if stops else {})


def _continued(last: dict[str, Any]) -> dict[str, Any]:
    """An answer that the client has begun is continued."""
    if "tool_calls" in last:
        raise bad_request(
            "messages: the last message calls a tool. Send the tool_result of each tool_use after it.", "messages"
        )
    return {"continue_final_message": True, "add_generation_prompt": False} if last["content"] else {}
