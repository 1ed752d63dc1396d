"""What the sampler knows of one sequence, from its first token to its last."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from plimsoll.runtime.engine.core.sampling_params import SamplingParams


class TokenCounts:
    """How often a request has said each token; kept from step to step, so a step costs what is new."""

    def __init__(self, prompt_token_ids: Sequence[int]) -> None:
        self._prompt = prompt_token_ids
        self._prompt_size = 0
        self._counted = 0
        self._place: dict[int, int] = {}
        self._ids: list[int] = []
        self._counts: list[int] = []

    def _add(self, token: int, times: int) -> None:
        place = self._place.setdefault(token, len(self._ids))
        if place == len(self._ids):
            self._ids.append(token)
            self._counts.append(0)
        self._counts[place] += times

    def seen(self, output_token_ids: Sequence[int], *, with_prompt: bool) -> tuple[Sequence[int], Sequence[int]]:
        """Distinct ids, and how often each is in the output; prompt-only tokens count 0. Valid until the next call."""
        if with_prompt and not self._prompt_size:
            for token in dict.fromkeys(self._prompt):
                self._add(token, 0)
            self._prompt_size = len(self._prompt)
        for token in output_token_ids[self._counted :]:
            self._add(token, 1)
        self._counted = len(output_token_ids)
        return self._ids, self._counts


class Constraint(Protocol):
    """What a request's grammar allows next."""

    @property
    def error(self) -> str:
        """Why the grammar cannot go on, empty while it can."""

    @property
    def accepting(self) -> bool:
        """Whether the answer may end here."""

    @property
    def stopped(self) -> bool:
        """Whether nothing can follow."""

    def compute(self) -> None:
        """Finds out what may follow now. May run in another thread, while no other method is called."""

    def mask(self) -> bytes:
        """One bit a token, the lowest of each byte first: set where the token may follow. As of the last `compute`."""

    def take(self, token_id: int) -> bool:
        """Goes on by a token; False where it may not follow."""


@dataclass(slots=True, kw_only=True)
class SamplingRow:
    """What the sampler must know of one sequence. Keep one a sequence for its lifetime: counts are carried along."""

    params: SamplingParams
    seed: int
    prompt_token_ids: Sequence[int]
    output_token_ids: Sequence[int]
    """The sequence's own list, growing as it generates."""
    guessed: int = 0
    """Tokens after these that are guesses: the token drawn now comes after them."""
    forbidden: Sequence[int] = ()
    """Ids that may not be chosen now: end-of-text and stop ids until `min_tokens` are there."""
    forced: int | None = None
    """The token that comes next, for a reason other than the model's or the request's; None where one is chosen."""
    constraint: Constraint | None = None
    """Computed for the token drawn now."""
    counts: TokenCounts | None = field(default=None, repr=False)
    """Filled and used by the sampler."""

    @property
    def index(self) -> int:
        """Of the token drawn now, in the answer."""
        return len(self.output_token_ids) + self.guessed

    def after(self, guessed: int) -> "SamplingRow":
        """The row of the token that comes after so many guesses. Only of rows that `may_guess` holds for."""
        return replace(self, guessed=guessed) if guessed else self
