"""Which parsers an answer goes through: what the server is set to, else what the model's chat template asks for."""

from collections.abc import Mapping
from typing import Any

from plimsoll.api.parsers import AUTO, NONE
from plimsoll.checkpoint.chat_template import variables_of
from plimsoll.checkpoint.tokenizer import Tokenizer
from plimsoll.runtime.config import ServerConfig
from plimsoll.runtime.engine.core.thought import ThoughtState
from plimsoll.runtime.server.functions import Reading
from plimsoll.runtime.server.parsing.formats import FAMILIES, reasoning_parser, shown_ids, tool_parser
from plimsoll.runtime.server.parsing.reader import AnswerReader
from plimsoll.runtime.server.parsing.thoughts import THOUGHTS
from plimsoll.runtime.server.parts import PartReader, PlainReader
from plimsoll.runtime.server.protocol import ChatCompletionRequest

#: What templates call the variable that switches thoughts on or off.
_SWITCHES = ("enable_thinking", "thinking")
#: What Seed-OSS's template calls the tokens that a thought may have, and writes into the prompt.
_BUDGET = "thinking_budget"


def reading_of(
    request: ChatCompletionRequest, tokenizer: Tokenizer, config: ServerConfig, rendered: str, *, own_words: bool
) -> Reading | None:
    """How the answers of a request are taken apart; None where all of their text is said.

    Args:
        rendered: the prompt.
        own_words: the tools are described in our words and not in the template's.
    """
    source = tokenizer.template_source(request.chat_template, bool(request.tools))
    tokens = tokenizer.added_tokens
    calls = thoughts = None
    if request.offered and config.tool_parser != NONE:
        calls = config.tool_parser
        if calls == AUTO:
            calls = "hermes" if own_words else tool_parser(source, tokens)
    if request.separate_reasoning and config.reasoning_parser != NONE:
        thoughts = reasoning_parser(source, tokens) if config.reasoning_parser == AUTO else config.reasoning_parser
    if calls is None and thoughts is None:
        return None
    functions = {tool.function.name: tool.function.parameters for tool in request.offered} if calls else {}
    return Reading(calls, thoughts, _is_open(request, rendered, thoughts), functions)


def _is_open(request: ChatCompletionRequest, rendered: str, thoughts: str | None) -> bool:
    """Whether the prompt ends inside of a thought: templates of some families begin it themselves."""
    if thoughts is None:
        return False
    begin, end = THOUGHTS[thoughts].begin, THOUGHTS[thoughts].end
    if request.continue_final_message:
        last = rendered[rendered.rfind(begin) :] if begin in rendered else ""
        given = request.messages[-1].content
        text = given if isinstance(given, str) else ""
        return bool(last) and end not in last and begin in text
    return rendered.rstrip().endswith(begin)


def reader_of(reading: Reading | None, *, whole: bool) -> PartReader:
    """A reader of one answer. `whole` is for answers that are sent whole: a call that breaks off in them is text."""
    if reading is None:
        return PlainReader()
    return AnswerReader(
        thoughts=None if reading.reasoning_parser is None else THOUGHTS[reading.reasoning_parser],
        thinking=reading.thinking,
        family=None if reading.tool_parser is None else FAMILIES[reading.tool_parser],
        functions=reading.functions,
        whole=whole,
    )


def thought_of(reading: Reading | None) -> ThoughtState | None:
    """What counts the tokens of one answer's thought; None where thoughts are not read."""
    if reading is None or reading.reasoning_parser is None:
        return None
    thoughts = THOUGHTS[reading.reasoning_parser]
    return ThoughtState((thoughts.begin, *thoughts.begins), thoughts.end, open=reading.thinking)


def shown(reading: Reading | None, tokenizer: Tokenizer) -> frozenset[int]:
    """Ids of special tokens that stay in the text, for the reader."""
    if reading is None:
        return frozenset()
    family = None if reading.tool_parser is None else FAMILIES[reading.tool_parser]
    thoughts = None if reading.reasoning_parser is None else THOUGHTS[reading.reasoning_parser]
    return shown_ids(tokenizer.special_tokens, family, thoughts) - set(tokenizer.eos_token_ids)


def template_variables(request: ChatCompletionRequest, source: str | None) -> dict[str, Any]:
    """`chat_template_kwargs`, and what `reasoning_effort` and a budget mean to a template that knows them.

    To others the effort means nothing: then the request's `unheard` names it.
    """
    given: Mapping[str, Any] = request.chat_template_kwargs
    effort, budget = request.reasoning_effort, request.thinking_token_budget
    if effort is None and budget is None:
        return dict(given)
    known = variables_of(source or "")
    asked: dict[str, Any] = {} if budget is None or _BUDGET not in known else {_BUDGET: budget}
    if effort is not None:
        heard: dict[str, Any] = {"reasoning_effort": effort} if "reasoning_effort" in known else {}
        heard |= {name: effort != "none" for name in _SWITCHES if name in known}
        asked |= heard
        if not heard:
            request.unheard.add("reasoning_effort")
    return asked | dict(given)
