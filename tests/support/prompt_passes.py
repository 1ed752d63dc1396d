"""Paces that cut prompts as a test says, and a memory that knows of each layer what was written."""

from collections.abc import Callable, Iterable

from plimsoll.runtime.engine.core.layer_work import LayerWork
from plimsoll.runtime.engine.core.pace import Pace
from plimsoll.runtime.engine.core.prompt_pass import Part, PromptPass
from plimsoll.runtime.engine.core.scheduled import Scheduled
from plimsoll.runtime.engine.core.scheduler import Scheduler
from plimsoll.runtime.engine.core.sequence import Sequence


class DrawnPace(Pace):
    """Decides by `draw`, which returns a number of a range, both ends included; no clock has a say.

    Attributes:
        parts: parts of passes so far.
    """

    def __init__(self, layers: int, draw: Callable[[int, int], int]) -> None:
        super().__init__(LayerWork((None,) * layers, 100.0))
        self._layers, self._draw = layers, draw
        self.parts = 0

    def allowed(self, streams: int, prompts: int = 1) -> float:
        return float(self._draw(0, 3))

    def joining(self, rows: int, context: int) -> float:
        return float(self._draw(0, 9))

    def begin(self, seq: Sequence, seconds: float, most: int) -> PromptPass:
        return PromptPass(Scheduled(seq, self._draw(1, min(most, seq.num_pending))))

    def part(self, going: PromptPass, streams: int, prompts: int = 1) -> Part:
        self.parts += 1
        first = going.done
        if streams and not self._draw(0, 4):
            going.item = Scheduled(going.item.seq, self._draw(1, going.rows))
        going.done = stop = self._draw(first + 1, self._layers) if streams else self._layers
        return Part(going, going.item, first, stop, stop == self._layers)


def book(scheduler: Scheduler, chosen: Iterable[Scheduled], token: int) -> None:
    """Counts a step as computed: each sequence that is due a token gets `token`, and ends when it has all it may."""
    for item in chosen:
        seq = item.seq
        seq.num_computed += item.num_new_tokens
        if not seq.num_pending:
            seq.append(token)
            if len(seq.output_token_ids) >= seq.max_tokens:
                scheduler.finish(seq)
    scheduler.check_integrity()


class LayeredMemory:
    """Cells of a cache by layer. A cell holds all tokens up to its own."""

    def __init__(self, layers: int) -> None:
        self._layers = layers
        self._cells: dict[tuple[int, int, int], object] = {}

    def step(self, scheduler: Scheduler, token: int) -> list[Scheduled]:
        """One step of a model that always says `token`: each row must find, in each layer, all that comes before it.

        Returns what was chosen, parts of passes left out that are not their last.
        """
        chosen, part = scheduler.schedule(), scheduler.part
        rows = sum(item.num_rows for item in chosen)
        if part is not None:
            rows += 0 if part.whole else part.item.num_new_tokens
            assert part.first < part.stop <= self._layers, "a part of no layers"
            assert not part.whole or chosen[-1] == part.item
            for layer in range(part.first, part.stop):
                self._run(part.item, layer, scheduler.blocks.block_size)
        assert rows <= scheduler.max_batched_tokens, "rows of the pass and of the step are more than the budget"
        for item in chosen if part is None or not part.whole else chosen[:-1]:
            for layer in range(self._layers):
                self._run(item, layer, scheduler.blocks.block_size)
        book(scheduler, chosen, token)
        return chosen

    def _run(self, item: Scheduled, layer: int, size: int) -> None:
        seq, tokens = item.seq, tuple(item.seq.token_ids)
        last = seq.num_computed + item.num_new_tokens
        for at in range(seq.num_computed, last):
            self._cells[layer, seq.block_table[at // size], at % size] = tokens[: at + 1]
        for at in range(last):
            found = self._cells.get((layer, seq.block_table[at // size], at % size))
            assert found == tokens[: at + 1], f"token {at} of {seq.request_id} in layer {layer}"
