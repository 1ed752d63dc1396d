"""Which sequences of a step are guessed for, and how far the draft has run each of them.

Guesses come from a sequence's own text (`Lookup`) or from a draft: a small model that runs the same tokens. The draft's
cache is its own, and its blocks have the same numbers. It runs a sequence only to guess for it, so it may be behind:

    token_ids    [ ................................................ ]
                 0           num_drafted ^         num_computed ^
                                          the draft runs these before it guesses

Blocks that the draft has filled are known here, so that it does not run a prefix from the cache a second time. An error
in these books would cost guesses, and never an answer: the model itself decides about each guess.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from plimsoll.api.guesses import DRAFT_ROWS, GUESSING_ROWS
from plimsoll.runtime.engine.core.lookup import Lookup
from plimsoll.runtime.engine.core.payoff import LONGEST_PAUSE, PAUSE, PAYS, Payoff
from plimsoll.runtime.engine.core.scheduled import Scheduled
from plimsoll.runtime.engine.core.sequence import Sequence


@dataclass(frozen=True)
class Guessing:
    """How an engine guesses."""

    tokens: int = 0
    """Most guesses of a sequence in a step; 0 guesses none."""
    draft_length: int = 0
    """Positions that the draft can take; 0 where guesses come from the text itself."""
    pays: float = PAYS
    """The share of guesses that must come true."""

    def payoff(self) -> Payoff:
        """For a new request that may be guessed for."""
        return Payoff(self.pays, LONGEST_PAUSE if self.draft_length else PAUSE)

    def lookup(self, prompt: list[int]) -> Lookup | None:
        """The text that guesses of a new request come from; None where a draft makes them."""
        return None if self.draft_length else Lookup(self.tokens, prompt)


#: How an engine without `speculative_tokens` guesses.
NO_GUESSES = Guessing()


class Guesser:
    """Adds guesses to the steps of one scheduler.

    Args:
        guessing: how this engine guesses.
        block_size: tokens of a block.
        most_rows: rows of a step that get a token, guesses included, besides `GUESSING_ROWS`.
    """

    def __init__(self, guessing: Guessing, block_size: int, most_rows: int) -> None:
        self._guessing = guessing
        self._size = block_size
        self._most_rows = min(most_rows, GUESSING_ROWS)
        # Blocks of whose tokens the draft has keys and values.
        self._filled: set[int] = set()

    def add(self, chosen: list[Scheduled], budget: int) -> None:
        """Adds guesses to the decodes of `chosen`: within the blocks that they have, `budget` rows and few in all."""
        streams = sum(item.due for item in chosen)
        left = min(budget, self._most_rows - streams)
        if left <= 0:
            return
        able = []
        for index, item in enumerate(chosen):
            seq = item.seq
            if seq.payoff is None or seq.payoff.paused or seq.num_pending != 1 or not seq.output_token_ids:
                continue
            room = len(seq.block_table) * self._size - seq.num_tokens
            most = min(room, seq.max_tokens - len(seq.output_token_ids) - 1, self._guessing.tokens)
            able.append((index, most))
        if self._guessing.draft_length:
            self._add_drafted(chosen, able, left, streams)
        else:
            self._add_looked_up(chosen, able, left)

    def _add_looked_up(self, chosen: list[Scheduled], able: list[tuple[int, int]], left: int) -> None:
        """Looking costs nothing, so the oldest sequence gets as many guesses as it may have."""
        for index, most in able:
            lookup = chosen[index].seq.lookup
            if left > 0 and lookup is not None:
                chosen[index] = found = replace(chosen[index], guesses=lookup.guess(min(most, left)))
                left -= len(found.guesses)

    def _add_drafted(self, chosen: list[Scheduled], able: list[tuple[int, int]], left: int, streams: int) -> None:
        """All streams wait for the draft, so each gets as many guesses as the others, and too few make none at all.

        Where the draft is far behind a sequence, it runs a part of what it has missed, and guesses nothing for it.
        """
        # The last guess follows from the token before it, and is itself not run.
        reach = self._guessing.draft_length + 1
        found = [(index, min(most, reach - chosen[index].seq.num_tokens)) for index, most in able]
        found = [(index, most) for index, most in found if most > 0][:left]
        shares = sum(payoff.share for index, _ in found if (payoff := chosen[index].seq.payoff))
        if not found or shares < self._guessing.pays * streams:
            return
        each, behind = left // len(found), DRAFT_ROWS
        for index, most in found:
            seq = chosen[index].seq
            missing = min(seq.num_tokens - seq.num_drafted, behind)
            whole = missing == seq.num_tokens - seq.num_drafted
            chosen[index] = replace(chosen[index], drafted=missing, wanted=min(most, each) if whole else 0)
            behind -= missing

    def settle(self, seq: Sequence) -> None:
        """Forgets what the draft has run beyond the tokens that came, and notes which blocks it has filled."""
        seq.num_drafted = min(seq.num_drafted, seq.num_computed)
        self._filled.update(seq.block_table[: seq.num_drafted // self._size])

    def take_prefix(self, seq: Sequence) -> None:
        """Lets a sequence that was admitted begin with the blocks that the draft has filled."""
        filled = 0
        while filled < len(seq.block_table) and seq.block_table[filled] in self._filled:
            filled += 1
        seq.num_drafted = filled * self._size

    def forget(self, blocks: Iterable[int]) -> None:
        """Blocks that get other tokens."""
        self._filled.difference_update(blocks)
