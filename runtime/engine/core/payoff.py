"""Whether guesses pay for one request: where few come true, it is not guessed for, for a while."""

#: Guesses pause when a smaller share of them comes true: each costs a part of what a step of its own costs.
PAYS = 0.35
#: What a draft's time is beside its bytes: it runs one step for each guess, and steps of few rows cost more than bytes.
DRAFT_COST = 1.5
#: The same share where a draft is as large as the model itself: only a perfect draft reaches it.
MOST_PAYS = 0.9
#: Weight of a step in the running share.
WEIGHT = 0.2
#: Tokens that are then generated without guesses.
PAUSE = 32
#: The longest pause after guesses of a draft. Each new try runs the draft over all tokens of the pause.
LONGEST_PAUSE = 8 * PAUSE


class Payoff:
    """The running share of one request's guesses that come true, and the pause where it is small.

    Args:
        pays: the share below which guesses pause.
        longest: most tokens of a pause. A pause is twice as long as the one before where the first guesses after that
            one were bad too.

    Attributes:
        share: of guesses that come true, lately.
    """

    def __init__(self, pays: float = PAYS, longest: int = PAUSE) -> None:
        self._pays = pays
        self._longest = longest
        self.share = 1.0
        self._left = 0
        self._next = PAUSE

    @property
    def paused(self) -> bool:
        """Whether nothing is guessed now."""
        return self._left > 0

    def append(self) -> None:
        """Goes on by a token of the answer."""
        self._left = max(0, self._left - 1)

    def judge(self, guessed: int, kept: int) -> None:
        """Learns that of `guessed` tokens the first `kept` were right."""
        self.share += WEIGHT * (kept / guessed - self.share)
        if self.share < self._pays:
            # After the pause, one bad step is enough to pause again.
            self._left, self.share = self._next, self._pays + WEIGHT / 2
            self._next = min(2 * self._next, self._longest)
        elif self.share > self._pays + WEIGHT / 2:
            self._next = PAUSE


def pays_with_draft(draft_bytes: int, model_bytes: int) -> float:
    """The share below which guesses of a draft pause. A step of few rows takes about as long as reading its weights.

    Args:
        draft_bytes: of the draft's weights.
        model_bytes: of the weights that it guesses for.
    """
    return min(PAYS + DRAFT_COST * draft_bytes / model_bytes, MOST_PAYS)
