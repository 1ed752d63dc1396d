"""A chunk of one prompt on its way through the layers, some of them in each step, beside running streams.

Lee et al., "From Tokens to Layers: Redefining Stall-Free Scheduling for LLM Serving with Layered Prefill" (2025, arXiv
2510.08055), with chunks as well: there a group of layers runs the whole prompt, here one layer of a chunk must fit
between two tokens of the streams.

    step         1        2        3           n
    streams      token    token    token  ...  token
    pass         layer 0  layer 1  layers 2-3  last layer: the chunk is computed

Until the last layer is done nothing of the chunk counts: the sequence has computed no more tokens, and none of its
blocks is known to others. So a pass can be dropped between any two steps. It can also give up its last rows, as no
row depends on a later one.
"""

from dataclasses import dataclass

from plimsoll.runtime.engine.core.scheduled import Scheduled

MOST_ROWS = 255
"""Rows of a pass and of the streams beside it. Results of more rows lie in memory that the next step takes
(`KEPT_ROWS` of the native kernels), and a pass keeps its rows from step to step."""

LEAST_ROWS = 16
"""Rows that a pass may have beside any number of streams."""


@dataclass(slots=True)
class PromptPass:
    """Which rows are in the pass, how far they are, and what that took."""

    item: Scheduled
    done: int = 0
    """Layers behind its rows."""
    work: float = 0.0
    """As `LayerWork` counts it, of the parts whose seconds are known."""
    seconds: float = 0.0

    @property
    def rows(self) -> int:
        return self.item.num_new_tokens

    @property
    def context(self) -> float:
        """Tokens before the middle one of its rows."""
        return self.item.seq.num_computed + self.rows / 2


@dataclass(frozen=True, slots=True)
class Part:
    """What one step runs of a pass: the layers `first` to `stop` - 1 of the first `item.num_new_tokens` rows."""

    going: PromptPass
    item: Scheduled
    first: int
    stop: int
    whole: bool
    """Whether the pass ends with it: then `item` is the last of the step's, and gets its token if it is due."""
