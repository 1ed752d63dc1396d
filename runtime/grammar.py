"""Grammars as llguidance has them, in Lark or as JSON: compiled under one set of limits wherever that happens."""

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
    """Compiles a grammar without a tokenizer. Raises GrammarError with the compiler's words."""
    if words := LLMatcher.validate_grammar(_unforced(grammar), limits=limits()):
        raise GrammarError(words_of(words), field="grammar")


def compiled(grammar: str, tokenizer: LLTokenizer) -> LLMatcher:
    """A matcher at the beginning of `grammar`. Lets other threads run. Raises GrammarError."""
    matcher = LLMatcher(tokenizer, _unforced(grammar), log_level=0, limits=limits())
    if matcher.is_error():
        raise GrammarError(words_of(matcher.get_error()), field="grammar")
    return matcher


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
