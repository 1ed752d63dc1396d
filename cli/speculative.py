"""How tokens are guessed: `--speculative-tokens` and `--draft-model`, or vLLM's `--speculative-config`."""

import json
from typing import Any

from plimsoll.api.errors import SpecError

OPTION, DRAFT, CONFIG = "--speculative-tokens", "--draft-model", "--speculative-config"
NGRAM = ("ngram", "[ngram]")
"""vLLM also takes the method's name as the model's."""
DRAFTED = "draft_model"
MOST = 16
KNOWN = ("method", "model", "num_speculative_tokens", "draft_tensor_parallel_size")
EXAMPLES = (
    '{"method": "ngram", "num_speculative_tokens": 4}',
    '{"model": "PATH", "num_speculative_tokens": 4}',
)


def guessing(tokens: int, draft: str | None, config: str | None) -> tuple[int, str | None]:
    """Tokens that a step guesses of each request (0 is none), and the draft that guesses them (None: the text itself).

    Args:
        tokens: of `--speculative-tokens`.
        draft: of `--draft-model`.
        config: of `--speculative-config`, a JSON object; None where it is not given.

    Raises SpecError for what is no such object, for a method that this engine does not have, for options that say the
    same, and for a draft that guesses nothing.
    """
    if config is None:
        if draft is not None and not tokens:
            raise SpecError("guesses no tokens", field=DRAFT, value=draft, fix=f"Add {OPTION} 4")
        return tokens, draft
    if tokens or draft is not None:
        raise SpecError(f"says the same as {OPTION if tokens else DRAFT}", field=CONFIG, value=config, fix="Leave one")
    try:
        found: Any = json.loads(config)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise SpecError("must be a JSON object", field=CONFIG, value=config, fix=f"Write '{EXAMPLES[0]}'")
    for name in found:
        if name not in KNOWN:
            fix = f"Leave it out. Known: {', '.join(KNOWN)}"
            raise SpecError("is not an option of this engine's guesses", field=f"{CONFIG} {name}", fix=fix)
    draft = _draft(found)
    count = found.get("num_speculative_tokens")
    if not isinstance(count, int) or isinstance(count, bool) or not 1 <= count <= MOST:
        raise SpecError(f"must be a whole number, 1 to {MOST}", field=f"{CONFIG} num_speculative_tokens", value=count)
    ranks = found.get("draft_tensor_parallel_size", 1)
    if ranks != 1 or isinstance(ranks, bool):
        raise SpecError(
            "must be 1: one rank runs all of the draft", field=f"{CONFIG} draft_tensor_parallel_size", value=ranks,
            fix="Leave it out",
        )  # fmt: skip
    return count, draft


def _draft(found: dict[str, Any]) -> str | None:
    """The draft of vLLM's object, None for prompt lookup."""
    model = found.get("model")
    named = isinstance(model, str) and model != "" and model not in NGRAM
    method = found.get("method", DRAFTED if named else model)
    if method == DRAFTED and named:
        return str(model)
    if method in NGRAM and (model is None or model in NGRAM):
        return None
    if method in (*NGRAM, DRAFTED):
        words = "must be the address of a draft model" if method == DRAFTED else "goes with method draft_model"
        raise SpecError(words, field=f"{CONFIG} model", value=model, fix=f"Write '{EXAMPLES[method == DRAFTED]}'")
    fix = f"Write '{EXAMPLES[0]}', or '{EXAMPLES[1]}' for a draft model"
    raise SpecError(f"must be ngram or {DRAFTED}", field=f"{CONFIG} method", value=method, fix=fix)
