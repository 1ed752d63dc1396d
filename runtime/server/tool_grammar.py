"""Grammars that make a model call functions, in the way its family writes calls, so that the parser reads them back.

They are Lark, as llguidance has it. The schema of a function's parameters decides what its arguments may be.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from plimsoll.runtime.server.parsing.formats import FAMILIES, Family
from plimsoll.runtime.server.parsing.gemma_calls import GemmaCalls
from plimsoll.runtime.server.parsing.json_calls import JsonCalls, NamedCalls
from plimsoll.runtime.server.parsing.python_calls import PythonCalls
from plimsoll.runtime.server.parsing.tagged_calls import TaggedCalls, wanted
from plimsoll.runtime.server.parsing.thoughts import Thoughts

#: A sign of the family as Lark: a special token by its id, or a string.
Sign = Callable[[str], str]
#: Spaces between the parts of arguments: a model that likes them must not fill the answer with them.
_SPACES = r"\x20?"
_KEYWORDS = ("$defs", "definitions")
#: Cohere's models count their calls.
_NUMBER = '{"tool_call_id": "'


class Offer(NamedTuple):
    """A function that may be called."""

    name: str
    parameters: Mapping[str, Any]


class Spelling(NamedTuple):
    """How calls are written one after the other."""

    before: str
    between: str
    after: str
    each: tuple[str, str] = ("", "")
    """Around each call."""


def call_rules(parser: str, offers: Sequence[Offer], sign: Sign, *, several: bool) -> str:
    """Rules of Lark: `calls` is one call of a function, or more where there may be `several`."""
    family = FAMILIES[parser]
    spelling = spelling_of(parser, family)
    lines = [_calls(spelling, sign, several), f"call: {' | '.join(f'call_{i}' for i in range(len(offers)))}"]
    for index, offer in enumerate(offers):
        lines += _call(parser, family, index, offer, sign)
    return "\n".join(lines)


def has_whole_schemas(parser: str) -> bool:
    """Whether the rules of calls hold each function's schema as it is: other families take it apart."""
    return parser == "mistral" or isinstance(FAMILIES[parser].calls, JsonCalls | NamedCalls)


def must_call(parser: str, offers: Sequence[Offer], sign: Sign, *, several: bool) -> str:
    """A grammar of calls alone."""
    return f"start: calls\n{call_rules(parser, offers, sign, several=several)}\n"


def after_thought(thoughts: Thoughts, sign: Sign, *, thinking: bool) -> str:
    """Rules that begin with a thought and go on with `rest`.

    Args:
        thinking: the prompt has begun the thought. Else the answer may begin with one.
    """
    end = sign(thoughts.end)
    body = "thought: TEXT " + end if end.startswith("<") else f"thought[lazy]: /(.|\\n)*{regex(thoughts.end)}/"
    said = "".join(f" {sign(text)}?" for text in thoughts.said[:1])
    begin = f"thought {_BREAK}{said}" if thinking else f"({sign(thoughts.begin)} thought {_BREAK}{said})?"
    return f"start: {begin} rest\n{body}\nTEXT: /(.|\\n)*/\n"


_BREAK = r"/\n{0,2}/"


def regex(text: str) -> str:
    """A text as a regular expression of Lark."""
    escaped = "".join(f"\\{character}" if character in "\\^$.|?*+()[]{}/" else character for character in text)
    return escaped.replace("\n", "\\n")


def spelling_of(parser: str, family: Family, at: int = 0) -> Spelling:
    """How calls of a family are written that begin with the sign `at` among those that its calls have."""
    begin = family.calls.begins[at]
    ends: tuple[str, ...] = getattr(family.calls, "ends", ())
    end = ends[min(at, len(ends) - 1)] if ends else ""
    if begin == "functools":
        end = ""
    if parser == "hermes" or (parser == "granite" and begin == "<tool_call>"):
        return Spelling("", "\n", "", (f"{begin}\n", f"\n{end}"))
    if parser == "llama3_json":
        return Spelling("", "; ", "")
    if parser == "internlm":
        return Spelling("", "", "", (f"{begin}\n", end))
    if parser == "mistral":
        return Spelling(f"{begin}[", ", ", "]")
    if parser == "granite":
        return Spelling(f"{begin}[", ", ", "]")
    if parser == "cohere":
        return Spelling(f"{begin}[\n    ", ",\n    ", f"]{end}")
    if parser == "olmo3":
        return Spelling(begin, "\n", end)
    if isinstance(family.calls, JsonCalls):
        return Spelling(f"{begin}[", ", ", f"]{end}")
    if isinstance(family.calls, PythonCalls):
        bare = parser == "pythonic"
        return Spelling("[" if bare else f"{begin}[", ", ", "]" if bare else f"]{end}")
    if isinstance(family.calls, GemmaCalls):
        return Spelling("", "", "", (begin, end))
    if isinstance(family.calls, NamedCalls):
        return Spelling(begin, "\n" if parser == "deepseek_v3" else "", ends[-1], (family.calls.begins[-1], ends[0]))
    assert isinstance(family.calls, TaggedCalls)
    if parser == "glm45":
        return Spelling("", "\n", "", (begin, ""))
    if parser == "qwen3_coder":
        return Spelling("", "\n", "", (f"{begin}\n", f"\n{end}"))
    # Each call ends its line: what follows must not begin as what separates calls does.
    return Spelling(f"{begin}\n", "", end, ("", "\n"))


def _calls(spelling: Spelling, sign: Sign, several: bool) -> str:
    one = f"{written(spelling.each[0], sign)} call {written(spelling.each[1], sign)}"
    more = f"({written(spelling.between, sign)} {one})*" if several else ""
    return f"calls: {written(spelling.before, sign)} {one} {more} {written(spelling.after, sign)}"


def written(text: str, sign: Sign) -> str:
    """A text with signs in it as Lark."""
    return sign(text) if text else ""


def _call(parser: str, family: Family, index: int, offer: Offer, sign: Sign) -> list[str]:
    rule, calls = f"call_{index}", family.calls
    schema = parameters_of(offer)
    if isinstance(calls, JsonCalls) or parser == "mistral":
        keys = calls if isinstance(calls, JsonCalls) else JsonCalls(("",))
        key = "parameters" if parser in ("llama3_json", "internlm", "cohere") else keys.argument_keys[0]
        head = f"{json.dumps(keys.name_keys[0])}: {json.dumps(offer.name)}, {json.dumps(key)}: "
        begin = json.dumps("{" + head)
        if parser == "cohere":
            begin = f"{json.dumps(_NUMBER)} /[0-9]{{1,2}}/ {json.dumps(chr(34) + ', ' + head)}"
        return [f"{rule}: {begin} {json_rule(schema)} {json.dumps('}')}"]
    if isinstance(calls, NamedCalls):
        lead, fence = ("", "")
        if parser == "deepseek_v3":
            return [
                f'{rule}: "function" {sign("<｜tool▁sep｜>")} {json.dumps(offer.name + chr(10) + "```json" + chr(10))} '
                f'{json_rule(schema)} "\\n```"'
            ]
        name = f"functions.{offer.name}:{index}" if parser == "kimi_k2" else offer.name
        return [f"{rule}: {lead}{json.dumps(name)} {sign(calls.seps[0])} {json_rule(schema)}{fence}"]
    fields = list(_fields(schema))
    if isinstance(calls, TaggedCalls):
        return _tagged(rule, calls, offer.name, fields, sign)
    begin, equals, close = ("call:", ":", "}") if isinstance(calls, GemmaCalls) else ("", "=", ")")
    opening = "{" if isinstance(calls, GemmaCalls) else "("
    body = _pairs([(f"{name}{equals}", value, needed) for name, value, needed in fields])
    return [f"{rule}: {json.dumps(f'{begin}{offer.name}{opening}')} {body} {json.dumps(close)}"]


def _pairs(fields: Sequence[tuple[str, Any, bool]]) -> str:
    """Values with commas between them, in order; those that are not needed may be left out after the others."""
    needed = [f"{json.dumps(key)} {json_rule(value)}" for key, value, need in fields if need]
    spare = [f"{json.dumps(key)} {json_rule(value)}" for key, value, need in fields if not need]
    if needed:
        return ' ", " '.join(needed) + "".join(f' (", " {one})?' for one in spare)
    if not spare:
        return ""
    # Without any that is needed, one of the others begins.
    ways = [" ".join([one, *(f'(", " {more})?' for more in spare[at + 1 :])]) for at, one in enumerate(spare)]
    return f"({' | '.join(ways)})?"


def _tagged(rule: str, calls: TaggedCalls, name: str, fields: Sequence[tuple[str, Any, bool]], sign: Sign) -> list[str]:
    quoted = '"' if '"' in "".join(calls.name_begins) or calls.name_ends[0] == '">' else ""
    named = calls.name_begins[0] if calls.name_begins else ""
    end = calls.name_ends[0] if calls.name_begins else ""
    if named.endswith("name="):
        quoted = '"'
        named += '"'
        end = '"' + end
    lines, parts = [], []
    glm = not calls.name_begins
    for at, (key, value, needed) in enumerate(fields):
        begin = calls.key_begins[0] + ('"' if calls.key_begins[0].endswith("name=") else "") + key
        if quoted:
            begin += '"'
            if "DSML" in calls.key_begins[0]:
                begin += f' string="{"true" if _is_text(value) else "false"}"'
        begin += calls.key_end + ("\n" + calls.value_begin if glm else "")
        edge = "\n" if calls.name_begins == ("<function=",) else ""
        inner = f"{rule}_{at}"
        if _is_text(value) and (only := value.get("enum") or ([value["const"]] if "const" in value else [])):
            texts = " | ".join(json.dumps(str(text), ensure_ascii=False) for text in only)
            part = f"{json.dumps(begin + edge, ensure_ascii=False)} ({texts}) {sign(edge + calls.value_ends[0])}"
        elif _is_text(value):
            lines.append(f"{inner}[lazy]: /(.|\\n)*{regex(calls.value_ends[0])}/")
            part = f"{json.dumps(begin + edge, ensure_ascii=False)} {inner}"
        else:
            part = (
                f"{json.dumps(begin + edge, ensure_ascii=False)} {json_rule(value)} {sign(edge + calls.value_ends[0])}"
            )
        part += ' "\\n"'
        parts.append(part if needed else f"({part})?")
    head = json.dumps(named + name + end + "\n", ensure_ascii=False)
    return [f"{rule}: {head} {' '.join(parts)} {sign(calls.call_ends[0])}", *lines]


def _is_text(schema: Any) -> bool:
    return wanted(schema) == "text"


def parameters_of(offer: Offer) -> dict[str, Any]:
    """The schema of a function's arguments, which are an object."""
    if not offer.parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return {**offer.parameters, "type": "object"}


def _fields(schema: Mapping[str, Any]) -> list[tuple[str, Any, bool]]:
    """Name, schema and need of each property, those that are needed first."""
    shared = {name: schema[name] for name in _KEYWORDS if name in schema}
    needed = schema.get("required")
    needed = needed if isinstance(needed, list) else []
    given = schema.get("properties")
    given = given if isinstance(given, Mapping) else {}
    found = [
        (name, {**shared, **value} if isinstance(value, Mapping) else {}, name in needed)
        for name, value in given.items()
    ]
    return sorted(found, key=lambda field: not field[2])


def json_rule(schema: Mapping[str, Any]) -> str:
    """Lark for a JSON value that matches a schema."""
    options = schema.get("x-guidance") or {}
    if isinstance(options, Mapping):
        options = {"whitespace_pattern": _SPACES, **options}
    return f"%json {json.dumps({**schema, 'x-guidance': options}, ensure_ascii=False)}"
