"""Rows of tokens on their way through the layers: all that a later layer needs of the earlier ones."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from plimsoll.runtime.kernels.table import AttentionBatch


@dataclass
class Rows:
    """Rows of a forward pass between two layers. Keys and values of the layers behind them are in the cache."""

    residual: Tensor
    """[T, hidden]."""
    positions: Tensor
    """int64 [T]."""
    batch: AttentionBatch
    hidden: Tensor | None = None
    """[T, hidden], normed for the next layer; None where that begins with the residual. May be the residual itself."""
    done: int = 0
    """Layers behind them."""

    def first(self, count: int) -> "Rows":
        """The first `count` rows of the only sequence. The others are as if they had not entered: of their keys and
        values in the cache, none is read by an earlier row."""
        batch, starts = self.batch, self.batch.query_start
        contexts = [batch.context_lens_cpu[0] - len(self.residual) + count]
        kept = replace(
            batch,
            query_start=torch.tensor([0, count], dtype=starts.dtype, device=starts.device),
            context_lens=torch.tensor(contexts, dtype=starts.dtype, device=starts.device),
            slot_mapping=batch.slot_mapping[:count],
            query_start_cpu=[0, count],
            context_lens_cpu=contexts,
        )
        hidden = None if self.hidden is None else self.hidden[:count]
        return Rows(self.residual[:count], self.positions[:count], kept, hidden, self.done)
