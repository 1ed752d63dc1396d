"""How many tokens a step guesses: `--speculative-tokens`, or vLLM's `--speculative-config`."""

import json
from typing import Any

from plimsoll.api.errors import SpecError

OPTION, CONFIG = "--speculative-tokens", "--speculative-config"
METHODS = ("ngram", "[ngram]")
MOST = 16
KNOWN = ("method", "model", "num_speculative_tokens")
"""vLLM also takes the method's name as the model's."""


def guessed_tokens(tokens: int, config: str | None) -> int:
    """Tokens that a step guesses of each request; 0 is none.

    Args:
        tokens: of `--speculative-tokens`.
        config: of `--speculative-config`, a JSON object; None where it is not given.

    Raises SpecError for what is no such object, for a method that this engine does not have, and for both options.
    """
    if config is None:
        return tokens
    if tokens:
        raise SpecError(f"says the same as {OPTION}", field=CONFIG, value=config, fix="Leave one")
    example = '{"method": "ngram", "num_speculative_tokens": 4}'
    try:
        found: Any = json.loads(config)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise SpecError("must be a JSON object", field=CONFIG, value=config, fix=f"Write '{example}'")
    for name in found:
        if name not in KNOWN:
            fix = f"Leave it out. Known: {', '.join(KNOWN)}"
            raise SpecError("is not an option of this engine's guesses", field=f"{CONFIG} {name}", fix=fix)
    method = found.get("method", found.get("model"))
    if method not in METHODS or found.get("model", method) not in METHODS:
        fix = f"Write '{example}': guesses come from the request's own text, and there is no draft model"
        raise SpecError("must be ngram", field=f"{CONFIG} method", value=method, fix=fix)
    count = found.get("num_speculative_tokens")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST:
        raise SpecError(f"must be a whole number, 1 to {MOST}", field=f"{CONFIG} num_speculative_tokens", value=count)
    return count
