"""What a request says that its answer must match, as one llguidance grammar. Pure, and as slow as the client wants:
runs where time and memory are bounded."""

import json
import re
import time
from collections.abc import Callable
from typing import Any

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from plimsoll.runtime.grammar import GrammarError, check
from plimsoll.runtime.server.errors import invalid_value
from plimsoll.runtime.server.protocol import CONSTRAINTS, ResponseFormat, Sampling, StructuredOutputs
from plimsoll.runtime.server.values import kind_of

#: Between two parts of JSON: a space, or a new line and its indentation. A model that likes spaces must not fill the
#: answer with them.
WHITESPACE = r"\x20|\x0A\x20{0,32}"
#: Seconds of processor time that compiling may take: the engine does it once more.
SECONDS = 2.0


def schema_grammar(schema: Any, **options: Any) -> str:
    """A grammar of the JSON values that match a schema.

    Args:
        schema: an object or a boolean, as JSON has it.
        options: of llguidance's JSON compiler; `x-guidance` in the schema overrides them.
    """
    defaults: Any = {"whitespace_pattern": WHITESPACE, **options}
    return str(LLMatcher.grammar_from_json_schema(schema, defaults=defaults))


def choice_grammar(choices: list[str]) -> str:
    """A grammar of these texts."""
    return f"start: {' | '.join(json.dumps(choice) for choice in choices)}"


def text_grammar(grammar: str) -> str:
    """A grammar that a client wrote, in Lark or in GBNF. Raises ValueError with the reason."""
    try:
        return str(any_to_lark(re.sub(r"(\\\\)|\\u([0-9a-fA-F]{4})|\\U([0-9a-fA-F]{8})", _character, grammar)))
    except Exception as error:
        raise ValueError(f"neither Lark nor GBNF: {error}") from None


def regex_grammar(regex: str) -> str:
    """A grammar of the texts that a regular expression matches as a whole."""
    return str(LLMatcher.grammar_from_regex(regex))


def constraint_of(request: Sampling, note: Callable[[str | None], None]) -> str | None:
    """The grammar that an answer must match, compiled once to see that it can be; None where there is none.

    Args:
        note: called with the field whose grammar is compiled next.

    Raises:
        ApiError: 400 that names the field, with the compiler's words.
    """
    given = [name for name in CONSTRAINTS if getattr(request, name) is not None]
    found = [(name, grammar) for name in given if (grammar := _begin(request, name, note)) is not None]
    if len(found) > 1:
        names = " and ".join(name for name, _ in found)
        raise invalid_value(f"Only one field may constrain the answer (found {names}). Leave one out.", found[1][0])
    if not found:
        return None
    ((field, grammar),) = found
    checked(grammar, field)
    return grammar


def checked(grammar: str, field: str) -> None:
    """Compiles a grammar. Raises ApiError 400 that names `field` where that fails or takes too long."""
    began = time.process_time()
    try:
        check(grammar)
    except GrammarError as error:
        raise invalid_value(f"Invalid value for {field}: {error.message}.", field) from None
    if time.process_time() - began > SECONDS:
        raise invalid_value(
            f"Invalid value for {field}: compiling it takes more than {SECONDS:g} s. Send a simpler one.", field
        )


def _begin(request: Sampling, field: str, note: Callable[[str | None], None]) -> str | None:
    note(field)
    try:
        return _grammar(request, field)
    except ValueError as error:
        raise invalid_value(f"Invalid value for {field}: {error}.", field) from None


def _grammar(request: Sampling, field: str) -> str | None:
    value = getattr(request, field)
    pattern = request.guided_whitespace_pattern
    options = {} if pattern is None else {"whitespace_pattern": pattern}
    if field == "response_format":
        return _format_grammar(value)
    if field == "structured_outputs":
        return _structured_grammar(value)
    if field in ("guided_json", "json_schema"):
        return schema_grammar(_schema(value), **options)
    if field in ("guided_regex", "regex"):
        return regex_grammar(value)
    if field == "guided_choice":
        return choice_grammar(value)
    return text_grammar(value) if value.strip() else None


def _format_grammar(value: ResponseFormat) -> str | None:
    if value.type == "text":
        return None
    if value.type == "json_object":
        return schema_grammar({"type": "object"} if value.schema_ is None else _schema(value.schema_))
    schema = value.schema_ if value.json_schema is None else value.json_schema.schema_
    if schema is None:
        raise ValueError("json_schema.schema is missing. Send a JSON schema there, or type: json_object")
    return schema_grammar(_schema(schema))


def _structured_grammar(value: StructuredOutputs) -> str | None:
    values = {"json": value.json_, "regex": value.regex, "choice": value.choice, "grammar": value.grammar}
    kinds = [name for name, given in values.items() if given is not None]
    kinds += ["json_object"] if value.json_object else []
    if len(kinds) != 1:
        raise ValueError(f"must hold one of json, regex, choice, grammar and json_object (found {len(kinds)})")
    if value.regex is not None:
        return regex_grammar(value.regex)
    if value.choice is not None:
        return choice_grammar(value.choice)
    if value.grammar is not None:
        return text_grammar(value.grammar)
    options: dict[str, Any] = {}
    if value.whitespace_pattern is not None:
        options["whitespace_pattern"] = value.whitespace_pattern
    if value.disable_any_whitespace:
        options |= {"whitespace_pattern": None, "whitespace_flexible": False}
    schema = {"type": "object"} if value.json_ is None else _schema(value.json_)
    return schema_grammar(_closed(schema) if value.disable_additional_properties else schema, **options)


def _schema(value: Any) -> Any:
    """A schema, which may be written as a string. Raises ValueError."""
    if isinstance(value, str):
        value = json.loads(value)
    if not isinstance(value, dict | bool):
        raise ValueError(f"a schema must be an object or a boolean (found {kind_of(value)})")
    return value


def _closed(schema: Any) -> Any:
    """The schema with no properties but those it names, as vLLM's option has it."""
    if isinstance(schema, list):
        return [_closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: _closed(value) for name, value in schema.items()}
    if "properties" in schema or "patternProperties" in schema:
        closed.setdefault("additionalProperties", False)
    return closed


def _character(match: re.Match[str]) -> str:
    """An escaped code point as the character: llguidance's converter cuts its zeros."""
    if match[1]:
        return match[1]
    code = int(match[2] or match[3], 16)
    if code < 0x80:
        return f"\\x{code:02x}"
    return chr(code) if code < 0x110000 and not 0xD800 <= code < 0xE000 else match[0]
