"""Writes and attention over the paged cache by the C kernels, as the table takes them."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plimsoll.runtime.kernels.native_checks import (
    answered,
    check_batch,
    check_cache,
    check_floats,
    check_integers,
)
from plimsoll.runtime.kernels.table import AttentionBatch, Cache


def _dense_heads(x: Tensor) -> Tensor:
    return x if x.stride(2) == 1 else x.contiguous()


def native_write_kv(function: Any, dtype: torch.dtype) -> Callable[[Tensor, Tensor, Cache, Tensor], None]:
    """`Kernels.write_kv` by the C function `write_kv`, for a cache of `dtype` or of codes."""

    def write_kv(k: Tensor, v: Tensor, cache: Cache, slot_mapping: Tensor) -> None:
        place = check_cache(dtype, cache)
        k, v = _dense_heads(k), _dense_heads(v)
        slot_mapping = check_integers(slot_mapping, torch.int64, "slots")
        check_floats(k=k, v=v)
        rows, kv_heads, dim = k.shape
        (k_row, k_head, _), (v_row, v_head, _) = k.stride(), v.stride()
        blocks, cache_heads, block_size, cache_dim = cache.shape
        fits = k.shape == v.shape and (kv_heads, dim) == (cache_heads, cache_dim)
        if not fits or len(slot_mapping) != rows:
            raise ValueError(f"keys {tuple(k.shape)} and {len(slot_mapping)} slots do not fit {tuple(cache.shape)}")
        failed = function(
            place.kind, k.data_ptr(), k_row, k_head, v.data_ptr(), v_row, v_head, place.keys, place.values,
            slot_mapping.data_ptr(), rows, blocks, kv_heads, block_size, dim,
        )  # fmt: skip
        answered(failed, f"a slot is not below {blocks * block_size}")

    return write_kv


def native_attention(
    function: Any, dtype: torch.dtype, take: Callable[[str, int, int], Tensor]
) -> Callable[[Tensor, Cache, AttentionBatch, float, int | None, float | None], Tensor]:
    """`Kernels.attention` by the C function `attention`, for a cache of `dtype` or of codes.

    Args:
        take: makes the tensor [rows, columns] of an operation's result.
    """

    def attention(
        q: Tensor,
        cache: Cache,
        batch: AttentionBatch,
        scale: float,
        window: int | None,
        softcap: float | None = None,
    ) -> Tensor:
        place = check_cache(dtype, cache)
        q = _dense_heads(q)
        rows, heads, dim = q.shape
        blocks, kv_heads, block_size, cache_dim = cache.shape
        if block_size % 16:
            raise ValueError(f"block size {block_size} must be a multiple of 16")
        if cache_dim != dim or not dim or not kv_heads or not heads or heads % kv_heads:
            raise ValueError(f"queries {tuple(q.shape)} do not fit the cache {tuple(cache.shape)}")
        check_floats(q=q)
        check_batch(batch)
        row, head, _ = q.stride()
        tables = batch.block_tables
        out = take("attention", rows, heads * dim)
        failed = function(
            q.data_ptr(), row, head, place.keys, place.values, place.kind, out.data_ptr(),
            batch.query_start.data_ptr(), batch.context_lens.data_ptr(), tables.data_ptr(),
            rows, tables.shape[0], tables.stride(0), blocks, heads, kv_heads, block_size, dim, scale, window or 0,
            softcap or 0.0,
        )  # fmt: skip
        answered(failed, "rows, contexts or blocks of a sequence lie outside the step or the cache")
        return out

    return attention
