"""The functions that a response may call, as a chat completion has them."""

from typing import Any, NamedTuple

from plimsoll.runtime.server.errors import bad_request, invalid_value
from plimsoll.runtime.server.given import Given, must_be, objects, quoted


class Tools(NamedTuple):
    """`tools` and `tool_choice` of a chat completion."""

    tools: list[dict[str, Any]]
    choice: Any
    skipped: list[str]
    """Kinds of tools that only their own server runs."""


def tools(given: Any, choice: Any) -> Tools:
    """What a response's `tools` and `tool_choice` mean as a chat completion.

    Tools that are no functions are left out: agents send theirs to every server, and go on without them. Where
    `tool_choice` asks for one, there is nothing to go on with.

    Raises:
        ApiError: 400 that names the tool and the field, or a `tool_choice` that no tool here fulfils.
    """
    found, skipped = [], []
    for tool in objects(given, "tools"):
        kind = tool.word("type")
        if kind == "function":
            found.append(_function(tool))
        else:
            skipped.append(kind)
    if choice is None:
        return Tools(found, "auto", skipped)
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise invalid_value(
                f"Invalid value for tool_choice: must be none, auto, required or an object (found {quoted(choice)}).",
                "tool_choice",
            )
    elif isinstance(choice, dict):
        found, choice = _chosen(found, Given(choice, "tool_choice"))
    else:
        raise must_be("tool_choice", "a string or an object", choice)
    if not found and choice not in ("none", "auto"):
        others = f"; of type {', '.join(sorted(set(skipped)))[:80]} none are run here" if skipped else ""
        raise bad_request(f"tool_choice needs a function in tools{others}.", "tool_choice", "invalid_value")
    return Tools(found, choice, skipped)


def _function(tool: Given) -> dict[str, Any]:
    # Some clients send the shape of chat completions.
    at = tool.object("function") if "function" in tool else tool
    function: dict[str, Any] = {"name": at.word("name")}
    if "description" in at:
        function["description"] = at.text("description")
    if "parameters" in at:
        function["parameters"] = at.object("parameters").fields
    if "strict" in at:
        function["strict"] = at.flag("strict", default=False)
    return {"type": "function", "function": function}


def _chosen(found: list[dict[str, Any]], choice: Given) -> tuple[list[dict[str, Any]], Any]:
    """The functions that `choice` leaves, and the choice among them."""
    names = {tool["function"]["name"] for tool in found}
    kind = choice.word("type")
    if kind == "function":
        at = choice.object("function") if "function" in choice else choice
        name = at.word("name")
        if name not in names:
            raise invalid_value(f"tool_choice names {quoted(name)}, which is no function in tools.", at.at("name"))
        return found, {"type": "function", "function": {"name": name}}
    if kind == "allowed_tools":
        mode = choice.one_of("mode", "auto", "required")
        allowed = {one.word("name") for one in choice.objects("tools") if one.word("type") == "function"}
        if unknown := sorted(allowed - names):
            raise invalid_value(
                f"tool_choice allows {quoted(unknown[0])}, which is no function in tools.", choice.at("tools")
            )
        return [tool for tool in found if tool["function"]["name"] in allowed], mode
    raise bad_request(
        f"tool_choice of type {quoted(kind)} is not supported: this server runs no such tool. Choose a function.",
        "tool_choice",
        "unsupported_parameter",
    )
