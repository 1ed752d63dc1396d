"""Functions that a request offers to the model, the choice among them, and calls of earlier turns."""

import json
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

#: Functions of one request; OpenAI takes as many.
MOST = 128


class Function(BaseModel):
    """`tools[].function`. The model's template gets all of it, fields that are not named here as well."""

    model_config = ConfigDict(extra="allow", strict=True)

    name: str = Field(pattern=r"^[a-zA-Z0-9_.:-]+$", max_length=128)
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    """`tools[]`: a function."""

    model_config = ConfigDict(extra="allow", strict=True)

    type: Literal["function"] = "function"
    function: Function


class Named(BaseModel):
    """The name of a function alone."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str


class NamedTool(BaseModel):
    """One function of the request."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["function"] = "function"
    function: Named


class Allowed(BaseModel):
    """Some functions of the request, and whether one of them must be called."""

    model_config = ConfigDict(extra="forbid", strict=True)

    mode: Literal["auto", "required"]
    tools: list[NamedTool] = Field(min_length=1, max_length=MOST)


class AllowedTools(BaseModel):
    """OpenAI's choice that keeps the list of functions, and so the prompt, as it is."""

    model_config = ConfigDict(extra="forbid", strict=True)

    type: Literal["allowed_tools"]
    allowed_tools: Allowed


Choice = Literal["none", "auto", "required"] | NamedTool | AllowedTools


def _arguments(value: Any) -> Any:
    """Some clients replay the arguments as an object, or null where there were none."""
    if value is None:
        return "{}"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict) else value


class CalledFunction(BaseModel):
    """`messages[].tool_calls[].function`."""

    model_config = ConfigDict(extra="ignore", strict=True)

    name: str = Field(min_length=1, max_length=256)
    arguments: Annotated[str, BeforeValidator(_arguments)] = "{}"


class Call(BaseModel):
    """`messages[].tool_calls[]`: a call of an earlier turn."""

    # Streams are put together by clients, which leave `index` and the like in place.
    model_config = ConfigDict(extra="ignore", strict=True)

    id: str | None = None
    type: Literal["function"] = "function"
    function: CalledFunction

    def for_template(self) -> dict[str, Any]:
        """The call as chat templates take it: the arguments as an object, where they are one."""
        try:
            arguments = json.loads(self.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = self.function.arguments
        function = {"name": self.function.name, "arguments": arguments}
        return {"type": "function", "function": function} | ({} if self.id is None else {"id": self.id})


class Reading(NamedTuple):
    """How the text of an answer is taken apart."""

    tool_parser: str | None = None
    """By name; None leaves calls in the text."""
    reasoning_parser: str | None = None
    """By name; None leaves thoughts in the text."""
    thinking: bool = False
    """The prompt ends inside of a thought."""
    functions: dict[str, Any] = {}  # noqa: RUF012
    """The schema of each function's parameters, by the name of the function."""
