"""How long a model thinks before it answers: where its thought begins and ends, and the tokens that close it."""

import codecs
from array import array
from collections.abc import Callable, Sequence
from itertools import accumulate

from plimsoll.runtime.engine.core.sampling_params import ThoughtBudget
from plimsoll.runtime.messages import Vocabulary

Spell = Callable[[int], bytes]


class ThoughtState:
    """Where one answer stands: before its thought, inside of it, or after it.

    Signs are found in the text, for a model may write them in other tokens than its template does.

    Args:
        begins: signs that begin a thought. An answer has one only where it begins with a sign, but for white space.
        end: the sign that ends it.
        open: the prompt has begun the thought. A sign that the model writes once more is no part of it.

    Attributes:
        tokens: of the thought so far. Tokens that hold a part of a sign do not count.
    """

    def __init__(self, begins: Sequence[str], end: str, *, open: bool) -> None:
        self._begins, self._end = [sign.encode() for sign in begins], end.encode()
        self.inside, self.over = open, False
        self._starting = True
        self._head: list[bytes] = []
        """The first tokens, which may hold the sign that begins the thought."""
        self._tail: list[bytes] = []
        """The last tokens of the thought, which may hold the beginning of the sign that ends it."""
        self.tokens = 0

    def take(self, text: bytes) -> None:
        """Goes on by the text of one token."""
        if self.over:
            return
        if self.inside:
            self.tokens += 1
        if not text:
            return
        if self._starting:
            self._start(text)
        elif self.inside:
            self._go_on(text)

    def _start(self, text: bytes) -> None:
        self._head.append(text)
        # White space as the reader of the text has it: a character may come in several tokens.
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        said = decoder.decode(b"".join(self._head)).lstrip().encode()
        half = decoder.getstate()[0]
        if not said:
            # A model may write white space for ever.
            if not half:
                self._head.clear()
            return
        best = max((sign for sign in self._begins if said.startswith(sign)), key=len, default=b"")
        if any(len(sign) > len(said) and sign.startswith(said) for sign in self._begins):
            return
        self._starting = False
        if best:
            self.inside, self.tokens = True, 0
            self._go_on(said[len(best) :] + half)
        elif self.inside:
            self._go_on(*self._head)
        else:
            self.over = True

    def _go_on(self, *texts: bytes) -> None:
        self._tail += texts
        tail = b"".join(self._tail)
        place = tail.find(self._end)
        if place >= 0:
            self.inside, self.over = False, True
            # Of the tokens at the end, those count that end before the sign.
            ends = list(accumulate(map(len, self._tail)))
            self.tokens = max(0, self.tokens - sum(end > place for end in ends))
            return
        size = len(tail)
        while self._tail and size - len(self._tail[0]) >= len(self._end) - 1:
            size -= len(self._tail.pop(0))


class ThoughtLimit:
    """Closes one answer's thought once it has taken its budget.

    Args:
        spell: the text of a token.

    Attributes:
        forced: the token that comes next; None where the model chooses.
    """

    def __init__(self, budget: ThoughtBudget, spell: Spell) -> None:
        self._budget, self._spell = budget, spell
        self._state = ThoughtState(budget.begins, budget.end, open=budget.open)
        self._closing: list[int] = []
        self.forced: int | None = None
        self._look()

    def take(self, token_id: int) -> None:
        """Goes on by a token of the answer."""
        if self._closing:
            del self._closing[0]
            self.forced = self._closing[0] if self._closing else None
            return
        if not self._state.over:
            self._state.take(self._spell(token_id))
            self._look()

    def _look(self) -> None:
        budget, state = self._budget, self._state
        if not state.inside or state.tokens < budget.tokens:
            return
        self._closing = list(budget.close)
        self.forced = self._closing[0]
        # Only one thought has a budget, and it ends here.
        state.over, state.inside = True, False


class Spelling:
    """The text of tokens. Control tokens have none, but for those that are part of a sign.

    Args:
        vocabulary: of the tokenizer.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._tokens = vocabulary.tokens
        self._ends = array("Q", accumulate(vocabulary.sizes))
        self._special = frozenset(vocabulary.special_ids)

    def __call__(self, token_id: int) -> bytes:
        if not 0 <= token_id < len(self._ends):
            return b""
        return self._tokens[self._ends[token_id - 1] if token_id else 0 : self._ends[token_id]]

    def of(self, budget: ThoughtBudget) -> Spell:
        """What an answer with this budget shows of each token."""
        signs = [sign.encode() for sign in (*budget.begins, budget.end)]

        def spell(token_id: int) -> bytes:
            text = self(token_id)
            hidden = token_id in self._special and not any(text in sign for sign in signs)
            return b"" if hidden else text

        return spell
