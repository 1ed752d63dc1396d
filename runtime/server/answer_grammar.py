"""What a whole chat answer must match: a thought where the model thinks, then calls or the format asked for."""

import contextlib
import json
import re
from collections.abc import Callable

from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.runtime.grammar import after
from plimsoll.runtime.server.call_triggers import UNMARKED, may_call
from plimsoll.runtime.server.constraints import checked, schema_grammar
from plimsoll.runtime.server.errors import ApiError, invalid_value
from plimsoll.runtime.server.functions import NamedTool
from plimsoll.runtime.server.parsing.thoughts import THOUGHTS
from plimsoll.runtime.server.protocol import ChatCompletionRequest
from plimsoll.runtime.server.tool_grammar import (
    Offer,
    Sign,
    after_thought,
    call_rules,
    has_whole_schemas,
    parameters_of,
)

#: The compiler's words for schemas that may be right: what it does not know, does not fetch, or has no room for.
_BEYOND = re.compile(
    r"Unimplemented|Unknown format|regex|retriev|too (big|large|many|deep|complex)|limit|exceed|more than"
)


def answer_grammar(
    request: ChatCompletionRequest, constraint: str | None, tokenizer: Tokenizer, note: Callable[[str | None], None]
) -> str | None:
    """The grammar of an answer; None where it is free.

    Args:
        constraint: what the text of the answer must match.
        note: called with the field whose grammar is compiled next.

    Raises:
        ApiError: 400 that names `tools`, where a schema cannot be compiled; or `tool_choice`, where calls are not read.
    """
    reading = request.reading
    if request.must_call and (reading is None or reading.tool_parser is None):
        raise invalid_value(
            "tool_choice asks for a call, and this server reads none: it runs with --tool-call-parser none.",
            "tool_choice",
        )
    strict = constraint is None and not request.must_call and _is_strict(request)
    if reading is None or (constraint is None and not request.must_call and not strict):
        return constraint
    sign = signs_of(tokenizer)
    rules, rest = "", "@answer"
    if reading.tool_parser is not None and (request.must_call or request.response_format is not None):
        note("tools")
        several = request.parallel_tool_calls and not isinstance(request.tool_choice, NamedTool)
        rules = _compiled(request, reading.tool_parser, sign, several)
        rest = "calls" if request.must_call else "calls | @answer"
    elif strict:
        note("tools")
        rules, rest = _strict(request, sign), "auto"
    if reading.reasoning_parser is not None:
        begin = after_thought(THOUGHTS[reading.reasoning_parser], sign, thinking=reading.thinking)
    else:
        begin = "start: rest\n"
    lark = f"{begin}rest: {rest}\n{rules}\n"
    if constraint is None or request.must_call:
        if strict:
            _check_strict(request, lark)
        return lark
    return after(lark, constraint)


def _compiled(request: ChatCompletionRequest, parser: str, sign: Sign, several: bool) -> str:
    """Rules of the calls. Where a function need not be strict, a schema that is right and cannot be compiled counts as
    an object of any kind. Raises ApiError 400 for any other schema that cannot be compiled."""
    asked = [
        (tool.function.strict, Offer(tool.function.name, tool.function.parameters or {})) for tool in request.offered
    ]
    for _, offer in asked:
        _check_object(offer)

    def rules_of(offers: list[Offer]) -> str:
        rules = call_rules(parser, offers, sign, several=several)
        checked(f"start: calls\n{rules}\n", "tools")
        return rules

    if has_whole_schemas(parser):
        with contextlib.suppress(ApiError):
            return rules_of([offer for _, offer in asked])
    offers = [offer if _runs(offer, strict) else _any(offer) for strict, offer in asked]
    try:
        return rules_of(offers)
    except ApiError:
        if any(strict for strict, _ in asked):
            raise
        return rules_of([_any(offer) for offer in offers])


def _is_strict(request: ChatCompletionRequest) -> bool:
    """Whether a function that the model may call has arguments to be enforced, once the model begins a call."""
    reading = request.reading
    if reading is None or reading.tool_parser is None or reading.tool_parser in UNMARKED:
        return False
    return any(tool.function.strict for tool in request.offered)


def _strict(request: ChatCompletionRequest, sign: Sign) -> str:
    """Rules of text and calls. Raises ApiError 400 where a strict function's schema is wrong, as far as it is seen."""
    reading = request.reading
    assert reading is not None
    assert reading.tool_parser is not None
    offers, whole = [], has_whole_schemas(reading.tool_parser)
    for tool in request.offered:
        offer = Offer(tool.function.name, tool.function.parameters or {})
        if tool.function.strict:
            _check_object(offer)
            if not whole:
                _runs(offer, strict=True)
        elif whole or not _may_run(offer):
            offer = _any(offer)
        offers.append(offer)
    # In a thought that the prompt has begun, a second sign is text.
    thoughts = None if reading.thinking else THOUGHTS.get(reading.reasoning_parser or "")
    return may_call(reading.tool_parser, offers, sign, several=request.parallel_tool_calls, thoughts=thoughts)


def _check_strict(request: ChatCompletionRequest, lark: str) -> None:
    """Compiles the grammar of an answer. Raises ApiError 400 that names the function whose schema cannot be."""
    try:
        checked(lark, "tools")
    except ApiError:
        for tool in request.offered:
            if tool.function.strict:
                _runs(Offer(tool.function.name, tool.function.parameters or {}), strict=True)
        raise


def _may_run(offer: Offer) -> bool:
    try:
        _check_object(offer)
        return _runs(offer, strict=False)
    except ApiError:
        return False


def _any(offer: Offer) -> Offer:
    return Offer(offer.name, {"type": "object"})


def _runs(offer: Offer, strict: bool | None) -> bool:
    """Whether a schema can be enforced. Raises ApiError 400 where it is wrong in itself, or has to be enforced."""
    try:
        checked(schema_grammar(parameters_of(offer)), "tools")
    except (ApiError, ValueError) as error:
        words = error.message if isinstance(error, ApiError) else f"{error}"
        if _BEYOND.search(words) and not strict:
            return False
        raise _wrong(offer, words.removeprefix("Invalid value for tools: ").rstrip(".")) from None
    return True


def _check_object(offer: Offer) -> None:
    kind = offer.parameters.get("type", "object")
    if "object" not in (kind if isinstance(kind, list) else [kind]):
        raise _wrong(offer, "its type must be object")


def _wrong(offer: Offer, words: str) -> ApiError:
    return invalid_value(
        f"Invalid value for tools: function {offer.name!r} has an invalid 'parameters' schema: {words}.", "tools"
    )


def signs_of(tokenizer: Tokenizer) -> Sign:
    """Texts as Lark: special tokens in them by id, for ordinary tokens never make these."""
    special = sorted(tokenizer.special_tokens.items(), key=lambda item: -len(item[1]))

    def sign(text: str) -> str:
        for index, token in special:
            if token and token in text:
                before, _, behind = text.partition(token)
                return " ".join(filter(None, (sign(before), f"<[{index}]>", sign(behind))))
        return json.dumps(text, ensure_ascii=False) if text else ""

    return sign
