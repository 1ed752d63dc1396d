"""Single values of a request as clients write them: numbers, stop strings, biases, prompts, parts of a message."""

import json
import re
from typing import Annotated, Any

from pydantic import BeforeValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from plimsoll.runtime.server.neutral import MESSAGE_LABELS, PARTS, note

#: Longest stop string, and most of them; each is searched for in every piece of text.
MAX_STOP_CHARS, MAX_STOPS = 256, 16
#: Most bad words; each is compared with the end of the answer at every token.
MAX_WORDS = 64

#: A number as JSON writes it; some clients send it as a string.
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]{0,30})(?:\.[0-9]{1,30})?(?:[eE][+-]?[0-9]{1,3})?")
_FLAGS = {"true": True, "false": False, "True": True, "False": False, 1: True, 0: False}
_KINDS = {str: "a string", bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "an object"}


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    return _KINDS.get(type(value), "null")


def number(value: Any) -> Any:
    """A string that holds a number as that number; anything else as it is."""
    return json.loads(value) if isinstance(value, str) and _NUMBER.fullmatch(value) else value


def whole(value: Any) -> Any:
    """A number without a fraction (16.0, "16") as an int; anything else as it is."""
    value = number(value)
    return int(value) if isinstance(value, float) and value.is_integer() else value


def flag(value: Any) -> Any:
    """A string that holds a boolean, as JSON or Python write it, and 0 or 1, as that boolean; others as they are."""
    return _FLAGS.get(value, value) if isinstance(value, str | int) else value


def _stops(value: Any) -> Any:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise PydanticCustomError("stop", "must be a string or a list of strings")
    if len(stops) > MAX_STOPS or any(not 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise PydanticCustomError("stop", f"takes up to {MAX_STOPS} strings of 1 to {MAX_STOP_CHARS} characters")
    return stops


def _words(value: Any) -> Any:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise PydanticCustomError("bad_words", "must be a list of strings")
    if len(value) > MAX_WORDS or any(not 0 < len(word.strip()) <= MAX_STOP_CHARS for word in value):
        raise PydanticCustomError(
            "bad_words", f"takes up to {MAX_WORDS} words of 1 to {MAX_STOP_CHARS} characters, besides spaces"
        )
    return value


def _bias(value: Any) -> Any:
    if not isinstance(value, dict):
        raise PydanticCustomError("logit_bias", "must be an object from token ids to numbers")
    found: dict[int, float] = {}
    if wrong := [key for key in value if not (key.isascii() and key.isdigit() and len(key) < 10)]:
        named = ", ".join(repr(key[:32]) for key in wrong[:3])
        raise PydanticCustomError("logit_bias", "keys must be token ids (found {keys})", {"keys": named})
    for key, given in value.items():
        bias = number(given)
        if isinstance(bias, bool) or not isinstance(bias, int | float) or not -100 <= bias <= 100:
            raise PydanticCustomError("logit_bias", "values must be numbers from -100 to 100")
        found[int(key)] = float(bias)
    return found


def _text(value: Any, info: ValidationInfo) -> Any:
    """A message's content: a string, or text parts, which stay apart for templates that loop over them."""
    if value is None or isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise PydanticCustomError("content", "must be a string or a list of text parts")
    return [{"type": "text", "text": _part(part, info.context)} for part in value]


def _part(part: Any, ignored: set[str] | None) -> str:
    if not isinstance(part, dict):
        raise PydanticCustomError(
            "content", "a part must be an object with a type and a text (found {kind})", {"kind": kind_of(part)}
        )
    if "type" not in part:
        raise PydanticCustomError("content", 'a part has no type; a text part is {"type": "text", "text": …}')
    kind = part["type"]
    if kind != "text":
        named = repr(kind[:32]) if isinstance(kind, str) else kind_of(kind)
        raise PydanticCustomError("content", "parts of type {kind} are not supported; only text is", {"kind": named})
    if not isinstance(part.get("text"), str):
        raise PydanticCustomError(
            "content", "a text part's text must be a string (found {kind})", {"kind": kind_of(part.get("text"))}
        )
    for name, given in part.items():
        if name in ("type", "text") or given in (None, [], {}):
            continue
        if name not in MESSAGE_LABELS:
            raise PydanticCustomError(
                "content", "a text part holds `type` and `text`; {name} is not supported", {"name": repr(name[:32])}
            )
        note(ignored, f"{PARTS}.{name}")
    return part["text"]


def _tokens(value: Any) -> list[int] | None:
    """A non-empty list of token ids, or None."""
    if not isinstance(value, list) or not value:
        return None
    ids = [int(token) if type(token) is float and token.is_integer() else token for token in value]
    return ids if all(type(token) is int for token in ids) else None


def _prompts(value: Any) -> Any:
    """One list of prompts, each a string or a list of token ids."""
    single = _tokens(value)
    prompts = [value] if isinstance(value, str) else [single] if single else value
    if not isinstance(prompts, list) or not prompts:
        raise PydanticCustomError("prompt", "must be a string, a list of strings, token ids, or a list of those lists")
    if all(isinstance(prompt, str) for prompt in prompts):
        return prompts
    ids = [_tokens(prompt) for prompt in prompts]
    if None in ids:
        raise PydanticCustomError("prompt", "must hold strings only, or non-empty lists of token ids only")
    return ids


STRING = {"type": "string"}
WORDS = {**STRING, "minLength": 1}
TOKENS = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
TEXT_PART = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": STRING},
    "required": ["type", "text"],
    "additionalProperties": False,
}

Flag = Annotated[bool, BeforeValidator(flag)]
Whole = Annotated[int, BeforeValidator(whole)]
Real = Annotated[float, BeforeValidator(number)]
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
BadWords = Annotated[
    list[str],
    BeforeValidator(_words),
    WithJsonSchema({"type": "array", "items": {**STRING, "minLength": 1, "maxLength": MAX_STOP_CHARS},
                    "maxItems": MAX_WORDS}),
]  # fmt: skip
Bias = Annotated[
    dict[int, float],
    BeforeValidator(_bias),
    WithJsonSchema({"type": "object", "propertyNames": {"pattern": "^[0-9]{1,9}$"},
                    "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100}}),
]  # fmt: skip
Content = Annotated[
    str | list[dict[str, str]] | None,
    BeforeValidator(_text),
    WithJsonSchema({"anyOf": [STRING, {"type": "array", "items": TEXT_PART}]}),
]
Prompts = Annotated[
    list[str] | list[list[int]],
    BeforeValidator(_prompts),
    WithJsonSchema({"anyOf": [WORDS, {"type": "array", "items": WORDS, "minItems": 1}, TOKENS,
                              {"type": "array", "items": TOKENS, "minItems": 1}]}),
]  # fmt: skip
