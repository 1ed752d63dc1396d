"""The paged cache of keys and values of all layers: its memory, its layout, its precision."""

from collections.abc import Sequence

import torch

from plimsoll.api.model import ModelFacts
from plimsoll.runtime.kernels.layer_cache import LayerCache
from plimsoll.runtime.machine.heap import advise_huge_pages


class KVCache:
    """One allocation [layers, 2, num_blocks, kv_heads, block_size, head_dim], every page of it touched, so that memory
    a pod was promised is memory it has.

    Attributes:
        layers: a `LayerCache` for each layer: views of the pool, which operations take.
    """

    def __init__(
        self, facts: ModelFacts, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        shape = (facts.num_layers, 2, num_blocks, facts.num_kv_heads, block_size, facts.head_dim)
        self.pool = torch.empty(shape, dtype=dtype, device=device)
        if device.type == "cpu":
            advise_huge_pages(self.pool.data_ptr(), self.pool.nbytes)
        self.pool.zero_()
        self.layers = tuple(LayerCache(layer[0], layer[1]) for layer in self.pool)

    @property
    def nbytes(self) -> int:
        """Bytes of the whole pool."""
        return self.pool.nbytes

    def clear(self, blocks: Sequence[int]) -> None:
        """Zeroes blocks: a request whose activations overflowed must leave no NaN behind for the next owner."""
        self.pool[:, :, torch.tensor(blocks, dtype=torch.int64, device=self.pool.device)] = 0
