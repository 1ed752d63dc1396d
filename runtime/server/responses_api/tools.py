"""The functions that a response may call, as a chat completion has them."""

from typing import Any, NamedTuple

from plimsoll.runtime.server.errors import ApiError, bad_request, invalid_value
from plimsoll.runtime.server.given import Given, must_be, objects, quoted


class Tools(NamedTuple):
    """`tools` and `tool_choice` of a chat completion."""

    tools: list[dict[str, Any]]
    choice: Any
    skipped: list[str]
    """Kinds of tools that only their own server runs."""
    spaces: dict[str, tuple[str, str]]
    """Namespace and own name of functions that came in a namespace, by the name that the model sees."""


def tools(given: Any, choice: Any) -> Tools:
    """What a response's `tools` and `tool_choice` mean as a chat completion.

    A function of a namespace is a function whose name begins with that of the namespace. Tools that are no functions
    are left out: agents send theirs to every server, and go on without them. Where `tool_choice` asks for one, there is
    nothing to go on with.

    Raises:
        ApiError: 400 that names the tool and the field, or a `tool_choice` that no tool here fulfils.
    """
    found, skipped, spaces = [], [], dict[str, tuple[str, str]]()
    for tool in objects(given, "tools"):
        kind = tool.word("type")
        if kind == "function":
            found.append(_function(tool))
        elif kind == "namespace":
            space = tool.word("name")
            for one in tool.objects("tools"):
                if (inner := one.word("type")) != "function":
                    skipped.append(f"{kind}.{inner}")
                    continue
                function = _function(one)
                own, function["function"]["name"] = one.word("name"), in_space(space, one.word("name"))
                spaces[function["function"]["name"]] = space, own
                found.append(function)
        else:
            skipped.append(kind)
    if choice is None:
        return Tools(found, "auto", skipped, spaces)
    if isinstance(choice, str):
        if choice not in ("none", "auto", "required"):
            raise invalid_value(
                f"Invalid value for tool_choice: must be none, auto, required or an object (found {quoted(choice)}).",
                "tool_choice",
            )
    elif isinstance(choice, dict):
        choice = _chosen(found, Given(choice, "tool_choice"))
    else:
        raise must_be("tool_choice", "a string or an object", choice)
    if not found and choice not in ("none", "auto"):
        others = f"; of type {', '.join(sorted(set(skipped)))[:80]} none are run here" if skipped else ""
        raise bad_request(f"tool_choice needs a function in tools{others}.", "tool_choice", "invalid_value")
    return Tools(found, choice, skipped, spaces)


def in_space(space: str, name: str) -> str:
    """The name that the model sees of a function in a namespace: as Codex names the tools of MCP servers."""
    return f"{space}__{name}"


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


def _chosen(found: list[dict[str, Any]], choice: Given) -> dict[str, Any]:
    """A choice among the functions, as a chat completion has it."""
    names = {tool["function"]["name"] for tool in found}
    kind = choice.word("type")
    if kind == "function":
        at = choice.object("function") if "function" in choice else choice
        if _name(at) not in names:
            raise _unknown(at)
        return _named(at)
    if kind != "allowed_tools":
        raise bad_request(
            f"tool_choice of type {quoted(kind)} is not supported: this server runs no such tool. Choose a function.",
            "tool_choice",
            "unsupported_parameter",
        )
    mode = choice.one_of("mode", "auto", "required")
    allowed = [tool for tool in choice.objects("tools") if tool.word("type") == "function"]
    for tool in allowed:
        if _name(tool) not in names:
            raise _unknown(tool)
    if not allowed:
        raise bad_request(
            "tool_choice allows no function. Name functions of tools there.", choice.at("tools"), "invalid_value"
        )
    return {"type": kind, kind: {"mode": mode, "tools": [_named(tool) for tool in allowed]}}


def _name(tool: Given) -> str:
    name = tool.word("name")
    return in_space(tool.word("namespace"), name) if "namespace" in tool else name


def _named(tool: Given) -> dict[str, Any]:
    return {"type": "function", "function": {"name": _name(tool)}}


def _unknown(tool: Given) -> ApiError:
    return invalid_value(
        f"tool_choice names {quoted(_name(tool))}, which is no function in tools. Name one of them.", tool.at("name")
    )
