"""Body of `POST /v1/responses`."""

from typing import Annotated, Any

import msgspec
from pydantic import Field, PrivateAttr, ValidationInfo, WithJsonSchema, model_validator

from plimsoll.runtime.server.errors import bad_request, invalid_value
from plimsoll.runtime.server.given import QUOTED, Given, quoted
from plimsoll.runtime.server.neutral import note
from plimsoll.runtime.server.parse import checked
from plimsoll.runtime.server.protocol import INT31, ChatCompletionRequest, Sampling
from plimsoll.runtime.server.responses_api.items import conversation
from plimsoll.runtime.server.responses_api.tools import tools
from plimsoll.runtime.server.values import STRING, Flag, Whole

#: Bytes of instructions and tools that an answer repeats. Longer ones would be kept, and sent three times, for no
#: client that reads them.
ECHOED = 64 * 1024
LOGPROBS, ENCRYPTED = "message.output_text.logprobs", "reasoning.encrypted_content"
#: What an answer may include only where a tool of OpenAI's own ran, or an image was sent.
ELSEWHERE = frozenset({
    "code_interpreter_call.outputs", "computer_call_output.output.image_url", "file_search_call.results",
    "message.input_image.image_url", "web_search_call.action.sources", "web_search_call.results",
})  # fmt: skip
#: Fields that need a store, or work beside the request, and what to send.
STATELESS = {
    "background": "Stream the response instead",
    "conversation": "Send the whole conversation as input",
    "previous_response_id": "Send the whole conversation as input: the earlier items, and the output of each response",
    "prompt": "Send instructions and input",
}
#: Fields that change no answer here.
WITHOUT_EFFECT = frozenset({"client_metadata", "context_management", "max_tool_calls", "stream_options", "truncation"})
#: Fields of a response that a chat completion has by the same name.
SHARED = Sampling.model_fields.keys() - {"model", "stream_options", "n", "logit_bias", "prompt_logprobs"}
#: What a chat completion calls its fields, as patterns, and what they are called here.
NAMES = {
    "max_completion_tokens": "max_output_tokens",
    "messages": "input",
    "reasoning_effort": "reasoning.effort",
    r"response_format(?:\.json_schema)?": "text.format",
    r"(tools\[\d+\])\.function": r"\1",
}

Items = Annotated[Any, WithJsonSchema({"anyOf": [STRING, {"type": "array", "items": {"type": "object"}}]})]
Object = Annotated[Any, WithJsonSchema({"type": "object"})]
Objects = Annotated[Any, WithJsonSchema({"type": "array", "items": {"type": "object"}})]
Choice = Annotated[Any, WithJsonSchema({"anyOf": [STRING, {"type": "object"}]})]


class ResponsesRequest(Sampling):
    """Body of `POST /v1/responses`. Nothing is stored: each request brings its whole conversation."""

    input: Items = None
    instructions: str | None = None
    tools: Objects = Field(default_factory=list)
    tool_choice: Choice = None
    parallel_tool_calls: Flag = True
    text: Object = None
    reasoning: Object = None
    max_output_tokens: Whole | None = Field(None, ge=1, le=INT31)
    top_logprobs: Whole | None = Field(None, ge=0, le=INT31)
    include: list[str] = Field(default_factory=list, max_length=64)
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict, max_length=32)
    store: Flag = True
    """Accepted: nothing is stored."""
    metadata: Object = None
    user: str | None = None
    prompt_cache_key: str | None = None
    safety_identifier: str | None = None
    n: Annotated[Whole, Field(ge=1, le=1)] = 1
    prompt_logprobs: None = None
    _spaces: dict[str, tuple[str, str]] = PrivateAttr(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _stateless(cls, data: Any, info: ValidationInfo) -> Any:
        """Refuses what needs a store, and drops what changes no answer."""
        if not isinstance(data, dict):
            return data
        for name, fix in STATELESS.items():
            if data.get(name) not in (None, False):
                raise bad_request(
                    f"{name} is not supported by this server: it stores no responses. {fix}.",
                    name,
                    "unsupported_parameter",
                )
        if data.get("truncation") not in (None, "auto", "disabled"):
            found = quoted(str(data["truncation"]))
            raise invalid_value(
                f"Invalid value for truncation: must be auto or disabled (found {found}).", "truncation"
            )
        for name in WITHOUT_EFFECT & data.keys():
            if data[name] is not None:
                note(info.context, name)
        return {name: value for name, value in data.items() if name not in WITHOUT_EFFECT and name not in STATELESS}

    def chat(self, ignored: set[str] | None = None) -> ChatCompletionRequest:
        """The chat completion that this asks for.

        Args:
            ignored: gets the names of fields that are accepted and have no effect here.

        Raises:
            ApiError: 400 that names the field, in this request's words.
        """
        if self.input is None:
            raise bad_request("You must provide input.", "input", "missing_required_parameter")
        found = tools(self.tools, self.tool_choice)
        self._spaces = found.spaces
        for kind in found.skipped:
            note(ignored, f"tools[].{kind[:QUOTED]}")
        if self.metadata is not None:
            Given(self.metadata, "metadata")
        asked: dict[str, Any] = {"messages": conversation(self.instructions, self.input)}
        asked |= {name: getattr(self, name) for name in SHARED if name in self.model_fields_set}
        if self.logit_bias:
            asked["logit_bias"] = {str(token): bias for token, bias in self.logit_bias.items()}
        if found.tools:
            asked |= {"tools": found.tools, "tool_choice": found.choice}
            asked["parallel_tool_calls"] = self.parallel_tool_calls
        if self.max_output_tokens is not None:
            asked["max_completion_tokens"] = self.max_output_tokens
        if self._includes(ignored, LOGPROBS) or self.top_logprobs:
            asked |= {"logprobs": True, "top_logprobs": self.top_logprobs or 0}
        if self.chat_template_kwargs:
            asked["chat_template_kwargs"] = self.chat_template_kwargs
        asked |= self._format(ignored) | self._effort(ignored)
        chat = checked({"model": self.model} | asked, ChatCompletionRequest)
        chat.budget_name = "reasoning.max_tokens"
        return chat

    @property
    def spaces(self) -> dict[str, tuple[str, str]]:
        """Namespace and own name of functions in namespaces, by the name that the model sees. `chat` finds them."""
        return self._spaces

    def _includes(self, ignored: set[str] | None, name: str) -> bool:
        for given in self.include:
            if given in ELSEWHERE:
                note(ignored, f"include[].{given}")
            elif given not in (LOGPROBS, ENCRYPTED):
                known = ", ".join(sorted((LOGPROBS, ENCRYPTED, *ELSEWHERE)))
                raise invalid_value(f"include: {quoted(given)} is not among {known}. Leave it out.", "include")
        return name in self.include

    def _format(self, ignored: set[str] | None) -> dict[str, Any]:
        if self.text is None:
            return {}
        text = Given(self.text, "text")
        _check_names(text, "format", "verbosity")
        if "verbosity" in text:
            text.one_of("verbosity", "low", "medium", "high")
            note(ignored, "text.verbosity")
        if "format" not in text:
            return {}
        given = text.object("format")
        kind = given.one_of("type", "text", "json_object", "json_schema")
        if kind == "text":
            return {}
        if kind == "json_object":
            return {"response_format": {"type": kind}}
        schema: dict[str, Any] = {"name": given.word("name"), "schema": given.object("schema").fields}
        if "strict" in given:
            schema["strict"] = given.flag("strict", default=False)
        return {"response_format": {"type": kind, "json_schema": schema}}

    def _effort(self, ignored: set[str] | None) -> dict[str, Any]:
        if self.reasoning is None:
            return {}
        reasoning = Given(self.reasoning, "reasoning")
        _check_names(reasoning, "effort", "max_tokens", "summary", "generate_summary")
        for name in ("summary", "generate_summary"):
            if name in reasoning:
                reasoning.one_of(name, "auto", "concise", "detailed")
                note(ignored, f"reasoning.{name}")
        asked: dict[str, Any] = {"reasoning_effort": reasoning.word("effort")} if "effort" in reasoning else {}
        if "max_tokens" in reasoning:
            asked["thinking_token_budget"] = reasoning.whole("max_tokens", 0)
        return asked

    def spend(self) -> None:
        """Lets go of what was only of use for the prompt. What an answer repeats stays, where it is short."""
        self.constrain(None)
        self.input, self.chat_template_kwargs = [], {}
        if len(msgspec.json.encode((self.instructions, self.tools, self.text, self.metadata))) > ECHOED:
            self.instructions, self.tools, self.text, self.metadata = None, [], None, None

    def repeated(self) -> dict[str, Any]:
        """What an answer repeats of the request: fields of `ResponseObject`."""
        text, reasoning = self.text or {}, self.reasoning or {}
        return {
            "instructions": self.instructions,
            "tools": self.tools,
            "tool_choice": self.tool_choice or "auto",
            "parallel_tool_calls": self.parallel_tool_calls,
            "max_output_tokens": self.max_output_tokens,
            "text": {"format": text.get("format") or {"type": "text"}, "verbosity": text.get("verbosity") or "medium"},
            "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
            "metadata": self.metadata or {},
            "top_logprobs": self.top_logprobs or 0,
            "user": self.user,
            "prompt_cache_key": self.prompt_cache_key,
            "safety_identifier": self.safety_identifier,
        }


def _check_names(given: Given, *names: str) -> None:
    for name, value in given.fields.items():
        if name not in names and value is not None:
            raise bad_request(
                f"{given.at(name[:QUOTED])} is not supported by this server.",
                given.at(name[:QUOTED]),
                "unsupported_parameter",
            )
