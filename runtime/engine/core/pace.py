"""How much of a prompt is computed beside the streams that run, so that a long prompt does not make them stutter.

A step with a part of a prompt in it may take `SLOWDOWN` times what the streams take alone: a prompt and the streams
then get about half of the machine each. Where more prompts wait than streams run, it may take `SMOOTH` seconds if that
is more: few streams would otherwise hold up many. What steps take is measured while they run (in Sarathi-Serve, arXiv
2403.02310, a profile made before sets the chunk). No clock here: seconds are given.

A prompt's few last tokens join the streams' rows. More than that run apart, some layers in each step (`PromptPass`), as
one token through all layers may take too long where it attends to many. With L layers, a layer reads 1 / L of the
weights that a step of the streams reads: the time for a prompt is many times that, so reading them again for each chunk
costs a prompt few percent, however few rows fit.
"""

import math
from dataclasses import replace

from plimsoll.runtime.engine.core.layer_work import LayerWork
from plimsoll.runtime.engine.core.prompt_pass import MOST_ROWS, Part, PromptPass
from plimsoll.runtime.engine.core.scheduled import Scheduled
from plimsoll.runtime.engine.core.sequence import Sequence

SLOWDOWN = 1.6
"""Under twice, with a margin for what a measurement is off by."""

SMOOTH = 0.02
"""Seconds between two tokens that no reader notices: fifty tokens a second."""

REFRESH = 32
"""After so many steps that prompt tokens have joined one has none, to see what the streams alone take by now."""

TRIAL = 16
"""Most rows of a pass while nothing was measured."""

TOO_LONG = 1.5
"""A pass gives up rows where a layer takes so many times what it may."""

_FILLED = 0.75
"""Of the time for a prompt: what layers of all rows must fill at least."""

_NEAR = 1.08
"""Layers may take so many times what they may, before one more is left to the next step."""

_SHARE = 0.25
"""Of a new measurement in what is remembered: one disturbed step changes little."""

_LESS = 0.5
"""The same of a step of the streams that took less than is remembered."""

_MORE = 1.25
"""Most that such a step is taken to take, times what is remembered."""


class Pace:
    """What steps of so many streams take, and what the rows of prompts add to them.

    Args:
        work: what a row costs each layer.
    """

    def __init__(self, work: LayerWork) -> None:
        self.work = work
        self._alone: dict[int, float] = {}
        # Seconds of a unit of work: of rows that run apart, and of rows that join the streams'.
        self._apart = 0.0
        self._joined = 0.0
        self._since = 0

    def start(self, few: tuple[int, float], many: tuple[int, float]) -> None:
        """Begins with what a layer took of few rows and of many, in seconds, with nothing before the first of them."""
        (less, fast), (more, slow) = ((rows, took / self.work.row(0, rows / 2)) for rows, took in (few, many))
        row = (slow - fast) / (more - less)
        self.work.reading = min(max(fast / row - less, 0.0), MOST_ROWS) if row > 0 else MOST_ROWS
        self._apart = slow / (more + self.work.reading)

    def allowed(self, streams: int, prompts: int = 1) -> float:
        """Seconds that a step of `streams` sequences in decode has for `prompts` that wait; 0 where it should have
        none."""
        alone = self._alone.get(streams)
        if alone is None or self._since >= REFRESH:
            return 0.0
        return max(SLOWDOWN * alone, SMOOTH if prompts > streams else 0.0) - alone

    def joining(self, rows: int, context: int) -> float:
        """Seconds that rows of a prompt add to the streams', the first after `context` tokens; infinite where nothing
        was measured."""
        if not self._apart:
            return math.inf
        # What is left of a step without its streams is small and uncertain; rows apart are measured by themselves.
        second = min(max(self._joined or self._apart, self._apart / 2), 2 * self._apart)
        return second * self.work.joined(rows, context + rows / 2)

    def begin(self, seq: Sequence, seconds: float, most: int) -> PromptPass:
        """A pass of a sequence's next tokens, `most` at most: of so many that a layer of them takes up to `seconds`."""
        most = min(most, seq.num_pending)
        if not self._apart:
            rows = min(TRIAL, most)
        else:
            row = self._apart * self.work.most(seq.num_computed + most / 2)
            layer = row * (most + self.work.reading)
            layers = max(1, int(seconds / layer))
            if layers * layer < _FILLED * seconds:
                # One layer more, of fewer rows, fills the time better.
                layers += 1
            rows = max(1, min(most, self._rows(seconds / layers, row)))
        return PromptPass(Scheduled(seq, _none_left_alone(rows, seq.num_pending, most)))

    def part(self, going: PromptPass, streams: int, prompts: int = 1) -> Part:
        """The next part of a pass, at least one layer: what a step of so many streams has time for, and all that is
        left where there are none. A pass whose layers take far too long gives up rows first."""
        first, stop, seconds = going.done, len(self.work.windows), self.allowed(streams, prompts)
        if streams:
            if seconds and going.work:
                row = going.seconds / going.work * self.work.most(going.context)
                if row * (going.rows + self.work.reading) > TOO_LONG * seconds:
                    rows, pending = max(1, self._rows(seconds, row)), going.item.seq.num_pending
                    going.item = replace(going.item, num_new_tokens=_none_left_alone(rows, pending, going.rows))
            stop = self._stop(going, seconds)
        going.done = stop
        return Part(going, going.item, first, stop, stop == len(self.work.windows))

    def _rows(self, seconds: float, row: float) -> int:
        """Rows of a layer that takes so many seconds where one row more takes `row`; may be less than 1."""
        return int(seconds / row - self.work.reading)

    def _stop(self, going: PromptPass, seconds: float) -> int:
        spent, layers = 0.0, len(self.work.windows)
        for layer in range(going.done, layers):
            spent += self._apart * self.work.of(layer, going.rows, going.context)
            if layer > going.done and (not self._apart or spent > _NEAR * seconds):
                return layer
        return layers

    def took_joined(self, streams: int, work: float, seconds: float) -> None:
        """Learns what a step took: of the streams alone, or with `work` of rows that joined them. One without streams
        says nothing about what a prompt costs them."""
        if not streams:
            return
        alone = self._alone.get(streams)
        if not work:
            self._since = 0
            self._alone[streams] = seconds if alone is None else _steady(alone, seconds)
        elif alone is not None:
            self._since += 1
            self._joined = _mean(self._joined, max(seconds - alone, 0.0) / work)

    def took_apart(self, going: PromptPass, first: int, seconds: float) -> None:
        """Learns what layers `first` to `going.done` - 1 of a pass took by themselves."""
        work = sum(self.work.of(layer, going.rows, going.context) for layer in range(first, going.done))
        going.work += work
        going.seconds += seconds
        self._apart = _mean(self._apart, seconds / work)


def _mean(known: float, found: float) -> float:
    return known + _SHARE * (found - known) if known else found


def _steady(known: float, found: float) -> float:
    """What steps take that nothing disturbs: a first one in cold caches is soon forgotten, a hold-up hardly counts."""
    if found < known:
        return known + _LESS * (found - known)
    return known + _SHARE * (min(found, _MORE * known) - known)


def _none_left_alone(rows: int, pending: int, most: int) -> int:
    """About `rows` of the tokens that are pending. One alone would be left to the decodes, which are not paced."""
    if pending - rows != 1:
        return rows
    return rows - 1 if rows > 1 else min(pending, most)
