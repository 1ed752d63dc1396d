"""One step of the model: from what the scheduler chose to the logits of the rows that need them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from plimsoll.api.sizes import PROMPT_LOGIT_ROWS
from plimsoll.runtime.engine.worker.kv_cache import KVCache
from plimsoll.runtime.kernels.table import AttentionBatch
from plimsoll.runtime.models.decoder import Decoder


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
    """One sequence of a step, and how many tokens after `num_computed` to run."""

    @property
    def seq(self) -> SequenceState: ...

    @property
    def num_new_tokens(self) -> int: ...


@dataclass(frozen=True)
class StepResult:
    """What a step computed. Valid until the next step starts."""

    sampled: list[int]
    """Indices into the scheduled sequences of those whose last known token was computed: they get a next token."""
    logits: Tensor
    """float32 [len(sampled), vocab], in that order, on the decoder's device."""
    hidden: Tensor
    query_start: list[int]
    decoder: Decoder

    def prompt_logits(self, index: int) -> Iterator[tuple[int, Tensor]]:
        """For scheduled sequence `index`: (row within its chunk, float32 [at most PROMPT_LOGIT_ROWS, vocab]).

        The logits of row r are about the token that follows position num_computed + r.
        """
        start, end = self.query_start[index], self.query_start[index + 1]
        for row in range(start, end, PROMPT_LOGIT_ROWS):
            with torch.inference_mode():
                logits = self.decoder.logits(self.hidden[row : min(row + PROMPT_LOGIT_ROWS, end)])
            yield row - start, logits


class Runner:
    """The decoder and its paged cache."""

    def __init__(self, decoder: Decoder, cache: KVCache) -> None:
        self.decoder = decoder
        self.cache = cache
        self.device = decoder.kernels.device

    @torch.inference_mode()
    def step(self, scheduled: Sequence[ScheduledSequence]) -> StepResult:
        """Computes the chosen tokens of each sequence, at least one each, and writes their keys and values."""
        token_ids, positions, batch = self._inputs(scheduled)
        hidden = self.decoder.forward(token_ids, positions, self.cache.layers, batch)
        sampled = [
            index
            for index, item in enumerate(scheduled)
            if item.seq.num_computed + item.num_new_tokens >= len(item.seq.token_ids)
        ]
        if len(sampled) == len(hidden):
            last = hidden
        else:
            rows = [batch.query_start_cpu[index + 1] - 1 for index in sampled]
            last = hidden.index_select(0, torch.tensor(rows, dtype=torch.int64, device=self.device))
        return StepResult(sampled, self.decoder.logits(last), hidden, batch.query_start_cpu, self.decoder)

    @torch.inference_mode()
    def clear_blocks(self, blocks: Sequence[int]) -> None:
        """Zeroes blocks, as `KVCache.clear`."""
        self.cache.clear(blocks)

    def _inputs(self, scheduled: Sequence[ScheduledSequence]) -> tuple[Tensor, Tensor, AttentionBatch]:
        count, size = len(scheduled), self.cache.block_size
        contexts = [item.seq.num_computed + item.num_new_tokens for item in scheduled]
        query_start = [0] * (count + 1)
        for index, item in enumerate(scheduled):
            query_start[index + 1] = query_start[index] + item.num_new_tokens
        total, widest = query_start[-1], -(-max(contexts) // size)
        # One buffer an integer width, so that a device gets two copies a step and not six.
        wide = np.empty((3, total), dtype=np.int64)
        narrow = np.empty(count + 1 + count + count * widest, dtype=np.int32)
        narrow[: count + 1] = query_start
        narrow[count + 1 : 2 * count + 1] = contexts
        tables = narrow[2 * count + 1 :].reshape(count, widest)
        for index, item in enumerate(scheduled):
            self._place(item, contexts[index], wide[:, query_start[index] : query_start[index + 1]], tables[index])
        on_device_wide, on_device_narrow = self._to_device(wide), self._to_device(narrow)
        batch = AttentionBatch(
            query_start=on_device_narrow[: count + 1],
            context_lens=on_device_narrow[count + 1 : 2 * count + 1],
            block_tables=on_device_narrow[2 * count + 1 :].view(count, widest),
            slot_mapping=on_device_wide[2],
            query_start_cpu=query_start,
            context_lens_cpu=contexts,
        )
        return on_device_wide[0], on_device_wide[1], batch

    def _place(
        self, item: ScheduledSequence, context: int, rows: npt.NDArray[np.int64], table: npt.NDArray[np.int32]
    ) -> None:
        """Fills (token ids, positions, slots) of one sequence's rows and its line of the block tables."""
        seq, size, start = item.seq, self.cache.block_size, item.seq.num_computed
        used = -(-context // size)
        table[:used] = seq.block_table[:used]
        # Padding names the sequence's own block: nothing another request wrote can reach it, not even as 0 * NaN.
        table[used:] = table[0]
        if item.num_new_tokens == 1:
            rows[0], rows[1] = seq.token_ids[start], start
            rows[2] = seq.block_table[start // size] * size + start % size
            return
        rows[0] = seq.token_ids[start:context]
        rows[1] = positions = np.arange(start, context)
        rows[2] = table[positions // size].astype(np.int64) * size + positions % size

    def _to_device(self, array: npt.NDArray[np.int64] | npt.NDArray[np.int32]) -> Tensor:
        tensor = torch.from_numpy(array)
        if self.device.type != "cuda":
            return tensor.to(self.device)
        return tensor.pin_memory().to(self.device, non_blocking=True)
