"""What the scheduler chose of one sequence for one step."""

from dataclasses import dataclass

from plimsoll.runtime.engine.core.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Scheduled:
    """One sequence of a step, how many tokens after `num_computed` to run, and guesses to run after those."""

    seq: Sequence
    num_new_tokens: int
    guesses: tuple[int, ...] = ()
    drafted: int = 0
    """Tokens after `num_drafted` that the draft runs first."""
    wanted: int = 0
    """Guesses that the draft makes then; they become `guesses`."""

    @property
    def num_rows(self) -> int:
        """Rows that it has in the step."""
        return self.num_new_tokens + len(self.guesses)

    @property
    def due(self) -> bool:
        """Whether the sequence gets a token in this step."""
        return self.seq.num_computed + self.num_new_tokens >= len(self.seq.token_ids)
