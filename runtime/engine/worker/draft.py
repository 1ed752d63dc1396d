"""A small model that guesses what the model will say: it generates a few tokens, and the model looks at them together.

Leviathan et al., "Fast Inference from Transformers via Speculative Decoding" (2023), with one difference: the draft
takes its likeliest token each time, and a guess is kept only where the model draws the same. So no answer changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from plimsoll.runtime.engine.core.scheduled import Scheduled
from plimsoll.runtime.engine.worker.runner import Runner


@dataclass
class _Text:
    """What the draft knows of a sequence."""

    token_ids: list[int]
    """Guesses come after those that are known."""
    block_table: list[int]
    num_computed: int
    wanted: int
    guesses: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Rows:
    """Tokens of one pass of the draft, as a runner takes them."""

    seq: _Text
    num_new_tokens: int
    guesses: tuple[int, ...] = ()


class Draft:
    """Args:
    runner: the draft and its cache, which has as many blocks as the model's.
    length: positions that the draft can take.
    vocab_size: of the model. Ids that only one of the two has are never guessed.
    """

    def __init__(self, runner: Runner, length: int, vocab_size: int) -> None:
        self.runner = runner
        self.length = length
        self._vocab = min(vocab_size, runner.decoder.facts.vocab_size)
        self._foreign = vocab_size > self._vocab

    def guess(self, chosen: Sequence[Scheduled]) -> list[Scheduled]:
        """`chosen` with the guesses that are wanted. The draft first runs what it has missed of these sequences."""
        texts = {
            index: _Text(self._known(item.seq.token_ids), item.seq.block_table, item.seq.num_drafted, item.wanted)
            for index, item in enumerate(chosen)
            if item.drafted
        }
        rows = [_Rows(text, chosen[index].drafted) for index, text in texts.items()]
        while rows:
            rows = self._pass(rows)
        found = list(chosen)
        for index, text in texts.items():
            item, guesses = chosen[index], tuple(text.guesses)
            found[index] = replace(item, guesses=guesses)
            # The last guess was made, and not run.
            item.seq.num_drafted += item.drafted + max(0, len(guesses) - 1)
        return found

    def _pass(self, rows: list[_Rows]) -> list[_Rows]:
        """Runs `rows` and makes a guess for each text that is complete; returns the rows of the next pass."""
        result, following = self.runner.step(rows, best=True, due_alone=True), []
        assert result.best is not None
        for (index, _), token in zip(result.sampled, result.best.ids.tolist(), strict=True):
            text = rows[index].seq
            if token >= self._vocab:
                continue
            text.num_computed = len(text.token_ids)
            text.token_ids.append(token)
            text.guesses.append(token)
            if len(text.guesses) < text.wanted:
                following.append(_Rows(text, 1))
        return following

    def _known(self, token_ids: list[int]) -> list[int]:
        """A copy, in ids that the draft has."""
        return [min(token, self._vocab - 1) for token in token_ids] if self._foreign else list(token_ids)
