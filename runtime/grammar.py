"""Grammars as llguidance has them, in Lark or as JSON: compiled under one set of limits wherever that happens."""

import functools
import json
import re
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer

from plimsoll.api.errors import PlimsollError

MAX_CHARACTERS = 1 << 20
"""The longest grammar."""

#: Text that can only be one thing is still chosen token by token: else it would have to be tokenized here.
_OPTIONS = '\n%llguidance {"no_forcing": true}\n'
_ROOT = "plimsoll_root"


class GrammarError(PlimsollError):
    """A grammar that cannot be run. The message goes to the client."""


def limits() -> LLParserLimits:
    """What compiling a grammar, and one step through it, may take."""
    return LLParserLimits(max_lexer_states=20_000, max_grammar_size=100_000, verbose_errors=False)


def check(grammar: str) -> None:
    """Compiles a grammar for texts of single bytes, so that no vocabulary is needed, and takes a first step.

    Raises GrammarError with the compiler's words. Control tokens that the grammar names are not looked up.
    """
    unforced = _unforced(grammar)
    if words := LLMatcher.validate_grammar(unforced, limits=limits()):
        raise GrammarError(words_of(words), field="grammar")
    matcher = LLMatcher(_bytes(), unforced, log_level=0, limits=limits())
    if not matcher.is_error():
        matcher.compute_bitmask()
    if (words := failure(matcher)) and not re.search("[Uu]nknown special token|Token range", words):
        raise GrammarError(words, field="grammar")


def compiled(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher at the beginning of `grammar`. Lets other threads run. Raises GrammarError."""
    matcher = LLMatcher(tokenizer, _unforced(grammar), log_level=0, limits=limits())
    if matcher.is_error():
        raise GrammarError(words_of(matcher.get_error()), field="grammar")
    return matcher


def failure(matcher: LLMatcher) -> str:
    """Why a matcher cannot go on, empty while it can and where it is at a right end."""
    if "NoExtensionBias" in f"{matcher.stop_reason()} {matcher.get_error()}":
        return "no token can follow, and the text is not complete"
    if matcher.is_error():
        return words_of(matcher.get_error())
    if not matcher.is_stopped() or matcher.is_accepting():
        return ""
    return f"it stopped: {matcher.stop_reason()}"


@functools.cache
def _bytes() -> LLTokenizer:
    return LLTokenizer("byte")


def words_of(error: str) -> str:
    """An error of llguidance in one line, without its traceback."""
    error = error.partition("<backtrace>")[0].replace("<non-verbose/>", "")
    # What follows are lines of the grammar, which holds more than the client wrote.
    return " ".join(re.split(r"\n *\d+ \| ", error)[0].split())[:500]


def parts(grammar: str) -> list[dict[str, Any]]:
    """The list of grammars in one: the first is where an answer begins. Raises GrammarError."""
    if len(grammar) > MAX_CHARACTERS:
        raise GrammarError(f"has {len(grammar)} characters, and {MAX_CHARACTERS} are allowed", field="grammar")
    if not grammar.lstrip().startswith("{"):
        return [{"lark_grammar": grammar}]
    try:
        found = json.loads(grammar)["grammars"]
        if not (isinstance(found, list) and found and all(isinstance(part, dict) for part in found)):
            raise ValueError("`grammars` must be a list of objects")
    except (ValueError, KeyError, RecursionError) as error:
        raise GrammarError(f"is neither Lark nor llguidance's JSON: {error}", field="grammar") from None
    return found


def after(rules: str, grammar: str) -> str:
    """A grammar that begins with Lark `rules`, which name `grammar` as `@answer`. Raises GrammarError."""
    first, *rest = parts(grammar)
    return json.dumps({"grammars": [{"lark_grammar": rules}, {**first, "name": "answer"}, *rest]}, ensure_ascii=False)


def _unforced(grammar: str) -> str:
    first, *rest = parts(grammar)
    if lark := first.get("lark_grammar"):
        head = [{**first, "lark_grammar": f"{lark}{_OPTIONS}"}]
    else:
        head = [{"lark_grammar": f"start: @{_ROOT}{_OPTIONS}"}, {**first, "name": _ROOT}]
    return json.dumps({"grammars": [*head, *rest]}, ensure_ascii=False)
