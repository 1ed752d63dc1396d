"""The tools of a message, as a chat completion has them."""

from typing import Any, NamedTuple

from plimsoll.runtime.server.errors import bad_request, invalid_value
from plimsoll.runtime.server.given import Given, objects, quoted

CHOICES = {"auto": "auto", "any": "required", "none": "none"}


class Tools(NamedTuple):
    """`tools`, `tool_choice` and `parallel_tool_calls` of a chat completion."""

    tools: list[dict[str, Any]]
    choice: Any
    parallel: bool
    skipped: list[str]
    """Kinds of tools that only Anthropic's server runs, or that come with a schema of their own."""


def tools(given: Any, choice: Any) -> Tools:
    """What a message's `tools` and `tool_choice` mean as a chat completion.

    Raises:
        ApiError: 400 that names the tool and the field, or a `tool_choice` that no tool here fulfils.
    """
    found, skipped = [], []
    for tool in objects(given, "tools"):
        kind = tool.text("type", "custom")
        if kind == "custom":
            found.append(_function(tool))
        else:
            skipped.append(kind)
    if choice is None:
        return Tools(found, "auto", True, skipped)
    asked = Given(choice, "tool_choice")
    kind = asked.one_of("type", *CHOICES, "tool")
    parallel = not asked.flag("disable_parallel_tool_use", default=False)
    names = [tool["function"]["name"] for tool in found]
    if kind == "tool":
        name = asked.word("name")
        if name not in names:
            raise invalid_value(
                f"tool_choice names {quoted(name)}, which is no tool with an input_schema in tools. Name one of them.",
                "tool_choice.name",
            )
        return Tools(found, {"type": "function", "function": {"name": name}}, parallel, skipped)
    if kind == "any" and not found:
        others = f"; of type {', '.join(sorted(set(skipped)))[:80]} none are run here" if skipped else ""
        raise bad_request(f"tool_choice needs a tool with an input_schema in tools{others}.", "tool_choice")
    return Tools(found, CHOICES[kind], parallel, skipped)


def _function(tool: Given) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.word("name"), "parameters": tool.object("input_schema").fields}
    if "description" in tool:
        function["description"] = tool.text("description")
    if "strict" in tool:
        function["strict"] = tool.flag("strict", default=False)
    return {"type": "function", "function": function}
