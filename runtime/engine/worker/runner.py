"""One step of the model: from what the scheduler chose to the logits of the rows that need them."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plimsoll.api.sizes import PROMPT_LOGIT_ROWS
from plimsoll.runtime.engine.core.host_blocks import Copy
from plimsoll.runtime.engine.worker.host_cache import HostCache
from plimsoll.runtime.engine.worker.kv_cache import KVCache
from plimsoll.runtime.kernels.group_error import GroupError
from plimsoll.runtime.kernels.table import AttentionBatch
from plimsoll.runtime.models.best import Best
from plimsoll.runtime.models.decoder import Decoder
from plimsoll.runtime.models.group import RankGroup
from plimsoll.runtime.models.rows import Rows


class SequenceState(Protocol):
    """What the runner reads of a sequence."""

    @property
    def token_ids(self) -> list[int]:
        """All tokens so far, prompt first."""

    @property
    def num_computed(self) -> int:
        """How many of them have keys and values in the cache."""

    @property
    def block_table(self) -> list[int]:
        """Blocks of the sequence in order, enough for what this step computes."""


class ScheduledSequence(Protocol):
    """One sequence of a step: how many tokens after `num_computed` to run, and guesses to run after them."""

    @property
    def seq(self) -> SequenceState: ...

    @property
    def num_new_tokens(self) -> int: ...

    @property
    def guesses(self) -> tuple[int, ...]: ...


class PassPart(Protocol):
    """Layers of a pass to run before a step: `first` to `stop` - 1, of the first `item.num_new_tokens` rows that the
    pass began with. It begins with layer 0, and where it is `whole`, its item is the step's last."""

    @property
    def item(self) -> ScheduledSequence: ...

    @property
    def first(self) -> int: ...

    @property
    def stop(self) -> int: ...

    @property
    def whole(self) -> bool: ...


@dataclass(frozen=True)
class StepResult:
    """What a step computed. Valid until the next step starts."""

    sampled: list[tuple[int, int]]
    """Of each row that gets a token: the index of the scheduled sequence whose last known token was computed, and how
    many of its guesses the row comes after."""
    logits: Tensor
    """float32 [len(sampled), vocab], in that order, on the decoder's device; empty where there is `best`."""
    best: Best | None
    """The largest of each row alone, where the step was asked for no more."""
    query_start: list[int]
    runner: "Runner"
    apart: float = 0.0
    """Seconds of the step that its part of a pass took."""

    def has_number(self, row: int) -> bool:
        """Whether the largest logit of `sampled`'s entry `row` is a finite number."""
        if self.best is not None:
            return bool(np.isfinite(self.best.values[row]))
        return bool(self.logits[row].amax().isfinite())

    def is_finite(self, row: int) -> bool:
        """Whether all its logits are known to be finite numbers."""
        return self.best is None and bool(torch.isfinite(self.logits[row]).all())

    def prompt_logits(self, index: int) -> Iterator[tuple[int, Tensor]]:
        """For scheduled sequence `index`: (row within its chunk, float32 [at most PROMPT_LOGIT_ROWS, vocab]).

        The logits of row r are about the token that follows position num_computed + r.
        """
        start, end = self.query_start[index], self.query_start[index + 1]
        for row in range(start, end, PROMPT_LOGIT_ROWS):
            yield row - start, self.runner.logits(list(range(row, min(row + PROMPT_LOGIT_ROWS, end))))


class Layers(msgspec.Struct, frozen=True):
    """A part of a pass as rank 0 announces it."""

    rows: int
    stop: int
    whole: bool
    begins: tuple[bytes, bytes] | None
    """The arrays of `_Inputs` where it is the first part."""


class Forward(msgspec.Struct, frozen=True, tag=True):
    """One step as rank 0 announces it: the arrays of `_Inputs`, and the rows whose logits are due."""

    number: int
    wide: bytes
    narrow: bytes
    count: int
    rows: list[int]
    best: bool
    """Whether the largest logit of each row is all that is wanted."""
    copies: list[Copy] = []
    """Between the tiers, before anything is computed."""
    part: Layers | None = None


class Logits(msgspec.Struct, frozen=True, tag=True):
    """Logits of these rows of the last step."""

    number: int
    rows: list[int]


class Clear(msgspec.Struct, frozen=True, tag=True):
    """Zero these blocks."""

    number: int
    blocks: list[int]


class Stop(msgspec.Struct, frozen=True, tag=True):
    """The group ends as it should."""

    number: int


Announced = Forward | Logits | Clear | Stop


@dataclass(frozen=True)
class _Inputs:
    """A step in integers: (token ids, positions, slots) of T rows; (query starts, contexts, block tables) of B
    sequences. One array an integer width, so that a device gets two copies a step and not six."""

    wide: npt.NDArray[np.int64]
    """[3, T]."""
    narrow: npt.NDArray[np.int32]
    """[B + 1 + B + B * widest table]."""
    count: int
    """B."""

    @classmethod
    def of(cls, wide: bytes, narrow: bytes, count: int) -> "_Inputs":
        """From the bytes of the arrays."""
        found = np.frombuffer(bytearray(wide), dtype=np.int64).reshape(3, -1)
        return cls(found, np.frombuffer(bytearray(narrow), dtype=np.int32), count)


class Runner:
    """The decoder and its paged cache, of one rank. Rank 0 is given each step and announces it; the others `follow`.

    Every announcement has a number: a rank that meets another than it expects has missed a step, and ends.
    """

    def __init__(
        self, decoder: Decoder, cache: KVCache, group: RankGroup | None = None, host: HostCache | None = None
    ) -> None:
        self.decoder = decoder
        self.cache = cache
        self.host = host
        self.device = decoder.kernels.device
        self._group = group
        self._number = 0
        self._hidden: Tensor | None = None
        self._due: list[int] | None = None
        self._pass: Rows | None = None

    @property
    def spread(self) -> bool:
        """Whether other ranks hold a part of the model: logits then cost more than their largest."""
        return self._group is not None

    @torch.inference_mode()
    def step(
        self,
        scheduled: Sequence[ScheduledSequence],
        best: bool = False,
        copies: Sequence[Copy] = (),
        part: PassPart | None = None,
        due_alone: bool = False,
    ) -> StepResult:
        """Computes the chosen tokens of each sequence, at least one each, and writes their keys and values.

        Args:
            best: the result has the largest logit of each row alone.
            copies: between the tiers of the cache, made first and in order.
            part: of a pass, run next. A pass that has no part in a step is dropped.
            due_alone: `prompt_logits` will not follow: hidden states of rows that get no token are left out.
        """
        inputs = self._inputs(scheduled[:-1] if part is not None and part.whole else scheduled)
        starts = inputs.narrow[: inputs.count + 1].tolist()
        layers = None
        if part is not None:
            begun = None if part.first else self._inputs([part.item])
            arrays = None if begun is None else (begun.wide.tobytes(), begun.narrow.tobytes())
            layers = Layers(part.item.num_new_tokens, part.stop, part.whole, arrays)
            if part.whole:
                starts.append(starts[-1] + layers.rows)
        sampled: list[tuple[int, int]] = []
        rows = []
        for index, item in enumerate(scheduled):
            if item.seq.num_computed + item.num_new_tokens >= len(item.seq.token_ids):
                last = starts[index + 1] - 1 - len(item.guesses)
                for guess in range(len(item.guesses) + 1):
                    sampled.append((index, guess))
                    rows.append(last + guess)
        if self._group is not None:
            wide, narrow = inputs.wide.tobytes(), inputs.narrow.tobytes()
            self._announce(Forward(self._number, wide, narrow, inputs.count, rows, best, list(copies), layers))
        few = due_alone and self._group is None and not (layers and layers.whole) and len(rows) < starts[-1]
        apart = self._forward(inputs, copies, layers, rows if few else None)
        hidden = self._rows(rows)
        if best:
            return StepResult(sampled, hidden.new_empty(0), self.decoder.best(hidden), starts, self, apart)
        return StepResult(sampled, self.decoder.logits(hidden), None, starts, self, apart)

    @torch.inference_mode()
    def logits(self, rows: list[int]) -> Tensor:
        """float32 [len(rows), vocab] of rows of the last step."""
        if self._group is not None:
            self._announce(Logits(self._number, rows))
        return self.decoder.logits(self._rows(rows))

    @torch.inference_mode()
    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Zeroes blocks, as `KVCache.clear`."""
        if self._group is not None:
            self._announce(Clear(self._number, list(blocks)))
        self.cache.clear(blocks)

    def stop(self) -> None:
        """Sends the other ranks home."""
        if self._group is not None:
            self._announce(Stop(self._number))

    @torch.inference_mode()
    def follow(self) -> bool:
        """Does the next thing that rank 0 announces; False where that is the end.

        Raises GroupError where the group has ended, or the announcement is not the one that is due.
        """
        assert self._group is not None
        message = _decode(self._group.receive())
        if message.number != self._number:
            raise GroupError(f"rank {self._group.rank} expected step {self._number} and met {message.number}")
        self._number += 1
        if isinstance(message, Forward):
            self._forward(_Inputs.of(message.wide, message.narrow, message.count), message.copies, message.part)
            hidden = self._rows(message.rows)
            if message.best:
                self.decoder.best(hidden)
            else:
                self.decoder.logits(hidden)
        elif isinstance(message, Logits):
            self.decoder.logits(self._rows(message.rows))
        elif isinstance(message, Clear):
            self.cache.clear(message.blocks)
        return not isinstance(message, Stop)

    def _announce(self, message: Announced) -> None:
        assert self._group is not None
        self._group.send(_encode(message))
        self._number += 1

    def _forward(
        self, inputs: _Inputs, copies: Sequence[Copy], part: Layers | None, due: list[int] | None = None
    ) -> float:
        """Computes hidden states of the rows `due`, or of all. Returns the seconds of the part."""
        if copies:
            assert self.host is not None
            self.host.copy(copies)
        # Before the rows of the step: a sequence that joined it may share blocks that the last part fills.
        begun = time.perf_counter()
        computed = self._run_part(part)
        apart = time.perf_counter() - begun
        if inputs.count:
            token_ids, positions, batch = self._batch(inputs)
            wanted = None if due is None else torch.tensor(due, dtype=torch.int64, device=self.device)
            hidden = self.decoder.forward(token_ids, positions, self.cache.layers, batch, wanted)
            computed = hidden if computed is None else torch.cat([hidden, computed])
        self._hidden, self._due = computed, due
        return apart

    def _run_part(self, part: Layers | None) -> Tensor | None:
        """Takes the pass further; returns hidden states of its rows where it ends."""
        if part is None:
            self._pass = None
            return None
        if part.begins is not None:
            token_ids, positions, batch = self._batch(_Inputs.of(*part.begins, 1))
            self._pass = self.decoder.enter(token_ids, positions, batch)
        rows = self._pass
        assert rows is not None
        if part.rows < len(rows.residual):
            rows = self._pass = rows.first(part.rows)
        hidden = self.decoder.advance(rows, self.cache.layers, part.stop)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if not part.whole:
            return None
        self._pass = None
        return hidden

    def _rows(self, rows: list[int]) -> Tensor:
        """Hidden states of these rows of the last step."""
        hidden = self._hidden
        assert hidden is not None
        if self._due is not None:
            assert rows == self._due, "only hidden states of the rows that got a token are kept"
            return hidden
        if rows != list(range(len(hidden))):
            hidden = hidden.index_select(0, torch.tensor(rows, dtype=torch.int64, device=self.device))
        return hidden

    def _inputs(self, scheduled: Sequence[ScheduledSequence]) -> _Inputs:
        count, size = len(scheduled), self.cache.block_size
        counts = [item.num_new_tokens + len(item.guesses) for item in scheduled]
        contexts = [item.seq.num_computed + length for item, length in zip(scheduled, counts, strict=True)]
        query_start = [0, *itertools.accumulate(counts)]
        widest = -(-max(contexts, default=0) // size)
        wide = np.empty((3, query_start[-1]), dtype=np.int64)
        narrow = np.empty(count + 1 + count + count * widest, dtype=np.int32)
        narrow[: count + 1] = query_start
        narrow[count + 1 : 2 * count + 1] = contexts
        tables = narrow[2 * count + 1 :].reshape(count, widest)
        for index, item in enumerate(scheduled):
            self._place(item, contexts[index], wide[:, query_start[index] : query_start[index + 1]], tables[index])
        return _Inputs(wide, narrow, count)

    def _batch(self, inputs: _Inputs) -> tuple[Tensor, Tensor, AttentionBatch]:
        """(token ids, positions, the rest) on the device."""
        count = inputs.count
        starts, contexts = inputs.narrow[: count + 1].tolist(), inputs.narrow[count + 1 : 2 * count + 1].tolist()
        wide, narrow = self._to_device(inputs.wide), self._to_device(inputs.narrow)
        batch = AttentionBatch(
            query_start=narrow[: count + 1],
            context_lens=narrow[count + 1 : 2 * count + 1],
            block_tables=narrow[2 * count + 1 :].view(count, -1),
            slot_mapping=wide[2],
            query_start_cpu=starts,
            context_lens_cpu=contexts,
        )
        return wide[0], wide[1], batch

    def _place(
        self, item: ScheduledSequence, context: int, rows: npt.NDArray[np.int64], table: npt.NDArray[np.int32]
    ) -> None:
        """Fills (token ids, positions, slots) of one sequence's rows and its line of the block tables."""
        seq, size, start = item.seq, self.cache.block_size, item.seq.num_computed
        used = -(-context // size)
        table[:used] = seq.block_table[:used]
        # Padding names the sequence's own block: nothing another request wrote can reach it, not even as 0 * NaN.
        table[used:] = table[0]
        if context - start == 1:
            rows[0], rows[1] = seq.token_ids[start], start
            rows[2] = seq.block_table[start // size] * size + start % size
            return
        rows[0] = seq.token_ids[start:context] + list(item.guesses)
        rows[1] = positions = np.arange(start, context)
        rows[2] = table[positions // size].astype(np.int64) * size + positions % size

    def _to_device(self, array: npt.NDArray[np.int64] | npt.NDArray[np.int32]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Announced).decode
