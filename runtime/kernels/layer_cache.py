"""One layer's keys and values in paged blocks, as operations take them. Another precision is another class."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class LayerCache:
    """Keys and values as floats, each [blocks, kv_heads, block_size, head_dim]."""

    keys: Tensor
    values: Tensor

    @property
    def shape(self) -> torch.Size:
        """(blocks, kv_heads, block_size, head_dim)."""
        return self.keys.shape

    def write(self, k: Tensor, v: Tensor, slot_mapping: Tensor) -> None:
        """Puts row t of k, v [T, G, D] at slot_mapping[t] = block * block_size + offset."""
        block_size = self.shape[2]
        block = torch.div(slot_mapping, block_size, rounding_mode="floor")
        offset = slot_mapping % block_size
        self.keys[block, :, offset] = k.to(self.keys.dtype)
        self.values[block, :, offset] = v.to(self.values.dtype)

    def gather(self, blocks: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """(blocks [B, M]) -> keys and values, each [B, G, M * block_size, D]: in order, in one copy each."""
        _, kv_heads, _, head_dim = self.shape
        heads = torch.arange(kv_heads, dtype=blocks.dtype, device=blocks.device)
        # Where each head of each block lies in a cache seen as [blocks * G, S, D].
        places = (blocks.unsqueeze(1) * kv_heads + heads.view(1, -1, 1)).flatten()
        k, v = (
            cache.flatten(0, 1).index_select(0, places).view(len(blocks), kv_heads, -1, head_dim).to(dtype)
            for cache in (self.keys, self.values)
        )
        return k, v
