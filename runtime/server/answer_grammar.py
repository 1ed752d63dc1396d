"""What a whole chat answer must match: a thought where the model thinks, then calls or the format asked for."""

import json
from collections.abc import Callable

from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.runtime.grammar import after
from plimsoll.runtime.server.constraints import checked
from plimsoll.runtime.server.errors import ApiError, invalid_value
from plimsoll.runtime.server.functions import NamedTool
from plimsoll.runtime.server.parsing.thoughts import THOUGHTS
from plimsoll.runtime.server.protocol import ChatCompletionRequest
from plimsoll.runtime.server.tool_grammar import Offer, Sign, after_thought, call_rules


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
    if reading is None or (constraint is None and not request.must_call):
        return constraint
    sign = signs_of(tokenizer)
    rules, rest = "", "@answer"
    if reading.tool_parser is not None and (request.must_call or request.response_format is not None):
        note("tools")
        several = request.parallel_tool_calls and not isinstance(request.tool_choice, NamedTool)
        rules = _compiled(request, reading.tool_parser, sign, several)
        rest = "calls" if request.must_call else "calls | @answer"
    if reading.reasoning_parser is not None:
        begin = after_thought(THOUGHTS[reading.reasoning_parser], sign, thinking=reading.thinking)
    else:
        begin = "start: rest\n"
    lark = f"{begin}rest: {rest}\n{rules}\n"
    if constraint is None or request.must_call:
        return lark
    return after(lark, constraint)


def _compiled(request: ChatCompletionRequest, parser: str, sign: Sign, several: bool) -> str:
    """Rules of the calls. A schema that cannot be compiled is an object of any kind, where it need not be strict."""
    offers = [Offer(tool.function.name, tool.function.parameters or {}) for tool in request.offered]
    rules = call_rules(parser, offers, sign, several=several)
    try:
        checked(f"start: calls\n{rules}\n", "tools")
    except ApiError:
        strict = {tool.function.name for tool in request.offered if tool.function.strict}
        kept = [offer.name in strict or _compiles(parser, offer, sign) for offer in offers]
        offers = [
            offer if keep else Offer(offer.name, {"type": "object"}) for offer, keep in zip(offers, kept, strict=True)
        ]
        rules = call_rules(parser, offers, sign, several=several)
        checked(f"start: calls\n{rules}\n", "tools")
    return rules


def _compiles(parser: str, offer: Offer, sign: Sign) -> bool:
    try:
        checked(f"start: calls\n{call_rules(parser, [offer], sign, several=False)}\n", "tools")
    except ApiError:
        return False
    return True


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
