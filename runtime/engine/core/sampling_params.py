"""What a request says about how its tokens are chosen."""

import msgspec

MOST_SCORED = 128
"""Most `logprob_token_ids` of a request, as in vLLM."""


class ThoughtBudget(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How many tokens a model may think before it answers, and how it marks its thoughts."""

    tokens: int
    """Of the thought, the signs around it not counted."""
    begins: tuple[str, ...]
    """Signs that begin a thought."""
    end: str
    """The sign that ends it."""
    open: bool = False
    """The prompt has begun the thought."""
    close: tuple[int, ...]
    """Token ids that write `end`."""


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to choose tokens. `temperature` 0 is greedy. `top_k` 0 and `top_p` 1 are off.

    `logprobs` and `prompt_logprobs`: None is off; k returns the chosen token's log-probability and the k likeliest
    alternatives. Log-probabilities are of the raw model distribution, before temperature and penalties, as in vLLM.
    `seed`: a request with a seed gives the same tokens in every batch. Sample i of n uses seed + i.
    """

    n: int = 1
    max_tokens: int | None = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = {}
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    skip_special_tokens: bool = True
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    logprob_token_ids: tuple[int, ...] = ()
    """With `logprobs`: alternatives to return in place of the likeliest ones."""
    allowed_token_ids: tuple[int, ...] = ()
    """The only tokens that may be chosen; empty is all."""
    bad_words: tuple[tuple[int, ...], ...] = ()
    """Token ids of each: where the answer ends with all but the last, the last may not follow."""
    cache_salt: str = ""
    """The prompt shares cached blocks with prompts of the same salt alone."""
    priority: float = 0.0
    """Lower numbers are served first, and preempted last; equal ones in order of arrival."""
    grammar: str | None = None
    """What the whole answer must match: an llguidance grammar, in Lark or as JSON. The end of text is chosen only where
    the grammar accepts, and the request stops where nothing can follow."""
    thought: ThoughtBudget | None = None
    """None lets the model think as long as it likes."""
