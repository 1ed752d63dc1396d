"""From a request as it came to a sequence the engine can run, or the reason why not."""

import math
import random
from collections.abc import Iterable

from plimsoll.api.errors import PlimsollError
from plimsoll.runtime.engine.core.guesser import NO_GUESSES, Guessing
from plimsoll.runtime.engine.core.sampling_params import MOST_SCORED, SamplingParams
from plimsoll.runtime.engine.core.sequence import Sequence
from plimsoll.runtime.engine.core.thought import Spelling, ThoughtLimit
from plimsoll.runtime.messages import EngineRequest

MAX_LOGPROBS = 100
"""Alternatives a request may ask for at each position: an answer is sent whole, so they cost memory here."""

MOST_PRIORITY = 2.0**53
"""Whole numbers up to it are apart as floats."""


class RequestError(PlimsollError):
    """A request that cannot be run. The message goes to the client."""


class RequestReader:
    """Args:
    vocab_size: ids of prompts, stop tokens and biases are below it.
    model_len: longest prompt and answer together.
    eos_token_ids: the model's own ends of text.
    seed: of the numbers that requests without a seed are given.
    guessing: how tokens of requests are guessed.

    Attributes:
        spelling: the text of tokens, which requests with a thought's budget need; None before it is known.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        model_len: int,
        eos_token_ids: Iterable[int],
        seed: int,
        guessing: Guessing = NO_GUESSES,
    ) -> None:
        self.vocab_size = vocab_size
        self.model_len = model_len
        self.eos_token_ids = tuple(token for token in eos_token_ids if 0 <= token < vocab_size)
        self.guessing = guessing
        self._random = random.Random(seed)
        self.spelling: Spelling | None = None

    def read(self, request: EngineRequest) -> Sequence:
        """The sequence to run; an answer that would outgrow the model is cut to what fits.

        Raises RequestError as `check` does.
        """
        self.check(request)
        params, prompt = request.params, request.prompt_token_ids
        room = self.model_len - len(prompt)
        max_tokens = room if params.max_tokens is None else min(params.max_tokens, room)
        thought = None
        if params.thought is not None:
            if self.spelling is None:
                raise RequestError("this engine was given no vocabulary", field="thought")
            thought = ThoughtLimit(params.thought, self.spelling.of(params.thought))
        guessed = self.guessing.tokens > 0 and _may_guess(params)
        return Sequence(
            request.request_id,
            prompt,
            params,
            seed=self._random.getrandbits(63) if params.seed is None else params.seed,
            eos_token_ids=() if params.ignore_eos else self.eos_token_ids,
            max_tokens=max_tokens,
            arrival=request.arrival,
            thought=thought,
            payoff=self.guessing.payoff() if guessed else None,
            lookup=self.guessing.lookup(prompt) if guessed else None,
        )

    def check(self, request: EngineRequest) -> None:
        """Raises RequestError for a prompt or parameters that cannot be run, naming the field."""
        try:
            self._check_prompt(request.prompt_token_ids)
            self._check_params(request.params)
        except (TypeError, ValueError) as error:
            raise RequestError(f"has a value of the wrong kind: {error}", field="request") from None

    def _check_prompt(self, prompt: list[int]) -> None:
        if not prompt:
            raise RequestError("is empty", field="prompt", fix="Send at least one token")
        if len(prompt) >= self.model_len:
            raise RequestError(
                f"has {len(prompt)} tokens, and prompt and answer together may have {self.model_len}",
                field="prompt",
                fix=f"Send at most {self.model_len - 1} tokens",
            )
        if min(prompt) < 0 or max(prompt) >= self.vocab_size:
            foreign = next(token for token in prompt if not 0 <= token < self.vocab_size)
            raise RequestError(f"token ids go from 0 to {self.vocab_size - 1}", field="prompt", value=foreign)

    def _check_params(self, params: SamplingParams) -> None:
        _within("n", params.n, 1, 1)
        if params.max_tokens is not None:
            # 0 scores the prompt and answers nothing.
            _within("max_tokens", params.max_tokens, 0 if params.prompt_logprobs is not None else 1, math.inf)
        _within("min_tokens", params.min_tokens, 0, math.inf if params.max_tokens is None else params.max_tokens)
        _within("temperature", params.temperature, 0.0, 1e6)
        _within("top_k", params.top_k, 0, math.inf)
        _within("top_p", params.top_p, 0.0, 1.0)
        if params.top_p == 0.0:
            raise RequestError("must be above 0", field="top_p", value=params.top_p, fix="For greedy use temperature 0")
        _within("priority", params.priority, -MOST_PRIORITY, MOST_PRIORITY)
        _within("min_p", params.min_p, 0.0, 1.0)
        _within("repetition_penalty", params.repetition_penalty, 1e-9, 1e9)
        _within("presence_penalty", params.presence_penalty, -1e3, 1e3)
        _within("frequency_penalty", params.frequency_penalty, -1e3, 1e3)
        for name in ("logprobs", "prompt_logprobs"):
            value = getattr(params, name)
            if value is not None:
                _within(name, value, 0, MAX_LOGPROBS)
        if params.allowed_token_ids:
            # There may be thousands.
            for token in (min(params.allowed_token_ids), max(params.allowed_token_ids)):
                _within("allowed_token_ids", token, 0, self.vocab_size - 1)
        for word in params.bad_words:
            if not word:
                raise RequestError("holds a word without tokens", field="bad_words")
            for token in word:
                _within("bad_words", token, 0, self.vocab_size - 1)
        for token in params.stop_token_ids:
            _within("stop_token_ids", token, 0, self.vocab_size - 1)
        if params.logprob_token_ids:
            if params.logprobs is None:
                raise RequestError("needs logprobs", field="logprob_token_ids", fix="Set logprobs to 0")
            _within("logprob_token_ids", len(params.logprob_token_ids), 1, MOST_SCORED)
            for token in params.logprob_token_ids:
                _within("logprob_token_ids", token, 0, self.vocab_size - 1)
        if (thought := params.thought) is not None:
            _within("thought", thought.tokens, 0, math.inf)
            if not thought.close or not thought.end:
                raise RequestError("has no sign that ends it", field="thought")
            for token in thought.close:
                _within("thought", token, 0, self.vocab_size - 1)
        for token, bias in params.logit_bias.items():
            _within("logit_bias", token, 0, self.vocab_size - 1)
            _within("logit_bias", bias, -1e6, 1e6)


def _may_guess(params: SamplingParams) -> bool:
    """Whether what may be chosen is the same regardless of the tokens before: then guesses can be run together."""
    return (
        params.grammar is None
        and params.thought is None
        and not params.bad_words
        and not params.min_tokens
        and params.repetition_penalty == 1.0
        and params.presence_penalty == params.frequency_penalty == 0.0
    )


def _within(field: str, value: float, low: float, high: float) -> None:
    # Written so that NaN fails.
    if not low <= value <= high:
        allowed = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
        raise RequestError(f"must be {allowed}", field=field, value=value)
