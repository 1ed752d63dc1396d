"""The paged cache of keys and values of all layers: its memory, its layout, its precision."""

from collections.abc import Sequence

import torch

from plimsoll.api.model import ModelFacts
from plimsoll.api.precision import CACHE_BITS, HeldCache
from plimsoll.runtime.kernels.layer_cache import LayerCache
from plimsoll.runtime.kernels.quantized_cache import QuantizedCache, block_bytes
from plimsoll.runtime.kernels.table import Cache
from plimsoll.runtime.machine.heap import advise_huge_pages


class KVCache:
    """One allocation, every page of it touched, so that memory a pod was promised is memory it has.

    Floats lie as [layers, 2, num_blocks, kv_heads, block_size, head_dim]; codes as uint8 [layers, 1, num_blocks,
    kv_heads, bytes] (`QuantizedCache`).

    Attributes:
        layers: one for each layer: views of the pool, which operations take.
        held: how numbers are held: a dtype's name, int8 or int4.
    """

    def __init__(
        self,
        facts: ModelFacts,
        num_blocks: int,
        block_size: int,
        dtype: torch.dtype,
        device: torch.device,
        precision: HeldCache = "float",
    ) -> None:
        """`precision`: float holds floats of `dtype`, int8 and int4 hold codes."""
        self.num_blocks = num_blocks
        self.block_size = block_size
        outer, bits = (num_blocks, facts.num_kv_heads), CACHE_BITS.get(precision)
        if bits is None:
            self.held = str(dtype).removeprefix("torch.")
            shape = (facts.num_layers, 2, *outer, block_size, facts.head_dim)
            self.pool = torch.empty(shape, dtype=dtype, device=device)
        else:
            self.held = precision
            wide = block_bytes(bits, block_size, facts.head_dim)
            self.pool = torch.empty((facts.num_layers, 1, *outer, wide), dtype=torch.uint8, device=device)
        if device.type == "cpu":
            advise_huge_pages(self.pool.data_ptr(), self.pool.nbytes)
        self.pool.zero_()
        self.layers: tuple[Cache, ...] = tuple(
            LayerCache(*parts) if bits is None else QuantizedCache(parts[0], bits, block_size, facts.head_dim)
            for parts in self.pool
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the whole pool."""
        return self.pool.nbytes

    def clear(self, blocks: Sequence[int]) -> None:
        """Zeroes blocks: a request whose activations overflowed must leave no NaN behind for the next owner."""
        self.pool[:, :, torch.tensor(blocks, dtype=torch.int64, device=self.pool.device)] = 0
